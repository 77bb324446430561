#!/bin/sh
# What a container has said, on one stream.
# logs.sh DOCKER CONTAINER OPTION...: of docker logs.
docker=$1
container=$2
shift 2
# shellcheck disable=SC2086 # it may be two words
exec $docker logs "$@" -- "$container" 2>&1
