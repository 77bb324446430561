"""A project with one variant and its proven images, the command line as a user calls it, and what
stands on the nodes then."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkimage.image.store import Image
from tests.lab.fleet import Fleet
from tests.lab.node import Node
from tests.lab.payload import Payload
from tests.lab.project import Project
from tests.unit import project_maker as maker

VARIANT = "payload"
NAME = f"r:{VARIANT}"
PREVIOUS = f"{NAME}-previous"
MB = 1 << 20
PAYLOAD = Payload.of(3 * MB, 2 * MB, 1 * MB)
NODES = ["node1", "node2", "node3", "node4"]
NODE_FAILED = 13


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
            [
                maker.include(VARIANT, "os", platform="linux/amd64", os="trixie")
                | {"entrypoint": []}
            ],
        )
        made = cls(folder=folder, fleet=fleet)
        made.write_matrix(data)
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
        return self.seal_image(image, VARIANT)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.fleet.environment, **more})

    def distribute(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """``distribute`` of the variant."""
        return self.run("distribute", VARIANT, *words, **more)


def layers(image: Image) -> str:
    return "+".join(layer.diff_id for layer in image.layers)


def standing(shipment: Shipment, name: str = NAME) -> dict[str, str | None]:
    """What a name stands for on each node, as layers."""

    def one(node: Node) -> str | None:
        try:
            return "+".join(node.diff_ids(name))
        except RuntimeError as error:
            if "No such image" not in str(error):
                raise
            return None

    return shipment.fleet.each(one)


def everywhere(shipment: Shipment, image: Image, name: str = NAME) -> bool:
    return set(standing(shipment, name).values()) == {layers(image)}


def put(shipment: Shipment, payload: Payload, *words: str) -> Image:
    """The payload, brought to all nodes (or as ``words`` say)."""
    image = shipment.image(payload)
    done = shipment.distribute(*words)
    assert done.returncode == 0, done.stderr
    return image


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def spread(fleet: Fleet) -> dict[str, int]:
    """Bytes that each node got from here."""
    return {node.name: node.data.up for node in fleet}
