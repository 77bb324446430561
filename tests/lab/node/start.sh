#!/bin/sh
# The node's first process: starts dockerd and becomes sshd.
set -eu
# cgroup v2 takes children only below a group without processes of its own.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/init
    xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || :
    sed 's/^/+/; s/ / +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi
mkdir -p /run/sshd
# The outer network's MTU holds for the inner one.
mkdir -p /etc/docker
echo '{"features": {"containerd-snapshotter": true}}' >/etc/docker/daemon.json
dockerd --mtu "$(cat /sys/class/net/eth0/mtu)" >/var/log/dockerd.log 2>&1 &
exec /usr/sbin/sshd -D -e -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password
