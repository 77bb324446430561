"""Atomic writes: a name always has the complete old or the complete new file or folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Unnamed:
    """A file that is being written, under a temporary name."""

    sink: IO[bytes]
    at: Path

    def name(self, path: Path, *, mode: int = 0o644, fresh: bool = False) -> None:
        """Rename it to ``path``, in the same folder or below, with the permissions ``mode``.

        Raises ``FileExistsError`` when ``fresh`` and ``path`` exists; ``OSError``.
        """
        self.sink.flush()
        os.fsync(self.sink.fileno())
        os.chmod(self.at, mode)
        if fresh:
            os.link(self.at, path)
        else:
            os.replace(self.at, path)


@contextmanager
def unnamed(folder: Path) -> Iterator[Unnamed]:
    """A temporary file in ``folder``, only readable by its owner, which is removed unless it is
    renamed. Raises ``OSError``."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            yield Unnamed(sink, Path(name))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def take_place(made: Path, folder: Path) -> None:
    """Rename a complete folder unless another process has just done the same: its folder stays.

    Raises ``OSError``.
    """
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write ``path`` atomically. Raises ``OSError``."""
    with unnamed(path.absolute().parent) as file:
        file.sink.write(data)
        file.name(path, mode=mode)
