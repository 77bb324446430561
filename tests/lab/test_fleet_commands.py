"""What is done with a fleet beside plain distributing, on four real nodes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.store import Image
from tests.lab.fleet import Fleet
from tests.lab.mirror import Mirror, mirror
from tests.lab.node import Node
from tests.lab.payload import Payload
from tests.lab.shipment import NAME, PREVIOUS, VARIANT, Shipment

MB = 1 << 20
PAYLOAD = Payload.of(3 * MB, 2 * MB, 1 * MB)
NODES = ["node1", "node2", "node3", "node4"]
NODE_FAILED, GATE, MIXED = 13, 14, 15


@pytest.fixture
def shipment(tmp_path: Path, fleet: Fleet) -> Shipment:
    return Shipment.make(tmp_path, fleet)


def layers(image: Image) -> str:
    return "+".join(layer.diff_id for layer in image.layers)


def standing(shipment: Shipment, name: str = NAME) -> dict[str, str | None]:
    """What a name stands for on each node, as layers."""

    def one(node: Node) -> str | None:
        return "+".join(node.diff_ids(name)) if name in node.images() else None

    return shipment.fleet.each(one)


def everywhere(shipment: Shipment, image: Image, name: str = NAME) -> bool:
    return set(standing(shipment, name).values()) == {layers(image)}


def put(shipment: Shipment, payload: Payload, *words: str) -> Image:
    """The payload, brought to all nodes (or as ``words`` say)."""
    image = shipment.image(payload)
    done = shipment.distribute(*words)
    assert done.returncode == 0, done.stderr
    return image


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


# nodes


def test_nodes_say_who_has_what(shipment: Shipment) -> None:
    image = put(shipment, PAYLOAD)
    fleet = shipment.fleet
    fleet["node1"].docker("tag", NAME, "someone/else:1")

    said = ok(shipment.run("nodes"))
    assert "someone" not in said
    for node, version, store in (
        ("node1", "26.1.5", "overlay2"),
        ("node4", "28.5.2", "containerd"),
    ):
        (line,) = [line for line in said.splitlines() if f" {node} " in line]
        assert version in line
        assert store in line
        assert "GB" in line
    (line,) = [line for line in said.splitlines() if NAME in line]
    assert line.split()[:3] == ["=", NAME, image.digest[7:19]]
    assert line.rstrip().endswith("all 4 nodes")
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80

    facts = json.loads(ok(shipment.run("nodes", VARIANT, "--json")))
    assert [one["node"] for one in facts] == NODES
    assert {held["digest"] for one in facts for held in one["images"]} == {image.digest}
    assert len({held["identity"] for one in facts for held in one["images"]}) == 1

    # One has another one, and one nothing.
    fleet["node2"].docker("pull" if False else "rmi", NAME)
    other = shipment.image(PAYLOAD.changed(-1))
    ok(shipment.distribute("--nodes", "node3"))
    mixed = shipment.run("nodes", NAME)
    assert mixed.returncode == MIXED
    assert f"not the same on all nodes: {NAME}" in mixed.stderr
    rows = [line.split() for line in mixed.stdout.splitlines()]
    assert any(row[:3] == ["≠", NAME, image.digest[7:19]] for row in rows)
    assert any(row[:1] == [other.digest[7:19]] and row[-1] == "node3" for row in rows)
    assert any(row == ["none", "node2"] for row in rows)

    # One that does not answer hides nobody.
    fleet["node2"].control.cut()
    partly = shipment.run("nodes")
    assert partly.returncode == NODE_FAILED
    assert "1 of 4 nodes cannot be asked; not the same on the others" in partly.stderr
    assert "node2 cannot be reached" in partly.stderr
    assert "cannot be asked" in next(l for l in partly.stdout.splitlines() if "node2" in l)
    assert image.digest[7:19] in partly.stdout
    facts = json.loads(shipment.run("nodes", "--json").stdout)
    assert [one["error"] is None for one in facts] == [True, False, True, True]

    wrong = shipment.run("nodes", "paylaod")
    assert wrong.returncode == 2
    assert "payload" in wrong.stderr


def test_an_image_that_nobody_here_knows_is_the_same_on_both_stores(shipment: Shipment) -> None:
    fleet = shipment.fleet
    foreign = shipment.image(PAYLOAD)
    saved = shipment.folder / "image.tar"
    ok(shipment.run("save", VARIANT, "-o", str(saved)))
    change = ("STOPSIGNAL SIGINT", "HEALTHCHECK CMD true", "EXPOSE 80")
    fleet["node1"].docker("load", given=saved.read_bytes())
    container = fleet["node1"].docker("create", NAME)
    words = [word for one in change for word in ("--change", one)]
    fleet["node1"].docker("commit", *words, container, NAME)
    archive = subprocess.run(
        [*fleet["node1"].engine.docker, "exec", fleet["node1"].container, "docker", "save", NAME],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    for node in ("node2", "node3", "node4"):
        fleet[node].docker("load", given=archive)
    facts = json.loads(ok(shipment.run("nodes", "--json")))
    held = [image for one in facts for image in one["images"]]
    assert len(held) == 4
    assert {one["digest"] for one in held} == {None}
    assert len({one["identity"] for one in held}) == 1
    assert f"({held[0]['identity']})" in ok(shipment.run("nodes"))
    assert foreign.digest[7:19] not in ok(shipment.run("nodes"))

    # Other layers or only another setting: another image.
    fleet["node3"].docker("commit", "--change", "HEALTHCHECK NONE", fleet["node3"].docker(
        "create", NAME), NAME)  # fmt: skip
    assert shipment.run("nodes").returncode == MIXED


# rollback


def test_rollback_swaps_and_twice_gives_back(shipment: Shipment) -> None:
    first = put(shipment, PAYLOAD)
    second = put(shipment, PAYLOAD.changed(-1))
    said = ok(shipment.run("rollback", VARIANT))
    assert "node1, node2, node3, node4" in said
    assert everywhere(shipment, first)
    assert everywhere(shipment, second, PREVIOUS)
    ok(shipment.run("rollback", NAME))
    assert everywhere(shipment, second)
    assert everywhere(shipment, first, PREVIOUS)
    for node in shipment.fleet:
        assert node.docker("run", "--rm", "--network=none", NAME) == "it runs"
        assert set(node.images()) == {NAME, PREVIOUS}


def test_rollback_of_some_is_refused(shipment: Shipment) -> None:
    fleet = shipment.fleet
    put(shipment, PAYLOAD)
    put(shipment, PAYLOAD.changed(-1))
    fleet["node2"].docker("rmi", PREVIOUS)
    before = standing(shipment), standing(shipment, PREVIOUS)

    lacks = shipment.run("rollback", VARIANT)
    assert lacks.returncode == NODE_FAILED
    assert f"node2: it has no {PREVIOUS}" in lacks.stderr
    assert "no name was moved" in lacks.stderr
    assert (standing(shipment), standing(shipment, PREVIOUS)) == before

    for wire in fleet["node2"].wires:
        wire.cut()
    down = shipment.run("rollback", VARIANT)
    assert down.returncode == NODE_FAILED
    assert "node2 cannot be reached" in down.stderr
    assert (standing(shipment), standing(shipment, PREVIOUS)) == before

    partial = shipment.run("rollback", VARIANT, "--partial")
    assert partial.returncode == NODE_FAILED
    assert "MIXED FLEET" in partial.stderr
    swapped = standing(shipment)
    assert {node for node in NODES if swapped[node] != before[0][node]} == set(NODES) - {"node2"}


def test_former_images_that_differ_are_refused(shipment: Shipment) -> None:
    put(shipment, PAYLOAD)
    put(shipment, PAYLOAD.changed(0), "--nodes", "node3")
    put(shipment, PAYLOAD.changed(-1))
    before = standing(shipment)
    done = shipment.run("rollback", VARIANT)
    assert done.returncode == NODE_FAILED
    assert f"{PREVIOUS} is not the same image on all nodes; nothing was moved" in done.stderr
    assert standing(shipment) == before


# gc and receipts


def test_gc_leaves_what_is_named_used_or_foreign(shipment: Shipment) -> None:
    fleet = shipment.fleet
    images = [put(shipment, PAYLOAD.changed(-1, seed=seed)) for seed in range(5)]
    oldest, used = images[0], images[1]
    for node in fleet:
        # Of the three that have no name by now one is used by a container, which does not run.
        (id,) = [id for id in node.dangling() if node.diff_ids(id)[-1] == used.layers[-1].diff_id]
        node.docker("create", "--name", "idle", id)
        node.docker("tag", NAME, "sparkimage-staging:left")
        stranger = node.docker("commit", "--change", "LABEL dev.sparkimage.variant=", "idle")
        assert stranger in node.dangling()

    dry = ok(shipment.run("gc", "--keep", "2", "--dry-run"))
    assert dry.count("would set free at most") == 4
    assert dry.count("would remove sparkimage-staging:left") == 4
    before = fleet.each(Node.disk_used)
    assert all(len(node.dangling()) == 4 for node in fleet)

    said = {one["node"]: one for one in json.loads(ok(shipment.run("gc", "--keep", "2", "--json")))}
    gained = fleet.each(Node.disk_used)
    for node in fleet:
        one = said[node.name]
        left = {node.diff_ids(id)[-1] for id in node.dangling()}
        assert oldest.layers[-1].diff_id not in left
        assert used.layers[-1].diff_id in left
        assert len(left) == 2
        assert set(node.images()) == {NAME, PREVIOUS}
        assert len(one["removed"]) == 3
        (kept,) = one["kept"]
        assert "container" in kept
        assert one["freed"] > 2 * MB
        assert abs(one["freed"] - (before[node.name] - gained[node.name])) < MB // 2
        assert node.docker("start", "--attach", "idle") == "it runs"

    # Nothing is left to do, and every image that a name stands for runs.
    assert {one["freed"] < MB for one in json.loads(ok(shipment.run("gc", "--json")))} == {True}
    assert everywhere(shipment, images[-1])
    assert everywhere(shipment, images[-2], PREVIOUS)


def test_receipts_are_kept_here_and_on_the_nodes(shipment: Shipment) -> None:
    fleet = shipment.fleet
    images = [put(shipment, PAYLOAD.changed(-1, seed=seed)) for seed in range(3)]
    here = json.loads(ok(shipment.run("receipts", "--json")))
    there = json.loads(ok(shipment.run("receipts", "--nodes", "fleet.yaml", "--json")))
    assert len(here) == len(there) == 12
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
    for node in fleet:
        assert node.exec("stat", "--format", "%a", state) == "700"
        modes = node.exec("find", state, "-name", "*.json", "-printf", "%m\n").split()
        assert modes == ["600"] * 3

    ok(shipment.run("gc"))
    left = json.loads(ok(shipment.run("receipts", "--nodes", "node2,node3", "--json")))
    assert {one["digest"] for one in left} == {image.digest for image in images[1:]}
    assert len(json.loads(ok(shipment.run("receipts", "--json")))) == 12

    fleet["node2"].control.cut()
    partly = shipment.run("receipts", "--nodes", "fleet.yaml", "--json")
    assert partly.returncode == NODE_FAILED
    assert {one["node"] for one in json.loads(partly.stdout)} == set(NODES) - {"node2"}


def test_receipts_are_of_the_user_and_of_none_else(shipment: Shipment) -> None:
    shipment.nodes(shipment.fleet.data("worker"))
    put(shipment, PAYLOAD)
    state = "/home/worker/.local/state/sparkimage/receipts"
    for node in shipment.fleet:
        assert node.exec("stat", "--format", "%U %a", state) == "worker 700"


# Files


def test_what_is_saved_is_loaded_by_every_engine(shipment: Shipment) -> None:
    image = shipment.image(PAYLOAD)
    file = shipment.folder / "image.tar"
    ok(shipment.run("save", VARIANT, "-o", str(file)))
    piped = subprocess.run(
        shipment.argv("save", VARIANT, "-o", "-"), env=shipment.environment(), check=True,
        capture_output=True,
    ).stdout  # fmt: skip
    assert piped == file.read_bytes()

    def loaded(node: Node) -> str:
        assert NAME in node.docker("load", given=piped)
        return node.docker("run", "--rm", "--network=none", NAME)

    assert set(shipment.fleet.each(loaded).values()) == {"it runs"}
    assert everywhere(shipment, image)
    # And distribute finds nothing to send.
    facts = json.loads(ok(shipment.distribute("--json")))
    assert {(one["state"], one["sent"]) for one in facts["nodes"]} == {("unchanged", 0)}


# Who is meant


def test_names_of_ssh_config_and_users(shipment: Shipment) -> None:
    image = shipment.image(PAYLOAD)
    planned = json.loads(
        ok(shipment.distribute("--nodes", "node1,worker@node2", "--dry-run", "--json"))
    )
    assert [(one["node"], one["state"], one["layers_sent"]) for one in planned["nodes"]] == [
        ("node1", "planned", 4), ("node2", "planned", 4),
    ]  # fmt: skip
    assert {one["sent"] for one in planned["nodes"]} == {sum(one.size for one in image.layers)}
    assert set(standing(shipment).values()) == {None}
    assert "to come" in ok(shipment.distribute("--nodes", "node1", "--dry-run"))
    ok(shipment.distribute("--nodes", "node1,worker@node2"))
    found = standing(shipment)
    assert [node for node in NODES if found[node] is not None] == ["node1", "node2"]
    again = json.loads(ok(shipment.distribute("--dry-run", "--json")))
    assert [one["state"] for one in again["nodes"]] == ["unchanged"] * 2 + ["planned"] * 2
    assert "fleet.yaml has" not in again
    wrong = shipment.distribute("--nodes", "node1,node1")
    assert wrong.returncode == 2
