"""Finds nodes: in ssh_config and by mDNS; and how they are connected, for a fleet file."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from sparkimage.config import inventory
from sparkimage.config.address import parse_ip
from sparkimage.config.inventory import Node
from sparkimage.core.errors import CommandError, UsageError
from sparkimage.core.process import Runner
from sparkimage.nodes import fabric, ssh
from sparkimage.nodes.rdma import Rdma
from sparkimage.nodes.snapshot import NodeSnapshot

REACH_S = 3.0
"""Seconds that a node's sshd gets to answer at its data address."""
MDNS_S = 10.0
"""Seconds that machines get to answer on the network."""
NO_MACHINES = ("git",)
"""Users of ssh_config that only a service has."""
GIVEN, FLEET, SSH_CONFIG, MDNS = "given", "fleet file", "ssh_config", "mDNS"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A host that may be a node, and where its name is from."""

    node: Node
    source: str


def given(words: Iterable[str], user: str | None) -> list[Candidate]:
    """Hosts of the command line: ``[USER@]HOST[:PORT]``. Raises ``UsageError``."""
    return [_given(word, user) for word in dict.fromkeys(words)]


def _given(word: str, user: str | None) -> Candidate:
    match = re.fullmatch(r"(?:([^@]+)@)?(.+?)(?::([0-9]{1,5}))?", word)
    before, host, port = match.groups() if match and parse_ip(word) is None else (None, word, None)
    if not re.match(inventory.ADDRESS, host) or (before and not re.match(inventory.USER, before)):
        raise UsageError(
            f"{word!r} is not the address of a node",
            hint="pass [USER@]HOST[:PORT] of each one: a name, an address, or a Host of ssh_config",
        )
    name = word.rpartition("@")[2]
    node = Node(name=name, control=host, user=before or user, port=int(port) if port else None)
    return Candidate(node=node, source=GIVEN)


def find(runner: Runner, user: str | None) -> list[Candidate]:
    """Hosts of the user's ssh_config and of this network, each once."""
    found = [
        *of_ssh_config(Path("~/.ssh/config").expanduser(), runner, user),
        *by_mdns(runner, user),
    ]
    return list({one.node.name: one for one in reversed(found)}.values())[::-1]


def of_ssh_config(file: Path, runner: Runner, user: str | None) -> list[Candidate]:
    """The hosts that a user's ssh_config names without a pattern."""
    return [
        Candidate(node=Node(name=name, control=name, user=user), source=SSH_CONFIG)
        for name in dict.fromkeys(_hosts(file, file.parent))
        if re.match(inventory.NODE, name)
        if dict(ssh.settings(runner, "--", name)).get("user") not in NO_MACHINES
    ]


def _hosts(file: Path, folder: Path, depth: int = 0) -> Iterator[str]:
    """The hosts of a file, and of those that it includes from a folder:
    https://man.openbsd.org/ssh_config#Include"""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, *words = _words(line)
        if key == "host":
            yield from (word for word in words if not set(word) & set("*?!"))
        elif key == "include" and depth < 16:
            for word in words:
                pattern = folder / Path(word).expanduser()
                for found in sorted(Path("/").glob(str(pattern.absolute())[1:])):
                    yield from _hosts(found, folder, depth + 1)


def _words(line: str) -> list[str]:
    """The key of a line, in lower case, and its values; a ``=`` may be between them."""
    try:
        words = shlex.split(re.sub(r"^(\s*\w+)\s*=\s*", r"\1 ", line), comments=True)
    except ValueError:
        return [""]
    return [words[0].lower(), *words[1:]] if words else [""]


def by_mdns(runner: Runner, user: str | None) -> list[Candidate]:
    """The machines that announce their sshd on this network; none without ``avahi-browse``.

    NVIDIA's own setup of connected Sparks finds them so:
    https://github.com/NVIDIA/dgx-spark-playbooks/blob/main/nvidia/connect-two-sparks/assets/discover-sparks
    """
    if shutil.which("avahi-browse") is None:
        return []
    try:
        argv = ["avahi-browse", "--parsable", "--resolve", "--terminate", "_ssh._tcp"]
        said = runner.run(argv, check=False, timeout_s=MDNS_S).stdout
    except CommandError:
        return []
    found: dict[str, Candidate] = {}
    for line in said.splitlines():
        # =;enP7s7;IPv4;spark-1a2b;_ssh._tcp;local;spark-1a2b.local;192.168.1.20;22;
        fields = line.split(";")
        if len(fields) < 9 or fields[0] != "=" or not re.match(inventory.ADDRESS, fields[6]):
            continue
        port = int(fields[8]) if fields[8].isdecimal() and fields[8] != "22" else None
        node = Node(name=fields[6], control=fields[6], user=user, port=port)
        found.setdefault(node.control, Candidate(node=node, source=MDNS))
    return list(found.values())


