"""What was brought where, when, and what was proven: a file for each node and digest, here and
(written by ``data/node/move.sh``) on the node, under the user's state folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "receipts"


def keep(folder: Path, receipt: Mapping[str, Any]) -> None:
    """Write a receipt; the file has its name only when it is whole."""
    own = folder / str(receipt["node"])
    own.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".new-", dir=own)
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(receipt, separators=(",", ":")) + "\n")
    os.replace(name, own / f"{receipt['digest'][7:]}.json")


def kept(folder: Path) -> list[Mapping[str, Any]]:
    """All receipts of the folder, the oldest first; broken ones are left out."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            one = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(one, dict) and {"node", "name", "digest", "when"} <= set(one):
            found.append(one)
    return sorted(found, key=lambda one: str(one["when"]))
