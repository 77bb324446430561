#!/bin/sh
# Says what this node is and has, in parts, and then stays until its standard input ends: the
# lock, where it was asked for, is held exactly as long.
# probe.sh DOCKER LOCK WHO: the docker command; `lock` or nothing; who asks.
set -u
docker=$1
lock=$2
who=$3
newline='
'
part() { printf '\n@@ %s\n' "$1"; }

part node
id -un
id -Gn
date +%s
printf '%s\n' "${SSH_CONNECTION:-}"

part info
info=$($docker info --format '@root {{.DockerRootDir}}
{{json .}}' 2>&1)
printf '%s\n' "$info"
root=
case $info in
*'@root '*)
    root=${info#*@root }
    root=${root%%"$newline"*}
    ;;
esac

part images
ids=$($docker image ls --all --quiet --no-trunc 2>/dev/null | sort -u)
if [ -n "$ids" ]; then
    # A JSON document a line; an image whose content is damaged is left out.
    # shellcheck disable=SC2086 # it may be two words
    printf '%s\n' "$ids" | xargs $docker image inspect --format '{{json .}}' 2>/dev/null
fi

part content
case $info in
*io.containerd.snapshotter*)
    # As root where docker is called so; nobody else may ask.
    case $docker in
    sudo*) as='sudo -n' ;;
    *) as= ;;
    esac
    if command -v ctr >/dev/null 2>&1; then
        for socket in /run/containerd/containerd.sock /run/docker/containerd/containerd.sock; do
            if $as test -S "$socket" 2>/dev/null; then
                $as ctr --address "$socket" --namespace moby content ls --quiet 2>/dev/null && echo @whole
                # What has come of blobs in part: layer-sha256:…, and more.
                $as ctr --address "$socket" --namespace moby content active 2>/dev/null
            fi
        done
    fi
    ;;
esac

part disk
[ -z "$root" ] || df -PB1 "$root" /var/lib/containerd 2>/dev/null

part links
for link in /sys/class/net/*; do
    # One that is down, or has no speed, cannot be read.
    { read -r speed <"$link/speed"; } 2>/dev/null || speed=-1
    printf '%s %s\n' "${link##*/}" "$speed"
done
ip -o addr show 2>/dev/null | sed -n 's/^[0-9]*: *\([^ ]*\) *inet6* \([^ /]*\).*/@ \1 \2/p'

part receipts
state=${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts
cat "$state"/*.json 2>/dev/null

part lock
if [ "$lock" = lock ]; then
    folder=/run/lock
    { [ -d "$folder" ] && [ -w "$folder" ]; } || folder=/tmp
    file=$folder/sparkimage.lock
    [ -e "$file" ] || (umask 0 && : >"$file") 2>/dev/null
    if ! command -v flock >/dev/null 2>&1; then
        echo 'none: there is no flock on this node'
    elif ! exec 9<"$file"; then
        echo "none: $file cannot be read"
    elif flock --nonblock 9; then
        # A file of one's own: a shared folder may refuse to write that of another user.
        printf '%s\n' "$who" >"$file.$(id -u)" 2>/dev/null
        echo held
    else
        # shellcheck disable=SC2012 # the names are ours
        holder=$(ls -t "$file".* 2>/dev/null | head -n 1)
        printf 'busy: %s\n' "$([ -z "$holder" ] || cat "$holder")"
    fi
fi
part end
# The other side sends a dot every few seconds. Without one it is gone, even where no
# connection was ever closed.
while [ "$(timeout 60 head -c 1 9<&-)" = . ]; do :; done
