"""Back to the former image, on all nodes or on none: `rollback`."""

from __future__ import annotations

import pytest

from tests.lab.shipment import (
    NAME,
    NODE_FAILED,
    PAYLOAD,
    PREVIOUS,
    VARIANT,
    Shipment,
    everywhere,
    ok,
    put,
    standing,
)


def test_rollback_swaps_and_a_second_one_swaps_back(small_shipment: Shipment) -> None:
    shipment = small_shipment
    first = put(shipment, PAYLOAD)
    second = put(shipment, PAYLOAD.changed(-1))
    output = ok(shipment.run("rollback", VARIANT))
    assert ", ".join(shipment.fleet.nodes) in output
    assert everywhere(shipment, first)
    assert everywhere(shipment, second, PREVIOUS)
    ok(shipment.run("rollback", NAME))
    assert everywhere(shipment, second)
    assert everywhere(shipment, first, PREVIOUS)
    for node in shipment.fleet:
        assert node.docker("run", "--rm", "--network=none", NAME) == "it runs"
        assert set(node.images()) == {NAME, PREVIOUS}


def test_rollback_is_refused_when_a_node_fails(small_shipment: Shipment) -> None:
    shipment = small_shipment
    node, other = shipment.fleet
    put(shipment, PAYLOAD)
    put(shipment, PAYLOAD.changed(-1))
    node.docker("rmi", PREVIOUS)
    before = standing(shipment), standing(shipment, PREVIOUS)

    lacks = shipment.run("rollback", VARIANT)
    assert lacks.returncode == NODE_FAILED
    assert f"{node.name}: it has no {PREVIOUS}" in lacks.stderr
    assert "no name was moved" in lacks.stderr
    assert (standing(shipment), standing(shipment, PREVIOUS)) == before

    for wire in node.wires:
        wire.cut()
    down = shipment.run("rollback", VARIANT)
    assert down.returncode == NODE_FAILED
    assert f"{node.name} cannot be reached" in down.stderr
    assert (standing(shipment), standing(shipment, PREVIOUS)) == before

    partial = shipment.run("rollback", VARIANT, "--partial")
    assert partial.returncode == NODE_FAILED
    assert "MIXED FLEET" in partial.stderr
    swapped = standing(shipment)
    assert swapped[node.name] == before[0][node.name]
    assert swapped[other.name] != before[0][other.name]


@pytest.mark.thorough
def test_rollback_to_different_images_is_refused(small_shipment: Shipment) -> None:
    shipment = small_shipment
    put(shipment, PAYLOAD)
    put(shipment, PAYLOAD.changed(0), "--nodes", next(iter(shipment.fleet.nodes)))
    put(shipment, PAYLOAD.changed(-1))
    before = standing(shipment)
    done = shipment.run("rollback", VARIANT)
    assert done.returncode == NODE_FAILED
    assert f"{PREVIOUS} is not the same image on all nodes; no name was moved" in done.stderr
    assert standing(shipment) == before
