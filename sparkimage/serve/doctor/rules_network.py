"""The doctor's checks of the network between the nodes: interface, speed, MTU, RDMA. Pure."""

from __future__ import annotations

from sparkimage.nodes import fabric
from sparkimage.nodes.fabric import data_link
from sparkimage.nodes.rdma import Interface
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve.doctor.checks import (
    FAIL,
    WARN,
    ClusterReport,
    Findings,
    check,
    differing,
    finding,
    grouped,
    in_words,
    node_check,
    odd,
    several,
)  # fmt: skip

SLOW = 10_000
"""Mbit/s below which ranks on several nodes wait for each other more than they compute."""
FAST = 100_000
"""Mbit/s from which on frames of 1500 bytes cost too much CPU."""
JUMBO = 9000
"""Bytes; what guides for DGX Sparks set."""


def by_rdma(cluster: ClusterReport) -> bool:
    """Several nodes are to talk by RDMA."""
    return cluster.several and cluster.rdma


def rate(node: NodeSnapshot) -> str:
    """The speed of its data interface for people."""
    link = data_link(node)
    return link.interface.rate if link else "?"


def mtu_of(node: NodeSnapshot) -> str:
    """The MTU of its data interface for people."""
    return str(data_link(node).interface.mtu or "?")


def devices(node: NodeSnapshot) -> str:
    """Its RDMA devices for people."""
    return ", ".join(
        f"{port.device} ({port.interface or 'no interface'}, {port.state.lower()})"
        for port in node.rdma
    )


@node_check(
    "rdma",
    seen=lambda node: ", ".join(port.device for port in node.rdma if port.active) or "none",
    applies=by_rdma,
)
def rdma(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No RDMA between the nodes."""
    link = data_link(node)
    if not node.rdma:
        yield finding("rdma/none")
    elif not any(port.active for port in node.rdma):
        yield finding("rdma/down", devices=devices(node))
    elif link and not cluster.topology.hcas(node):
        yield finding("rdma/other", interface=link.interface.name, devices=devices(node))


@node_check("verbs", seen=lambda node: ", ".join(node.verbs) or "none", applies=by_rdma)
def verbs(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """No verbs devices for a container."""
    if not node.verbs:
        others = ", ".join(node.infiniband)
        yield finding("verbs/others" if others else "verbs/none", others=others)


@node_check("hca", seen=lambda node: ", ".join(fabric.hcas(node)), applies=by_rdma)
def hca(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """RDMA devices of the fleet file that do not work, and such as it leaves unused."""
    active = {port.device: port.active for port in sorted(node.rdma, key=lambda one: one.active)}
    # Where it has none at all, `rdma` says so.
    for named in node.node.hca if node.rdma else ():
        device = named.partition(":")[0]
        if not active.get(device):
            case = "down" if device in active else "missing"
            yield finding(f"hca/{case}", device=device, devices=devices(node) or "none")
    link = data_link(node)
    used = {named.partition(":")[0] for named in cluster.topology.hcas(node)}
    twins = fabric.plug(node, link.interface)
    if not used & set(twins):
        return
    more = [port for port in node.rdma if port.device in twins and port.device not in used]
    bare = [port for port in more if not port.addressed]
    for port in bare:
        yield finding("hca/twin", port=port)
    others = [one for one in cluster.known if one.name != node.name]
    if more and not bare and all(fabric.meets(port, one) for port in more for one in others):
        names = ", ".join(port.device for port in more)
        yield finding("hca/unused", more=names, all=", ".join(twins))


@node_check(
    "interface", seen=lambda node: data_link(node).interface.name or "none", applies=several
)
def interface(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A data interface that does not exist, is down, or has no address."""
    link, entry = data_link(node), node.node
    name = link.interface.name
    if not link:
        usable = (str(one) for one in node.interfaces if fabric.usable(one.addresses))
        yield finding(
            "interface/missing" if entry.interface else "interface/address",
            name=entry.interface, address=entry.data or node.used_address or entry.control,
            interfaces=", ".join(usable) or "none",
        )  # fmt: skip
    elif link.interface.state == "down":
        yield finding("interface/down", name=name)
    elif not link.address:
        yield finding("interface/no-address", name=name)


@check("network", seen=lambda node: data_link(node).network, applies=several, knows=data_link)
def one_network(cluster: ClusterReport) -> Findings:
    """Nodes whose data addresses are in different networks; on a ring see there."""
    if not cluster.topology.ring:
        yield from differing("network", cluster, lambda node: data_link(node).network)


@node_check("subnets", applies=several)
def subnets(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Two interfaces of a node in one network, at least one of them for data or RDMA.

    A cable and a WLAN in the house's network do no harm.
    """
    ours = {port.interface for port in node.rdma} | {data_link(node).interface.name}
    pairs = [
        (interface.name, network)
        for interface in node.interfaces
        for network in dict.fromkeys(interface.networks)
        if network and interface.state != "down"
    ]
    for network, names in grouped(pairs).items():
        if len(names) > 1 and ours & set(names):
            yield finding("subnets", names=" and ".join(names), network=network)


@check("speed", seen=rate, applies=several, knows=data_link)
def speed(cluster: ClusterReport) -> Findings:
    """Data that goes over a slow interface."""
    for node in cluster.known:
        link = data_link(node).interface
        if link.speed is None:
            continue
        # On a ring the fast addresses are each of one cable alone.
        better = None if cluster.topology.ring else fabric.faster(node, link)
        if better:
            fastest, address = better
            yield finding(
                "speed/faster", node.name, interface=link, fastest=fastest, address=address
            )
        elif link.speed < SLOW:
            yield finding("speed/slow", node.name, interface=link)
    yield from differing("speed/differs", cluster, rate)


@check("mtu", seen=mtu_of, applies=several, knows=data_link)
def mtu(cluster: ClusterReport) -> Findings:
    """Different MTUs of what is connected, or a small one on a fast network."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    small: dict[str, list[Interface]] = {}
    for node in cluster.known:
        link = data_link(node).interface
        ports = cluster.topology.in_use(node) if by_rdma(cluster) else ()
        for port in ports:
            for network in port.networks:
                pairs.setdefault(network, []).append((node.name, str(port.mtu or "?")))
        names = dict.fromkeys((link.name, *(port.interface for port in ports)))
        small[node.name] = [one for name in names if (one := node.interface(name)) is not None]
    found = False
    for network, mtus in pairs.items():
        groups = grouped(mtus)
        if len(groups) > 1:
            found = True
            texts = {"values": f"in {network}, {in_words(groups)}", "jumbo": JUMBO}
            yield finding("mtu/differs", *odd(groups), severity=FAIL, **texts)
    if not found:
        yield from differing("mtu/differs", cluster, mtu_of, severity=WARN, jumbo=JUMBO)
    for name, interfaces in small.items():
        for link in interfaces:
            if link.mtu and link.speed and link.speed >= FAST and link.mtu < JUMBO:
                yield finding("mtu/small", name, link=link, jumbo=JUMBO)
