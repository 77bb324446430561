"""Which node is which rank, and by what address and devices the ranks reach each other. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from sparkimage.config.inventory import Fleet, Node, head_of
from sparkimage.config.profiles import Profile, fitting
from sparkimage.config.validation import nearest
from sparkimage.core.errors import LaunchError, UsageError
from sparkimage.serve.doctor.facts import Facts


def order(fleet: Fleet, count: int) -> tuple[Node, ...]:
    """The nodes by rank: the head first, then in the order of the file.

    Raises ``UsageError`` where there are fewer than ``count``.
    """
    if len(fleet.nodes) < count:
        raise UsageError(
            f"the profile is for {count} nodes, {fleet.file or '--nodes'} has {len(fleet.nodes)}",
            hint="name more nodes, or take another --profile",
        )
    head = head_of(fleet.nodes)
    return (head, *(node for node in fleet.nodes if node != head))[:count]


def pick(
    profiles: dict[str, Profile], variant: str, wanted: str | None, nodes: int
) -> tuple[str, Profile]:
    """The profile that was asked for; else the one for the variant and so many nodes.

    Raises ``UsageError`` where that is none, or not only one.
    """
    fits = fitting(profiles, variant)
    if wanted is not None:
        if wanted not in profiles:
            raise UsageError(f"no profile is called {wanted!r}", hint=nearest(wanted, profiles))
        if wanted not in fits:
            raise UsageError(
                f"profile {wanted} is not for {variant}",
                hint="its profiles are " + ", ".join(fits)
                if fits
                else f"add a glob for {variant} to its `variants` in the matrix",
            )
        return wanted, profiles[wanted]
    if not fits:
        raise UsageError(
            f"no profile of the matrix is for {variant}",
            hint="write one below `profiles:`, as docs/launch.md says",
        )
    same = [name for name in fits if profiles[name].nodes == nodes]
    if len(same) != 1:
        said = ", ".join(f"{name} ({profiles[name].nodes} nodes)" for name in fits)
        raise UsageError(
            f"{len(same) or 'no'} profiles are for {variant} on {nodes} nodes",
            hint=f"say --profile NAME, or name so many --nodes: {said}",
        )
    return same[0], profiles[same[0]]


def address(node: Node, facts: Facts, resolved: str) -> tuple[str, str]:
    """The node's own address for the other ranks, and the interface that has it.

    ``resolved``: what the data address is to the node itself. The interface of the fleet file
    goes first, then that of the data address, then that of the address which commands came to.
    Raises ``LaunchError``.
    """
    if node.interface is not None:
        named = facts.interface(node.interface)
        if named is None:
            known = ", ".join(one.name for one in facts.interfaces)
            raise LaunchError(
                f"{node.name}: it has no interface {node.interface}",
                hint=f"correct `interface` in the fleet file: it has {known}",
            )
        own = [one for one in (resolved, *_usable(named.addresses)) if one in named.addresses]
        if not own:
            raise LaunchError(
                f"{node.name}: its interface {node.interface} has no address",
                hint=f"give it one there: ip addr; its state is {named.state or 'unknown'}",
            )
        return own[0], named.name
    for one in (resolved, node.data, node.control, facts.used_address):
        found = facts.interface_of(one) if one else None
        if one and found is not None:
            return one.partition("%")[0], found.name
    raise LaunchError(
        f"{node.name}: none of its interfaces has the address {node.data or node.control}",
        hint="name the `interface` of the node in the fleet file",
    )


def _usable(addresses: Sequence[str]) -> list[str]:
    """IPv4 before IPv6, and none that holds on one link only."""
    found = []
    for one in addresses:
        try:
            parsed = ipaddress.ip_address(one)
        except ValueError:
            continue
        if not parsed.is_link_local and not parsed.is_loopback:
            found.append((parsed.version, one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def hcas(node: Node, facts: Facts, interface: str) -> tuple[str, ...]:
    """The RDMA devices for NCCL: those that the fleet file names, else the interface's own."""
    return node.hca or facts.hcas_of(interface)
