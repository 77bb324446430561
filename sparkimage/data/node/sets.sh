#!/bin/sh
# Says what was started here, in parts: where caches go, what this node's data address is to itself,
# every container of ours.
# sets.sh DOCKER HOST: the docker command; the node's data address, or nothing.
set -u
docker=$1
host=$2
part() { printf '\n@@ %s\n' "$1"; }

part cache
printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}"

part address
case $host in
'') ;;
*) getent ahosts "$host" 2>/dev/null | sed -n 's/ .*//p' | sort -u ;;
esac

part containers
ids=$($docker ps --all --quiet --no-trunc --filter label=dev.sparkimage.launch) || exit 89
if [ -n "$ids" ]; then
    # One that is removed at this moment is left out.
    # shellcheck disable=SC2086 # they are many; docker may be two words
    $docker container inspect --format '{{json .}}' $ids 2>/dev/null
fi
part end
exit 0
