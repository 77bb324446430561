"""The doctor's checks of the RDMA network: addresses, networks, a ring, NCCL's settings. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sparkimage.nodes.fabric import data_link
from sparkimage.nodes.rdma import Gid, Rdma
from sparkimage.nodes.snapshot import NodeSnapshot, version
from sparkimage.nodes.topology import (
    ALL_NEIGHBOURS,
    RING_NCCL,
    Topology,
    reaches,
    without_nvlink,
)  # fmt: skip
from sparkimage.serve.doctor.checks import (
    ClusterReport,
    Findings,
    check,
    finding,
    grouped,
    in_words,
    node_check,
    odd,
    several,
)  # fmt: skip

GID_INDEX = "NCCL_IB_GID_INDEX"


def by_rdma(cluster: ClusterReport) -> bool:
    """Several nodes are to talk by RDMA."""
    return cluster.several and cluster.rdma


def networks(ports: tuple[Rdma, ...]) -> str:
    """The networks of these ports for people, sorted."""
    return ", ".join(sorted({network for port in ports for network in port.networks})) or "none"


def gid_of(port: Rdma) -> str:
    """A port and its GID for people."""
    usable = [f"GID {gid.index}" for gid in port.gids or () if gid.usable]
    return f"{port.device} {[*usable, 'IPv4' if port.addressed else 'none'][0]}"


def entry(gid: Gid | None) -> str:
    """An entry of a table for people."""
    return f"{gid.gid} ({gid.kind})" if gid is not None else "empty"


@node_check(
    "gid",
    seen=lambda node: ", ".join(gid_of(port) for port in node.rdma if port.active) or "none",
    applies=by_rdma,
    knows=lambda node: any(port.active for port in node.rdma),
)
def gid(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Devices in use without a GID that NCCL can use, or with another one than it is told."""
    index = cluster.env_of(node).get(GID_INDEX, "-1")
    for port in cluster.topology.in_use(node):
        if not port.addressed:
            yield finding("gid/missing" if port.addresses else "gid/none", port=port)
        elif port.roce and port.gids is not None and index.isdecimal():
            told = next((one for one in port.gids if one.index == int(index)), None)
            if told is None or not told.usable:
                right = next(one.index for one in port.gids if one.usable)
                yield finding("gid/index", port=port, index=index, told=entry(told), right=right)


@check(
    "rails",
    seen=lambda node: networks(tuple(port for port in node.rdma if port.active)),
    applies=by_rdma,
    knows=lambda node: any(port.active and port.networks for port in node.rdma),
)
def rails(cluster: ClusterReport) -> Findings:
    """Devices of two nodes in networks that do not meet."""
    topology = cluster.topology
    ports = {node.name: addressed(topology, node) for node in cluster.known}
    known = [node for node in cluster.known if ports[node.name]]
    apart = [
        (node.name, other.name, port.device)
        for node in known
        for other in known
        if node is not other and (not topology.ring or topology.neighbours(node.name, other.name))
        for port in lonely(topology, node, ports[node.name], ports[other.name])
    ]
    groups = grouped((node.name, networks(ports[node.name])) for node in known)
    if apart:
        names = odd(groups) if len(groups) > 1 else tuple(name for name, *_ in apart)
        first, second, device = apart[0]
        yield finding(
            "rails/apart", *names, device=device, first=first, second=second,
            networks=in_words(groups),
        )  # fmt: skip
    elif not topology.ring:
        yield from crossed({name: ports[name] for name in ports if len(ports[name]) > 1})


def addressed(topology: Topology, node: NodeSnapshot) -> tuple[Rdma, ...]:
    """The ports in use that have an IPv4 address: the others are of the check ``gid``."""
    return tuple(port for port in topology.in_use(node) if port.roce and port.addresses)


def lonely(
    topology: Topology, node: NodeSnapshot, own: tuple[Rdma, ...], others: tuple[Rdma, ...]
) -> Iterator[Rdma]:
    """The ports that reach none of another node's; on a ring only where all do not, as each port
    has one neighbour."""
    addresses = [address for port in others for address in port.addresses]
    apart = [port for port in own if not reaches(node, port, addresses)]
    if not topology.ring or len(apart) == len(own):
        yield from apart


