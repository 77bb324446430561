"""Writes fleet.yaml: a new one, or more nodes into one that people have edited. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from sparkimage.config.inventory import Node

HEADER = """\
# The nodes of the cluster, as `sparkimage init` found them; yours to edit. All keys:
# docs/reference/fleet.md.
version: 1
nodes:
"""
KEYS = ("control", "data", "user", "port", "role", "interface", "hca", "gpus")


def new(nodes: Sequence[Node]) -> str:
    """The text of a file with these nodes."""
    return HEADER + "".join(_entries(nodes, 2))


def extended(text: str, nodes: Sequence[Node]) -> str | None:
    """The text of a valid file with these nodes added, all else as it was; None where its nodes
    are not written a line each, so that there is no place for more."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    listed = next(value for key, value in root.value if key.value == "nodes")
    if listed.flow_style or not isinstance(listed, yaml.MappingNode):
        return None
    lines = text.splitlines(keepends=True)
    # The mapping ends where the next token is: behind comments and empty lines.
    end = max(_last_line(value) for pair in listed.value for value in pair) + 1
    before = "".join(lines[:end])
    gap = "" if before.endswith("\n") else "\n"
    more = "".join(_entries(nodes, listed.value[0][0].start_mark.column))
    return before + gap + more + "".join(lines[end:])


def _last_line(node: Any) -> int:
    """The last line with a value of this node: blocks end where the next token begins."""
    if isinstance(node, yaml.MappingNode) and node.value and not node.flow_style:
        return max(_last_line(part) for pair in node.value for part in pair)
    if isinstance(node, yaml.SequenceNode) and node.value and not node.flow_style:
        return max(map(_last_line, node.value))
    # A text of several lines ends at the beginning of the next one.
    line, column = int(node.end_mark.line), node.end_mark.column
    return line - 1 if column == 0 and line > node.start_mark.line else line


def _entries(nodes: Sequence[Node], indent: int) -> Iterator[str]:
    for node in nodes:
        yield f"{' ' * indent}{_scalar(node.name)}:\n"
        for key in KEYS:
            value = getattr(node, key)
            if value and (key, value) != ("control", node.name):
                text = value if isinstance(value, tuple) else (value,)
                shown = ", ".join(map(_scalar, text))
                brackets = f"[{shown}]" if isinstance(value, tuple) else shown
                yield f"{' ' * (indent + 2)}{key}: {brackets}\n"


def _scalar(value: object) -> str:
    """A value on one line, in quotes where YAML would read it as something else."""
    return str(yaml.safe_dump(value, width=1000)).splitlines()[0]
