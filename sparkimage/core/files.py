"""Atomic writes: a path always has the complete old or the complete new file or folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DATE = 946684800
"""The date of files that become part of an image: 2000-01-01, as step.sh has it."""


@dataclass(frozen=True)
class AtomicFile:
    """A file that is being written, under a temporary name."""

    sink: IO[bytes]
    temporary: Path

    def rename_to(self, path: Path, *, mode: int = 0o644) -> None:
        """Flush it to the disk and rename it to ``path``, in the same folder or below.

        ``mode`` are its permissions. Raises ``OSError``.
        """
        self.sink.flush()
        os.fsync(self.sink.fileno())
        os.chmod(self.temporary, mode)
        os.replace(self.temporary, path)


@contextmanager
def atomic_file(folder: Path) -> Iterator[AtomicFile]:
    """A file to write in ``folder``, which only its owner can read, and which is removed at the end
    of the context unless it was renamed. Raises ``OSError``."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            yield AtomicFile(sink, Path(name))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, called "new" in a temporary folder of its own, which is renamed to
    ``folder`` at the end of the context; if another process was faster, that one's stays.

    Raises ``OSError``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        yield new
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``path`` atomically. Raises ``OSError``."""
    with atomic_file(path.absolute().parent) as file:
        file.sink.write(data)
        file.rename_to(path, mode=mode)


def find_up(path: Path) -> Path:
    """A bare name's file in the working directory, or in the nearest of its parents that has one of
    this user's or root's: others may write to folders such as /tmp. Any other path as it is."""
    if len(path.parts) != 1 or path.exists():
        return path
    trusted = (0, os.getuid())
    for folder in Path.cwd().parents:
        found = folder / path
        if found.is_file() and found.stat().st_uid in trusted:
            return found
    return path


class _Called:
    folder: Path | None = None
    """Where the command was called, when it works in another folder."""


def work_in(folder: Path) -> None:
    """Work in ``folder``. Raises ``OSError``."""
    here = Path.cwd()
    os.chdir(folder)
    _Called.folder = here


def shown(path: Path) -> str:
    """A path for messages, as the user would open it: from the folder that the command was called
    in, or the whole of it where that is shorter."""
    near = os.path.relpath(path, _Called.folder)
    return min(near, str(path.absolute()), key=len)


def free_bytes(place: Path) -> int:
    """Free bytes of the file system on which ``place`` is or will be."""
    return shutil.disk_usage(_existing(place)).free


def device(place: Path) -> int:
    """The number of the file system on which ``place`` is or will be."""
    return _existing(place).stat().st_dev


def _existing(place: Path) -> Path:
    while not place.exists():
        place = place.parent
    return place
