"""Which images the four nodes have: `nodes`."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.lab.node import wait
from tests.lab.shipment import NAME, NODE_FAILED, NODES, PAYLOAD, VARIANT, Shipment, ok, put

MIXED = 15


def test_nodes_lists_the_images_of_each_node(shipment: Shipment) -> None:
    image = put(shipment, PAYLOAD)
    fleet = shipment.fleet
    fleet["node1"].docker("tag", NAME, "someone/else:1")

    output = ok(shipment.run("nodes"))
    assert "someone" not in output
    for node in fleet:
        (line,) = [line for line in output.splitlines() if f"\t{node.name}\t" in line]
        assert node.version.partition("+")[0] in line
        assert node.store in line
        assert "GB" in line
    (line,) = [line for line in output.splitlines() if NAME in line]
    assert line.split()[:3] == ["=", NAME, image.digest[7:19]]
    assert line.rstrip().endswith("all 4 nodes")

    facts = json.loads(ok(shipment.run("nodes", VARIANT, "--json")))
    assert [one["node"] for one in facts] == NODES
    assert {held["digest"] for one in facts for held in one["images"]} == {image.digest}
    assert len({held["identity"] for one in facts for held in one["images"]}) == 1

    # One has another one, and one nothing.
    fleet["node2"].docker("rmi", NAME)
    other = shipment.image(PAYLOAD.changed(-1))
    ok(shipment.distribute("--nodes", "node3"))
    mixed = shipment.run("nodes", NAME)
    assert mixed.returncode == MIXED
    assert f"nodes differ: {NAME}" in mixed.stderr
    rows = [line.split() for line in mixed.stdout.splitlines()]
    assert any(row[:3] == ["≠", NAME, image.digest[7:19]] for row in rows)
    assert any(row[:1] == [other.digest[7:19]] and row[-1] == "node3" for row in rows)
    assert any(row == ["none", "node2"] for row in rows)

    # One that does not answer hides nobody.
    fleet["node2"].control.cut()
    partly = shipment.run("nodes")
    assert partly.returncode == NODE_FAILED
    assert "could not reach 1 of 4 nodes; the others differ" in partly.stderr
    assert "node2 cannot be reached" in partly.stderr
    assert "unreachable" in next(line for line in partly.stdout.splitlines() if "node2" in line)
    assert image.digest[7:19] in partly.stdout
    facts = json.loads(shipment.run("nodes", "--json").stdout)
    assert [one["error"] is None for one in facts] == [True, False, True, True]

    wrong = shipment.run("nodes", "paylaod")
    assert wrong.returncode == 5
    assert "payload" in wrong.stderr


def test_unknown_image_has_one_identity_on_both_stores(
    small_shipment: Shipment,
) -> None:
    shipment = small_shipment
    node, other = shipment.fleet
    foreign = shipment.image(PAYLOAD)
    saved = shipment.folder / "image.tar"
    ok(shipment.run("save", VARIANT, "-o", str(saved)))
    change = ("STOPSIGNAL SIGINT", "HEALTHCHECK CMD true", "EXPOSE 80")
    node.docker("load", given=saved.read_bytes())
    container = node.docker("create", NAME)
    # One that has lost its name is garbage, which containerd collects while the other one is saved.
    node.docker("tag", NAME, "kept:1")
    words = [word for one in change for word in ("--change", one)]
    node.docker("commit", *words, container, NAME)
    archive = subprocess.run(
        [*node.engine.docker, "exec", node.container, "docker", "save", NAME],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    node.docker("rmi", "--force", "kept:1")
    other.docker("load", given=archive)
    facts = json.loads(ok(shipment.run("nodes", "--json")))
    held = [image for one in facts for image in one["images"]]
    assert len(held) == 2
    assert {one["digest"] for one in held} == {None}
    assert len({one["identity"] for one in held}) == 1
    assert f"({held[0]['identity']})" in ok(shipment.run("nodes"))
    assert foreign.digest[7:19] not in ok(shipment.run("nodes"))

    # Other layers or only another setting: another image.
    other.docker("commit", "--change", "HEALTHCHECK NONE", other.docker(
        "create", NAME), NAME)  # fmt: skip
    assert shipment.run("nodes").returncode == MIXED


def test_a_node_too_busy_to_answer_is_asked_once_more(shipment: Shipment) -> None:
    wire = shipment.fleet["node2"].control
    ssh = shipment.folder / "impatient" / "ssh"
    ssh.parent.mkdir()
    real = shutil.which("ssh", path=shipment.environment()["PATH"])
    ssh.write_text(f'#!/bin/sh\nexec "{real}" -o ConnectTimeout=1 "$@"\n')
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{shipment.environment()['PATH']}"
    wire.hang()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shipment.run, "nodes", PATH=path)
        # The wire holds both connections: the first one's command never started.
        wait(lambda: wire.connections == 2 or asked.done(), "nobody asks again")
        wire.restore()
        assert "node2" in ok(asked.result())

    wire.hang()
    given_up = shipment.run("nodes", PATH=path)
    wire.restore()
    assert given_up.returncode == NODE_FAILED
    assert "node2 cannot be reached: Connection timed out during banner" in given_up.stderr
