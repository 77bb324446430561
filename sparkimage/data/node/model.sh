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
    command -v perl >/dev/null || { echo 'perl is missing there: install perl-base' && exit 71; }
    mkdir -p "$own/blobs" || exit 72
    pattern=$(readlink -f -- "$own/blobs" | sed 's/[][*?\\]/\\&/g')
    find /proc/[0-9]*/fd -lname "$pattern/*" 2>/dev/null | cut -d / -f 3 | xargs -r kill -KILL 2>/dev/null
    # The port of this node's sshd, as it sees it itself.
    connection=${SSH_CONNECTION:-22}
    printf '%s\n' "${connection##* }"
}

quoted() {
    for word in "$@"; do
        printf "'%s' " "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")"
    done
}

# Standard input: the number of lines; OFFSET LENGTH SHA256 of each piece; all their bytes. Writes the
# pieces, and checks what is whole meanwhile; what it says goes to descriptor 9. `carry on` passes all of
# it on to standard output as it comes. One process, and large reads: tee reads 8 KB at a time, and took
# with dd more of the processor than ssh does.
carry() { # NODE [on]
    cd "$own/blobs" && perl -e '
use strict;
use warnings;
use POSIX "WNOHANG";
use constant MOST => 500; # files in one command line

my ($node, $on) = @ARGV;
my ($data, $at, $end) = ("", 0, 0);
my ($file, $checking, @whole);
my $keeps = 1;
$SIG{PIPE} = "IGNORE";
open my $said, ">&=", 9 or die $!;
fcntl $_, 1031, 1 << 20 for *STDIN, *STDOUT; # F_SETPIPE_SZ; the default is 64 KB

sub say_ { syswrite $said, "@@ $node @_\n" }

sub failed {
    say_("failed", @_);
    $keeps = 0;
}

sub put { # FILE BYTES: of what came, from where it is; whether all was written
    my ($to, $left, $from) = (@_, $at);
    while ($left) {
        my $count = syswrite($to, $data, $left, $from) // return 0;
        ($left, $from) = ($left - $count, $from + $count);
    }
    return 1;
}

sub come { # Something that has not been taken yet is there; ends with the input
    return if $at < $end;
    ($at, $end) = (0, sysread(STDIN, $data, 1 << 20) || 0);
    finish() unless $end && ($on || $keeps);
    # Goes on when the next node, or the disk of this one, does not.
    $on = 0 if $on && !put(*STDOUT, $end);
}

sub line {
    my $line = "";
    until ($line =~ /\n/) {
        come();
        my $till = 1 + index $data, "\n", $at;
        $till = $end if !$till || $till > $end;
        $line .= substr $data, $at, $till - $at;
        $at = $till;
    }
    return split " ", $line;
}

sub check { # Whether what has arrived whole is that. Few processes, however many files
    check(splice @_, 0, MOST) while @_ > MOST;
    my @right;
    my $sums = qx(sha256sum -- @{[map { "$_.part" } @_]});
    for my $sha (@_) {
        if ($sums =~ /^$sha  $sha\.part$/m) {
            push @right, $sha;
        } else {
            unlink "$sha.part";
            say_("damaged", $sha);
        }
    }
    return unless @right;
    my ($why) = qx(sync -- @{[map { "$_.part" } @right]} 2>&1);
    return say_("failed", $why =~ s/\n//r) if $?;
    for my $sha (@right) {
        rename "$sha.part", $sha or return say_("failed", "$sha: $!");
        say_("proven", $sha);
    }
}

sub begin_check {
    return if !@whole || $checking && !waitpid $checking, WNOHANG;
    $checking = fork // return;
    if (!$checking) {
        detach();
        check(@whole);
        POSIX::_exit(0);
    }
    @whole = ();
}

sub detach { # The next node sees the end
    open STDIN, "<", "/dev/null";
    open STDOUT, ">", "/dev/null";
}

sub finish {
    detach();
    waitpid $checking, 0 if $checking;
    check(@whole) if @whole;
    exit;
}

my ($count) = line();
for my $piece (map { [line()] } 1 .. $count) {
    my ($offset, $left, $sha) = @$piece;
    my $skip = (-s "$sha.part" || 0) - $offset;
    if ($keeps) {
        if ($skip < 0) {
            failed("$sha.part became shorter");
        } elsif (!open $file, ">>", "$sha.part") {
            failed("$sha.part: $!");
        }
    }
    while ($left) {
        come();
        my $part = $end - $at < $left ? $end - $at : $left;
        $left -= $part;
        my $known = $skip < $part ? $skip > 0 ? $skip : 0 : $part;
        $skip -= $known;
        $at += $known;
        $part -= $known;
        failed("$sha.part: $!") if $keeps && !put($file, $part);
        $at += $part;
    }
    next unless $keeps;
    close $file;
    push @whole, $sha;
    begin_check();
}
finish();
' "$@"
}

relay() { # SELF NODE [SSH KEYS NODE]...: takes what comes, and passes it on to the next node as it comes
    self=$1
    node=$2
    shift 2
    # By this `ready` finds all processes of a relay.
    exec 8>"$own/blobs/.relay" 9>&1 || exit 72
    if [ $# = 0 ]; then
        carry "$node"
        return
    fi
    temporary=$(mktemp -d) || exit 98
    trap 'rm -rf "$temporary"' EXIT
    hop=$1
    printf '%s' "$2" >"$temporary/known"
    next=$3
    shift 2
    carry "$node" on | {
        # shellcheck disable=SC2086 # the words for ssh are several
        ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 \
            -o UserKnownHostsFile="$temporary/known ~/.ssh/known_hosts ~/.ssh/known_hosts2" \
            -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o LogLevel=ERROR \
            -o Compression=no -o Ciphers=^aes128-gcm@openssh.com $hop \
            "sh -c $(quoted "$self") model relay $(quoted "$given" "$self" "$@")" \
            2>"$temporary/said"
        code=$?
        [ $code = 0 ] || printf '@@ %s cut %s %s %s\n' "$node" "$next" "$code" \
            "$(tail -n 1 "$temporary/said")"
    } | cat >&9
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
