"""How the RDMA devices of several nodes are connected: to one network, or as a ring. Pure."""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparkimage.nodes import fabric
from sparkimage.nodes.rdma import Rdma
from sparkimage.nodes.snapshot import NodeSnapshot

RING = {
    "NCCL_IB_SUBNET_AWARE_ROUTING": "1",
    "NCCL_IB_MERGE_NICS": "0",
    "NCCL_NET_PLUGIN": "none",
}
"""What NCCL needs where each port leads to another node: the port of the peer's network.

https://github.com/NVIDIA/dgx-spark-playbooks/blob/main/nvidia/connect-three-sparks/README.md
"""
ALL_NEIGHBOURS = 3
"""Nodes of the largest ring in which each one is the neighbour of all others."""
RING_NCCL = (2, 30, 6)
"""The first NCCL that knows them (v2.30u1)."""
NO_NVLS = {"NCCL_NVLS_ENABLE": "0"}
"""For GPUs without NVLink, on which NVLS is only a risk: https://github.com/NVIDIA/nccl/issues/2167"""
WITHOUT_NVLINK = "*GB10*"


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The RDMA network of some nodes."""

    ring: tuple[str, ...] = ()
    """The nodes along a ring without a switch; empty where there is none."""

    def hcas(self, snapshot: NodeSnapshot) -> tuple[str, ...]:
        """The RDMA devices for NCCL: on a ring all that have a network, else ``fabric.hcas``."""
        if snapshot.node.hca or snapshot.name not in self.ring:
            return fabric.hcas(snapshot)
        return tuple(dict.fromkeys(port.device for port in cabled(snapshot)))

    def in_use(self, snapshot: NodeSnapshot) -> tuple[Rdma, ...]:
        """The ports of these devices that are up."""
        named = self.hcas(snapshot)
        return tuple(
            port
            for port in snapshot.rdma
            if port.active and (port.device in named or f"{port.device}:{port.port}" in named)
        )

    def neighbours(self, first: str, second: str) -> bool:
        """A cable of the ring connects these nodes."""
        at, other = self.ring.index(first), self.ring.index(second)
        return abs(at - other) in (1, len(self.ring) - 1)

    def env(self, snapshot: NodeSnapshot) -> dict[str, str]:
        """The variables of NCCL that this network and the node's GPUs need."""
        env: dict[str, str] = dict(RING) if self.ring else {}
        if len(self.ring) > ALL_NEIGHBOURS:
            # Trees would connect nodes that are no neighbours.
            env["NCCL_ALGO"] = "Ring"
        return env | (NO_NVLS if without_nvlink(snapshot) else {})


def without_nvlink(snapshot: NodeSnapshot) -> bool:
    """Its GPUs are known to have none."""
    gpus = snapshot.gpus
    return bool(gpus) and all(fnmatch.fnmatchcase(gpu.name, WITHOUT_NVLINK) for gpu in gpus)


def cabled(snapshot: NodeSnapshot) -> list[Rdma]:
    """Its ports that are up and have a network."""
    return [port for port in snapshot.rdma if port.active and port.networks]


def topology(snapshots: Sequence[NodeSnapshot]) -> Topology:
    """The RDMA network of these nodes. On a ring each is alone with one neighbour in some networks,
    and alone with another one in others."""
    members: dict[str, set[str]] = {}
    for snapshot in snapshots:
        for port in cabled(snapshot):
            for network in port.networks:
                members.setdefault(network, set()).add(snapshot.name)
    neighbours: Mapping[str, set[str]] = {snapshot.name: set() for snapshot in snapshots}
    for names in members.values():
        if len(names) > 2:
            return Topology()
        for name in names:
            neighbours[name].update(names - {name})
    if len(snapshots) < 3 or any(len(others) != 2 for others in neighbours.values()):
        return Topology()
    ring = [snapshots[0].name]
    while more := [name for name in sorted(neighbours[ring[-1]]) if name not in ring]:
        ring.append(more[0])
    return Topology(ring=tuple(ring) if len(ring) == len(snapshots) else ())


def reaches(snapshot: NodeSnapshot, port: Rdma, addresses: Iterable[str]) -> bool:
    """One of these addresses is in a network of this port, or in one that a route of its interface
    leads to."""
    routed = [network for network, interface in snapshot.routes if interface == port.interface]
    networks = [ipaddress.ip_network(network) for network in (*port.networks, *routed)]
    ips = [ipaddress.ip_address(address) for address in addresses]
    return any(ip in network for ip in ips for network in networks)
