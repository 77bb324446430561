"""Files and folders that have their name only when all of them is on the disk: the old one or the
new one, whatever happens in between."""

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
    """A file that is being written, under a name that nobody looks for."""

    sink: IO[bytes]
    at: Path

    def name(self, path: Path, *, mode: int = 0o644, fresh: bool = False) -> None:
        """Give it its name, in the same folder or below; ``mode`` are its permissions.

        Raises ``FileExistsError`` when ``fresh`` and the name is taken; ``OSError``.
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
    """A file to write in ``folder``, which goes unless it gets a name. Until then nobody else
    may read it. Raises ``OSError``."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as sink:
            yield Unnamed(sink, Path(name))
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
    """Write ``path``, whole. Raises ``OSError``."""
    with unnamed(path.absolute().parent) as file:
        file.sink.write(data)
        file.name(path, mode=mode)