def crossed(ports: dict[str, tuple[Rdma, ...]]) -> Findings:
    """Devices whose networks are in another order: NCCL connects the first to the first."""
    orders = {
        name: ", ".join(
            networks((port,)) for port in sorted(own, key=lambda port: (port.device, port.port))
        )
        for name, own in ports.items()
    }
    same = {networks(own) for own in ports.values()}
    if len(same) == 1 and len(set(orders.values())) > 1:
        groups = grouped(orders.items())
        yield finding("rails/crossed", *odd(groups), orders=in_words(groups))


@check("ring", applies=lambda cluster: by_rdma(cluster) and bool(cluster.topology.ring))
def ring(cluster: ClusterReport) -> Findings:
    """What a ring without a switch needs."""
    along, names = cluster.topology.ring, [node.name for node in cluster.known]
    shown = " - ".join((*along, along[0]))
    yield finding("ring/recognised", *names, ring=shown)
    if cluster.nccl and version(cluster.nccl) < RING_NCCL:
        wanted = ".".join(map(str, RING_NCCL))
        yield finding("ring/nccl", *names, nccl=cluster.nccl, wanted=wanted)
    links = {node.name: data_link(node) for node in cluster.known}
    if len({link.network for link in links.values()}) > 1:
        values = in_words(grouped((name, link.network) for name, link in links.items()))
        yield finding("ring/data", *names, values=values)
    if len(along) > ALL_NEIGHBOURS:
        ranks = sorted(names, key=lambda name: name != cluster.head)
        pairs = zip(ranks, (*ranks[1:], ranks[0]), strict=True)
        if wrong := [pair for pair in pairs if not cluster.topology.neighbours(*pair)]:
            first, second = wrong[0]
            yield finding("ring/order", *names, first=first, second=second, ring=shown)
        yield finding("ring/trees", *names)


@node_check("settings", applies=several)
def settings(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """NCCL's settings that do not fit this network or these GPUs."""
    env, topology = cluster.env_of(node), cluster.topology
    merge = env.get("NCCL_IB_MERGE_NICS")
    if cluster.rdma and topology.ring and merge not in (None, "0"):
        yield finding("settings/merge-ring")
    elif cluster.rdma and not topology.ring and merge == "0" and len(topology.in_use(node)) > 1:
        devices = ", ".join(port.device for port in topology.in_use(node))
        yield finding("settings/merge", devices=devices)
    if without_nvlink(node) and env.get("NCCL_NVLS_ENABLE", "0") != "0":
        yield finding("settings/nvls", name=node.gpus[0].name)


@check(
    "nccl-conf",
    seen=lambda node: ", ".join(node.nccl_conf) or "none",
    applies=several,
)
def nccl_conf(cluster: ClusterReport) -> Findings:
    """Settings of NCCL in files on the nodes."""
    texts = {
        node.name: "; ".join(
            f"{file}: {', '.join(f'{name}={value}' for name, value in settings.items())}"
            for file, settings in node.nccl_conf.items()
            if settings
        )
        for node in cluster.known
    }
    groups = grouped(texts.items())
    for text, names in groups.items():
        if text:
            yield finding("nccl-conf/differs" if len(groups) > 1 else "nccl-conf/same", *names,
                          text=text)  # fmt: skip


@check(
    "reachable",
    seen=lambda node: "yes" if not node.unreached else f"{len(node.unreached)} ports not",
    applies=several,
    knows=lambda node: node.unreached is not None,
)
def reachable(cluster: ClusterReport) -> Findings:
    """Ports of a node that do not take connections from another one."""
    reports: dict[tuple[str, str, str], list[str]] = {}
    for node in cluster.known:
        for one in node.unreached or ():
            reports.setdefault((one.node, one.address, one.why), []).append(node.name)
    for (name, address, why), sources in reports.items():
        others = [node.name for node in cluster.known if node.name != name]
        unique = list(dict.fromkeys(sources))
        everyone = len(unique) == len(others)
        yield finding(
            "reachable", name, address=address, why=why,
            sources="all others" if everyone and len(others) > 1 else ", ".join(unique),
        )  # fmt: skip
