"""A project of the lab with a home of its own, and the command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sparkimage.storage.store import Store
from tests.lab import command


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project in ``folder``, with a home, a store and keys of its own."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "home" / "store")

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "SPARKIMAGE_HOME": str(self.folder / "home"), **more}

    def words(self, *words: str) -> list[str]:
        return ["--matrix-file", str(self.folder / "matrix.yaml"), *words]

    def argv(self, *words: str) -> list[str]:
        """A real start of it."""
        return [*command.PROGRAM, *self.words(*words)]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        return command.call(self.words(*words), self.environment(**more))
