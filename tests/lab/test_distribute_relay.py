"""The nodes hand layers on to each other: `distribute --relay`."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.lab.payload import Payload
from tests.lab.shipment import (
    MB,
    NAME,
    NODES,
    PAYLOAD,
    PREVIOUS,
    VARIANT,
    Shipment,
    everywhere,
    ok,
    put,
    spread,
)


def test_relay_sends_to_one_node_of_each_group(shipment: Shipment) -> None:
    fleet = shipment.fleet
    first = put(shipment, PAYLOAD, "--nodes", "fleet.yaml")
    # Two groups: node1 and node2 keep what they have, the other ones lack all.
    for name in ("node3", "node4"):
        fleet[name].docker("rmi", NAME)
    second = shipment.image(PAYLOAD.changed(-1))
    for wire in [wire for node in fleet for wire in node.wires]:
        wire.forget()
    facts = {
        one["node"]: one
        for one in json.loads(ok(shipment.distribute("--relay", "--json")))["nodes"]
    }
    assert everywhere(shipment, second)
    sent = spread(fleet)
    top, all_ = second.layers[-1].size, sum(one.size for one in second.layers)
    assert top < sent["node1"] < top + MB // 2
    assert all_ < sent["node3"] < all_ + MB // 2
    # The nodes' commands go over their control addresses.
    assert sent["node2"] == sent["node4"] == 0
    assert all(node.control.up < MB // 2 for node in fleet)
    assert [facts[node]["source"] for node in NODES] == [None, "node1", None, "node3"]
    assert [facts[node]["layers_sent"] for node in NODES] == [1, 1, 4, 4]
    for node in fleet:
        assert node.docker("run", "--rm", "--network=none", NAME) == "it runs"
    assert everywhere(shipment, first, PREVIOUS) is False
    assert not [tag for node in fleet for tag in node.images() if "staging" in tag]


@pytest.mark.thorough
def test_nodes_that_cannot_reach_each_other_get_layers_directly(shipment: Shipment) -> None:
    fleet = shipment.fleet
    fleet["node2"].part(fleet["node3"])
    image = shipment.image(PAYLOAD)
    done = shipment.distribute("--relay", "--json")
    facts = {one["node"]: one for one in json.loads(ok(done))["nodes"]}
    assert everywhere(shipment, image)
    assert [facts[node]["source"] for node in NODES] == [None, "node1", None, None]
    for name in ("node3", "node4"):
        assert (
            f"warning: {name}: not reached by relay, its layers are sent from here" in done.stderr
        )
    assert spread(fleet)["node2"] == 0
    assert "node2: not" not in done.stderr


@pytest.mark.thorough
def test_relay_that_dies_in_mid_transfer(shipment: Shipment) -> None:
    fleet = shipment.fleet
    image = shipment.image(Payload.of(6 * MB, 6 * MB))
    wire = fleet["node1"].data
    wire.cut_after(4 * MB)
    wire.rate(20 * MB)
    with subprocess.Popen(
        shipment.argv("distribute", VARIANT, "--relay"), env=shipment.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        output = ""
        for line in running.stdout:
            output += line
            if "again" in line and "node1" in line:
                wire.restore()
        assert running.wait() == 0, output
    assert everywhere(shipment, image)
    for name in NODES:
        assert f"{name}: not reached by relay" in output
    assert {node.docker("run", "--rm", NAME) for node in fleet} == {"it runs"}
