#!/bin/sh
# Removes what earlier runs left, and the images that are named; never what a container uses.
# Then the receipts of images that are here no more. Says what its disks have free, before and after.
# clean.sh DOCKER ROOT REFERENCE...: ROOT is where docker keeps its data.
set -u
docker=$1
root=$2
shift 2
free() {
    printf '@@ free %s\n' "$1"
    df -PB1 "$root" /var/lib/containerd 2>/dev/null | tail -n +2 | sort -u
}
free before
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
free after
state=${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts
if [ -d "$state" ] && ids=$($docker image ls --all --quiet --no-trunc 2>/dev/null); then
    for file in "$state"/*.json; do
        [ -f "$file" ] || continue
        digest=sha256:$(basename "$file" .json)
        config=$(sed -n 's/.*"config":"\(sha256:[0-9a-f]*\)".*/\1/p' "$file")
        case $ids in
        *"$digest"* | *"${config:-none}"*) ;;
        *) rm -f "$file" ;;
        esac
    done
fi
