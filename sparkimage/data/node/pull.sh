#!/bin/sh
# Pulls an image, and takes a part of it under a name of its own as soon as that part is unpacked:
# what has arrived stays when the rest does not come. Says `@@ kept NAME` of each.
# pull.sh DOCKER REPOSITORY HOW DIGEST (NAME DIGEST LAYER)...: the image, then of each part, from
# the lowest up, and LAYER as docker calls the highest one in it; the last is the image itself.
# HOW: `whole`, one pull for all, for an engine that says when it has unpacked a layer and lets a
# second pull by; or `parts`, one part after the other. The first line of standard input is the config.json with which
# docker may pull; where the input ends too early, all ends.
set -u
docker=$1
repository=$2
how=$3
whole=$4
shift 4
umask 077
folder=$(mktemp -d) || exit 98
watch=
trap 'kill $watch 2>/dev/null; rm -rf "$folder"' EXIT
trap 'exit 98' HUP TERM
IFS= read -r config || exit 98
printf '%s\n' "$config" >"$folder/config.json"
# A config has contexts of its own: the engine is to be the same.
host=$($docker context inspect --format '{{.Endpoints.docker.Host}}') || exit 94
exec 3<&0
{
    # A connection that ends may hang up on all of its session first.
    trap '' HUP PIPE
    cat >/dev/null
    rm -rf "$folder"
    kill 0
} <&3 >/dev/null 2>&1 &
watch=$!
pull() {
    $docker --config "$folder" --host "$host" pull "$@" </dev/null 2>&1
}
earlier=
last=
keep() { # NAME DIGEST
    $docker tag "$repository@$2" "$1" || return 1
    $docker rmi "$repository@$2" >/dev/null 2>&1
    [ -z "$earlier" ] || $docker rmi "$earlier" >/dev/null 2>&1
    earlier=$1
    printf '@@ kept %s\n' "$1"
}
if [ "$how" = parts ]; then
    while [ $# -gt 0 ]; do
        pull "$repository@$2" || exit 94
        keep "$1" "$2" || exit 94
        shift 3
    done
    exit
fi
{
    pull "$repository@$whole"
    echo "@@ code $?"
} | {
    while IFS= read -r line; do
        case $line in
        '@@ code 0')
            while [ $# -gt 3 ]; do shift 3; done
            keep "$1" "$2"
            exit
            ;;
        '@@ code '*)
            printf '%s\n' "$last"
            exit 94
            ;;
        "$3: Pull complete" | "$3: Already exists")
            # All of it is here: this brings nothing but its name.
            if [ $# -gt 3 ]; then
                pull --quiet "$repository@$2" >/dev/null && keep "$1" "$2"
                shift 3
            fi
            ;;
        esac
        last=$line
    done
    exit 94
}
