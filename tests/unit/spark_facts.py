"""What snapshot.sh says on a DGX Spark that is as it should be, and how to change that."""

from __future__ import annotations

import json
from typing import Any

from sparkimage.config.inventory import Node
from sparkimage.nodes import reading
from sparkimage.nodes.snapshot import NodeSnapshot

NOW = 1_790_000_000.0
INFO: dict[str, Any] = {
    "ServerVersion": "29.1.3",
    "DockerRootDir": "/var/lib/docker",
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "Runtimes": {"io.containerd.runc.v2": {}, "runc": {}, "nvidia": {}},
    "DefaultRuntime": "runc",
    "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"],
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}],
    "SecurityOptions": ["name=seccomp,profile=builtin"],
}
PARTS = {
    "machine": """\
kernel=6.17.0-1014-nvidia
arch=aarch64
user=nv
groups=nv sudo docker
host=spark1
boot=5a3c0d4e-0001
os=Ubuntu 24.04.4 LTS
product=NVIDIA_DGX_Spark
connection=10.0.0.9 50000 10.0.0.1 22""",
    "links": """\
enP7s7 1000 1500 up
enp1s0f0np0 -1 1500 down
enp1s0f1np1 200000 9000 up
enP2p1s0f1np1 200000 9000 up
lo -1 65536 unknown
docker0 -1 1500 down
@ lo 127.0.0.1/24
@ enP7s7 10.0.0.1/24
@ enP7s7 fe80::1/64
@ enp1s0f1np1 192.168.100.1/24
@ enP2p1s0f1np1 192.168.101.1/24
@ docker0 172.17.0.1/16""",
    "names": "",
    "rdma": """\
rocep1s0f0|1|1: DOWN|Ethernet|40 Gb/sec (4X QDR)|enp1s0f0np0
rocep1s0f1|1|4: ACTIVE|Ethernet|200 Gb/sec (4X HDR)|enp1s0f1np1
roceP2p1s0f0|1|1: DOWN|Ethernet|40 Gb/sec (4X QDR)|enP2p1s0f0np0
roceP2p1s0f1|1|4: ACTIVE|Ethernet|200 Gb/sec (4X HDR)|enP2p1s0f1np1
@gids rocep1s0f1|1
@gid rocep1s0f1|1|0|IB/RoCE v1|fe80:0000:0000:0000:4ebb:47ff:fe00:0001
@gid rocep1s0f1|1|1|RoCE v2|fe80:0000:0000:0000:4ebb:47ff:fe00:0001
@gid rocep1s0f1|1|2|IB/RoCE v1|0000:0000:0000:0000:0000:ffff:c0a8:6401
@gid rocep1s0f1|1|3|RoCE v2|0000:0000:0000:0000:0000:ffff:c0a8:6401
@gids roceP2p1s0f1|1
@gid roceP2p1s0f1|1|2|IB/RoCE v1|0000:0000:0000:0000:0000:ffff:c0a8:6501
@gid roceP2p1s0f1|1|3|RoCE v2|0000:0000:0000:0000:0000:ffff:c0a8:6501""",
    "routes": """\
default via 10.0.0.254 dev enP7s7 proto static
10.0.0.0/24 dev enP7s7 proto kernel scope link src 10.0.0.1""",
    "nccl": "",
    "kernel": "@read",
    "infiniband": "by-ibdev\nby-path\nrdma_cm\nuverbs0\nuverbs1\nuverbs2\nuverbs3",
    "gpus": """\
@module NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build
@smi
0, NVIDIA GB10, 580.95.05, [N/A], GPU-1f2e3d4c, [N/A]
@CUDA Version        : 13.0""",
    "docker": json.dumps(INFO),
    "hooks": "/usr/bin/nvidia-container-runtime-hook\n/usr/bin/nvidia-cdi-hook",
    "cdi": "/var/run/cdi/nvidia.yaml|nvidia.com/gpu|580.95.05",
    "limits": "memlock=16323340\ndocker=infinity",
    "memory": """\
MemTotal:       125513000 kB
MemFree:        115000000 kB
MemAvailable:   119000000 kB
SwapTotal:      0 kB
SwapFree:       0 kB
CmaTotal:       32768 kB
CmaFree:        20000 kB""",
    "disk": """\
docker /dev/nvme0n1p2 3844510720 900000000 2750000000 25% /
containerd /dev/nvme0n1p2 3844510720 900000000 2750000000 25% /
model /dev/nvme0n1p2 3844510720 900000000 2750000000 25% /""",
    "held": "",
    "ports": "00000000:0016\n0100007F:0277\n00000000000000000000000000000000:0016",
    "model": """\
@folder
1500 ./config.json
40000000000 ./model-00001-of-00002.safetensors
38000000000 ./model-00002-of-00002.safetensors
90000 ./model.safetensors.index.json
9000000 ./tokenizer.json
@index ./model.safetensors.index.json
"model-00001-of-00002.safetensors"
"model-00002-of-00002.safetensors"
@total 77999000000
@length 40000000000 ./model-00001-of-00002.safetensors
@length 38000000000 ./model-00002-of-00002.safetensors""",
    "clock": "synced=yes\nnow=1790000000.250000000",
}


def text(**changes: str | None) -> str:
    """What the script says, with parts changed, or left out (None)."""
    parts = {**PARTS, **changes}
    return "".join(f"\n@@ {name}\n{body}\n" for name, body in parts.items() if body is not None)


def spark(node: Node | None = None, **changes: str | None) -> NodeSnapshot:
    """The snapshot of such a node."""
    entry = node if node is not None else Node(name="spark1", control="spark1")
    return reading.parse(text(**changes), entry, now=NOW)


def edited(part: str, *pairs: tuple[str, str]) -> str:
    """A part in which words are replaced by others; each of them must be there."""
    body = PARTS[part]
    for old, new in pairs:
        assert old in body, old
        body = body.replace(old, new)
    return body


def info(**changes: object) -> str:
    """What docker info says, with keys changed."""
    return json.dumps({**INFO, **changes})


def without_gids() -> str:
    """The part ``rdma`` of a node that lists no GIDs."""
    return "\n".join(line for line in PARTS["rdma"].split("\n") if not line.startswith("@"))
