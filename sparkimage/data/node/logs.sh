#!/bin/sh
# What a container has said, on one stream. With --follow, which goes first, until its log or standard
# input ends: docker would not miss a reader before the next line.
# logs.sh DOCKER CONTAINER OPTION...: of docker logs.
docker=$1
container=$2
shift 2
if [ "${1:-}" != --follow ]; then
    # shellcheck disable=SC2086 # it may be two words
    exec $docker logs "$@" -- "$container" 2>&1
fi
# A shell gives what it starts beside itself no input.
exec 3<&0
$docker logs "$@" -- "$container" 2>&1 3<&- &
log=$!
{ cat <&3 && kill "$log"; } >/dev/null 2>&1 &
reader=$!
wait "$log"
code=$?
kill "$reader" 2>/dev/null
exit "$code"
