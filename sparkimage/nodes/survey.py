"""What hosts that may be nodes say of themselves, for a fleet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import UnreachableError
from sparkimage.core.process import Runner
from sparkimage.nodes import discovery, login, session, ssh
from sparkimage.nodes.discovery import GIVEN, MDNS, Candidate
from sparkimage.nodes.login import ToDo
from sparkimage.nodes.snapshot import NodeSnapshot


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A host that was found and is no node."""

    host: str
    source: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The nodes of a fleet, and what must be done before they can be used."""

    known: tuple[Node, ...]
    """Those that the file has."""
    new: tuple[Node, ...]
    snapshots: Mapping[str, NodeSnapshot]
    """Of the nodes that answered, by name."""
    failed: tuple[str, ...]
    """Hosts of the command line that cannot be used."""
    apart: bool
    """This machine does not reach the nodes' fast network: they have no data address."""
    to_do: tuple[ToDo, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.known, *self.new)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        new = {node.name for node in self.new}
        return {
            "nodes": [
                {**asdict(node), "new": node.name in new, "answers": node.name in self.snapshots}
                for node in self.nodes
            ],
            "to_do": [asdict(one) for one in self.to_do],
            "left_out": [asdict(one) for one in self.left_out],
        }


def examine(
    known: Sequence[Node], candidates: Sequence[Candidate], runner: Runner, *, patience_s: float
) -> Survey:
    """Ask the nodes of a file and these candidates, all at once.

    A host that was only found is a node if it has NVIDIA GPUs; one that was named is in any case.
    """
    taken = {name for node in known for name in (node.name, node.control)}
    others = [one for one in candidates if one.node.name not in taken]
    fleet = Fleet(nodes=(*known, *(one.node for one in others)))
    reports = session.survey(fleet, ssh.MACHINE, patience_s=patience_s) if fleet.nodes else ()
    sources = {one.node: one.source for one in others}
    snapshots: list[NodeSnapshot] = []
    to_do: list[ToDo] = []
    left_out: list[LeftOut] = []
    for report in reports:
        source, snapshot, error = sources.get(report.node), report.snapshot, report.error
        is_named, why = source in (None, GIVEN), "it has no NVIDIA GPU"
        if snapshot is not None and (is_named or snapshot.smi or snapshot.gpus):
            snapshots.append(snapshot)
            continue
        if error is not None:
            if is_named or (source == MDNS and _wants_a_key(error)):
                to_do += login.for_connection(report.node, error, runner)
                continue
            why = error.message.removeprefix(report.name).lstrip(": ")
        left_out.append(LeftOut(host=report.name, source=source or "", why=why))
    machines = discovery.distinct(snapshots)
    entries = discovery.entries(machines, known) if machines else []
    with_data = [node for node in entries if node.data and node not in known]
    with ThreadPoolExecutor(len(with_data) or 1) as pool:
        apart = not all(pool.map(discovery.reaches, with_data))
    if apart:
        # Layers go there from here, which is on no such network; ranks use the interface.
        entries = [replace(one, data=None) if one in with_data else one for one in entries]
    for node, snapshot in zip(entries, machines, strict=True):
        to_do += login.for_docker(node, snapshot)
    return Survey(
        known=tuple(known),
        new=tuple(node for node in entries if node not in known),
        snapshots=dict(zip((node.name for node in entries), machines, strict=True)),
        failed=tuple(
            report.name
            for report in reports
            if report.snapshot is None and sources.get(report.node) == GIVEN
        ),
        apart=apart,
        to_do=tuple(to_do),
        left_out=tuple(left_out),
    )


def _wants_a_key(error: Exception) -> bool:
    return isinstance(error, UnreachableError) and error.reason in (ssh.UNKNOWN_KEY, ssh.LOGIN)
