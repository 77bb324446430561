"""The doctor's checks of the network between the nodes: interface, speed, MTU, RDMA. Pure."""

from __future__ import annotations

from sparkimage.nodes import fabric
from sparkimage.nodes.fabric import data_link
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve.doctor.checks import (
    FAIL,
    INFO,
    WARN,
    ClusterReport,
    Findings,
    check,
    differing,
    each,
    found,
    grouped,
    several,
)

SLOW = 10_000
"""Mbit/s below which ranks on several nodes wait for each other more than they compute."""
FAST = 100_000
"""Mbit/s from which on packets of 1500 bytes cost the processor too much."""
JUMBO = 9000
"""Bytes; what guides for DGX Sparks set."""


def by_rdma(cluster: ClusterReport) -> bool:
    """Of checks of what RDMA needs."""
    return cluster.several and cluster.rdma


def rate(node: NodeSnapshot) -> str:
    """The speed of its data interface in words."""
    link = data_link(node)
    return link.interface.rate if link else "?"


def mtu_of(node: NodeSnapshot) -> str:
    """The MTU of its data interface in words."""
    return str(data_link(node).interface.mtu or "?")


def ports_of(node: NodeSnapshot) -> str:
    """The RDMA devices in words."""
    return ", ".join(
        f"{one.device} ({one.interface or 'no interface'}, {one.state.lower()})"
        for one in node.rdma
    )


@check(
    "rdma",
    seen=lambda node: ", ".join(port.device for port in node.rdma if port.active) or "none",
    applies=by_rdma,
)
@each
def rdma(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No RDMA between the nodes."""
    link = data_link(node)
    if not node.rdma:
        yield found(
            FAIL, "it has no RDMA device",
            "there: sudo modprobe mlx5_ib; lspci | grep -i mellanox; or --no-rdma",
        )  # fmt: skip
    elif not any(port.active for port in node.rdma):
        yield found(
            FAIL, f"none of its RDMA devices is up: {ports_of(node)}",
            "there: ibdev2netdev; sudo ip link set INTERFACE up; the cable, the switch",
        )  # fmt: skip
    elif link and not fabric.hcas(node):
        yield found(
            FAIL,
            f"{link.interface.name}, for its data, is no RDMA device's; there are: "
            f"{ports_of(node)}",
            "write the `data` address of such an interface into the fleet file",
        )


@check("verbs", seen=lambda node: ", ".join(node.verbs) or "none", applies=by_rdma)
@each
def verbs(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No way for a container to RDMA."""
    if not node.verbs:
        others = ", ".join(node.infiniband)
        yield found(
            FAIL,
            f"/dev/infiniband holds no verbs device, but {others}"
            if others
            else "there is no /dev/infiniband: `docker run --device=/dev/infiniband` fails",
            "there: sudo modprobe -a ib_uverbs rdma_ucm; for good in /etc/modules-load.d",
        )


@check("hca", seen=lambda node: ", ".join(fabric.hcas(node)), applies=by_rdma, knows=fabric.hcas)
@each
def hca(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """RDMA devices of the fleet file that are not there, and such as it leaves unused."""
    active = {port.device: port.active for port in sorted(node.rdma, key=lambda one: one.active)}
    for named in node.node.hca:
        device = named.partition(":")[0]
        if not active.get(device):
            yield found(
                FAIL,
                f"its RDMA device {device} is down"
                if device in active
                else f"there is no RDMA device {device}; there are: {ports_of(node) or 'none'}",
                "correct `hca` in the fleet file; there: ibdev2netdev",
            )
    if link := data_link(node):
        used = {named.partition(":")[0] for named in fabric.hcas(node)}
        plug = fabric.plug(node, link.interface)
        more = [device for device in plug if device not in used]
        if more and used & set(plug):
            yield found(
                INFO, f"{', '.join(more)} is behind the same plug and is not used",
                f"write `hca: [{', '.join(plug)}]` into the fleet file",
            )  # fmt: skip


@check("interface", seen=lambda node: data_link(node).interface.name or "none", applies=several)
@each
def interface(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A data interface that is not there, down, or without an address."""
    link, entry = data_link(node), node.node
    if not link:
        there = (str(one) for one in node.interfaces if fabric.usable(one.addresses))
        address = entry.data or node.used_address or entry.control
        lacks = f"there is no interface {entry.interface}"
        yield found(
            FAIL,
            (lacks if entry.interface else f"no interface has the data address {address}")
            + f"; there are: {', '.join(there) or 'none'}",
            "write `interface` (or the right `data`) of the node into the fleet file",
        )
    elif link.interface.state == "down":
        name = link.interface.name
        yield found(
            FAIL, f"its interface {name} is down",
            f"there: sudo ip link set {name} up; ethtool {name}",
        )  # fmt: skip
    elif not link.address:
        yield found(
            FAIL, f"its interface {link.interface.name} has no address",
            "there: give it one (netplan); ip addr",
        )  # fmt: skip


@check("network", seen=lambda node: data_link(node).network, applies=several, knows=data_link)
def one_network(cluster: ClusterReport) -> Findings:
    """Nodes whose data addresses are not in one network."""
    fix = "correct `data` in the fleet file, or the addresses there (netplan)"
    yield from differing(
        cluster, lambda node: data_link(node).network, WARN, "not in one network", fix
    )


@check("subnets", applies=several)
@each
def subnets(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Two interfaces of a node in one network, of which one matters here.

    A cable and a WLAN in the house's network are none of our business.
    """
    ours = {port.interface for port in node.rdma} | {data_link(node).interface.name}
    pairs = [
        (one.name, network)
        for one in node.interfaces
        for network in dict.fromkeys(one.networks)
        if network and one.state != "down"
    ]
    for network, names in grouped(pairs).items():
        if len(names) > 1 and ours & set(names):
            yield found(
                WARN, f"{' and '.join(names)} are both in {network}",
                "there: give each interface a network of its own (netplan)",
            )  # fmt: skip


@check("speed", seen=rate, applies=several, knows=data_link)
def speed(cluster: ClusterReport) -> Findings:
    """Ranks that talk over a slow interface."""
    yield from each(_slow)(cluster)
    fix = "there: ethtool INTERFACE; the slowest one decides for all"
    yield from differing(cluster, rate, WARN, "not the same speed everywhere", fix)


def _slow(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    link = data_link(node)
    if link.interface.speed is None:
        return
    if better := fabric.faster(node, link.interface):
        fastest, address = better
        yield found(
            WARN,
            f"its data goes over {link.interface}, but {fastest.name} has {fastest.rate}",
            f"write `data: {address}` of the node into the fleet file",
        )
    elif link.interface.speed < SLOW:
        yield found(
            WARN, f"its fastest interface is {link.interface}",
            f"there: ethtool {link.interface.name}; the cable, the switch",
        )  # fmt: skip


@check("mtu", seen=mtu_of, applies=several, knows=data_link)
def mtu(cluster: ClusterReport) -> Findings:
    """Frames of several sizes, or small ones on a fast network."""
    fix = f"there: sudo ip link set INTERFACE mtu {JUMBO}; for good in netplan"
    yield from differing(cluster, mtu_of, WARN, "not the same MTU everywhere", fix)
    yield from each(_small)(cluster)


def _small(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    one = data_link(node).interface
    if one.mtu and one.speed and one.speed >= FAST and one.mtu < JUMBO:
        yield found(
            WARN, f"{one.name} has {one.rate} and an MTU of {one.mtu}",
            f"there: sudo ip link set {one.name} mtu {JUMBO}; for good in netplan, and on the "
            "switch",
        )  # fmt: skip
