#!/bin/sh
# Gives two names back to what had them.
# undo.sh DOCKER NAME ID NAME ID: an empty id for a name that stood for nothing.
set -u
docker=$1
shift
code=0
while [ $# -gt 1 ]; do
    if [ -n "$2" ]; then
        $docker tag "$2" "$1" || code=87
    elif $docker image inspect "$1" >/dev/null 2>&1; then
        $docker rmi "$1" >/dev/null || code=88
    fi
    shift 2
done
exit $code
