#!/bin/sh
# All that a node does for the folder of a model. Beside NAME lies .NAME.sparkimage, with
#   blobs/SHA256   files that have arrived and are proven; SHA256.part one that has not
#   new/           the folder to be; previous/ the one before
#   manifest       "SHA256 BYTES PATH" of each file of the folder when it was proven
#   listing        what `list` said of the folder then: what differs has changed since
#   moving         exists from the move until `clean`
# model.sh VERB FOLDER [WORD...]
set -u
LC_ALL=C
export LC_ALL
verb=$1
given=$2
shift 2
folder=$given
[ ! -L "$folder" ] || folder=$(readlink -f -- "$folder")
own=${folder%/*}/.${folder##*/}.sparkimage

part() { printf '@@ %s\n' "$1"; }

list() { # FOLDER: bytes, inode, time and path of each file; links are followed, hidden files left out
    (cd "$1" && find -L . -name '.?*' -prune -o -type f -exec stat -L -c '%s %i %.9Y %n' '{}' +) \
        2>/dev/null | sort
}

is_there() { [ -e "$1" ] || [ -L "$1" ]; }

look() {
    place=${folder%/*}
    while [ ! -e "${place:-/}" ]; do place=${place%/*}; done
    place=${place:-/}
    part state
    if ! is_there "$folder"; then
        echo state=missing
    elif [ ! -d "$folder" ] || [ ! -r "$folder" ] || [ ! -x "$folder" ]; then
        echo state=closed
    elif [ "$(stat -c %d "$folder")" != "$(stat -c %d "$place")" ]; then
        echo state=mount
    else
        echo state=folder
    fi
    printf 'place=%s\n' "$place"
    [ ! -w "$place" ] || { [ -e "$own" ] && [ ! -w "$own" ]; } || echo writable=yes
    df -Pk "$place" | { read -r _ && read -r _ _ _ free _ && printf 'free=%s\n' "$free"; }
    [ ! -e "$own/previous" ] || echo previous=yes
    part manifest
    cat "$own/manifest" 2>/dev/null
    part listing
    cat "$own/listing" 2>/dev/null
    part files
    [ ! -d "$folder" ] || list "$folder"
    part staged
    (cd "$own/blobs" 2>/dev/null && stat -c '%s %n' -- *) 2>/dev/null
    part end
}

ready() { # Makes room for what comes. Whoever calls has the lock: a relay that still runs is a lost one
    mkdir -p "$own/blobs" || exit 72
    pattern=$(readlink -f -- "$own/blobs" | sed 's/[][*?\\]/\\&/g')
    find /proc/[0-9]*/fd -lname "$pattern/*" 2>/dev/null | cut -d / -f 3 | xargs -r kill -KILL 2>/dev/null
    return 0
}

say() { printf '@@ %s %s\n' "$node" "$*"; }

failed() { # FILE: with what was said
    IFS= read -r why <"$1"
    say "failed $why"
    return 1
}

check() { # SHA256...: whether what has arrived whole is that. Few processes, however many files
    cd "$own/blobs" || return
    sums=$(printf '%s.part\n' "$@" | xargs sha256sum --)
    right=
    for sha in "$@"; do
        case $sums in
        *"$sha  $sha.part"*) right="$right $sha" ;;
        *)
            rm -f "$sha.part"
            say "damaged $sha"
            ;;
        esac
    done
    # shellcheck disable=SC2086 # the words of the list
    [ -z "$right" ] || printf '%s.part\n' $right | xargs sync -- 2>"$temporary/wrong" ||
        failed "$temporary/wrong" || return
    for sha in $right; do
        mv -- "$sha.part" "$sha" 2>"$temporary/wrong" || failed "$temporary/wrong" || return
        say "proven $sha"
    done
}

receive() { # Pieces of the list, from standard input, until it ends; what is whole is checked meanwhile
    there=$(cd "$own/blobs" && stat -c ' %n=%s' -- *.part 2>/dev/null)
    checks=0
    : >"$temporary/checked.0"
    while read -r offset length sha <&3; do
        had=0
        case $there in
        *" $sha.part="*)
            had=${there#*" $sha.part="}
            had=${had%%[!0-9]*}
            ;;
        esac
        skip=$((had - offset))
        if [ "$skip" -lt 0 ]; then
            echo "$sha.part became shorter" >"$temporary/why"
            failed "$temporary/why" || return
        fi
        [ "$skip" -le "$length" ] || skip=$length
        dd bs=1M iflag=fullblock,count_bytes,skip_bytes skip="$skip" count=$((length - skip)) \
            of="$own/blobs/$sha.part" oflag=append conv=notrunc 2>"$temporary/why" ||
            failed "$temporary/why" || return
        { read -r _ && read -r _ && read -r bytes _; } <"$temporary/why"
        # The input has ended.
        [ "$bytes" = $((length - skip)) ] || return
        whole="$whole $sha"
        if [ -e "$temporary/checked.$checks" ]; then
            checks=$((checks + 1))
            # shellcheck disable=SC2086 # the words of the list
            { (check $whole) && : >"$temporary/checked.$checks"; } &
            whole=
        fi
    done 3<"$temporary/list"
}

take() { # Standard input: the number of lines; OFFSET LENGTH SHA256 of each piece; all their bytes
    read -r count || return
    while [ "$count" -gt 0 ]; do
        IFS= read -r line || return
        printf '%s\n' "$line"
        count=$((count - 1))
    done >"$temporary/list"
    whole=
    receive
    wait
    # shellcheck disable=SC2086 # the words of the list
    [ -z "$whole" ] || (check $whole)
}

