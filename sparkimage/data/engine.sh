#!/bin/sh
# The steps of the private engine that need root, each a verb of its own:
#
#   finish ROOT UID                             complete an unpacked tree of packages
#   start  ENGINE RUN BRIDGE POOL GATEWAY MTU   start dockerd in the background
#   signal NAME PID...                          send a signal to the processes named
#   clean  ENGINE RUN BRIDGE CGROUP             remove what a stopped engine left in the kernel
#   own    SOCKET USER                          give the socket to a user
#   binfmt NAME MAGIC MASK INTERPRETER          register an emulator (by these very names)
#   unbinfmt NAME                               and remove it
#   purge  ENGINE RUN                           remove the engine's folder; 3: a mount is below it
#
# The host keeps its packages: dockerd runs in a mount namespace where /usr is the engine's tree
# and all else is the host's, so that `-v /home/...:/x` means what it says.
set -eu

verb=$1
shift
binfmt=/proc/sys/fs/binfmt_misc

# Runs a verb of this file where /usr is the tree's. Mounts made there never show outside.
enter() {
    exec unshare --mount --propagation private -- sh "$0" "$@"
}

take_tree() {
    if [ -d /lib/modules ]; then
        mkdir -p "$1/usr/lib/modules"
        mount --bind /lib/modules "$1/usr/lib/modules"
    fi
    mount --rbind "$1/usr" /usr
    export PATH=/usr/local/sbin:/usr/sbin:/usr/bin
}

# Rules and the bridge carry the bridge's name, and nothing without it is touched.
clean_network() {
    for table in nat filter; do
        iptables -w -t "$table" -S | while read -r _ rule; do
            case $rule in
            *"--comment $1 "*)
                # shellcheck disable=SC2086 # a rule is its words
                iptables -w -t "$table" -D $rule
                ;;
            esac
        done
    done
    for link in "$@"; do
        if [ -d "/sys/class/net/$link/bridge" ]; then
            ip link delete dev "$link" type bridge
        fi
    done
}

case $verb in
finish)
    # What the maintainer scripts would have done. iptables comes by update-alternatives:
    # https://wiki.debian.org/iptables
    mkdir -p "$1/usr/local/sbin"
    for family in iptables ip6tables; do
        for name in "$family" "$family-save" "$family-restore"; do
            ln -sf /usr/sbin/xtables-nft-multi "$1/usr/local/sbin/$name"
        done
    done
    # Only usr/ is used; the rest would be half a system.
    rm -rf --one-file-system "${1:?}/etc" "${1:?}/var" "${1:?}/tmp" "${1:?}/dev" "${1:?}/run"
    chmod 0755 "$1"
    chown "$2" "$1"
    ;;
start)
    mkdir -p "$1/data" "$2"
    rm -f "$2/docker.sock" "$2/docker.pid"
    setsid unshare --mount --propagation private -- sh "$0" run "$@" \
        </dev/null >>"$1/log" 2>&1 &
    echo $!
    ;;
run)
    engine=$1 run=$2 bridge=$3 pool=$4 gateway=$5 mtu=$6
    take_tree "$engine/root"
    # The folder that this was called from may go; git, which dockerd calls, dies in one that is gone.
    cd /
    clean_network "$bridge"
    ip link add name "$bridge" type bridge
    ip address add "$gateway" dev "$bridge"
    ip link set dev "$bridge" up
    # dockerd's own rules are shared by name between daemons, and each removes them at its start:
    # so it is told to make none, and these stand in for them.
    iptables -w -t nat -I POSTROUTING -s "$pool" ! -d "$pool" \
        -m comment --comment "$bridge" -j MASQUERADE
    iptables -w -I FORWARD -s "$pool" -m comment --comment "$bridge" -j ACCEPT
    iptables -w -I FORWARD -d "$pool" -m conntrack --ctstate RELATED,ESTABLISHED \
        -m comment --comment "$bridge" -j ACCEPT
    exec dockerd --config-file "$engine/daemon.json" --data-root "$engine/data" \
        --exec-root "$run" --pidfile "$run/docker.pid" --host "unix://$run/docker.sock" \
        --group 0 --iptables=false --bridge "$bridge" --mtu "$mtu"
    ;;
signal)
    name=$1
    shift
    for pid in "$@"; do
        kill -s "$name" "$pid" 2>/dev/null || true # it may have ended by itself
    done
    ;;
clean)
    engine=$1 run=$2 bridge=$3 cgroup=$4
    # A network of a user's own is a bridge named by its id, which dockerd leaves behind at its
    # end and makes again at its start. Its list of networks says which ones are this engine's.
    links=$bridge
    for link in /sys/class/net/br-*; do
        if [ -d "$link" ] && grep -aqF "${link##*/br-}" \
            "$engine/data/network/files/local-kv.db" 2>/dev/null; then
            links="$links ${link##*/}"
        fi
    done
    find /sys/fs/cgroup -depth -type d -path "*/$cgroup*" -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$run"
    if [ -d "$engine/root/usr" ]; then
        # shellcheck disable=SC2086 # a list of names without spaces
        enter unlink "$engine/root" $links
    fi
    ;;
unlink)
    take_tree "$1"
    shift
    clean_network "$@"
    ;;
own)
    chown "$2" "$1"
    chmod 0600 "$1"
    ;;
binfmt)
    if [ ! -e "$binfmt/register" ]; then
        modprobe binfmt_misc 2>/dev/null || true # or it is built in
        mount -t binfmt_misc none "$binfmt"
    fi
    if [ -e "$binfmt/$1" ]; then
        printf '%s' -1 >"$binfmt/$1"
    fi
    printf '%s' ":$1:M::$2:$3:$4:OCF" >"$binfmt/register"
    ;;
unbinfmt)
    if [ -e "$binfmt/$1" ]; then
        printf '%s' -1 >"$binfmt/$1"
    fi
    ;;
purge)
    # rm would go through a mount of the same file system.
    if cut -d " " -f 5 /proc/self/mountinfo | grep -F "$1/"; then
        echo "something is still mounted below $1" >&2
        exit 3
    fi
    rm -rf --one-file-system "$1" "$2"
    ;;
*)
    echo "unknown verb: $verb" >&2
    exit 2
    ;;
esac
