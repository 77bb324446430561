#!/bin/sh
# Removes what earlier runs left, and the images that are named; never what a container uses.
# clean.sh DOCKER REFERENCE...
set -u
docker=$1
shift
for left in $($docker ps --all --quiet --filter label=dev.sparkimage.proof); do
    $docker rm "$left" >/dev/null 2>&1
done
for reference in "$@"; do
    if said=$($docker rmi "$reference" 2>&1); then
        printf '@@ removed %s\n' "$reference"
    else
        printf '@@ kept %s %s\n' "$reference" "$(printf '%s' "$said" | tail -n 1)"
    fi
done
