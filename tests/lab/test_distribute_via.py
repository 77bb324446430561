"""The nodes pull from a registry: `distribute --via`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.mirror import Mirror, mirror
from tests.lab.shipment import (
    MB,
    NAME,
    NODE_FAILED,
    PAYLOAD,
    PREVIOUS,
    VARIANT,
    Shipment,
    everywhere,
    ok,
    put,
    spread,
)

VIA = ("--allow-unverified", "--via")
"""What lies there is not signed: this is about the pull. test_publish_fleet.py does both."""


@pytest.fixture
def registry(shipment: Shipment) -> Iterator[Mirror]:
    with mirror(shipment.folder / "registry", shipment.fleet) as made:
        yield made


def test_nodes_pull_by_digest_and_only_what_they_lack(shipment: Shipment, registry: Mirror) -> None:
    fleet = shipment.fleet
    first = shipment.image(PAYLOAD)
    assert registry.push(shipment.store, first) == first.digest
    facts = json.loads(ok(shipment.distribute(*VIA, registry.repository, "--json")))["nodes"]
    assert {one["source"] for one in facts} == {registry.repository}
    assert {one["sent"] for one in facts} == {0}
    assert everywhere(shipment, first)
    size = sum(one.size for one in first.layers)
    assert 4 * size < registry.wire.down < 4 * size + MB
    assert sum(spread(fleet).values()) == 0
    for node in fleet:
        assert set(node.images()) == {NAME}
        assert node.docker("image", "inspect", "--format", "{{.RepoTags}}", NAME) == f"[{NAME}]"
        assert node.docker("run", "--rm", "--network=none", NAME) == "it runs"

    second = shipment.image(PAYLOAD.changed(-1))
    registry.push(shipment.store, second)
    registry.wire.forget()
    ok(shipment.distribute(*VIA, registry.repository))
    assert everywhere(shipment, second)
    assert everywhere(shipment, first, PREVIOUS)
    top = second.layers[-1].size
    assert 4 * top < registry.wire.down < 4 * top + MB
    # The images' own tool finds no trace of the registry, and the way back is open.
    ok(shipment.run("rollback", VARIANT))
    assert everywhere(shipment, first)


def test_what_the_registry_does_not_give_moves_nothing(
    shipment: Shipment, registry: Mirror
) -> None:
    fleet = shipment.fleet
    first = put(shipment, PAYLOAD)
    second = shipment.image(PAYLOAD.changed(-1))

    def refused(*words: str) -> str:
        done = shipment.distribute(*VIA, registry.repository, *words)
        assert done.returncode == NODE_FAILED, done.stdout + done.stderr
        assert "no name was moved" in done.stderr
        assert everywhere(shipment, first)
        assert all(PREVIOUS not in node.images() for node in fleet)
        return done.stderr

    registry.wire.cut()
    assert refused().count("it could not pull the image") == 4
    registry.wire.restore()
    assert refused().count("it could not pull the image") == 4
    # The same layers and settings, written anew: another digest.
    other = registry.push(shipment.store, second, annotated=True)
    assert other != second.digest
    said = refused()
    assert f"{registry.repository}@{second.digest}" in said

    registry.push(shipment.store, second)
    registry.distrust(fleet["node3"])
    said = refused()
    assert "node3: it could not pull the image" in said
    assert "certificate" in said
    assert said.count("it could not pull the image") == 1
    registry.trust(fleet["node3"])
    # What has arrived is not asked for again.
    registry.wire.forget()
    ok(shipment.distribute(*VIA, registry.repository))
    assert everywhere(shipment, second)
    assert registry.wire.down < sum(one.size for one in second.layers) + MB
