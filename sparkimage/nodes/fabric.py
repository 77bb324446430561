"""How a node's ranks reach the others: its interface, address and RDMA devices, chosen only here;
and whether it has a faster interface. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparkimage.nodes.rdma import Interface, Rdma
from sparkimage.nodes.snapshot import NodeSnapshot

DOMAIN = re.compile(r"P[0-9]+(?=p[0-9])")
"""The PCI domain in the name of an RDMA device: P2 of ``roceP2p1s0f0``."""


@dataclass(frozen=True, kw_only=True)
class DataLink:
    """The interface that a node's ranks use."""

    interface: Interface
    """Without a name where the node has no such interface."""
    address: str = ""
    """The node's own address on it, or nothing where the interface has none."""

    def __bool__(self) -> bool:
        return bool(self.interface.name)

    @property
    def network(self) -> str:
        """The network of the address, or nothing."""
        pairs = dict(zip(self.interface.addresses, self.interface.networks, strict=True))
        return next(filter(None, (pairs.get(self.address), *pairs.values())), "")


NONE = DataLink(interface=Interface(name=""))


def data_link(snapshot: NodeSnapshot) -> DataLink:
    """The interface that the fleet file names; else that of the data address, which the node itself
    resolves when it is a name; without a data address that of the ssh connection."""
    node = snapshot.node
    # A name of the node's own may resolve to any of its addresses, Docker's bridge included.
    used = () if node.data else (snapshot.used_address,)
    addresses = (node.data or node.control, *used, *snapshot.resolved)
    if node.interface is not None:
        interface = snapshot.interface(node.interface)
        if interface is None:
            return NONE
        candidates = (*addresses, *usable(interface.addresses))
        own = (address for address in candidates if address in interface.addresses)
        return DataLink(interface=interface, address=next(own, ""))
    for address in addresses:
        interface = snapshot.interface_of(address)
        if interface is not None:
            return DataLink(interface=interface, address=address.partition("%")[0])
    return NONE


def hcas(snapshot: NodeSnapshot) -> tuple[str, ...]:
    """The RDMA devices for NCCL: those of the fleet file, else those of the data interface."""
    return snapshot.node.hca or devices(snapshot, data_link(snapshot).interface)


def devices(snapshot: NodeSnapshot, interface: Interface) -> tuple[str, ...]:
    """The RDMA devices that belong to a network interface, as ``NCCL_IB_HCA`` names them."""
    ports = (port for port in snapshot.rdma if port.interface == interface.name != "")
    return tuple(dict.fromkeys(port.device for port in ports))


def plug(snapshot: NodeSnapshot, interface: Interface) -> tuple[str, ...]:
    """The active RDMA devices behind the same port as this interface, its own ones first.

    A DGX Spark shows each of its two QSFP ports as two devices that differ in the PCI domain only
    (``rocep1s0f1`` and ``roceP2p1s0f1``), each with half of the rate.
    https://github.com/eugr/spark-vllm-docker/blob/main/docs/NETWORKING.md
    """
    own = devices(snapshot, interface)
    plugs = {DOMAIN.sub("", device) for device in own}
    active = (port.device for port in snapshot.rdma if port.active)
    more = (name for name in active if name not in own and DOMAIN.sub("", name) in plugs)
    return (*own, *dict.fromkeys(more))


def meets(port: Rdma, other: NodeSnapshot) -> bool:
    """An active RDMA device of another node is in a network of this one's, with the same MTU."""
    return any(
        one.active and one.mtu == port.mtu and set(port.networks) & set(one.networks)
        for one in other.rdma
    )


def usable(addresses: Sequence[str]) -> list[str]:
    """The addresses that another node can reach, the best first: link-local ones last.

    NVIDIA's own setup of two Sparks gives the fast interface 169.254.x.x.
    """
    parsed = [ipaddress.ip_address(address) for address in addresses]
    usable = [
        ip for ip in parsed if not ip.is_loopback and (ip.version == 4 or not ip.is_link_local)
    ]
    return [str(ip) for ip in sorted(usable, key=lambda ip: (ip.is_link_local, ip.version))]


def faster(snapshot: NodeSnapshot, than: Interface) -> tuple[Interface, str] | None:
    """The node's fastest interface, and its address, where it is faster than this one."""
    better = [
        each
        for each in snapshot.interfaces
        if each.speed and than.speed and each.speed > than.speed
        if each.state != "down" and usable(each.addresses)
    ]
    if not better:
        return None
    fastest = max(better, key=lambda each: (each.speed, each.name))
    return fastest, usable(fastest.addresses)[0]


def slow(snapshot: NodeSnapshot) -> str | None:
    """A warning for a node whose layers go over a slower interface than its fastest one."""
    used = snapshot.interface_of(snapshot.node.data or snapshot.used_address)
    better = faster(snapshot, used) if used is not None else None
    ports = {DOMAIN.sub("", port.device) for port in snapshot.rdma if port.active and port.networks}
    # With two ports each may lead to another node, as on a ring.
    if used is None or better is None or len(ports) > 1:
        return None
    fastest, address = better
    return (
        f"{snapshot.name}: layers go over {used}, but {fastest.name} has {fastest.rate}: set "
        f"`data: {address}` in the fleet file"
    )
