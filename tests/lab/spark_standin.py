"""Makes a node of the lab look like a DGX Spark to whoever reads its facts: a stand-in for what no
machine of ours has (GPU, driver, ConnectX-7). All else of the node stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.fleet import Fleet
from tests.lab.node import Node, put

LINK, HCA = "enp1s0f1np1", "rocep1s0f1"
SMI = """\
#!/bin/sh
# Stands in for nvidia-smi.
case $1 in
--query-gpu*)
    free=$(cat /run/gpu-free 2>/dev/null || echo 122000)
    echo "0, NVIDIA GB10, 580.95.05, 122502, GPU-0, $free" ;;
--version) echo 'CUDA Version        : 13.0' ;;
esac
"""
CLASSES = """
# The machine's own is not to be changed.
mount -t tmpfs tmpfs /sys/class
mkdir /sys/class/net
ln -s /sys/devices/virtual/net/eth0 /sys/devices/virtual/net/lo /sys/class/net/
# DEVICE INTERFACE ADDRESS: an RDMA device whose interface has this IPv4 address.
device() {
    port=/sys/class/infiniband/$1/ports/1
    mkdir -p "/sys/class/infiniband/$1/device/net/$2"
    mkdir -p "$port/gids" "$port/gid_attrs/types" "$port/gid_attrs/ndevs"
    echo '4: ACTIVE' >"$port/state"
    echo Ethernet >"$port/link_layer"
    echo '200 Gb/sec (4X HDR)' >"$port/rate"
    echo 'RoCE v2' >"$port/gid_attrs/types/3"
    IFS=. read -r a b c d <<EOF
$3
EOF
    printf '0000:0000:0000:0000:0000:ffff:%02x%02x:%02x%02x\\n' "$a" "$b" "$c" "$d" >"$port/gids/3"
}
"""
WITH_RDMA = f'{CLASSES}\ndevice "$@"\n'
"""DEVICE INTERFACE ADDRESS: gives a node this RDMA device, and no other one."""
DRESS = f"""{CLASSES}
ip link add {LINK} mtu 9000 type veth peer name {LINK}p
ip addr add "$1/24" dev {LINK}
ip link set {LINK}p up
ip link set {LINK} up
device {HCA} {LINK} "$1"
mkdir -p /sys/class/net/{LINK} /dev/infiniband
cd /sys/class/net/{LINK}
echo 200000 >speed
echo 9000 >mtu
echo up >operstate
mknod /dev/infiniband/uverbs0 c 231 192
mknod /dev/infiniband/rdma_cm c 10 120
shift
# ADDRESS VIA...: the other nodes' fast interfaces, over the network that there is.
while [ $# -gt 0 ]; do
    ip route add "$1/32" via "$2"
    shift 2
done
"""
UNDRESS = f"""
umount /sys/class || :
ip link delete {LINK} || :
ip -4 route show | sed -n 's/^\\(192\\.168\\.100\\.[0-9]*\\) via .*/\\1/p' |
    xargs -r -n 1 ip route delete
rm -rf /dev/infiniband /models /usr/local/bin/nvidia-smi /usr/local/bin/date \\
    /usr/local/bin/nvidia-container-runtime-hook
# What listens for a test; the node's own ways to the others stay.
pkill --full '^socat TCP-LISTEN:[0-9]+,fork /dev/null' || :
"""
MODEL = {
    "/models/m/config.json": b"{}",
    "/models/m/a.safetensors": b"x" * 1000,
    "/models/m/tokenizer.json": b"{}",
    "/models/m/model.safetensors.index.json": b'{"weight_map": {"w": "a.safetensors"}}',
}


def address(node: Node) -> str:
    """Of the node's fast interface."""
    return f"192.168.100.{node.name.removeprefix('node')}"


def dress(node: Node, fleet: Fleet) -> None:
    """Make it look like one that reaches the others."""
    put(node, {
        "/usr/local/bin/nvidia-smi": (0o755, SMI.encode()),
        "/usr/local/bin/nvidia-container-runtime-hook": (0o755, b"#!/bin/sh\\n"),
        **{path: (0o644, content) for path, content in MODEL.items()},
    })  # fmt: skip
    routes = [
        word for other in fleet if other is not node for word in (address(other), other.inside)
    ]
    node.exec("sh", "-eus", "--", address(node), *routes, given=DRESS.encode())


@contextmanager
def dressed(fleet: Fleet) -> Iterator[Fleet]:
    """All nodes look like one, as long as the context lasts."""
    try:
        fleet.each(lambda node: dress(node, fleet))
        yield fleet
    finally:
        fleet.each(lambda node: node.exec("sh", "-s", given=UNDRESS.encode()))
