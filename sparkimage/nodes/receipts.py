"""What was distributed where and when, and what was proven: a file for each node and digest, here
and on the node, under the user's state folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sparkimage.core.files import write

FOLDER = "receipts"
THERE = 'cd "${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts"'
KEEP = f'umask 077; mkdir -p {THERE[3:]} && {THERE} && cat >".$1.new" && mv ".$1.new" "$1"'
"""Shell text that keeps its input on a node as the file of this name."""
FORGET = f'{THERE} && rm -f -- "$@"'
"""Shell text that removes these files on a node."""
SAME = ("name", "digest", "by", "seal", "proven", "unverified")
APART_S = 600.0
"""Seconds from which on two receipts are of two distributions."""


def keep(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Write a receipt, atomically."""
    own = folder / str(receipt["node"])
    own.mkdir(parents=True, exist_ok=True)
    write(own / file_of(receipt), text_of(receipt).encode(), mode=0o600)


def file_of(receipt: Mapping[str, Any]) -> str:
    """The name of its file."""
    return f"{receipt['digest'][7:]}.json"


def text_of(receipt: Mapping[str, Any]) -> str:
    """The text of its file."""
    return json.dumps(receipt, separators=(",", ":")) + "\n"


def kept(folder: Path) -> list[Mapping[str, Any]]:
    """All receipts of the folder, the oldest first; files that are no receipts are left out."""
    receipts = []
    for path in sorted(folder.glob("*/*.json")):
        with contextlib.suppress(OSError, ValueError):
            receipts.append(json.loads(path.read_text()))
    return sorted(filter(is_receipt, receipts), key=lambda receipt: str(receipt["when"]))


def is_receipt(document: Any) -> bool:
    """Whether it has the fields that every receipt has."""
    return isinstance(document, dict) and {"node", "name", "digest", "when"} <= set(document)


def grouped(receipts: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Receipts of the same distribution together, with their nodes: those that are equal but for
    the node, of about the same time, and of each node once. Pure."""
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for receipt in receipts:
        node, when = str(receipt["node"]), str(receipt["when"])
        # Receipts of two distributions in one second may alternate.
        for first, nodes in reversed(groups):
            same = all(first.get(key) == receipt.get(key) for key in SAME)
            if same and node not in nodes and _seconds(str(first["when"]), when) < APART_S:
                nodes.append(node)
                break
        else:
            groups.append((receipt, [node]))
    return groups


def _seconds(before: str, after: str) -> float:
    try:
        return (datetime.fromisoformat(after) - datetime.fromisoformat(before)).total_seconds()
    except (ValueError, TypeError):
        return APART_S
