"""The compiled caches that were saved from proven servers, in the image store's folder.

Each set is a folder with archives: ``shared.tar``, of the files that all ranks have alike, and
``rank-N.tar``, of the others; beside each one ``.sums``, the sha256 of every file in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sparkimage.core import files
from sparkimage.core.errors import StoreError
from sparkimage.image.store import Store
from sparkimage.nodes import model_manifest
from sparkimage.nodes.model_manifest import Entry, Manifest, Source

FOLDER = "caches"
SHARED = "shared"
NEW = ".new-"
"""How folders are called that a save writes to."""
ABANDONED_S = 86_400
"""Age of such a folder from which on nobody writes to it any more."""
DAMAGED_HINT = "save them again: launch --save-caches"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What compiled kernels depend on. The driver is not part of it: the compilers are the image's,
    and none of their own caches has it in its keys:
    https://github.com/pytorch/pytorch/blob/main/torch/_inductor/codecache.py
    https://github.com/triton-lang/triton/blob/main/third_party/nvidia/backend/compiler.py
    https://github.com/deepseek-ai/DeepGEMM/blob/main/csrc/jit/compiler.hpp
    https://github.com/flashinfer-ai/flashinfer/blob/main/flashinfer/jit/env.py
    https://github.com/tile-ai/tilelang/blob/main/tilelang/cache/kernel_cache.py
    """

    digest: str
    """Of the image."""
    model: str
    """The sha256 of the model's configuration."""
    profile: str
    settings: str
    """The sha256 of what the profile sets."""
    gpus: str
    """Their names; of each rank, where they differ."""

    @cached_property
    def id(self) -> str:
        """Short, for names of files."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def differences(self, other: Key) -> list[str]:
        """What is not the same, in words."""
        words = {
            "digest": "image", "model": "model", "profile": "profile", "settings": "profile",
            "gpus": "GPU",
        }  # fmt: skip
        mine, others = asdict(self), asdict(other)
        return list(dict.fromkeys(words[name] for name in words if mine[name] != others[name]))


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The saved caches of one key."""

    key: Key
    variant: str
    model: str
    """Its path on the nodes."""
    ranks: int
    content: str
    """The sha256 of all sums."""
    count: int
    """Files."""
    size: int
    """Bytes of them."""
    when: str
    by: str
    entries: tuple[Entry, ...]
    """The archives and sums."""

    @property
    def manifest(self) -> Manifest:
        return Manifest(entries=self.entries)

    def parts(self, rank: int) -> list[str]:
        """The names of what this rank has."""
        names = {entry.path.removesuffix(".tar") for entry in self.entries}
        return [name for name in (SHARED, f"rank-{rank}") if name in names]


@dataclass(frozen=True)
class CacheStore:
    """All sets, below ``root``: ID.json and the folder ID-CONTENT of each."""

    root: Path

    @classmethod
    def of(cls, store: Store) -> CacheStore:
        """That of an image store."""
        return cls(store.root / FOLDER)

    def may_have(self, digest: str) -> bool:
        """Whether there are sets of this image, or damaged ones, of which nobody knows."""
        found = map(self._read, self.root.glob("*.json"))
        return any(saved is None or saved.key.digest == digest for saved in found)

    def all(self) -> list[Saved]:
        """All sets that can be read, by image and time."""
        found = [self._read(file) for file in self.root.glob("*.json")]
        return sorted(
            (one for one in found if one is not None), key=lambda one: (one.key.digest, one.when)
        )

    def find(self, key: Key) -> Saved | None:
        """The set of exactly this key. Raises ``StoreError`` where it is damaged."""
        file = self.root / f"{key.id}.json"
        if not file.exists():
            return None
        if (saved := self._read(file)) is None:
            raise StoreError(f"{file} is damaged", hint=DAMAGED_HINT)
        return saved

    def source(self, saved: Saved) -> Source:
        """Its files, as a push sends them. Raises ``StoreError`` where one is missing, or has
        another size; a push finds what else is wrong with them."""
        folder = self.folder(saved)
        seen = {path.name: path.stat().st_size for path in folder.glob("*")}
        expected = {entry.path: entry.size for entry in saved.entries}
        if seen != expected:
            wrong = sorted(name for name, _ in seen.items() ^ expected.items())
            raise StoreError(
                f"the saved caches are damaged: {folder / wrong[0]} is not as it was saved",
                hint=DAMAGED_HINT,
            )
        return model_manifest.scan(folder)

    def sums(self, saved: Saved, rank: int) -> str:
        """The sha256 and the path of each file that this rank has, in lines."""
        return "".join(
            (self.folder(saved) / f"{part}.sums").read_text() for part in saved.parts(rank)
        )

    def folder(self, saved: Saved) -> Path:
        return self.root / f"{saved.key.id}-{saved.content[:16]}"

    def keep(self, new: Path, key: Key, *, variant: str, model: str, ranks: int, by: str) -> Saved:
        """Keep the archives and sums in the folder ``new``, in place of the key's former ones."""
        sums = "".join(path.read_text() for path in sorted(new.glob("*.sums")))
        entries = [
            Entry(path=path.name, size=path.stat().st_size, sha256=hash_of(path))
            for path in sorted(new.iterdir())
        ]
        saved = Saved(
            key=key, variant=variant, model=model, ranks=ranks,
            content=hashlib.sha256(sums.encode()).hexdigest(), count=len(sums.splitlines()),
            size=sum(entry.size for entry in entries if entry.path.endswith(".tar")),
            when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), by=by, entries=tuple(entries),
        )  # fmt: skip
        folder = self.folder(saved)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
        files.write(self.root / f"{key.id}.json", json.dumps(asdict(saved), indent=1).encode())
        for former in self.root.glob(f"{key.id}-*"):
            if former != folder:
                shutil.rmtree(former, ignore_errors=True)
        return saved

    def collect(self, kept: Sequence[str]) -> int:
        """Remove the sets of all but these images, and what killed commands left. Returns the bytes
        freed."""
        wanted = [self.folder(saved) for saved in self.all() if saved.key.digest in kept]
        ids = {folder.name.partition("-")[0] for folder in wanted}
        freed = 0
        for path in self.root.glob("*"):
            if path.name.startswith(NEW) and path.stat().st_mtime > time.time() - ABANDONED_S:
                continue
            if path.is_dir() and path not in wanted:
                freed += sum(file.stat().st_size for file in path.rglob("*"))
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".json" and path.stem not in ids:
                path.unlink()
        return freed

    @staticmethod
    def _read(file: Path) -> Saved | None:
        try:
            fields: dict[str, Any] = json.loads(file.read_text())
            key = Key(**fields.pop("key"))
            entries = tuple(Entry(**entry) for entry in fields.pop("entries"))
            saved = Saved(key=key, entries=entries, **fields)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return saved if saved.key.id == file.stem else None


def hash_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(ranks: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The files of all ranks (sha256 by path) as the parts of a set: what all of them have alike is
    shared. Parts without a file are left out. Pure."""
    first, *others = ranks
    shared = {
        path: sha256
        for path, sha256 in first.items()
        if all(other.get(path) == sha256 for other in others)
    }
    parts = {SHARED: shared}
    for number, rank in enumerate(ranks):
        parts[f"rank-{number}"] = {
            path: sha256 for path, sha256 in rank.items() if path not in shared
        }
    return {name: files for name, files in parts.items() if files}
