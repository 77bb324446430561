"""What nobody needs is removed from the nodes, and nothing else: `gc`."""

from __future__ import annotations

import json

from tests.lab.node import Node
from tests.lab.shipment import MB, NAME, PAYLOAD, PREVIOUS, Shipment, everywhere, ok, put
from tests.unit import good_maker


def test_gc_keeps_tagged_used_and_foreign_images(small_shipment: Shipment) -> None:
    shipment = small_shipment
    fleet = shipment.fleet
    images = [put(shipment, PAYLOAD.changed(-1, seed=seed)) for seed in range(4)]
    used = images[1]
    strangers: dict[str, str] = {}
    for node in fleet:
        # Of the two that have no name by now one is used by a container, which does not run.
        (id,) = [id for id in node.dangling() if node.diff_ids(id)[-1] == used.layers[-1].diff_id]
        node.docker("create", "--name", "idle", id)
        node.docker("tag", NAME, "sparkimage-staging:left")
        strange = good_maker.tar({"strange": node.name.encode()})
        strangers[node.name] = node.docker("import", "-", given=strange)
        assert strangers[node.name] in node.dangling()

    dry = ok(shipment.run("gc", "--keep", "2", "--dry-run"))
    assert dry.count("would free up to") == 2
    assert dry.count("would remove sparkimage-staging:left") == 2
    before = fleet.each(Node.disk_used)
    assert {node.name: len(node.dangling()) for node in fleet} == dict.fromkeys(fleet.nodes, 3)

    output = {
        one["node"]: one for one in json.loads(ok(shipment.run("gc", "--keep", "2", "--json")))
    }
    gained = fleet.each(Node.disk_used)
    for node in fleet:
        one = output[node.name]
        left = {node.diff_ids(id)[-1] for id in node.dangling() - {strangers[node.name]}}
        assert strangers[node.name] in node.dangling()
        assert left == {used.layers[-1].diff_id}
        assert set(node.images()) == {NAME, PREVIOUS}
        assert len(one["removed"]) == 2
        (kept,) = one["kept"]
        assert "container" in kept
        assert one["freed"] > MB
        assert abs(one["freed"] - (before[node.name] - gained[node.name])) < MB // 2
        assert node.docker("start", "--attach", "idle") == "it runs"

    # Nothing is left to do, and every image that a name stands for runs.
    assert {one["freed"] < MB for one in json.loads(ok(shipment.run("gc", "--json")))} == {True}
    assert everywhere(shipment, images[-1])
    assert everywhere(shipment, images[-2], PREVIOUS)
