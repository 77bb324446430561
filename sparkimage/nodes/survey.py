"""What hosts that may be nodes say of themselves, for a fleet file; and what a user must do before
they can be used: keys, host keys, the right to use Docker. Each as a command to paste; nothing of
it is done here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import EnginePermissionError, SparkError, UnreachableError
from sparkimage.core.process import Runner
from sparkimage.nodes import discovery, session, ssh
from sparkimage.nodes.discovery import GIVEN, MDNS, Candidate
from sparkimage.nodes.snapshot import NodeSnapshot

SCAN_S = "5"
"""Seconds that a node gets to show its host key."""
HOST_KEYS = "/etc/ssh/ssh_host_ed25519_key.pub"


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """One thing to do before a node can be used."""

    node: str
    why: str
    command: str = ""
    """To paste here; empty where it is done otherwise, as ``why`` says."""


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
                to_do += _for_connection(report.node, error, runner)
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
        to_do += _for_docker(node, snapshot)
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


def _for_connection(node: Node, error: SparkError, runner: Runner) -> Iterator[ToDo]:
    """What to do for a node that could not be examined."""
    reason = error.reason if isinstance(error, UnreachableError) else ""
    why = error.message.removeprefix(node.name).lstrip(": ")
    copy = shlex.join(["ssh-copy-id", *ssh.destination(node)])
    if reason == ssh.UNKNOWN_KEY:
        offered = _fingerprints(node, runner)
        shown = f"; it shows {', '.join(offered)}" if offered else ""
        why += (
            f"{shown}. Compare that with what the node prints on its own screen, `ssh-keygen -lf "
            f"{HOST_KEYS}`, and paste that fingerprint when ssh asks"
        )
        yield ToDo(node=node.name, why=why, command=copy)
    elif reason == ssh.LOGIN:
        if not _has_key(node, runner):
            yield ToDo(node=node.name, why="you have no ssh key", command="ssh-keygen -t ed25519")
        yield ToDo(node=node.name, why=f"{why}: it does not have your key", command=copy)
    else:
        yield ToDo(node=node.name, why=f"{why}; {error.hint}" if error.hint else why)


def _for_docker(node: Node, snapshot: NodeSnapshot) -> Iterator[ToDo]:
    """What to do for a node that was examined, so that its Docker can be used."""
    error = snapshot.docker_error()
    if error is None:
        return
    why = error.message.removeprefix(f"{snapshot.name}: ")
    if isinstance(error, EnginePermissionError) and not node.sudo:
        add = ["sudo", "usermod", "-aG", "docker", snapshot.user]
        command = shlex.join(["ssh", "-t", *ssh.destination(node), *add])
        yield ToDo(node=node.name, why=why, command=command)
    else:
        yield ToDo(node=node.name, why=f"{why}; {error.hint}")


def _has_key(node: Node, runner: Runner) -> bool:
    """An identity of ssh is there, or its agent has one."""
    settings = ssh.settings(runner, *ssh.destination(node))
    files = [Path(value).expanduser() for key, value in settings if key == "identityfile"]
    return any(map(Path.exists, files)) or not runner.run(["ssh-add", "-l"], check=False).returncode


def _fingerprints(node: Node, runner: Runner) -> list[str]:
    """Those of the host keys that a machine at the node's address shows, whoever it is."""
    config = dict(ssh.settings(runner, *ssh.destination(node)))
    scan = ["ssh-keyscan", "-T", SCAN_S, "-t", "ed25519", "-p", config["port"], "--"]
    keys = runner.run([*scan, config["hostname"]], check=False).stdout
    # 256 SHA256:… host (ED25519)
    listed = runner.run(["ssh-keygen", "-lf", "-"], stdin=keys, check=False).stdout.splitlines()
    words = (line.split() for line in listed)
    return [f"{line[-1].strip('()')} {line[1]}" for line in words if len(line) > 2]
