"""The manifests of the models that were pushed from here, a file for each path on the nodes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparkimage.core.files import write
from sparkimage.core.paths import MODELS
from sparkimage.nodes.model_manifest import Entry, Manifest


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that was pushed."""

    folder: str
    """Its path on the nodes."""
    source: str
    """Its path here."""
    when: str
    by: str
    nodes: tuple[str, ...]
    """Those that it was pushed to the last time."""
    manifest: Manifest


def cache_of(home: Path, source: Path) -> Path:
    """The file with the hashes of a folder of this machine."""
    return home / MODELS / "hashes" / f"{_key(str(source))}.json"


def keep(
    home: Path, folder: str, manifest: Manifest, *, source: str, by: str, nodes: Sequence[str]
) -> None:
    """Keep the manifest of what is at this path on the nodes now; of the same model on more nodes,
    all of them."""
    former = find(home, folder)
    if former is not None and former.manifest == manifest:
        nodes = [*former.nodes, *(name for name in nodes if name not in former.nodes)]
    document = {
        "version": 1,
        "folder": folder,
        "digest": manifest.digest,
        "source": source,
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "by": by,
        "nodes": list(nodes),
        "files": [asdict(entry) for entry in manifest.entries],
    }
    (home / MODELS).mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    write(home / MODELS / f"{_key(folder)}.json", text.encode(), mode=0o600)


def kept(home: Path) -> list[Model]:
    """All models, by path; files that are no manifests are left out."""
    found = []
    for path in (home / MODELS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(_read(json.loads(path.read_text())))
    return sorted(found, key=lambda model: model.folder)


def find(home: Path, folder: str) -> Model | None:
    """The model at this path on the nodes, where it was pushed from here."""
    return next((model for model in kept(home) if model.folder == folder), None)


def _read(document: dict[str, Any]) -> Model:
    return Model(
        folder=document["folder"],
        source=document["source"],
        when=document["when"],
        by=document["by"],
        nodes=tuple(document["nodes"]),
        manifest=Manifest(entries=tuple(Entry(**entry) for entry in document["files"])),
    )


def _key(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]
