"""The files of a model: what they are called, how large they are, and the sha256 of each.

Plain folders, and those of Hugging Face's cache, whose files lie in ``blobs`` under the sha256 of
what Git LFS has, or under git's sha1 of what is small; ``snapshots`` has links to them:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sparkimage.core import files
from sparkimage.core.errors import SparkError, UsageError
from sparkimage.core.progress import Moved
from sparkimage.nodes.concurrent import run_on_all

CHUNK = 1 << 20
AT_ONCE = 4
"""Files that are hashed at once."""
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS has not fetched: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md."""
POINTER_BYTES = 1024
"""Bytes that a pointer has at most, by its specification."""
PARTIAL = ".incomplete"
"""How Hugging Face's downloads are called until they are complete."""


@dataclass(frozen=True, kw_only=True, order=True)
class Entry:
    """A file of a model; ``link`` is where a link within the folder leads, relative to it."""

    path: str
    size: int
    sha256: str
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All files of a model, by their paths."""

    entries: tuple[Entry, ...]

    @cached_property
    def text(self) -> str:
        """As the nodes keep it: a line for each file."""
        return "".join(f"{one.sha256} {one.size} {one.path}\n" for one in self.entries)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.text)

    @cached_property
    def contents(self) -> dict[str, int]:
        """Bytes of each different content, by its sha256."""
        return {one.sha256: one.size for one in self.entries}

    @property
    def size(self) -> int:
        """Bytes of all different contents: what the model takes of a disk."""
        return sum(self.contents.values())


def digest_of(text: str) -> str:
    """The digest of a manifest's text."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of the folder as it was found; ``real`` is where its bytes are."""

    path: str
    real: Path
    size: int
    modified: int
    """Nanoseconds since 1970."""
    inode: int
    link: str = ""

    @property
    def stamp(self) -> list[int]:
        """What changes when the file does."""
        return [self.size, self.modified, self.inode]

    def has_changed(self) -> bool:
        """Whether it is not as it was found."""
        try:
            return _stamp(os.stat(self.real)) != self.stamp
        except OSError:
            return True


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's folder on this machine."""

    folder: Path
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files, each once."""
        return sum({one.real: one.size for one in self.files}.values())


def scan(folder: Path) -> Source:
    """The files of a folder, but for hidden ones. Raises ``UsageError`` with all that is wrong."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="pass the folder of the model")
    problems: list[str] = []
    found = sorted(_walk(folder, problems), key=lambda one: one.path)
    if not found and not problems:
        problems.append(f"{folder}: has no files")
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        raise UsageError(
            f"{count} in {folder}", detail="\n".join(sorted(problems)),
            hint="correct the folder, then run the same command again",
        )  # fmt: skip
    return Source(folder=folder, files=tuple(found))


def _walk(root: Path, problems: list[str]) -> Iterator[SourceFile]:
    real_root = root.resolve()
    folders: list[tuple[Path, tuple[Path, ...]]] = [(root, (real_root,))]
    while folders:
        folder, above = folders.pop()
        try:
            inside = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
            continue
        for item in inside:
            if item.name.startswith("."):
                continue
            path = Path(item.path)
            if re.search(r"[\x00-\x1f\\\x7f]", item.name):
                problems.append(f"{item.path!r}: control character or backslash in its name")
            elif item.is_dir():
                if (real := path.resolve()) in above:
                    problems.append(f"{path}: a link to a folder above it")
                else:
                    folders.append((path, (*above, real)))
            elif not item.is_file():
                problems.append(f"{path}: {'a broken link' * item.is_symlink() or 'not a file'}")
            elif item.name.endswith(PARTIAL):
                problems.append(f"{path}: a download that is not complete")
            elif not os.access(path, os.R_OK):
                problems.append(f"{path}: not readable")
            else:
                stat = item.stat()
                if _is_pointer(path, stat.st_size):
                    problems.append(f"{path}: a Git LFS pointer, not the file; git lfs pull")
                real = path.resolve()
                yield SourceFile(
                    path=str(path.relative_to(root)), real=real, size=stat.st_size,
                    modified=stat.st_mtime_ns, inode=stat.st_ino,
                    link=_link(path, real, real_root) if item.is_symlink() else "",
                )  # fmt: skip


