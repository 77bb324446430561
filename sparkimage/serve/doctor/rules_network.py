"""The doctor's rules of the network between the machines: interface, speed, MTU, RDMA. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from sparkimage.serve.doctor.diagnosis import Case, Finding, Patient, grouped, in_words, odd
from sparkimage.serve.doctor.facts import Facts, Interface
from sparkimage.serve.doctor.severity import Severity

SLOW = 10_000
"""Mbit/s below which ranks on several machines wait for each other more than they compute."""
FAST = 100_000
"""Mbit/s from which on packets of 1500 bytes cost the processor too much."""
JUMBO = 9000
"""Bytes; what guides for DGX Sparks set.
https://github.com/eugr/spark-vllm-docker/blob/main/docs/NETWORKING.md"""


def interface(case: Case) -> Iterator[Finding]:
    """A data interface that is not there, or down."""
    for one, facts in case.known:
        link, node = one.link, one.node
        names = ", ".join(described(other) for other in usable(facts)) or "none"
        if link is None and node.interface is not None:
            what = f"there is no interface {node.interface}; there are: {names}"
        elif link is None:
            address = node.data or facts.used_address or node.control
            what = f"no interface has the data address {address}; there are: {names}"
        elif link.state == "down":
            what = f"its interface {link.name} is down"
        else:
            continue
        down = link is not None
        yield Finding(
            nodes=(one.name,), severity=Severity.FAIL, what=what,
            mend=f"there: sudo ip link set {link.name} up; ethtool {link.name}"
            if down and link is not None
            else "write `interface` (or the right `data`) of the node into the fleet file",
        )  # fmt: skip


def usable(facts: Facts) -> list[Interface]:
    """The interfaces that another machine could reach."""
    return [one for one in facts.interfaces if _address(one) is not None]


def _address(link: Interface) -> str | None:
    for address in link.addresses:
        found = ipaddress.ip_address(address)
        # NVIDIA's own setup of two Sparks gives the fast interface 169.254.x.x.
        if not found.is_loopback and (found.version == 4 or not found.is_link_local):
            return address
    return None


def described(link: Interface) -> str:
    """An interface in words."""
    return f"{link.name} ({rate(link)})"


def rate(link: Interface | None) -> str:
    """Its speed in words."""
    if link is None:
        return "?"
    if link.speed is None:
        return "speed unknown"
    return f"{link.speed / 1000:g} Gbit/s"


def one_network(case: Case) -> Iterator[Finding]:
    """Machines whose data addresses are not in one network."""
    groups = grouped((one.name, one.network) for one, _ in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.WARN,
            what=f"not in one network: {in_words(groups)}",
            mend="correct `data` in the fleet file, or the addresses there (netplan)",
        )  # fmt: skip


def subnets(case: Case) -> Iterator[Finding]:
    """Two interfaces of a machine in one network, of which one matters here.

    A cable and a WLAN in the house's network are none of our business.
    """
    for one, facts in case.known:
        ours = {port.interface for port in facts.rdma} | {one.link.name if one.link else ""}
        pairs = [
            (link.name, network)
            for link in facts.interfaces
            for network in dict.fromkeys(link.networks)
            if network and link.state != "down"
        ]
        for network, links in grouped(pairs).items():
            if len(links) > 1 and ours & set(links):
                yield Finding(
                    nodes=(one.name,), severity=Severity.WARN,
                    what=f"{' and '.join(links)} are both in {network}",
                    mend="there: give each interface a network of its own (netplan)",
                )  # fmt: skip


def speed(case: Case) -> Iterator[Finding]:
    """Ranks that talk over a slow interface."""
    for one, facts in case.known:
        link = one.link
        if link is None or link.speed is None:
            continue
        better = [
            (other.speed, other.name, _address(other))
            for other in usable(facts)
            if other.speed is not None and other.speed > link.speed and other.state != "down"
        ]
        if better:
            _, name, address = max(better, key=lambda found: found[0])
            fastest = facts.interface(name)
            yield Finding(
                nodes=(one.name,), severity=Severity.WARN,
                what=f"its data goes over {described(link)}, but {name} has {rate(fastest)}",
                mend=f"write `data: {address}` of the node into the fleet file",
            )  # fmt: skip
        elif link.speed < SLOW:
            yield Finding(
                nodes=(one.name,), severity=Severity.WARN,
                what=f"its fastest interface is {described(link)}",
                mend=f"there: ethtool {link.name}; the cable, the switch",
            )  # fmt: skip
    groups = grouped((one.name, rate(one.link)) for one, _ in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.WARN,
            what=f"not the same speed everywhere: {in_words(groups)}",
            mend="there: ethtool INTERFACE; the slowest one decides for all",
        )  # fmt: skip


