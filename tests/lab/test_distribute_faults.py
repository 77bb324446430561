"""Every fault of the field on four real nodes: all of them show the old image, or all the new one.

After each fault the same command completes, nothing is left under staging names, no container
stays, and the disks have grown by the image and no more. Here: what is wrong before a byte moves,
between the phases, and in the store; see test_distribute_midstream.py and test_distribute_kills.py
for the rest.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sparkimage.explaining import knowledge
from sparkimage.storage import archive
from tests.lab.shipment import MB, NAME, NODE_FAILED, NODES, layers
from tests.lab.voyage import BUSY, Voyage, Way, both, lying, others

USAGE, MIXED = 2, 15


# Before a byte moves


def test_each_node_says_what_is_wrong_with_it(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    data = fleet.data()
    data["nodes"]["node1"]["user"] = "plain"
    data["nodes"]["node2"] |= {"user": "asker", "sudo": True}
    voyage.shipment.nodes(data)
    fleet["node3"].change_host_key()
    for wire in fleet["node4"].wires:
        wire.cut()
    before = [wire.up for node in fleet for wire in [node.data]]
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    for said in (
        r"4 of 4 nodes failed; nothing was sent",
        r"node1: plain may not talk to its Docker",
        r"there: sudo usermod -aG docker plain",
        r"node2: asker may not call docker through sudo without a password",
        r"node3: its host key is not the one that is known",
        r"node4 cannot be reached: .*Connection refused",
    ):
        assert re.search(said, running.said), running.said
    assert [wire.up for node in fleet for wire in [node.data]] == before
    voyage.kept(new)
    fleet["node3"].restore_host_key()
    for wire in fleet["node4"].wires:
        wire.restore()
    voyage.shipment.nodes(fleet.data())
    voyage.complete(new)


def test_an_engine_that_is_down_hangs_or_has_no_room(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    fleet["node1"].stop_dockerd()
    fleet["node2"].fill_disk(100 * MB)
    fleet["node3"].pause_dockerd()
    with voyage.run("--patience", "8") as running:
        assert running.end() == NODE_FAILED
    for said in (
        r"3 of 4 nodes failed; nothing was sent",
        r"node1: its Docker does not answer",
        r"node2: /var/lib/docker has 10\d\.\d MB free, the image needs 5\d\d\.\d MB",
        r"node3: no answer for 8 s: it hangs",
    ):
        assert re.search(said, running.said), running.said
    fleet["node1"].start_dockerd()
    fleet["node2"].free_disk()
    fleet["node3"].resume_dockerd()
    voyage.kept(new)
    voyage.complete(new)


MARKER = "a-shell-ran"


def test_no_word_of_the_fleet_file_reaches_a_shell(voyage: Voyage, tmp_path: Path) -> None:
    shipment, marker = voyage.shipment, tmp_path / MARKER
    data = shipment.fleet.data()
    evil = (f"$(touch {marker})", f"a;touch {marker}", f"-oProxyCommand=touch {marker}")
    wrong = {
        f"{place}{number}": {"control": f"c{number}", place: word}
        for place in ("control", "data", "user")
        for number, word in enumerate(evil)
    } | {word: {} for word in evil}
    shipment.nodes({**data, "nodes": {**data["nodes"], **wrong}})
    done = shipment.distribute()
    assert done.returncode == USAGE
    assert "12 problems in fleet.yaml" in done.stderr, done.stderr
    for word in evil:
        # A slash would make a file's name of it.
        done = shipment.distribute(f"--nodes=node1,{word.replace('/', '')}")
        assert done.returncode == USAGE
        assert "is no name of a node" in done.stderr
    assert not marker.exists()
    shipment.nodes(data)
    voyage.complete(voyage.next())


# Users


def test_every_kind_of_user_that_may(voyage: Voyage) -> None:
    fleet = voyage.shipment.fleet
    data = fleet.data()
    for name, user in (("node1", "worker"), ("node2", "sudoer"), ("node3", "sudoer"),
                       ("node4", "worker")):  # fmt: skip
        data["nodes"][name] |= {"user": user, "sudo": user == "sudoer"}
    voyage.shipment.nodes(data)
    voyage.complete(voyage.next())
    # worker may not ask containerd, but node4 has his receipt by now.
    came = voyage.complete(voyage.next())
    assert {one["layers_sent"] for one in came.values()} == {1}
    again = json.loads(voyage.shipment.distribute("--json").stdout)
    assert {one["state"] for one in again["nodes"]} == {"unchanged"}


@pytest.mark.parametrize(("first", "second"), [("root", "worker"), ("worker", "sudoer")])
def test_two_at_once(voyage: Voyage, first: str, second: str) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    voyage.shipment.nodes(fleet.data(first))
    with voyage.held("node2") as running:
        data = fleet.data(second)
        for node in data["nodes"].values():
            node["sudo"] = second == "sudoer"
        voyage.shipment.nodes(data)
        other = voyage.shipment.distribute()
        assert other.returncode == NODE_FAILED
        for name in NODES:
            assert f"{name}: {BUSY}: " in other.stderr
        assert f"(process {running.process.pid})" in other.stderr
        fleet["node2"].data.restore()
        assert running.end() == 0, running.said
    voyage.complete(new)


# Between the phases


def test_an_engine_killed_between_the_phases(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        fleet["node2"].kill_dockerd()
        fleet["node4"].data.restore()
        assert running.end() == NODE_FAILED
    assert "node2: its Docker went away" in running.said
    assert "every node " in running.said
    fleet["node2"].start_dockerd()
    voyage.kept(new)
    voyage.complete(new)


def test_an_image_removed_between_the_phases(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        for name in ("node1", "node2"):
            tags = [tag for tag in fleet[name].images() if "staging" in tag]
            fleet[name].docker("rmi", *tags)
        fleet["node4"].data.restore()
        assert running.end() == NODE_FAILED
    for name in ("node1", "node2"):
        assert f"{name}: the image was removed there meanwhile" in running.said
    voyage.kept(new)
    voyage.complete(new)


def test_a_name_moved_by_somebody_else_between_the_phases(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    node, old = fleet["node3"], voyage.old
    assert old is not None
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        node.docker("tag", f"{NAME}-previous", NAME)
        fleet["node4"].data.restore()
        assert running.end() == NODE_FAILED
    assert f"node3: {NAME} was moved there by somebody else meanwhile" in running.said
    shown = {name: one.name for name, one in voyage.looks().items()}
    assert {name for name, one in shown.items() if one == layers(old)} == {*NODES} - {"node3"}
    assert shown["node3"] != layers(new)
    # The fleet that he left is as good as any to begin from.
    node.docker("tag", node.docker("image", "inspect", "--format", "{{.Id}}", NAME), NAME)
    voyage.complete(new)


def test_a_link_that_is_cut_before_the_move(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        fleet["node2"].control.cut()
        fleet["node4"].data.restore()
        assert running.end() == NODE_FAILED
    assert "node2 cannot be reached" in running.said
    voyage.kept(new)
    fleet["node2"].control.restore()
    came = voyage.complete(new)
    assert {one["sent"] for one in came.values()} == {0}


# What is in the store


@both
def test_a_bit_that_flipped_in_the_store(voyage: Voyage, way: Way) -> None:
    new = way.image(voyage)
    top = new.layers[-1]
    path = voyage.shipment.store.path(top.digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
    with voyage.run() as running:
        assert running.end() != 0
    assert f"the stored blob {top.digest} holds other bytes" in running.said
    assert "python build.py image payload --repair" in running.said
    voyage.kept(new)
    path.write_bytes(good)
    voyage.complete(new)


@both
def test_a_layer_that_is_gone_from_the_store(voyage: Voyage, way: Way) -> None:
    new = way.image(voyage)
    top = new.layers[-1]
    path = voyage.shipment.store.path(top.digest)
    good = path.read_bytes()
    path.unlink()
    with voyage.run() as running:
        assert running.end() != 0
    assert f"the stored blob {top.digest} is missing" in running.said
    voyage.kept(new)
    path.write_bytes(good)
    voyage.complete(new)


def test_a_success_that_is_none(voyage: Voyage) -> None:
    shipment = voyage.shipment
    image = lying(shipment)
    shipment.seal(image)
    # What makes it a fault: the engine says that all is well.
    file = b"".join(archive.stream(image, "lab/lie:1", shipment.store))
    node = shipment.fleet["node4"]
    said = node.exec("sh", "-c", "docker load 2>&1", given=file)
    assert "Error unpacking" in said
    assert [m.entry.id for m in knowledge.read(said.splitlines())] == ["unpack-failed"]
    node.docker("rmi", "lab/lie:1")
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    assert "4 of 4 nodes failed; no name was moved" in running.said
    assert "node4: its engine could not unpack the image, and called it a success" in running.said
    for name in ("node1", "node3"):
        assert f"{name}: docker there refused the image (code 91)" in running.said
    voyage.kept(image)
    voyage.complete(voyage.next())


# All that a mixed fleet needs


def test_partial_leaves_a_mixed_fleet_loudly(voyage: Voyage) -> None:
    fleet, new = voyage.shipment.fleet, voyage.next()
    assert voyage.old is not None
    for wire in fleet["node3"].wires:
        wire.cut()
    with voyage.run("--partial") as running:
        assert running.end() == NODE_FAILED
    assert "MIXED FLEET, as --partial allows: node3 did not get" in running.said
    for wire in fleet["node3"].wires:
        wire.restore()
    shown = {name: one.name for name, one in voyage.looks().items()}
    assert shown == {name: layers(voyage.old if name == "node3" else new) for name in NODES}
    with voyage.run(command="nodes") as running:
        assert running.end() == MIXED
    assert f"not the same on all nodes: {NAME}" in running.said
    came = voyage.complete(new)
    assert {name: one["state"] for name, one in came.items()} == {
        name: "moved" if name == "node3" else "unchanged" for name in NODES
    }
