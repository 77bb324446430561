"""The nodes pull from a registry: `distribute --via`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sparkimage.image.store import Image
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
def registry(small_shipment: Shipment) -> Iterator[Mirror]:
    with mirror(small_shipment.folder / "registry", small_shipment.fleet) as made:
        yield made


def test_nodes_pull_by_digest_and_only_what_they_lack(
    small_shipment: Shipment, registry: Mirror
) -> None:
    shipment, fleet = small_shipment, small_shipment.fleet
    first = shipment.image(PAYLOAD)
    assert registry.push(shipment.store, first) == first.digest
    facts = json.loads(ok(shipment.distribute(*VIA, registry.repository, "--json")))["nodes"]
    assert {one["source"] for one in facts} == {registry.repository}
    assert {one["sent"] for one in facts} == {0}
    assert everywhere(shipment, first)
    size = sum(one.size for one in first.layers)
    assert 2 * size < registry.wire.down < 2 * size + MB
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
    assert 2 * top < registry.wire.down < 2 * top + MB
    # The images' own tool finds no trace of the registry, and the way back is open.
    ok(shipment.run("rollback", VARIANT))
    assert everywhere(shipment, first)


def refused(shipment: Shipment, registry: Mirror, first: Image) -> str:
    """The output for a pull that failed; all nodes have what they had."""
    done = shipment.distribute(*VIA, registry.repository)
    assert done.returncode == NODE_FAILED, done.stdout + done.stderr
    assert "no name was moved" in done.stderr
    assert everywhere(shipment, first)
    assert all(PREVIOUS not in node.images() for node in shipment.fleet)
    return done.stderr


NOT_PULLED = "it could not pull the image"


@pytest.mark.thorough
def test_unreachable_registry_moves_no_name(small_shipment: Shipment, registry: Mirror) -> None:
    """containerd's store asks for a quarter of a minute."""
    first = put(small_shipment, PAYLOAD)
    registry.push(small_shipment.store, small_shipment.image(PAYLOAD.changed(-1)))
    registry.wire.cut()
    assert refused(small_shipment, registry, first).count(NOT_PULLED) == 2


@pytest.mark.thorough
def test_image_missing_in_the_registry_moves_no_name(
    small_shipment: Shipment, registry: Mirror
) -> None:
    shipment, node = small_shipment, next(iter(small_shipment.fleet))
    first = put(shipment, PAYLOAD)
    second = shipment.image(PAYLOAD.changed(-1))
    assert refused(shipment, registry, first).count(NOT_PULLED) == 2
    # The same layers and settings, written anew: another digest.
    other = registry.push(shipment.store, second, annotated=True)
    assert other != second.digest
    output = refused(shipment, registry, first)
    assert f"{registry.repository}@{second.digest}" in output

    registry.push(shipment.store, second)
    registry.distrust(node)
    output = refused(shipment, registry, first)
    assert f"{node.name}: {NOT_PULLED}" in output
    assert "certificate" in output
    assert output.count(NOT_PULLED) == 1
    registry.trust(node)
    # What has arrived is not asked for again.
    registry.wire.forget()
    ok(shipment.distribute(*VIA, registry.repository))
    assert everywhere(shipment, second)
    assert registry.wire.down < sum(one.size for one in second.layers) + MB