def mtu(case: Case) -> Iterator[Finding]:
    """Frames of several sizes, or small ones on a fast network."""
    groups = grouped((one.name, packet(one)) for one, _ in case.known)
    if len(groups) > 1:
        yield Finding(
            nodes=odd(groups), severity=Severity.WARN,
            what=f"not the same MTU everywhere: {in_words(groups)}",
            mend=f"there: sudo ip link set INTERFACE mtu {JUMBO}; for good in netplan",
        )  # fmt: skip
    for one, _ in case.known:
        link = one.link
        if link is None or link.mtu is None or link.speed is None:
            continue
        if link.speed >= FAST and link.mtu < JUMBO:
            yield Finding(
                nodes=(one.name,), severity=Severity.WARN,
                what=f"{link.name} has {rate(link)} and an MTU of {link.mtu}",
                mend=f"there: sudo ip link set {link.name} mtu {JUMBO}; for good in netplan, and "
                "on the switch",
            )  # fmt: skip


def packet(one: Patient) -> str:
    """The MTU of its data interface."""
    return str(one.link.mtu) if one.link is not None and one.link.mtu is not None else "?"


def rdma(case: Case) -> Iterator[Finding]:
    """No RDMA between the machines."""
    for one, facts in case.known:
        link, mend = one.link, ""
        if not facts.rdma:
            what = "it has no RDMA device"
            mend = "there: sudo modprobe mlx5_ib; lspci | grep -i mellanox; or --no-rdma"
        elif not any(port.active for port in facts.rdma):
            what = f"none of its RDMA devices is up: {devices(facts)}"
            mend = "there: ibdev2netdev; sudo ip link set INTERFACE up; the cable, the switch"
        elif not one.node.hca and link is not None and not facts.hcas_of(link.name):
            what = f"{link.name}, for its data, is no RDMA device's; there are: {devices(facts)}"
            mend = "write the `data` address of such an interface into the fleet file"
        if mend:
            yield Finding(nodes=(one.name,), severity=Severity.FAIL, what=what, mend=mend)


def devices(facts: Facts) -> str:
    """The RDMA devices in words."""
    return ", ".join(
        f"{one.device} ({one.interface or 'no interface'}, {one.state.lower()})"
        for one in facts.rdma
    )


def verbs(case: Case) -> Iterator[Finding]:
    """No way for a container to RDMA."""
    for one, facts in case.known:
        if not facts.verbs:
            found = ", ".join(facts.infiniband)
            yield Finding(
                nodes=(one.name,), severity=Severity.FAIL,
                what=f"/dev/infiniband holds no verbs device, but {found}"
                if found
                else "there is no /dev/infiniband: `docker run --device=/dev/infiniband` fails",
                mend="there: sudo modprobe -a ib_uverbs rdma_ucm; for good in /etc/modules-load.d",
            )  # fmt: skip


def hca(case: Case) -> Iterator[Finding]:
    """RDMA devices of the fleet file that are not there, and such as it leaves unused."""
    for one, facts in case.known:
        ports = {port.device: port for port in facts.rdma if port.active}
        names = {port.device for port in facts.rdma}
        for named in one.node.hca:
            device = named.partition(":")[0]
            if device in ports:
                continue
            what = f"its RDMA device {device} is down" if device in names else (
                f"there is no RDMA device {device}; there are: {devices(facts) or 'none'}"
            )  # fmt: skip
            yield Finding(
                nodes=(one.name,), severity=Severity.FAIL, what=what,
                mend="correct `hca` in the fleet file; there: ibdev2netdev",
            )  # fmt: skip
        link = one.link
        if link is None:
            continue
        used = {named.partition(":")[0] for named in one.hcas}
        more = [device for device in facts.twins_of(link.name) if device not in used]
        if more and used & set(facts.twins_of(link.name)):
            whole = ", ".join(facts.twins_of(link.name))
            yield Finding(
                nodes=(one.name,), severity=Severity.INFO,
                what=f"{', '.join(more)} is behind the same plug and is not used",
                mend=f"write `hca: [{whole}]` into the fleet file",
            )  # fmt: skip
