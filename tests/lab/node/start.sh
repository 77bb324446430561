#!/bin/sh
# The node's first process: makes its disk, starts the engine and becomes sshd.
# STORE is overlay2 or containerd; DISK_BYTES, where it is set, the size of the node's own disk;
# OLDER_CLI, where it is set, makes `docker` that of Debian 13, if another one is installed over it;
# SPARK makes it look like a node with a GPU and RDMA to Docker.
set -eu
# cgroup v2 takes children only below a group without processes of its own.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/init
    xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || :
    sed 's/^/+/; s/ / +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi

disk=/disk
if [ -n "${DISK_BYTES:-}" ]; then
    truncate -s "$DISK_BYTES" /disk/image
    mkfs.ext4 -q -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard /disk/image
    # The kernel makes new loop devices in the machine's /dev only.
    n=0
    while [ "$n" -lt 64 ]; do
        [ -b "/dev/loop$n" ] || mknod "/dev/loop$n" b 7 "$n"
        n=$((n + 1))
    done
    disk=/disk/small
    mkdir -p "$disk"
    # What is freed inside is freed outside.
    mount -o loop,discard /disk/image "$disk"
fi
for part in docker containerd; do
    mkdir -p "$disk/$part"
    mount --bind "$disk/$part" "/var/lib/$part"
done

for home in /root /home/*; do
    user=$(basename "$home")
    install -d -m 700 -o "$user" -g "$user" "$home/.ssh"
    install -m 600 -o "$user" -g "$user" /etc/ssh/inter "$home/.ssh/id_ed25519"
done

[ -z "${OLDER_CLI:-}" ] || [ ! -e /usr/local/lib/older-docker ] ||
    mv /usr/local/lib/older-docker /usr/bin/docker

case $STORE in
containerd) echo '{"features": {"containerd-snapshotter": true}}' ;;
*) echo '{"features": {"containerd-snapshotter": false}, "storage-driver": "overlay2"}' ;;
esac >/etc/docker/daemon.json
if [ -n "${SPARK:-}" ]; then
    # dockerd looks for it as it starts.
    ln -s /usr/local/lib/nvidia-container-runtime-hook /usr/local/sbin/
    mkdir -p /dev/infiniband
    mknod /dev/infiniband/uverbs0 c 231 192
    mknod /dev/infiniband/rdma_cm c 10 58
    if ! prlimit --memlock=unlimited:unlimited true 2>/dev/null; then
        runc=$(command -v runc)
        mv "$runc" /usr/local/lib/runc
        mv /usr/local/lib/runc.sh "$runc"
    fi
fi
engine.sh start &

mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e
