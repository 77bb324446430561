#!/bin/sh
# Moves a name to an image, when it is told to; whoever told it may be gone by then.
# move.sh DOCKER NAME PREVIOUS TARGET FORMER STAGING FILE RECEIPT: ids of the image to be and of
# the one that has the name now (nothing: none has); the staging name to give up (or nothing);
# a file of receipts to write (or nothing), and its text.
set -u
docker=$1
name=$2
previous=$3
target=$4
former=$5
staging=$6
file=$7
receipt=$8
trap '' HUP INT TERM PIPE
# One question for both: those that are there answer, in this order.
now=$($docker image inspect --format '{{.Id}}' "$target" "$name" 2>/dev/null | tr '\n' ' ')
case $now in
"$target ${former:+$former }") ;;
"$target "*)
    echo "@@ changed ${now#"$target "}"
    exit 81
    ;;
*)
    # An engine that does not answer says why; then nothing is known of the image.
    $docker version >/dev/null || exit 86
    echo '@@ gone'
    exit 82
    ;;
esac
echo '@@ armed'
read -r word || exit 83
[ "$word" = go ] || exit 83
if [ -n "$former" ] && [ "$former" != "$target" ]; then
    $docker tag "$former" "$previous" || exit 84
fi
$docker tag "$target" "$name" || exit 85
[ -z "$staging" ] || $docker rmi "$staging" >/dev/null
if [ -n "$file" ]; then
    state=${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts
    (umask 077 && mkdir -p "$state" && printf '%s\n' "$receipt" >"$state/.$file.new" && mv "$state/.$file.new" "$state/$file") ||
        echo '@@ noreceipt'
fi
echo '@@ moved'