def _link(path: Path, real: Path, root: Path) -> str:
    """Where a link leads, when that is a file of the folder; else nothing."""
    if not real.is_relative_to(root):
        return ""
    if any(part.startswith(".") for part in real.relative_to(root).parts):
        return ""
    return os.path.relpath(real, path.parent.resolve())


def _is_pointer(path: Path, size: int) -> bool:
    if size > POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def hash_all(source: Source, cache: Path, moved: Moved) -> Manifest:
    """The manifest of a folder. ``cache`` has the hashes of an earlier time, of files that have not
    changed since; it is written anew. ``moved`` gets the bytes that are done.

    Raises ``UsageError`` for what cannot be read, or is not what Hugging Face's cache calls it.
    """
    earlier = _cached(cache)
    hashes: dict[Path, str] = {}
    left: dict[Path, SourceFile] = {}
    for file in source.files:
        stamp, sha256 = earlier.get(str(file.real), (None, ""))
        own = sha256 if stamp == file.stamp else _blob_name(file, 64)
        if own:
            if file.real not in hashes:
                moved(file.size)
            hashes[file.real] = own
        else:
            left[file.real] = file
    _hash(list(left.values()), hashes, moved)
    cache.parent.mkdir(parents=True, exist_ok=True)
    stamps = {str(one.real): [one.stamp, hashes[one.real]] for one in source.files}
    files.write(cache, json.dumps(stamps).encode(), mode=0o600)
    return Manifest(
        entries=tuple(
            Entry(path=one.path, size=one.size, sha256=hashes[one.real], link=one.link)
            for one in source.files
        )
    )


def _cached(cache: Path) -> dict[str, Any]:
    try:
        found = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _blob_name(file: SourceFile, digits: int) -> str:
    """The hash that is the name of a blob of the cache, or nothing."""
    is_blob = file.real.parent.name == "blobs" and len(file.real.name) == digits
    return file.real.name if is_blob and re.fullmatch("[0-9a-f]+", file.real.name) else ""


@dataclass(kw_only=True)
class _Lane:
    """Files that are hashed one after the other."""

    name: str
    files: Sequence[SourceFile]
    stop: threading.Event = field(default_factory=threading.Event)


def _hash(left: Sequence[SourceFile], hashes: dict[Path, str], moved: Moved) -> None:
    lanes = [_Lane(name=str(n), files=left[n::AT_ONCE]) for n in range(min(AT_ONCE, len(left)))]

    def run(lane: _Lane) -> None:
        for file in lane.files:
            hashes[file.real] = hash_file(file, lane.stop, moved)

    errors = run_on_all(lanes, run, stop=lambda lane: lane.stop.set())
    for error in errors.values():
        raise error


def hash_file(file: SourceFile, stop: threading.Event, moved: Moved) -> str:
    """The sha256 of a file; ``moved`` gets its bytes.

    Raises ``UsageError`` where it cannot be read or is corrupt, ``SparkError`` once ``stop`` is
    set.
    """
    sha256 = hashlib.sha256()
    git_name = _blob_name(file, 40)
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    try:
        with file.real.open("rb") as data:
            while (piece := data.read(CHUNK)) and not stop.is_set():
                sha256.update(piece)
                if git_name:
                    git.update(piece)
                moved(len(piece))
    except OSError as error:
        raise UsageError(
            f"{file.real}: {error.strerror}", hint="make it a file that this user can read"
        ) from None
    if stop.is_set():
        raise SparkError("interrupted")
    if git_name and git.hexdigest() != git_name:
        raise UsageError(
            f"{file.real} is corrupt: git's hash of it is {git.hexdigest()}",
            hint="remove it and download the model again",
        )
    return sha256.hexdigest()