def distinct(snapshots: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """Each machine once, under the first of its names."""
    machines: dict[tuple[str, str], NodeSnapshot] = {}
    for snapshot in snapshots:
        machines.setdefault((snapshot.host, snapshot.boot), snapshot)
    return list(machines.values())


def reaches(node: Node) -> bool:
    """This machine reaches a node's sshd at its data address: something else may take the
    connection, such as a proxy."""
    address = node.data or node.control, node.port or 22
    try:
        with socket.create_connection(address, REACH_S) as connection:
            # https://www.rfc-editor.org/rfc/rfc4253#section-4.2
            return connection.recv(4, socket.MSG_WAITALL) == b"SSH-"
    except OSError:
        return False


def entries(snapshots: Sequence[NodeSnapshot], known: Sequence[Node] = ()) -> list[Node]:
    """What a fleet file says of these nodes; those of the file itself, ``known``, stay as they
    are, and the first node is the head where there is none."""
    names = {node.name for node in known}
    heads = any(node.role == "head" for node in known)
    nodes = []
    for snapshot, port in zip(snapshots, _ports(snapshots), strict=True):
        node = snapshot.node
        if node not in known:
            node = replace(
                node,
                name=_name(snapshot, names),
                user=node.user or snapshot.user,
                role="worker" if heads else "head",
                gpus=len(snapshot.gpus) if len(snapshot.gpus) > 1 else None,
                **(_link(snapshot, port, snapshots) if port is not None else {}),
            )
            names.add(node.name)
        heads = True
        nodes.append(node)
    return nodes


def _name(snapshot: NodeSnapshot, taken: Collection[str]) -> str:
    host = snapshot.host.partition(".")[0]
    called = snapshot.node.control
    own = [host] if parse_ip(called) is not None else [called.partition(".")[0], called, host]
    numbered = (f"node{number}" for number in count(1))
    possible = chain(own, numbered)
    return next(name for name in possible if name not in taken and re.match(inventory.NODE, name))


def _link(snapshot: NodeSnapshot, port: Rdma, all_: Sequence[NodeSnapshot]) -> dict[str, Any]:
    """The keys that say which network its ranks use."""
    interface = snapshot.interface(port.interface)
    assert interface is not None
    others = [other for other in all_ if other is not snapshot]
    ports = {one.device: one for one in snapshot.rdma if one.active}
    twins = (
        name
        for name in fabric.plug(snapshot, interface)
        if name in ports and ports[name].addressed
        if all(fabric.meets(ports[name], other) for other in others)
    )
    address = fabric.usable(port.addresses)[0]
    return {
        "data": address if address != snapshot.node.control else None,
        "interface": interface.name,
        "hca": tuple(dict.fromkeys([port.device, *twins])),
    }


def _ports(snapshots: Sequence[NodeSnapshot]) -> Sequence[Rdma | None]:
    """Each node's port in the fastest RDMA network that all of them are in; none where there is no
    such network, or one node alone."""
    networks = [_networks(snapshot) for snapshot in snapshots]
    common = [key for key in networks[0] if all(key in each for each in networks)]
    if len(networks) == 1 or not common:
        return [None] * len(networks)
    best = max(common, key=lambda key: min(each[key].rate or 0 for each in networks))
    return [each[best] for each in networks]


def _networks(snapshot: NodeSnapshot) -> dict[str, Rdma]:
    """Its RDMA ports by network, the twins of others last.

    Link-local addresses are all of one network: those of equal interfaces are taken for connected,
    as in NVIDIA's setup of two Sparks.
    """
    networks: dict[str, Rdma] = {}
    for port in sorted(snapshot.rdma, key=lambda port: bool(fabric.DOMAIN.search(port.device))):
        if port.active and fabric.usable(port.addresses):
            networks.setdefault(next(iter(port.networks), port.interface), port)
    return networks
