#!/bin/sh
# Loads what comes on standard input and passes it on, as it comes, to the next node, which does
# the same; says what came of each.
# relay.sh SELF NODE DOCKER [SSH KEYS NODE DOCKER]...: the text of this script; for each further node
# the words that ssh needs to reach it from the one before, and the lines of known_hosts for it.
set -u
self=$1
node=$2
docker=$3
shift 3
load() {
    said=$($docker load 2>&1)
    printf '@@ of %s %s\n%s\n' "$node" "$?" "$said"
}
if [ $# = 0 ]; then
    load
    exit 0
fi
hop=$1
keys=$2
shift 2
quoted() {
    for word in "$@"; do
        printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}
folder=$(mktemp -d) || exit 98
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/next" && printf '%s' "$keys" >"$folder/known" || exit 98
next=$1
# shellcheck disable=SC2086 # the words for ssh are several
{
    ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 \
        -o UserKnownHostsFile="$folder/known ~/.ssh/known_hosts ~/.ssh/known_hosts2" \
        -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o LogLevel=ERROR $hop \
        "sh -c $(quoted "$self") relay $(quoted "$self" "$@")"
    code=$?
    [ $code = 0 ] || printf '@@ of %s %s\n' "$next" "$code"
} <"$folder/next" >"$folder/said" 2>&1 &
# Goes on when the next node does not.
tee -p "$folder/next" | load
wait
cat "$folder/said"
