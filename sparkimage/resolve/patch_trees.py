"""The files that patches change, as they are before: of a commit, of wheels, of an image."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparkimage.config.lock_items import PinnedImage
from sparkimage.core.errors import Locked
from sparkimage.resolve import image_files
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import Repository


@dataclass(frozen=True)
class File:
    """The content of a file, and whether it is executable."""

    data: bytes
    executable: bool = False


class Tree(Protocol):
    """The files of one state of a pin."""

    @property
    def title(self) -> str:
        """What it is, for messages."""

    def read(self, paths: Iterable[str]) -> dict[str, File | None]:
        """These files; None for what is no file of it. Raises as its source does."""

    def named(self, name: str) -> Sequence[str]:
        """The paths of all files of this name."""


@dataclass(frozen=True, kw_only=True)
class GitTree:
    """The files of a fetched commit."""

    title: str
    repository: Repository
    commit: str

    def read(self, paths: Iterable[str]) -> dict[str, File | None]:
        files = self.repository.read_files(self.commit, paths)
        return {path: File(*file) if file is not None else None for path, file in files.items()}

    def named(self, name: str) -> Sequence[str]:
        return [p for p in self.repository.paths(self.commit) if posixpath.basename(p) == name]


@dataclass(frozen=True, kw_only=True)
class WheelTree:
    """The files of wheels, as they are installed.

    https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """

    title: str
    wheels: Callable[[Iterable[str]], Sequence[Path]]
    """The wheels that may have some of these paths."""

    def read(self, paths: Iterable[str]) -> dict[str, File | None]:
        files: dict[str, File | None] = dict.fromkeys(paths)
        for path in self.wheels(files):
            with zipfile.ZipFile(path) as wheel:
                for info in wheel.infolist():
                    if info.filename in files:
                        executable = bool(info.external_attr >> 16 & 0o100)
                        files[info.filename] = File(wheel.read(info), executable)
        return files

    def named(self, name: str) -> Sequence[str]:
        found = []
        for path in self.wheels([name]):
            with zipfile.ZipFile(path) as wheel:
                found += [p for p in wheel.namelist() if posixpath.basename(p) == name]
        return found


@dataclass(frozen=True, kw_only=True)
class ImageTree:
    """The files of an image below ``root``."""

    title: str
    locked: Locked
    image: PinnedImage
    root: str
    context: ResolveContext

    def read(self, paths: Iterable[str]) -> dict[str, File | None]:
        places = {posixpath.join(self.root, path): path for path in paths}
        with image_files.opened(self.locked, self.image, self.context) as layers:
            found = layers.read(places)
        return {
            places[place]: File(data) if data is not None else None for place, data in found.items()
        }

    def named(self, name: str) -> Sequence[str]:
        with image_files.opened(self.locked, self.image, self.context) as layers:
            return layers.named(name)
