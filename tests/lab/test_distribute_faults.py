"""Every fault of the field on real nodes: all of them show the old image, or all the new one.

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

from sparkimage.image import archive
from sparkimage.serve.explain import knowledge
from tests.lab.distribution import (
    BUSY,
    PATIENCES,
    STORES,
    Distribution,
    Way,
    cases,
    lying,
    stores,
    ways,
)
from tests.lab.shipment import (
    MB,
    NAME,
    NODE_FAILED,
    PAYLOAD,
    Shipment,
    everywhere,
    layers,
    ok,
    standing,
)

USAGE, MIXED = 2, 15


# Before a byte moves


def test_every_node_reports_its_own_error(shipment: Shipment) -> None:
    fleet, new = shipment.fleet, shipment.image(PAYLOAD)
    data = fleet.data()
    data["nodes"]["node1"]["user"] = "plain"
    data["nodes"]["node2"] |= {"user": "asker", "sudo": True}
    shipment.nodes(data)
    fleet["node3"].change_host_key()
    for wire in fleet["node4"].wires:
        wire.cut()
    done = shipment.distribute()
    assert done.returncode == NODE_FAILED
    for output in (
        r"4 of 4 nodes failed; nothing was sent",
        r"node1: plain has no permission to use its Docker",
        r"there: sudo usermod -aG docker plain",
        r"node2: asker may not run docker through sudo without a password",
        r"node3: the host key has changed",
        r"node4 cannot be reached: .*Connection refused",
    ):
        assert re.search(output, done.stderr), done.stderr
    assert [node.data.up for node in fleet] == [0] * 4
    fleet["node3"].restore_host_key()
    for wire in fleet["node4"].wires:
        wire.restore()
    assert set(standing(shipment).values()) == {None}
    shipment.nodes(fleet.data())
    ok(shipment.distribute())
    assert everywhere(shipment, new)


def test_docker_down_hung_or_without_disk_space(shipment: Shipment) -> None:
    fleet, new = shipment.fleet, shipment.image(PAYLOAD)
    fleet["node1"].stop_dockerd()
    fleet["node2"].fill_disk(100 * MB)
    fleet["node3"].pause_dockerd()
    for patience in PATIENCES:
        done = shipment.distribute("--patience", patience)
        assert done.returncode == NODE_FAILED
        if done.stderr.count("no answer for") == 1:
            break
    for output in (
        r"3 of 4 nodes failed; nothing was sent",
        r"node1: its Docker does not answer",
        r"node2: /var/lib/docker has 10\d\.\d MB free, the image needs 5\d\d\.\d MB",
        rf"node3: no answer for {patience} s: it hangs",
    ):
        assert re.search(output, done.stderr), done.stderr
    fleet["node1"].start_dockerd()
    fleet["node2"].free_disk()
    fleet["node3"].resume_dockerd()
    assert set(standing(shipment).values()) == {None}
    ok(shipment.distribute())
    assert everywhere(shipment, new)


MARKER = "a-shell-ran"


def test_fleet_file_values_never_reach_a_shell(distribution: Distribution, tmp_path: Path) -> None:
    shipment, marker = distribution.shipment, tmp_path / MARKER
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
    assert re.search(r"12 problems in \S*fleet\.yaml$", done.stderr, re.MULTILINE), done.stderr
    for word in evil:
        # A slash would make a file's name of it.
        done = shipment.distribute(f"--nodes=node1,{word.replace('/', '')}")
        assert done.returncode == USAGE
        assert "is not a node name" in done.stderr
    assert not marker.exists()
    shipment.nodes(data)
    distribution.complete(distribution.next())


# Users


USERS = {"worker": "sudoer", "sudoer": "worker"}


@cases("every kind of user", "first", ("worker",), ("sudoer",))
def test_root_docker_group_and_sudo_users(distribution: Distribution, first: str) -> None:
    data = distribution.fleet.data()
    for store, user in zip(STORES, (first, USERS[first]), strict=True):
        name = distribution.node(store).name
        data["nodes"][name] |= {"user": user, "sudo": user == "sudoer"}
    distribution.shipment.nodes(data)
    distribution.complete(distribution.next())
    # worker may not ask containerd, but the node has his receipt by now.
    came = distribution.complete(distribution.next())
    assert {one["layers_sent"] for one in came.values()} == {1}
    again = json.loads(distribution.shipment.distribute("--json").stdout)
    assert {one["state"] for one in again["nodes"]} == {"unchanged"}


@cases("two at once", "first, second", ("root", "worker"), ("worker", "sudoer"))
def test_concurrent_runs_exclude_each_other(
    distribution: Distribution, first: str, second: str
) -> None:
    node, new = distribution.nodes[0], distribution.next()
    distribution.shipment.nodes(distribution.fleet.data(first))
    with distribution.held(node) as running:
        data = distribution.fleet.data(second)
        for one in data["nodes"].values():
            one["sudo"] = second == "sudoer"
        distribution.shipment.nodes(data)
        other = distribution.shipment.distribute()
        assert other.returncode == NODE_FAILED
        for name in distribution.names:
            assert f"{name}: {BUSY}: " in other.stderr
        assert f"(process {running.process.pid})" in other.stderr
        node.data.restore()
        assert running.end() == 0, running.said
    distribution.complete(new)


# Between the phases


@stores("an engine killed between the phases")
def test_dockerd_killed_between_stage_and_move(distribution: Distribution, store: str) -> None:
    node, new = distribution.node(store), distribution.next()
    other = distribution.other(node)
    with distribution.held(other) as running:
        running.until(*distribution.others(other))
        node.kill_dockerd()
        other.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name}: its Docker daemon went away" in running.said
    assert "every node " in running.said
    node.start_dockerd()
    distribution.kept(new)
    distribution.complete(new)


@pytest.mark.thorough
@stores("an image removed between the phases")
def test_image_removed_between_stage_and_move(distribution: Distribution, store: str) -> None:
    node, new = distribution.node(store), distribution.next()
    other = distribution.other(node)
    with distribution.held(other) as running:
        running.until(*distribution.others(other))
        node.docker("rmi", *(tag for tag in node.images() if "staging" in tag))
        other.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name}: the image was removed there meanwhile" in running.said
    distribution.kept(new)
    distribution.complete(new)


@stores("a name moved by somebody else")
def test_name_moved_by_another_process_between_stage_and_move(
    distribution: Distribution, store: str
) -> None:
    node, new, old = distribution.node(store), distribution.next(), distribution.old
    other = distribution.other(node)
    assert old is not None
    with distribution.held(other) as running:
        running.until(*distribution.others(other))
        node.docker("tag", f"{NAME}-previous", NAME)
        other.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name}: another process moved {NAME} there meanwhile" in running.said
    shown = {name: one.name for name, one in distribution.looks().items()}
    assert shown[other.name] == layers(old)
    assert shown[node.name] not in (layers(old), layers(new))
    # The fleet that he left is as good as any to begin from.
    distribution.complete(new)


@pytest.mark.thorough
def test_link_cut_before_the_move(distribution: Distribution) -> None:
    node, other = distribution.nodes
    new = distribution.next()
    with distribution.held(other) as running:
        running.until(*distribution.others(other))
        node.control.cut()
        other.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name} cannot be reached" in running.said
    distribution.kept(new)
    node.control.restore()
    came = distribution.complete(new)
    assert {one["sent"] for one in came.values()} == {0}


# What is in the store


@ways("a bit that flipped in the store")
def test_corrupt_blob_in_the_store(distribution: Distribution, way: Way) -> None:
    new = way.image(distribution)
    top = new.layers[-1]
    path = distribution.shipment.store.path(top.digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
    with distribution.run() as running:
        assert running.end() != 0
    assert f"the stored blob {top.digest} is corrupt" in running.said
    assert "sparkimage image payload --repair" in running.said
    distribution.kept(new)
    path.write_bytes(good)
    distribution.complete(new)


@pytest.mark.thorough
@ways("a layer that is gone from the store")
def test_missing_layer_in_the_store(distribution: Distribution, way: Way) -> None:
    new = way.image(distribution)
    top = new.layers[-1]
    path = distribution.shipment.store.path(top.digest)
    good = path.read_bytes()
    path.unlink()
    with distribution.run() as running:
        assert running.end() != 0
    assert f"the stored blob {top.digest} is missing" in running.said
    distribution.kept(new)
    path.write_bytes(good)
    distribution.complete(new)


def test_load_that_fails_and_reports_success(distribution: Distribution) -> None:
    shipment = distribution.shipment
    image = lying(shipment)
    shipment.seal(image)
    liars = []
    for node in distribution.nodes:
        # What makes it a fault: the engine says that all is well.
        file = b"".join(archive.stream(image, "lab/lie:1", shipment.store))
        output = node.exec("sh", "-c", "docker load 2>&1 || echo refused", given=file)
        # One that it refused may have its name all the same.
        node.exec("sh", "-c", "docker rmi lab/lie:1 || :")
        if "refused" in output:
            continue
        liars.append(node)
        assert node.store == "containerd"
        assert "Error unpacking" in output
        assert [m.entry.id for m in knowledge.read(output.splitlines())] == ["unpack-failed"]
    with distribution.run() as running:
        assert running.end() == NODE_FAILED
    assert "2 of 2 nodes failed; no name was moved" in running.said
    for node in distribution.nodes:
        lied = "its engine could not unpack the image, and reported success"
        refused = "its engine refused to load the image"
        assert f"{node.name}: {lied if node in liars else refused}" in running.said
    distribution.kept(image)
    distribution.complete(distribution.next())


# All that a mixed fleet needs


def test_partial_leaves_a_mixed_fleet_and_warns(distribution: Distribution) -> None:
    (node, other), new = distribution.nodes, distribution.next()
    assert distribution.old is not None
    for wire in node.wires:
        wire.cut()
    with distribution.run("--partial") as running:
        assert running.end() == NODE_FAILED
    assert f"MIXED FLEET (--partial): {node.name} did not get" in running.said
    for wire in node.wires:
        wire.restore()
    shown = {name: one.name for name, one in distribution.looks().items()}
    assert shown == {node.name: layers(distribution.old), other.name: layers(new)}
    with distribution.run(command="nodes") as running:
        assert running.end() == MIXED
    assert f"nodes differ: {NAME}" in running.said
    came = distribution.complete(new)
    assert {name: one["state"] for name, one in came.items()} == {
        node.name: "moved", other.name: "unchanged",
    }  # fmt: skip
