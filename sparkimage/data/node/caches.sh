#!/bin/sh
# All that a node does with the compiled caches of a server. It runs in a container of the server's own image, as
# the same user, so that files are read and written with the rights of the server. /caches has a folder for each
# cache, and .saved: "KEY CONTENT" of each set that was saved from here or brought; /packs has what was brought.
# caches.sh VERB [WORD...]
set -u
LC_ALL=C
export LC_ALL
verb=$1
shift
cd /caches || exit 71

record() { # KEY CONTENT
    {
        grep -v "^$1 " .saved 2>/dev/null
        printf '%s %s\n' "$1" "$2"
    } >.saved.new && mv -f .saved.new .saved
}

merge() { # FROM TO: whole folders where there is none; a file that is there stays
    for item in "$1"/* "$1"/.[!.]*; do
        [ -e "$item" ] || continue
        to=$2/${item##*/}
        if [ ! -e "$to" ]; then
            mv "$item" "$to" || exit 74
        elif [ -d "$item" ] && [ -d "$to" ]; then
            (merge "$item" "$to") || exit 74
        fi
    done
}

unpack() { # KEY CONTENT keep|replace PART...
    key=$1
    content=$2
    mode=$3
    shift 3
    rm -rf .staged
    mkdir .staged && cd .staged || exit 72
    for part in "$@"; do
        tar -xof "/packs/$part.tar" || exit 73
        wrong=$(sha256sum -c "/packs/$part.sums" 2>&1 | grep -v ': OK$' | head -n 1)
        if [ -n "$wrong" ]; then
            rm -rf /caches/.staged
            echo "not what was saved: $wrong" >&2
            exit 75
        fi
    done
    cd ..
    if [ "$mode" = replace ]; then
        for cache in .staged/*; do rm -rf "./${cache##*/}"; done
    fi
    merge .staged . && record "$key" "$content" || exit 74
    rm -rf .staged
}

case $verb in
list) # NAME...: sha256 and path of each file of these caches
    for cache in "$@"; do
        [ ! -d "$cache" ] || find "$cache" -type f -exec sha256sum '{}' +
    done
    ;;
pack) # Standard input: paths. Standard output: an archive of them
    list=$(mktemp) || exit 72
    cat >"$list" && tar -cf - -T "$list"
    ;;
lacks) # Standard input: paths. Whether one of them is not there
    while IFS= read -r path; do
        [ -e "$path" ] || exit 1
    done
    ;;
record) record "$@" || exit 72 ;;
unpack) unpack "$@" ;;
esac
