#!/bin/sh
# reset.sh STORE
# A node as it began: an engine that runs and holds nothing, nobody's state, an empty disk. What an
# engine holds is removed by its own means, which costs a third of a new start of it on a new disk.
set -eu
store=$1
pkill -CONT --exact dockerd || :
pkill -CONT --exact containerd || :
rm -f /disk/fill /disk/small/fill
ip route flush type blackhole
rm -rf /root/.local/state /home/*/.local/state

end_containers() { # dockerd would give each of a crashed engine 10 seconds
    own=$(readlink /proc/self/ns/pid)
    for process in /proc/[0-9]*; do
        namespace=$(readlink "$process/ns/pid") || continue
        [ "$namespace" = "$own" ] || kill -KILL "${process#/proc/}" || :
    done
}

lists_nothing() { # PATH of the engine's API; a start of docker costs ten times as much
    said=$(printf 'GET %s HTTP/1.0\r\n\r\n' "$1" \
        | timeout 60 socat -t 60 - UNIX-CONNECT:/run/docker.sock,shut-none | sed '1,/^\r$/d') || :
    [ "$said" = '[]' ]
}

forget_manifests() { # A pull leaves an image's manifest with containerd, on overlay2 too
    [ -z "$(ls -A /var/lib/containerd/io.containerd.content.v1.content/blobs/sha256 2>/dev/null)" ] \
        || ctr --namespace moby content ls --quiet | xargs -r ctr --namespace moby content rm >/dev/null
}

remove() {
    [ "$store" != overlay2 ] || forget_manifests || :
    lists_nothing '/containers/json?all=1' && lists_nothing '/images/json?all=1' && return
    engine.sh start
    timeout 60 engine.sh ready
    docker ps --all --quiet | xargs -r docker rm --force --volumes >/dev/null
    docker image ls --all --quiet | sort -u | xargs -r docker rmi --force >/dev/null
}

holds() { # All that an engine has left after that, from a load that was broken off say
    lists_nothing '/images/json?all=1' || echo images
    [ "$store" = overlay2 ] || {
        ctr --namespace moby content ls --quiet || echo unknown
        ctr --namespace moby content active | tail -n +2
        ctr --namespace moby leases ls --quiet
        ctr --namespace moby snapshots --snapshotter overlayfs ls | tail -n +2
    }
    ls -A /var/lib/docker/tmp
    # Records that outlived the files of a damaged layer.
    find /var/lib/docker/image/*/layerdb/sha256 /var/lib/docker/image/*/imagedb/content/sha256 \
        -mindepth 1 -maxdepth 1 2>/dev/null || :
    for layer in /var/lib/docker/overlay2/*; do
        case $layer in
        */'*' | */l | */backingFsBlockDev) ;;
        *) echo "$layer" ;;
        esac
    done
}

pgrep --exact dockerd >/dev/null || end_containers
remove || :
if [ -n "$(holds)" ]; then
    engine.sh kill
    end_containers
    pkill -KILL --full containerd-shim || :
    findmnt --raw --noheadings --output TARGET \
        | grep -E '^/(var/lib|run)/(docker|containerd)/' | sort -r | xargs -r umount --lazy
    find /var/lib/docker /var/lib/containerd -mindepth 1 -delete
    engine.sh start
    timeout 300 engine.sh ready
    echo wiped
fi
