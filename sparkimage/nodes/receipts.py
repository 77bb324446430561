"""What was brought where, when, and what was proven: a file for each node and digest, here and
(written by ``data/node/move.sh``) on the node, under the user's state folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sparkimage.core.files import write

FOLDER = "receipts"
SAME = ("name", "digest", "by", "seal", "proven", "unverified")
APART_S = 600.0
"""Seconds between two receipts of two distributions, at least."""


def keep(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Write a receipt; the file has its name only when it is whole."""
    own = folder / str(receipt["node"])
    own.mkdir(parents=True, exist_ok=True)
    text = json.dumps(receipt, separators=(",", ":")) + "\n"
    write(own / f"{receipt['digest'][7:]}.json", text.encode(), mode=0o600)


def kept(folder: Path) -> list[Mapping[str, Any]]:
    """All receipts of the folder, the oldest first; broken ones are left out."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            one = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if is_one(one):
            found.append(one)
    return sorted(found, key=lambda one: str(one["when"]))


def is_one(given: Any) -> bool:
    """Whether it says the least that a receipt says."""
    return isinstance(given, dict) and {"node", "name", "digest", "when"} <= set(given)


def grouped(found: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Receipts of one and the same distribution together, with their nodes: those that say the
    same but for the node, of about the same time, and of each node once. Pure."""
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for one in found:
        node, now = str(one["node"]), str(one["when"])
        # Of two distributions in one second, receipts may come in turn.
        for first, nodes in reversed(groups):
            same = all(first.get(key) == one.get(key) for key in SAME)
            if same and node not in nodes and _seconds(str(first["when"]), now) < APART_S:
                nodes.append(node)
                break
        else:
            groups.append((one, [node]))
    return groups


def _seconds(before: str, now: str) -> float:
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(before)).total_seconds()
    except (ValueError, TypeError):
        return APART_S
