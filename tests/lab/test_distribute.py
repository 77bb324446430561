"""Images on four real nodes, over SSH: all of them, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparkimage.storage.store import Image
from tests.lab.fleet import Fleet
from tests.lab.payload import Payload
from tests.lab.shipment import NAME, PREVIOUS, Shipment

MB = 1 << 20
PAYLOAD = Payload.of(6 * MB, 4 * MB, 1 * MB)


@pytest.fixture
def shipment(tmp_path: Path, fleet: Fleet) -> Shipment:
    return Shipment.make(tmp_path, fleet)


def layers(image: Image) -> str:
    return "+".join(layer.diff_id for layer in image.layers)


def everywhere(shipment: Shipment, image: Image | None) -> bool:
    wanted = layers(image) if image is not None else None
    return set(shipment.digests().values()) == {wanted}


def test_the_first_time_the_next_time_and_a_change(shipment: Shipment) -> None:
    first = shipment.image(PAYLOAD)
    done = shipment.distribute("--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {one["state"] for one in said["nodes"]} == {"moved"}
    assert everywhere(shipment, first)

    again = json.loads(shipment.distribute("--json").stdout)
    assert {one["state"] for one in again["nodes"]} == {"unchanged"}
    assert {one["sent"] for one in again["nodes"]} == {0}

    second = shipment.image(PAYLOAD.changed(-1))
    changed = json.loads(shipment.distribute("--json").stdout)
    assert {one["layers_sent"] for one in changed["nodes"]} == {1}
    assert all(one["sent"] < second.layers[-1].size + 65536 for one in changed["nodes"])
    assert everywhere(shipment, second)
    for node in shipment.fleet:
        assert "+".join(node.diff_ids(PREVIOUS)) == layers(first)
        assert node.docker("run", "--rm", NAME) == "it runs"
        assert not [tag for tag in node.images() if "staging" in tag]
