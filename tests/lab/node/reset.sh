#!/bin/sh
# A node as it began: an engine that runs and holds nothing, nobody's state, an empty disk.
set -eu
pkill -CONT --exact dockerd || :
pkill -CONT --exact containerd || :
rm -f /disk/fill /disk/small/fill
ip route flush type blackhole
rm -rf /root/.local/state /home/*/.local/state

remove() {
    engine.sh start
    engine.sh ready
    docker ps --all --quiet | xargs -r docker rm --force --volumes >/dev/null
    docker image ls --all --quiet | sort -u | xargs -r docker rmi --force >/dev/null
}

holds() { # All that an engine has left after that, from a load that was broken off say
    docker image ls --all --quiet
    ctr --namespace moby content ls --quiet
    ctr --namespace moby snapshots --snapshotter overlayfs ls | tail -n +2
    ls -A /var/lib/docker/tmp
    ls /var/lib/docker/overlay2 2>/dev/null | grep -Ev '^l$|^backingFsBlockDev$' || :
}

remove || :
if [ -n "$(holds)" ]; then
    engine.sh kill
    pkill -KILL --full containerd-shim || :
    findmnt --raw --noheadings --output TARGET \
        | grep -E '^/(var/lib|run)/(docker|containerd)/' | sort -r | xargs -r umount --lazy
    find /var/lib/docker /var/lib/containerd -mindepth 1 -delete
    engine.sh start
    engine.sh ready
    echo wiped
fi