quoted() {
    for word in "$@"; do
        printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}

relay() { # SELF NODE [SSH NODE]...: takes what comes, and passes it on to the next node as it comes
    self=$1
    node=$2
    shift 2
    temporary=$(mktemp -d) || exit 98
    trap 'rm -rf "$temporary"' EXIT
    # By this `ready` finds all processes of a relay.
    exec 8>"$own/blobs/.relay" || exit 72
    if [ $# = 0 ]; then
        take
        return
    fi
    hop=$1
    next=$2
    shift
    mkfifo "$temporary/next" || exit 98
    {
        # shellcheck disable=SC2086 # the words for ssh are several
        ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 \
            -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o LogLevel=ERROR \
            -o Compression=no -o Ciphers=^aes128-gcm@openssh.com $hop \
            "sh -c $(quoted "$self") model relay $(quoted "$given" "$self" "$@")" \
            <"$temporary/next" 2>"$temporary/said"
        code=$?
        [ $code = 0 ] || say "cut $next $code $(tail -n 1 "$temporary/said")"
    } | cat &
    # Goes on when the next node, or this one's disk, does not.
    tee -p "$temporary/next" | take
    wait
}

read_manifest() { # Standard input up to the line @@
    while IFS= read -r line && [ "$line" != @@ ]; do
        printf '%s\n' "$line"
    done >"$own/manifest.new"
}

record() { # Standard input: the manifest, @@, the listing of the folder as it is
    mkdir -p "$own" && read_manifest && cat >"$own/listing.new" &&
        mv "$own/manifest.new" "$own/manifest" && mv "$own/listing.new" "$own/listing"
}

build() { # Standard input: the manifest, @@, then two lines for each file: KIND FROM, and its path
    mkdir -p "$own" || exit 72
    if [ -e "$own/moving" ]; then
        # A run was cut off in the move, or after it.
        if is_there "$folder"; then clean_move; else undo; fi
    fi
    rm -rf "$own/new"
    mkdir "$own/new" && read_manifest || exit 72
    made=
    while IFS= read -r line && IFS= read -r path; do
        to=$own/new/$path
        if [ "$made" != "${to%/*}" ]; then
            made=${to%/*}
            mkdir -p "$made" || exit 72
        fi
        from=${line#* }
        case $line in
        link\ *)
            ln -s -- "$from" "$to" || exit 73
            continue
            ;;
        blob\ *) from=$own/blobs/$from ;;
        old\ *) from=$folder/$from ;;
        esac
        ln -L -- "$from" "$to" 2>/dev/null || cp -- "$from" "$to" || exit 73
    done
    list "$own/new" >"$own/listing.new"
    cat "$own/listing.new"
}

shift_to() { # FROM TO, where there is one
    ! is_there "$1" || mv -T -- "$1" "$2"
}

move() { # Replaces the folder, when it is told to; whoever told it may be gone by then
    trap '' HUP INT TERM PIPE
    [ -d "$own/new" ] || exit 82
    echo '@@ armed'
    read -r word && [ "$word" = go ] || exit 83
    : >"$own/moving"
    shift_to "$own/previous" "$own/older" && shift_to "$folder" "$own/previous" || exit 84
    mv -T -- "$own/new" "$folder" || exit 85
    for file in manifest listing; do
        shift_to "$own/$file" "$own/$file.old" && mv "$own/$file.new" "$own/$file" || exit 86
    done
    echo '@@ moved'
}

undo() { # Takes back what `move` has done, as far as it came
    [ -e "$own/moving" ] || return 0
    if [ ! -d "$own/new" ]; then
        shift_to "$folder" "$own/new" || exit 87
    fi
    if ! is_there "$folder"; then
        shift_to "$own/previous" "$folder" || exit 88
    fi
    shift_to "$own/older" "$own/previous"
    for file in manifest listing; do
        [ -e "$own/$file.new" ] || shift_to "$own/$file" "$own/$file.new"
        shift_to "$own/$file.old" "$own/$file"
    done
    rm -f "$own/moving"
}

clean_move() {
    rm -rf "$own/older" "$own/manifest.old" "$own/listing.old" "$own/moving"
}

used() { # FOLDER...: kilobytes
    du -skc -- "$@" 2>/dev/null | tail -n 1 | cut -f 1
}

collect() { # [dry]: removes all but the folder and its record
    before=$(used "$folder" "$own")
    kept=$(used "$folder")
    if [ "${1:-}" != dry ]; then
        rm -rf "$own/blobs" "$own/new" "$own/previous" "$own"/*.new || exit 74
        clean_move
        [ -e "$folder" ] || rm -rf "$own"
        kept=$(used "$folder" "$own")
    fi
    printf '@@ freed %s\n' "$((before - kept))"
}

case $verb in
look) look ;;
hash)
    cd "$folder" && tr '\n' '\0' | xargs -0 -r -n 1 -P 4 sha256sum --
    ;;
ready) ready ;;
relay) relay "$@" ;;
watch)
    # Bytes that have arrived, every second until standard input ends.
    until timeout 1 cat >/dev/null; do
        stat -c %s "$own"/blobs/* 2>/dev/null | {
            total=0
            while read -r size; do total=$((total + size)); done
            echo "$total"
        }
    done
    ;;
record) record || exit 72 ;;
build) build ;;
move) move ;;
undo) undo ;;
clean)
    rm -rf "$own/blobs"
    clean_move
    ;;
distrust) rm -f "$own/listing" ;;
collect) collect "$@" ;;
esac
