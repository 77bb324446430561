#!/bin/sh
# Ends containers and removes them; one that is gone already is no failure.
# end.sh DOCKER SECONDS CONTAINER...: so long they may take to end by themselves.
set -u
docker=$1
grace=$2
shift 2
code=0
# All at once: each may take its time.
$docker stop --time "$grace" "$@" >/dev/null 2>&1
for container in "$@"; do
    said=$($docker rm --force "$container" 2>&1) && continue
    case $said in
    *'No such container'* | *'already in progress'*) ;;
    *)
        printf '%s\n' "$said"
        code=79
        ;;
    esac
done
exit $code
