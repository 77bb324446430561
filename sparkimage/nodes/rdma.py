"""A node's network interfaces, RDMA devices with their GIDs, and routes, from
``data/node/snapshot.sh``. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

ROCE_V2 = "RoCE v2"
PORT = re.compile(r"([^|@]*)\|([0-9]{1,18})\|(?:[^|]*: *)?([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)$")
GID = re.compile(r"@gid ([^|]*)\|([0-9]{1,6})\|([0-9]{1,6})\|([^|]*)\|([0-9a-fA-F:]+)$")
ROUTE = re.compile(r"(default|[0-9.]+(?:/[0-9]+)?) .*?\bdev ([^ ]+)")


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface. ``speed`` in Mbit/s and ``mtu`` in bytes; None where unknown."""

    name: str
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """The network of each address, as ``192.168.100.0/24``; empty for a /32 or a link-local one."""
    speed: int | None = None
    mtu: int | None = None
    state: str = ""
    """``up``, ``down``, ``unknown``, ...: /sys/class/net/NAME/operstate."""

    @property
    def rate(self) -> str:
        """Its speed in words."""
        return "speed unknown" if self.speed is None else f"{self.speed / 1000:g} Gbit/s"

    def __str__(self) -> str:
        return f"{self.name} ({self.rate})"


@dataclass(frozen=True, kw_only=True)
class Gid:
    """An address of an RDMA port, as peers know it: an entry of its table."""

    index: int
    kind: str
    """``RoCE v2``, ``IB/RoCE v1``, ...: gid_attrs/types."""
    gid: str
    """``::ffff:192.168.100.1``, ``fe80::…``"""

    @property
    def ipv4(self) -> str:
        """The IPv4 address that it stands for, or nothing."""
        mapped = ipaddress.IPv6Address(self.gid).ipv4_mapped
        return str(mapped) if mapped is not None else ""

    @property
    def usable(self) -> bool:
        """NCCL takes it by itself: a RoCE v2 GID of an IPv4 address.

        https://github.com/NVIDIA/nccl/blob/v2.30.7-1/src/transport/net_ib/connect.cc
        """
        return self.kind == ROCE_V2 and bool(self.ipv4)


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """A port of an RDMA device, from /sys/class/infiniband."""

    device: str
    """As ``NCCL_IB_HCA`` names it: ``rocep1s0f0``."""
    port: int
    state: str
    """``ACTIVE``, ``DOWN``, ..."""
    layer: str
    """``Ethernet`` (RoCE) or ``InfiniBand``."""
    rate: int | None
    """Gbit/s."""
    interface: str
    """Its network interface, or nothing."""
    mtu: int | None = None
    """Of the interface, in bytes."""
    addresses: tuple[str, ...] = ()
    """The interface's IPv4 addresses."""
    networks: tuple[str, ...] = ()
    """Their networks: ``192.168.100.0/24``."""
    gids: tuple[Gid, ...] | None = None
    """Its entries that are not empty, by index; None where the node does not list them."""

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"

    @property
    def roce(self) -> bool:
        """Its peers know it by addresses of its interface."""
        return self.layer != "InfiniBand"

    @property
    def addressed(self) -> bool:
        """It has a GID that NCCL can use; judged by its addresses where the node lists none."""
        if not self.roce:
            return True
        return bool(self.addresses) if self.gids is None else any(gid.usable for gid in self.gids)


def devices(lines: Sequence[str], interfaces: Sequence[Interface]) -> tuple[Rdma, ...]:
    """The ports in the part ``rdma``, with what their interfaces have."""
    by_name = {interface.name: interface for interface in interfaces}
    gids = _gids(lines)
    return tuple(
        _device(match, by_name.get(match[6]), gids)
        for line in lines
        if (match := PORT.match(line)) is not None
    )


def _device(
    match: re.Match[str], interface: Interface | None, gids: Mapping[tuple[str, int], list[Gid]]
) -> Rdma:
    rate = re.match(r"([0-9]{1,6})(?:\.[0-9]+)? *Gb", match[5])
    known = gids.get((match[1], int(match[2])))
    pairs = [] if interface is None else _ipv4(interface)
    return Rdma(
        device=match[1],
        port=int(match[2]),
        state=match[3].strip(),
        layer=match[4],
        rate=int(rate[1]) if rate is not None else None,
        interface=match[6],
        mtu=interface.mtu if interface is not None else None,
        addresses=tuple(address for address, _ in pairs),
        networks=tuple(dict.fromkeys(network for _, network in pairs if network)),
        gids=tuple(sorted(known, key=lambda gid: gid.index)) if known is not None else None,
    )


def _ipv4(interface: Interface) -> list[tuple[str, str]]:
    pairs = zip(interface.addresses, interface.networks, strict=True)
    return [(address, network) for address, network in pairs if ":" not in address]


def _gids(lines: Sequence[str]) -> dict[tuple[str, int], list[Gid]]:
    gids: dict[tuple[str, int], list[Gid]] = {}
    for line in lines:
        if (port := re.match(r"@gids ([^|]*)\|([0-9]{1,6})$", line)) is not None:
            gids.setdefault((port[1], int(port[2])), [])
        elif (match := GID.match(line)) is not None:
            try:
                address = ipaddress.IPv6Address(match[5])
            except ValueError:
                continue
            if int(address):
                gid = Gid(index=int(match[3]), kind=match[4].strip(), gid=_short(address))
                gids.setdefault((match[1], int(match[2])), []).append(gid)
    return gids


def _short(address: ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped
    return f"::ffff:{mapped}" if mapped is not None else str(address)


def routes(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each IPv4 network of the part ``routes``, and the interface that leads to it."""
    for line in lines:
        if (match := ROUTE.match(line)) is not None:
            try:
                network = ipaddress.IPv4Network("0.0.0.0/0" if match[1] == "default" else match[1])
            except ValueError:
                continue
            yield str(network), match[2]
