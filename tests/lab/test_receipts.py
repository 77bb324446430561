"""What was brought where, and what was proven there: `receipts`."""

from __future__ import annotations

import json

from tests.lab.shipment import NODE_FAILED, PAYLOAD, Shipment, ok, put


def test_receipts_are_kept_here_and_on_the_nodes(small_shipment: Shipment) -> None:
    shipment = small_shipment
    node, other = shipment.fleet
    images = [put(shipment, PAYLOAD.changed(-1, seed=seed)) for seed in range(3)]
    here = json.loads(ok(shipment.run("receipts", "--json")))
    there = json.loads(ok(shipment.run("receipts", "--nodes", "fleet.yaml", "--json")))
    assert len(here) == len(there) == 6
    key = "{node} {digest}".format_map
    assert sorted(map(key, here)) == sorted(map(key, there))
    for one in there:
        assert one["proven"] == ["layers", "config", "platform", "container"]
        assert one["seal"]["result"] == "PASSED"
        assert "process" in one["by"]
    # One row for a distribution.
    table = ok(shipment.run("receipts"))
    assert [table.count(image.digest[7:19]) for image in images] == [1, 1, 1]
    assert "PASSED" in table

    state = "/root/.local/state/sparkimage/receipts"
    for holder in shipment.fleet:
        assert holder.exec("stat", "--format", "%a", state) == "700"
        modes = holder.exec("find", state, "-name", "*.json", "-printf", "%m\n").split()
        assert modes == ["600"] * 3

    ok(shipment.run("gc"))
    left = json.loads(ok(shipment.run("receipts", "--nodes", other.name, "--json")))
    assert {one["digest"] for one in left} == {image.digest for image in images[1:]}
    assert len(json.loads(ok(shipment.run("receipts", "--json")))) == 6

    node.control.cut()
    partly = shipment.run("receipts", "--nodes", "fleet.yaml", "--json")
    assert partly.returncode == NODE_FAILED
    assert {one["node"] for one in json.loads(partly.stdout)} == {other.name}
