"""The fleet: the file that names the nodes, or their names alone. Pure, but for reading it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.strict import Strict
from sparkimage.config.yamlfile import Document, Key
from sparkimage.core.errors import ConfigError, Problem, UsageError

NODE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
ADDRESS = r"^[A-Za-z0-9][A-Za-z0-9._:%-]{0,252}$"
"""A host name, an IPv4 or an IPv6 address, or a name of the user's ssh_config. It never begins
with a hyphen, which ssh would take for an option."""
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
        description="address for commands, or a name of ssh_config; default: the node's own name",
    )
    data: str | None = Field(
        default=None,
        pattern=ADDRESS,
        description="address for layers, on the fast interface; default: as control",
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
        default=None, ge=0, le=64, description="number of GPUs; default: as found on the node"
    )
    role: Literal["head", "worker"] | None = None
    labels: dict[str, str] = Field(default={}, description="the user's own words")


class FleetFile(Strict):
    """fleet.yaml"""

    version: Literal[1]
    nodes: dict[Annotated[str, Field(pattern=NODE)], NodeSpec] = Field(
        min_length=1, description="node name, then how it is reached"
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    """A Docker host and how it is reached; what is None is left to the user's ssh_config."""

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
    labels: tuple[tuple[str, str], ...] = ()


def head_of(nodes: Sequence[Node]) -> Node:
    """The node that leads the others: of the role ``head``, else the first one."""
    return next((node for node in nodes if node.role == "head"), nodes[0])


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The nodes, in the order of their file."""

    nodes: tuple[Node, ...]
    file: str = ""
    """Where it was read from; empty for names alone."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)


def read(given: str, folder: Path) -> Fleet:
    """What ``--nodes`` means: a file, or names with commas between them (``user@host`` too).

    ``folder`` is where a relative file may lie as well as in the working directory.
    Raises ``ConfigError`` with every problem of the file, ``UsageError`` for a wrong name.
    """
    if given.endswith((".yaml", ".yml")) or "/" in given:
        path = Path(given)
        if not path.is_absolute() and not path.exists():
            path = folder / path
        return load(path)
    return of_names([name.strip() for name in given.split(",")])


def of_names(names: list[str]) -> Fleet:
    """A fleet of hosts that ssh knows by these names."""
    import re

    nodes = []
    for name in names:
        user, _, host = name.rpartition("@")
        if not re.match(NODE, host) or (user and not re.match(USER, user)):
            raise UsageError(
                f"--nodes: {name!r} is no name of a node",
                hint="write names with commas between them (spark1,user@spark2), or a fleet.yaml",
            )
        nodes.append(Node(name=host, control=host, user=user or None))
    if len({node.name for node in nodes}) < len(nodes):
        raise UsageError("--nodes names a node twice", hint="name each one once")
    return Fleet(nodes=tuple(nodes))


def load(path: Path) -> Fleet:
    """Read a fleet file. Raises ``ConfigError`` with every problem that it has."""
    document = yamlfile.load(
        path,
        if_missing="write one as docs/distribute.md says, or name nodes: --nodes spark1,spark2",
    )
    given = validation.parse(document, FleetFile)
    nodes = tuple(_node(name, spec) for name, spec in given.nodes.items())
    problems = _check(document, nodes)
    if problems:
        raise ConfigError(problems)
    return Fleet(nodes=nodes, file=path.name)


def schema() -> dict[str, Any]:
    """The JSON schema of fleet.yaml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **FleetFile.model_json_schema(),
    }


def _node(name: str, spec: NodeSpec) -> Node:
    return Node(
        name=name,
        control=spec.control or name,
        data=spec.data if spec.data != (spec.control or name) else None,
        user=spec.user,
        port=spec.port,
        sudo=spec.sudo,
        role=spec.role,
        interface=spec.interface,
        hca=tuple(spec.hca or ()),
        gpus=spec.gpus,
        labels=tuple(sorted(spec.labels.items())),
    )


def _check(document: Document, nodes: tuple[Node, ...]) -> list[Problem]:
    problems: list[Problem] = []

    def wrong(key: Key, what: str, todo: str) -> None:
        problems.append(Problem(file=document.file, line=document.line(key), what=what, todo=todo))

    seen: dict[tuple[str, int | None], str] = {}
    for node in nodes:
        for kind, address in (("control", node.control), ("data", node.data)):
            if address is None:
                continue
            other = seen.setdefault((address, node.port), node.name)
            if other != node.name:
                wrong(
                    ("nodes", node.name, kind),
                    f"{node.name} and {other} have the same address {address}",
                    "give each node its own",
                )
            if _is_unspecified(address):
                wrong(
                    ("nodes", node.name, kind), f"{address} is the address of no host",
                    "write the node's own address",
                )  # fmt: skip
    heads = [node.name for node in nodes if node.role == "head"]
    if len(heads) > 1:
        wrong(
            ("nodes", heads[1], "role"), f"{' and '.join(heads)} are both the head",
            "leave one, and make the others `role: worker`",
        )  # fmt: skip
    return problems


def _is_unspecified(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_unspecified or found.is_multicast
