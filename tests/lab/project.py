"""A project of the lab with a home of its own, and the command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkimage.config import lockfile, matrix, origin, planning
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Plan
from sparkimage.core.process import Local
from sparkimage.image.store import Image, Store
from sparkimage.verify import plan_record
from tests.lab import command
from tests.lab.payload import sealed
from tests.unit import project_maker as maker


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project in ``folder``, with a home and a store of its own."""

    folder: Path

    def write_matrix(self, data: Mapping[str, Any]) -> None:
        """Write the matrix, a Dockerfile for each layer, and a lock of made-up items that fits."""
        read = maker.write(self.folder, data)
        (self.folder / "matrix.lock").write_text(lockfile.dump(maker.locked(read)))

    def read_matrix(self) -> Matrix:
        return matrix.load(self.folder / "matrix.yaml")

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "home" / "store")

    def plan(self, variant: str) -> Plan:
        read = self.read_matrix()
        (one,) = matrix.select(read, names=[variant])
        held = lockfile.load(self.folder / "matrix.lock")
        return planning.make(read, one, held, origin.of(self.folder, None, Local()))

    def seal_image(self, image: Image, variant: str) -> Image:
        """An image of the store as the variant's, with a seal that the gate takes."""
        plan = self.plan(variant)
        return sealed(
            self.store, image, plan.image, record=plan_record.record(plan, self.folder),
            lock=plan.lock_checksum,
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "SPARKIMAGE_HOME": str(self.folder / "home"), **more}

    def words(self, *words: str) -> list[str]:
        return ["--matrix-file", str(self.folder / "matrix.yaml"), *words]

    def argv(self, *words: str) -> list[str]:
        """A real start of the command line."""
        return [*command.PROGRAM, *self.words(*words)]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        return command.call(self.words(*words), self.environment(**more))
