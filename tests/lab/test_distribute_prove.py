"""What more is proven of an image on its nodes before a name moves: `distribute --prove`."""

from __future__ import annotations

import json
import subprocess

from sparkimage import paths
from sparkimage.building import builder
from sparkimage.fleets import receipts
from tests.lab.conftest import Lab
from tests.lab.shipment import NODE_FAILED, Shipment, everywhere, ok, standing

RECEIPTS = paths.home() / receipts.FOLDER


def test_the_checks_of_an_image_run_on_every_node(lab: Lab, shipment: Shipment) -> None:
    """The real layers debian and python, with their checks."""
    made = lab.build("plain-amd64")
    file = lab.project / "fleet.yaml"
    file.write_text((shipment.folder / "fleet.yaml").read_text())
    before = set(RECEIPTS.glob("node*/*.json"))
    try:
        prove(lab, shipment, made)
    finally:
        file.unlink()
        for receipt in set(RECEIPTS.glob("node*/*.json")) - before:
            receipt.unlink()
        ok(lab.run("verify", made.plan.variant))


def prove(lab: Lab, shipment: Shipment, made: builder.Result) -> None:
    fleet, name = shipment.fleet, made.plan.image

    def distribute(*words: str) -> subprocess.CompletedProcess[str]:
        return lab.run("distribute", made.plan.variant, *words, **shipment.fleet.environment)

    gpu = distribute("--prove", "run,node")
    assert gpu.returncode == NODE_FAILED
    assert gpu.stderr.count("not run: no GPU") >= 4
    assert set(standing(shipment, name).values()) == {None}

    # A library of the image is damaged on one node's disk: only its checks see that.
    libraries = (
        fleet["node3"]
        .exec("find", "/var/lib/docker/overlay2", "-name", "libibverbs.so.1.*", "-type", "f")
        .split()
    )
    assert libraries
    whole = [fleet["node3"].exec("base64", one) for one in libraries]
    fleet["node3"].exec("truncate", "--size=0", *libraries)
    broken = distribute("--prove", "run")
    assert broken.returncode == NODE_FAILED
    assert "node3" in broken.stderr
    assert "test_verbs_library_loads" in broken.stderr
    assert "no name was moved" in broken.stderr
    assert set(standing(shipment, name).values()) == {None}

    for one, content in zip(libraries, whole, strict=True):
        fleet["node3"].exec("sh", "-c", 'base64 --decode >"$0"', one, given=content.encode())
    ok(lab.run("verify", made.plan.variant, "--tier", "run"))
    done = distribute("--prove", "run", "--json")
    assert {one["state"] for one in json.loads(ok(done))["nodes"]} == {"moved"}
    assert everywhere(shipment, made.image, name)
    again = distribute("--prove", "run", "--json")
    assert {one["state"] for one in json.loads(ok(again))["nodes"]} == {"unchanged"}
    receipts = lab.run("receipts", "--nodes", "fleet.yaml", "--json", **shipment.fleet.environment)
    found = json.loads(ok(receipts))
    assert [one["proven"][-1] for one in found] == ["run"] * 4
    for node in fleet:
        assert node.docker("ps", "--all", "--quiet") == ""
