"""How a node's ranks reach the others: its interface, address and RDMA devices, chosen here alone,
and what of the node would be faster. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparkimage.nodes.snapshot import Interface, NodeSnapshot

DOMAIN = re.compile(r"P[0-9]+(?=p[0-9])")
"""The PCI domain in the name of an RDMA device: P2 of ``roceP2p1s0f0``."""


@dataclass(frozen=True, kw_only=True)
class DataLink:
    """What a node's ranks talk over."""

    interface: Interface
    """One without a name where the node has no such interface."""
    address: str = ""
    """The node's own address there, or nothing where the interface has none."""

    def __bool__(self) -> bool:
        return bool(self.interface.name)

    @property
    def network(self) -> str:
        """The network that it lies in; nothing where it is in none."""
        pairs = dict(zip(self.interface.addresses, self.interface.networks, strict=True))
        return next((one for one in (pairs.get(self.address), *pairs.values()) if one), "")


NONE = DataLink(interface=Interface(name=""))


def data_link(snapshot: NodeSnapshot) -> DataLink:
    """The interface of the fleet file; else that of the data address, by number or as the node
    itself resolves its name; without a data address that of the address which commands came to."""
    node = snapshot.node
    # A name of the node's own may resolve to any of its addresses, Docker's bridge included.
    came_to = () if node.data else (snapshot.used_address,)
    named = (node.data or node.control, *came_to, *snapshot.resolved)
    if node.interface is not None:
        found = snapshot.interface(node.interface)
        if found is None:
            return NONE
        own = (one for one in (*named, *usable(found.addresses)) if one in found.addresses)
        return DataLink(interface=found, address=next(own, ""))
    for one in named:
        found = snapshot.interface_of(one)
        if found is not None:
            return DataLink(interface=found, address=one.partition("%")[0])
    return NONE


def hcas(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """The RDMA devices for NCCL: those that the fleet file names, else the data interface's."""
    return snapshot.node.hca or devices(snapshot, data_link(snapshot).interface)


def devices(snapshot: NodeSnapshot, interface: Interface) -> tuple[str, ...]:
    """The RDMA devices that belong to a network interface, as ``NCCL_IB_HCA`` names them."""
    ports = (port for port in snapshot.rdma if port.interface == interface.name != "")
    return tuple(dict.fromkeys(port.device for port in ports))


def plug(snapshot: NodeSnapshot, interface: Interface) -> tuple[str, ...]:
    """The active RDMA devices behind the same plug as this interface, its own ones first.

    A DGX Spark shows each of its two plugs as two devices that differ in the PCI domain only
    (``rocep1s0f1`` and ``roceP2p1s0f1``), each of them good for half of the rate.
    https://github.com/eugr/spark-vllm-docker/blob/main/docs/NETWORKING.md
    """
    own = devices(snapshot, interface)
    plugs = {DOMAIN.sub("", one) for one in own}
    active = (port.device for port in snapshot.rdma if port.active)
    more = (one for one in active if one not in own and DOMAIN.sub("", one) in plugs)
    return (*own, *dict.fromkeys(more))


def usable(addresses: Sequence[str]) -> list[str]:
    """The addresses that another node can reach, the best first: link-local ones last.

    NVIDIA's own setup of two Sparks gives the fast interface 169.254.x.x.
    """
    parsed = [(ipaddress.ip_address(one), one) for one in addresses]
    ranked = [
        ((found.is_link_local, found.version), one)
        for found, one in parsed
        if not found.is_loopback and (found.version == 4 or not found.is_link_local)
    ]
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def faster(snapshot: NodeSnapshot, than: Interface) -> tuple[Interface, str] | None:
    """The node's fastest interface, and its address, where it is faster than this one."""
    better = [
        (one.speed, one.name, one)
        for one in snapshot.interfaces
        if one.speed and than.speed and one.speed > than.speed
        if one.state != "down" and usable(one.addresses)
    ]
    if not better:
        return None
    *_, found = max(better, key=lambda pair: pair[:2])
    return found, usable(found.addresses)[0]


def slow(snapshot: NodeSnapshot) -> str | None:
    """What to say when the layers go over a slower interface than the node has."""
    used = snapshot.interface_of(snapshot.node.data or snapshot.used_address)
    better = faster(snapshot, used) if used is not None else None
    if used is None or better is None:
        return None
    found, address = better
    return (
        f"{snapshot.name}: layers go over {used}, but {found.name} has {found.rate}: set "
        f"`data: {address}` in the fleet file"
    )
