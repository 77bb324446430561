"""The fleet: the file that lists the nodes, or their names alone. Pure, but for reading it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sparkimage.config import environment, validation, yamlfile
from sparkimage.config.address import parse_ip
from sparkimage.config.environment import Environment
from sparkimage.config.validation import Finding, Report, Strict
from sparkimage.core.errors import UsageError
from sparkimage.core.program import program
from sparkimage.core.spelling import closest

NODE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ADDRESS = r"^[A-Za-z0-9][A-Za-z0-9._:%-]{0,252}$"
"""A host name, an IPv4 or IPv6 address, or a Host of the user's ssh_config; without a leading
hyphen, which ssh would take for an option."""
USER = r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$"
INTERFACE = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,14}$"
"""A network interface: the kernel takes up to 15 characters."""
HCA = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(:[0-9]{1,3})?$"
"""An RDMA device as ``NCCL_IB_HCA`` names it, with a port where it has several.
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-ib-hca"""
FILE = "fleet.yaml"


class NodeSpec(Strict):
    """One Docker host."""

    control: str | None = Field(
        default=None,
        pattern=ADDRESS,
        description="address for ssh, without `user` and `port`, or a Host of ssh_config; default: "
        "the node's name",
    )
    data: str | None = Field(
        default=None,
        pattern=ADDRESS,
        description="address for image data, on the fast interface; default: control",
    )
    user: str | None = Field(default=None, pattern=USER, description="default: as ssh_config says")
    port: int | None = Field(default=None, ge=1, le=65535, description="of sshd")
    sudo: bool = Field(default=False, description="call docker through `sudo -n`")
    interface: str | None = Field(
        default=None,
        pattern=INTERFACE,
        description="network interface for NCCL and GLOO; default: that of the data address",
    )
    hca: list[Annotated[str, Field(pattern=HCA)]] | None = Field(
        default=None,
        min_length=1,
        description="RDMA devices for NCCL (NCCL_IB_HCA); default: those of the interface",
    )
    gpus: int | None = Field(
        default=None, ge=0, le=64, description="number of GPUs; default: as the node reports"
    )
    role: Literal["head", "worker"] | None = Field(
        default=None, description="of `launch`; default: the first node is the head"
    )
    env: Environment = Field(
        default={}, description="environment variables of the server on this node alone"
    )
    labels: dict[str, str] = Field(default={}, description="free text")


class FleetFile(Strict):
    """fleet.yaml"""

    version: Literal[1]
    nodes: dict[Annotated[str, Field(pattern=NODE)], NodeSpec] = Field(
        min_length=1, description="nodes by name"
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    """A Docker host and how to reach it; None leaves it to the user's ssh_config."""

    name: str
    control: str
    data: str | None = None
    user: str | None = None
    port: int | None = None
    sudo: bool = False
    role: str | None = None
    interface: str | None = None
    hca: tuple[str, ...] = ()
    gpus: int | None = None
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of the server on this node alone."""


def head_of(nodes: Sequence[Node]) -> Node:
    """The head node: of the role ``head``, else the first one."""
    return next((node for node in nodes if node.role == "head"), nodes[0])


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The nodes, in the order of their file."""

    nodes: tuple[Node, ...]
    file: str = ""
    """Its name; empty for nodes by name alone."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    def ranks(self, count: int) -> tuple[Node, ...]:
        """So many nodes by rank: the head first, then in the order of the file.

        Raises ``UsageError`` where there are fewer.
        """
        if len(self.nodes) < count:
            raise UsageError(
                f"the profile is for {count} nodes, {self.file or '--nodes'} has {len(self.nodes)}",
                hint="add nodes, or pass another --profile",
            )
        head = head_of(self.nodes)
        return (head, *(node for node in self.nodes if node != head))[:count]


def read(nodes: str, folder: Path) -> Fleet:
    """The fleet of ``--nodes``: a file, or names with commas between them (``user@host`` too).

    A relative file is looked for in the working directory, then in ``folder``.
    Raises ``ConfigError`` with every problem of the file, ``UsageError`` for a wrong name.
    """
    if nodes.endswith((".yaml", ".yml")) or "/" in nodes:
        path = Path(nodes)
        if not path.is_absolute() and not path.exists():
            path = folder / path
        return load(path)
    return of_names([name.strip() for name in nodes.split(",")])


def of_names(names: list[str]) -> Fleet:
    """A fleet of hosts that ssh knows by these names."""
    nodes = []
    for name in names:
        user, _, host = name.rpartition("@")
        if not re.match(NODE, host) or (user and not re.match(USER, user)):
            raise UsageError(
                f"--nodes: {name!r} is not a node name",
                hint="pass names with commas between them (spark1,user@spark2), or a fleet.yaml",
            )
        nodes.append(Node(name=host, control=host, user=user or None))
    if len({node.name for node in nodes}) < len(nodes):
        raise UsageError("--nodes has a node twice", hint="pass each one once")
    return Fleet(nodes=tuple(nodes))


def load(path: Path) -> Fleet:
    """Read a fleet file. Raises ``ConfigError`` with every problem that it has, ``UsageError``
    where there is none."""
    if not path.exists():
        # By the names' stems: endings are alike in all of them.
        files = {file.stem: file for file in path.parent.glob("*.y*ml")}
        near = closest(path.stem, files, cutoff=0.6)
        raise UsageError(
            f"{path} does not exist: it says which nodes there are",
            hint=(f"did you mean {files[near]}? Or " if near else "")
            + f"write it: {program()} init; or pass names: --nodes spark1,spark2",
        )
    document = yamlfile.load(path)
    specs = validation.parse(document, FleetFile).nodes
    nodes = tuple(_node(name, spec) for name, spec in specs.items())
    report = Report(document)
    report.extend(("nodes",), _check(nodes))
    report.close()
    return Fleet(nodes=nodes, file=path.name)


def _node(name: str, spec: NodeSpec) -> Node:
    control = spec.control or name
    return Node(
        name=name,
        **{
            **{key: value for key, value in spec if key != "labels"},
            "control": control,
            "data": spec.data if spec.data != control else None,
            "hca": tuple(spec.hca or ()),
        },
    )


def _check(nodes: tuple[Node, ...]) -> Iterator[Finding]:
    owners: dict[tuple[str, int | None], str] = {}
    for node in nodes:
        for kind, address in (("control", node.control), ("data", node.data)):
            if address is None:
                continue
            if with_port := re.fullmatch(r"([^:]+):([0-9]+)", address):
                what = f"{address} has a port, which is a key of its own"
                todo = f"write `{kind}: {with_port[1]}`, and sshd's port as `port: {with_port[2]}`"
                yield (node.name, kind), what, todo
            other = owners.setdefault((address, node.port), node.name)
            if other != node.name:
                what = f"{node.name} and {other} have the same address {address}"
                yield (node.name, kind), what, "give each node its own"
            ip = parse_ip(address)
            if ip is not None and (ip.is_unspecified or ip.is_multicast):
                todo = "write the node's own address"
                yield (node.name, kind), f"{address} is not the address of a host", todo
        for key, what, todo in environment.problems_of_node(node.env):
            yield (node.name, *key), what, todo
    heads = [node.name for node in nodes if node.role == "head"]
    if len(heads) > 1:
        what = f"{' and '.join(heads)} both have the role head"
        yield (heads[1], "role"), what, "keep one, and make the others `role: worker`"
