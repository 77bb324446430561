"""A project with one variant, its proven images, and the command line as a user calls it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkimage import origin
from sparkimage.plans import lock, matrix, planning
from sparkimage.proof import demands
from sparkimage.proof.keys import Keyring
from sparkimage.run import Local
from sparkimage.storage.store import Image
from tests.lab.fleet import Fleet
from tests.lab.payload import Payload, sealed
from tests.lab.project import Project
from tests.unit import project_maker as maker

VARIANT = "payload"
NAME = f"r:{VARIANT}"
PREVIOUS = f"{NAME}-previous"


@dataclass(frozen=True, kw_only=True)
class Shipment(Project):
    """A project in ``folder`` for the nodes of ``fleet``."""

    fleet: Fleet

    @classmethod
    def make(cls, folder: Path, fleet: Fleet) -> Shipment:
        """A project whose home, store and keys are its own."""
        data = maker.document(
            {"os": {"trixie": maker.OS}},
            {"os": {"base": "os"}},
            [maker.include(VARIANT, "os", platform="linux/amd64", os="trixie")],
        )
        read = maker.write(folder, data)
        (folder / "matrix.lock").write_text(lock.dump(maker.locked(read)))
        made = cls(folder=folder, fleet=fleet)
        made.nodes(fleet.data())
        return made

    def nodes(self, data: Mapping[str, Any]) -> None:
        """Write fleet.yaml."""
        (self.folder / "fleet.yaml").write_text(json.dumps(data, indent=1))

    def image(self, payload: Payload) -> Image:
        """The variant's image, with a seal that the gate takes."""
        return self.seal(payload.put(self.store))

    def seal(self, image: Image) -> Image:
        """An image of the store as the variant's, with a seal that the gate takes."""
        read = matrix.load(self.folder / "matrix.yaml")
        held = lock.load(self.folder / "matrix.lock")
        where = origin.of(self.folder, None, Local())
        plan = planning.make(read, read.variants[0], held, where)
        return sealed(
            self.store, image, NAME, plan=demands.checksum(plan, self.folder),
            keys=Keyring(folder=self.folder / "home" / "keys"),
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.fleet.environment, **more})

    def distribute(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """``distribute`` of the variant."""
        return self.run("distribute", VARIANT, *words, **more)

    def digests(self) -> dict[str, str | None]:
        """What the name stands for on each node, as layers: equal where the image is."""
        return {
            node.name: "+".join(node.diff_ids(NAME)) if NAME in node.images() else None
            for node in self.fleet
        }
