"""What is done with a fleet beside plain distributing, on four real nodes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage import paths
from sparkimage.building import builder
from sparkimage.fleets import receipts
from sparkimage.storage.store import Image
from tests.lab.conftest import Lab
from tests.lab.fleet import Fleet
from tests.lab.mirror import Mirror, mirror
from tests.lab.node import Node
from tests.lab.payload import Payload
from tests.lab.shipment import NAME, PREVIOUS, VARIANT, Shipment
from tests.unit import good_maker

MB = 1 << 20
PAYLOAD = Payload.of(3 * MB, 2 * MB, 1 * MB)
NODES = ["node1", "node2", "node3", "node4"]
NODE_FAILED, MIXED = 13, 15
RECEIPTS = paths.home() / receipts.FOLDER


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
    fleet["node2"].docker("rmi", NAME)
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
    assert "cannot be asked" in next(line for line in partly.stdout.splitlines() if "node2" in line)
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
    assert dry.count("would set free at most") == 4
    assert dry.count("would remove sparkimage-staging:left") == 4
    before = fleet.each(Node.disk_used)
    assert {node.name: len(node.dangling()) for node in fleet} == dict.fromkeys(NODES, 3)

    said = {one["node"]: one for one in json.loads(ok(shipment.run("gc", "--keep", "2", "--json")))}
    gained = fleet.each(Node.disk_used)
    for node in fleet:
        one = said[node.name]
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
    # A receipt is of the user that brought it, and of none else.
    (receipt,) = (
        shipment.fleet["node2"]
        .exec(
            "find",
            "/root",
            "/home",
            "-path",
            "*/sparkimage/receipts/*.json",
            "-printf",
            "%p %u %m\n",
        )
        .splitlines()
    )
    assert receipt.startswith("/home/worker/.local/state/")
    assert receipt.endswith(" worker 600")
    again = json.loads(ok(shipment.distribute("--dry-run", "--json")))
    assert [one["state"] for one in again["nodes"]] == ["unchanged"] * 2 + ["planned"] * 2
    wrong = shipment.distribute("--nodes", "node1,node1")
    assert wrong.returncode == 2


# Relay


def spread(fleet: Fleet) -> dict[str, int]:
    """Bytes that each node got from here."""
    return {node.name: node.data.up for node in fleet}


def test_a_relay_brings_layers_to_one_node_of_a_group(shipment: Shipment) -> None:
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


def test_nodes_that_cannot_reach_each_other_get_it_from_here(shipment: Shipment) -> None:
    fleet = shipment.fleet
    fleet["node2"].part(fleet["node3"])
    image = shipment.image(PAYLOAD)
    done = shipment.distribute("--relay", "--json")
    facts = {one["node"]: one for one in json.loads(ok(done))["nodes"]}
    assert everywhere(shipment, image)
    assert [facts[node]["source"] for node in NODES] == [None, "node1", None, None]
    for name in ("node3", "node4"):
        assert f"warning: {name}: not reached by relay, its layers go out from here" in done.stderr
    assert spread(fleet)["node2"] == 0
    assert "node2: not" not in done.stderr


def test_a_relay_that_dies_in_mid_stream_leaves_nobody_behind(shipment: Shipment) -> None:
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
        said = ""
        for line in running.stdout:
            said += line
            if "again" in line and "node1" in line:
                wire.restore()
        assert running.wait() == 0, said
    assert everywhere(shipment, image)
    for name in NODES:
        assert f"{name}: not reached by relay" in said
    assert {node.docker("run", "--rm", NAME) for node in fleet} == {"it runs"}


# Registry


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


# A terminal


def terminal(shipment: Shipment, columns: int, *words: str) -> str:
    """What a command shows on a terminal, without its colours."""
    command = f"stty cols {columns} rows 40; exec {shlex.join(shipment.argv(*words))}"
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        env=shipment.environment(TERM="xterm-256color"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout).replace("\r", "\n")


def test_a_terminal_shows_a_bar_for_each_node_and_one_for_all(shipment: Shipment) -> None:
    fleet = shipment.fleet
    put(shipment, PAYLOAD)
    image = shipment.image(Payload.of(3 * MB, 8 * MB, 1 * MB))
    for node in fleet:
        node.data.rate(2 * MB)
    shown = terminal(shipment, 80, "distribute", VARIANT)
    assert everywhere(shipment, image)
    for line in shown.splitlines():
        assert len(line.rstrip()) <= 80, line
    for name in (*NODES, "all"):
        row = re.compile(rf"{name} +[━─]{{12}} +\d+\.\d / \d+\.\d MB +[\d.]+ [kM]B/s +[\d.]+ s ")
        assert row.search(shown), name
    # overlay2 lacks the layers above a changed one as well, containerd's store has them.
    assert "2 of 4 layers are there" in shown
    assert "3 of 4 layers are there" in shown
    assert "4 of 4 proven" in shown
    tables = terminal(shipment, 80, "nodes") + terminal(shipment, 80, "receipts")
    assert image.digest[7:19] in tables
    for line in tables.splitlines():
        assert len(line.rstrip()) <= 80, line


# More proof


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
