#!/bin/sh
# Shows that a container can be made of an image that is here.
# prove.sh DOCKER IMAGE
set -u
docker=$1
made=$($docker create --label dev.sparkimage.proof=1 --network none --entrypoint /proof "$2") || exit 95
$docker rm "$made" >/dev/null || exit 96
