#!/bin/sh
# Moves a name to an image, when it is told to; whoever told it may be gone by then.
# move.sh DOCKER NAME PREVIOUS TARGET FORMER FILE RECEIPT: ids of the image to be and of the one
# that has the name now (nothing: none has); a file of receipts to write (or nothing), and its text.
set -u
docker=$1
name=$2
previous=$3
target=$4
former=$5
file=$6
receipt=$7
trap '' HUP INT TERM PIPE
echo '@@ armed'
read -r word || exit 83
[ "$word" = go ] || exit 83
if [ -n "$former" ] && [ "$former" != "$target" ]; then
    $docker tag "$former" "$previous" || exit 84
fi
$docker tag "$target" "$name" || exit 85
if [ -n "$file" ]; then
    state=${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts
    (umask 077 && mkdir -p "$state" && printf '%s\n' "$receipt" >"$state/.$file.new" && mv "$state/.$file.new" "$state/$file") ||
        echo '@@ noreceipt'
fi
echo '@@ moved'
