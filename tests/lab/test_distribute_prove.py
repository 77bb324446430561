"""What more is proven of an image on its nodes before a name moves: `distribute --prove`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from sparkimage.core import paths
from sparkimage.nodes import receipts
from sparkimage.verify import pipeline
from tests.lab.conftest import Lab
from tests.lab.shipment import NODE_FAILED, PAYLOAD, Shipment, everywhere, ok, standing

RECEIPTS = paths.home() / receipts.FOLDER


CHECK = """
def test_users(host, check):
    seen = host.run("cat /etc/passwd").stdout
    check("the image's users", seen=seen, expected="root:x:0:0:root:/:/bin/sh\\n")
"""


def own_engine(shipment: Shipment) -> dict[str, str]:
    """For a command of this project, which has no private engine: the lab's, as a user's own."""
    program, *words = next(iter(shipment.fleet)).engine.docker
    options = dict(zip(words[::2], words[1::2], strict=True))
    real = shutil.which(program)
    assert real is not None
    bin = shipment.folder / "bin"
    bin.mkdir()
    (bin / "docker").symlink_to(real)
    found = {"DOCKER_HOST": options["--host"], "DOCKER_CONFIG": options.get("--config", "")}
    path = os.pathsep.join((str(bin), shipment.environment()["PATH"]))
    return {**{name: value for name, value in found.items() if value}, "PATH": path}


def test_damaged_file_on_a_node_fails_prove(small_shipment: Shipment) -> None:
    shipment = small_shipment
    (shipment.folder / "images" / "os" / "test_os.py").write_text(CHECK)
    # The image has no package database, of which the package's checks of every image ask: here are
    # the project's own, none.
    (shipment.folder / "images" / "_every").mkdir()
    image = shipment.image(PAYLOAD)
    (node,) = (one for one in shipment.fleet if one.store == "overlay2")
    engine = own_engine(shipment)
    # The node tier fails: there is no GPU, and no Python in the image. It has arrived then.
    assert shipment.distribute("--prove", "node", **engine).returncode == NODE_FAILED
    assert set(standing(shipment).values()) == {None}

    # Only the image's own checks see what a disk has lost.
    find = ("find", "/var/lib/docker/overlay2", "-path", "*/diff/etc/passwd", "-size", "+0")
    (file,) = node.exec(*find).split()
    good = node.exec("cat", file)
    node.exec("truncate", "--size=0", file)
    broken = shipment.distribute("--prove", "run", **engine)
    assert broken.returncode == NODE_FAILED
    assert node.name in broken.stderr
    assert "test_users" in broken.stderr
    assert "1 of 2 nodes failed; no name was moved" in broken.stderr
    assert set(standing(shipment).values()) == {None}

    node.exec("sh", "-c", 'cat >"$0"', file, given=f"{good}\n".encode())
    ok(shipment.distribute("--prove", "run", **engine))
    assert everywhere(shipment, image)
    receipts = json.loads(ok(shipment.run("receipts", "--nodes", "fleet.yaml", "--json")))
    assert [one["proven"][-1] for one in receipts] == ["run"] * 2
    for one in shipment.fleet:
        assert one.docker("ps", "--all", "--quiet") == ""


@pytest.mark.thorough
def test_prove_runs_the_checks_on_every_node(lab: Lab, shipment: Shipment) -> None:
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


def prove(lab: Lab, shipment: Shipment, made: pipeline.Result) -> None:
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
