"""Every fault of the field on four real nodes: all of them show the old image, or all the new one.

After each fault the same command completes, nothing is left under staging names, no container
stays, and the disks have grown by the image and no more.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.explaining import knowledge
from sparkimage.fleets.probe import chain_ids
from sparkimage.storage import archive
from sparkimage.storage.store import Image
from tests.lab.fleet import Fleet
from tests.lab.node import put, wait
from tests.lab.payload import Part, Payload
from tests.lab.shipment import MB, NAME, NODE_FAILED, NODES, Shipment, layers, spread
from tests.lab.voyage import (
    BUSY,
    LOADED,
    PAYLOAD,
    PULLED,
    Voyage,
    Way,
    either,
    kept,
    listed,
)
from tests.unit import good_maker

INTERRUPTED = 130
USAGE, MIXED = 2, 15
both = pytest.mark.parametrize("way", [LOADED, PULLED], ids=str)


@pytest.fixture(scope="module")
def trip(four: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Voyage]:
    """One image after the other on its way to the four nodes."""
    made = Voyage(Shipment.make(tmp_path_factory.mktemp("voyage"), four))
    yield made
    four.reset()


@pytest.fixture
def voyage(trip: Voyage) -> Iterator[Voyage]:
    yield from trip.prepared()


def others(names: str | Sequence[str]) -> list[str]:
    """What is said of all other nodes once they have the image."""
    return [f"{one}: proven" for one in NODES if one not in listed(names)]


def nothing_moved(names: Sequence[str]) -> str:
    return f"{len(names)} of 4 nodes failed; no name was moved: every node keeps what it had"


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
    with voyage.run("--patience", "5") as running:
        assert running.end() == NODE_FAILED
    for said in (
        r"3 of 4 nodes failed; nothing was sent",
        r"node1: its Docker does not answer",
        r"node2: /var/lib/docker has 10\d\.\d MB free, the image needs 5\d\d\.\d MB",
        r"node3: no answer for 5 s: it hangs",
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


# The link


@both
def test_a_link_that_comes_back_costs_what_was_on_it(voyage: Voyage, way: Way) -> None:
    nodes, new = voyage.nodes, way.image(voyage)
    before = {node.name: node.data.up for node in nodes}
    for node in nodes:
        node.data.rate(4 * way.rate)
        node.data.cut_after(way.midway)
    with voyage.run("--step", "10") as running:
        running.until(*(f"{node.name}: again: cannot be reached" for node in nodes))
        for node in nodes:
            node.data.restore()
        assert running.end() == 0, running.said
    voyage.arrived(new)
    assert "cannot pull" not in running.said
    sent = sum(layer.size for layer in new.layers)
    for node in nodes:
        # What was on the link, and on its way to be unpacked.
        assert node.data.up - before[node.name] < sent + way.midway


@either(loaded=["node2"], pulled=NODES)
def test_a_link_that_stays_cut_costs_what_was_on_it(
    voyage: Voyage, way: Way, names: Sequence[str]
) -> None:
    nodes, new = [voyage.shipment.fleet[name] for name in names], voyage.fresh(5, way.size)
    before = spread(voyage.shipment.fleet)
    for node in nodes:
        node.data.rate(way.rate)
    with voyage.run("--step", "1") as running:
        came: dict[str, int] = {}

        def cut() -> bool:
            """Each link once two layers are there; the lowest one was there before."""
            for node in nodes:
                if node.name not in came and (there := kept(node)) >= 2:
                    node.data.cut()
                    came[node.name] = there
            return len(came) == len(nodes)

        wait(lambda: cut() or running.process.poll() is not None, "no layer came")
        assert running.end() == NODE_FAILED
        assert len(came) == len(nodes), running.said
    assert nothing_moved(names) in running.said
    for name in names:
        assert f"{name} cannot be reached at its data address 127.0.0.2" in running.said
    running.until(*others(names))
    voyage.kept(new)
    for node in nodes if way is LOADED else ():
        # One step is unpacked while the next one is on its way, and no third one.
        there = sum(layer.size for layer in new.layers[1 : kept(node)])
        assert node.data.up - before[node.name] - there < 2 * new.layers[-1].size + MB // 4
    wait(lambda: not any(one.traces for one in voyage.looks().values()), "the pull has left traces")
    for node in nodes:
        node.data.restore()
    before = spread(voyage.shipment.fleet)
    then = voyage.complete(new, "--step", "1")
    for node in voyage.nodes:
        one = then[node.name]
        if node.name not in names:
            assert one["sent"] == 0
            continue
        there = came[node.name]
        assert one["layers_kept"] >= there
        assert one["layers_sent"] <= len(new.layers) - there
        missing = sum(layer.size for layer in new.layers[there:])
        assert node.data.up - before[node.name] < missing + MB


@both
def test_a_bit_that_flips_on_the_wire(voyage: Voyage, way: Way) -> None:
    node, new = voyage.shipment.fleet["node3"], way.image(voyage)
    node.data.flip_after(way.midway)
    with voyage.run() as running:
        assert running.end() == 0, running.said
    assert "node3: again: " in running.said
    voyage.arrived(new)


@either(loaded=["node4"], pulled=["node1", "node2", "node4"])
def test_a_link_that_hangs_holds_nobody_else(
    voyage: Voyage, way: Way, names: Sequence[str]
) -> None:
    fleet, new = voyage.shipment.fleet, way.image(voyage)
    with voyage.held(names, "--patience", "4", after=way.midway) as running:
        assert running.end() == NODE_FAILED
    running.until(*others(names))
    assert nothing_moved(names) in running.said
    for name in names:
        assert f"{name}: no progress for 4 s: it hangs" in running.said
    voyage.kept(new)
    for name in names:
        fleet[name].data.restore()
    voyage.complete(new)


# The engine


@either(loaded=["node1"], pulled=["node2", "node3", "node4"])
def test_an_engine_that_hangs_holds_nobody_else(
    voyage: Voyage, way: Way, names: Sequence[str]
) -> None:
    nodes, new = [voyage.shipment.fleet[name] for name in names], way.image(voyage)
    with voyage.held(names, "--patience", "4", after=way.midway) as running:
        for node in nodes:
            node.pause_dockerd()
            node.data.restore()
        assert running.end() == NODE_FAILED
    running.until(*others(names))
    for node in nodes:
        assert f"{node.name}: no progress for 4 s: it hangs" in running.said
        node.resume_dockerd()
    voyage.kept(new)
    voyage.complete(new)


@either(loaded=["node1", "node4"], pulled=NODES)
def test_an_engine_killed_in_mid_stream(voyage: Voyage, way: Way, names: Sequence[str]) -> None:
    fleet, new = voyage.shipment.fleet, way.image(voyage)
    with voyage.held(names, after=way.midway) as running:
        running.until(*others(names))
        for name in names:
            fleet[name].kill_dockerd()
            fleet[name].data.restore()
        assert running.end() == NODE_FAILED
    for name in names:
        assert f"{name}: its Docker" in running.said
        fleet[name].start_dockerd()
    voyage.kept(new)
    voyage.complete(new)


@either(loaded=["node2", "node3"], pulled=["node1", "node2", "node4"])
def test_a_disk_that_fills_in_mid_stream(voyage: Voyage, way: Way, names: Sequence[str]) -> None:
    fleet, new = voyage.shipment.fleet, way.image(voyage)
    with voyage.held(names, after=way.midway) as running:
        for name in names:
            fleet[name].fill_disk(3 * MB)
            fleet[name].data.restore()
        assert running.end() == NODE_FAILED
    running.until(*others(names))
    for name in names:
        assert f"{name}: its disk is full" in running.said
        fleet[name].free_disk()
    voyage.kept(new)
    voyage.complete(new)


RECORDS = "/var/lib/docker/image/overlay2/layerdb/sha256"


@both
def test_the_record_of_a_layer_that_a_full_disk_left(voyage: Voyage, way: Way) -> None:
    """overlay2 renames a layer's record and then removes the layer; where no block is left for
    another name it goes on, and will never again take the layer."""
    fleet, new = voyage.shipment.fleet, way.image(voyage)
    data = fleet.data()
    data["nodes"]["node1"] |= {"user": "sudoer", "sudo": True}
    data["nodes"]["node3"]["user"] = "worker"
    voyage.shipment.nodes(data)
    top = chain_ids([layer.diff_id for layer in new.layers])[-1].removeprefix("sha256:")
    for name in ("node1", "node3"):
        fleet[name].exec("mkdir", f"{RECORDS}/{top}")
        put(fleet[name], {f"{RECORDS}/{top}/cache-id": (0o644, b"5" * 64)})
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    running.until(*others("node3"))
    found = "a full disk has left the record of a layer that is gone"
    assert f"node1: again: {found}" in running.said
    assert f"warning: node1: {found}: removed ({RECORDS}/{top})" in running.said
    remedy = re.search(
        rf"node3: {found}, and Docker there .*\n.*Permission denied\n.* worker@\S+ sudo (rm -r .*)",
        running.said,
    )
    assert remedy is not None, running.said
    voyage.kept(new)
    fleet["node3"].exec(*remedy[1].split())
    came = voyage.complete(new)
    assert came["node1"]["sent"] == 0


OVERLAY2 = f"""
cd {RECORDS}
rm -r "/var/lib/docker/overlay2/$(cat "$(ls -t | head -n 1)/cache-id")"
"""
CONTAINERD = """
cd /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots
rm -r "$(ls -t | head -n 1)"
"""


def test_layers_that_are_damaged_on_a_node(voyage: Voyage) -> None:
    """A crash may keep an engine's record of a layer and not its files: it says that it has it."""
    fleet, new = voyage.shipment.fleet, voyage.fresh()
    with voyage.held("node4", after=PULLED.midway) as running:
        running.until(*others("node4"))
        running.kill()
    fleet["node4"].data.restore()
    voyage.quiet()
    for name, damage in (("node1", OVERLAY2), ("node2", CONTAINERD), ("node3", OVERLAY2)):
        fleet[name].exec("sh", "-c", damage)
    # Its engine reads its records anew.
    fleet["node3"].stop_dockerd()
    fleet["node3"].start_dockerd()
    with voyage.run() as running:
        assert running.end() == 0, running.said
    for name in ("node1", "node2", "node3"):
        assert f"{name}: again: it is damaged there" in running.said
        assert f"warning: {name}: what was there of the image was damaged" in running.said
    voyage.arrived(new)


def test_layers_that_are_damaged_in_another_image_too(voyage: Voyage) -> None:
    """They stay as long as that image does, which nobody removes for the user."""
    fleet, below = voyage.shipment.fleet, PAYLOAD.changed(-1, seed=4711)
    voyage.complete(voyage.next(below))
    for name, damage in (("node1", OVERLAY2), ("node2", CONTAINERD)):
        fleet[name].exec("sh", "-c", damage)
    new = voyage.next(replace(below, parts=(*below.parts, Part(size=MB, seed=4711))))
    before = fleet.each(lambda node: node.images()[NAME])
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    for name in ("node1", "node2"):
        assert f"{name}: layers are damaged there" in running.said
        assert "images there that share its layers may be damaged, too: remove" in running.said
    running.until("node3: proven", "node4: proven")
    assert fleet.each(lambda node: node.images()[NAME]) == before
    for name in ("node1", "node2"):
        fleet[name].docker("rmi", NAME)
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


def lying(shipment: Shipment, payload: Payload | None = None) -> Image:
    """An image whose top layer is not what its config says: every engine is to refuse it."""
    store = shipment.store
    image = shipment.image(payload or PAYLOAD.changed(-1, 7777))
    wrong = {**image.config, "rootfs": {**image.config["rootfs"]}}
    wrong["rootfs"]["diff_ids"] = [*image.config["rootfs"]["diff_ids"][:-1], f"sha256:{'5' * 64}"]
    return good_maker.put_image(store, wrong, image.manifest["layers"])


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


# The command itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt(voyage: Voyage, number: signal.Signals) -> None:
    node, new = voyage.shipment.fleet["node4"], voyage.next()
    with voyage.run() as running:
        running.until("looking at 4 nodes")
        assert running.kill(number) == INTERRUPTED
    voyage.kept(new)
    with voyage.held("node4") as running:
        assert running.kill(number) == INTERRUPTED, running.said
    assert "interrupted: no name was changed; the same command goes on" in running.said
    voyage.kept(new)
    node.data.restore()
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        assert running.kill(number) == INTERRUPTED
    voyage.kept(new)
    node.data.restore()
    for line in ("asking 4 nodes", f"moving {NAME}"):
        with voyage.run() as running:
            running.until(line)
            assert running.kill(number) in (0, INTERRUPTED), running.said
        voyage.quiet()
        moved = voyage.moved(new)
        assert ("no name was changed" in running.said) is not moved, running.said
    voyage.complete(new)


def test_a_kill_before_the_move(voyage: Voyage) -> None:
    node, new = voyage.shipment.fleet["node4"], voyage.next()
    with voyage.run() as running:
        running.until("looking at 4 nodes")
        running.kill()
    voyage.kept(new)
    with voyage.held("node4") as running:
        running.kill()
    voyage.kept(new)
    node.data.restore()
    voyage.quiet()
    with voyage.held("node4") as running:
        running.until(*others("node4"))
        running.kill()
    voyage.kept(new)
    node.data.restore()
    voyage.complete(new)


def test_kills_around_the_move(voyage: Voyage) -> None:
    """At every moment that can be told from outside: a line, or what went over the wires."""
    new, ended = voyage.next(), set()
    moments = [
        ("asking 4 nodes", 0), ("asking 4 nodes", 3000), ("asking 4 nodes", 9000),
        (f"moving {NAME}", 0), (f"moving {NAME}", 1), (f"moving {NAME}", 150),
    ]  # fmt: skip
    for line, count in moments:
        with voyage.run() as running:
            running.until(line)
            began = said(voyage)
            while said(voyage) < began + count and running.process.poll() is None:
                pass
            running.kill()
        voyage.quiet()
        moved = voyage.moved(new)
        ended.add(moved)
        if moved:
            voyage.complete(new)
            new = voyage.next()
    voyage.complete(new)
    assert ended == {True, False}


def test_kills_around_a_rollback(voyage: Voyage) -> None:
    former, ended = voyage.old, set()
    voyage.complete(voyage.next())
    for line, count in (("asking 4 nodes", 3000), (f"moving {NAME}", 0), (f"moving {NAME}", 150)):
        assert former is not None
        with voyage.run(command="rollback") as running:
            running.until(line)
            began = said(voyage)
            while said(voyage) < began + count and running.process.poll() is None:
                pass
            running.kill()
        voyage.quiet()
        ended.add(voyage.moved(former))
        if voyage.moved(former):
            voyage.old, former = former, voyage.old
        assert former is not None
        for node in voyage.nodes:
            assert "+".join(node.diff_ids(f"{NAME}-previous")) == layers(former)
    assert ended == {True, False}
    voyage.used = {}
    voyage.complete(voyage.next())


def test_an_engine_that_is_killed_before_a_rollback_moves(voyage: Voyage) -> None:
    former, node = voyage.old, voyage.shipment.fleet["node3"]
    assert former is not None
    voyage.complete(voyage.next())
    node.kill_dockerd()
    with voyage.run(command="rollback") as running:
        assert running.end() == NODE_FAILED
    assert "node3" in running.said
    node.start_dockerd()
    voyage.kept(former)
    with voyage.run(command="rollback") as running:
        assert running.end() == 0, running.said
    assert voyage.moved(former)
    voyage.old, voyage.used = former, {}
    voyage.complete(voyage.next())


def said(voyage: Voyage) -> int:
    """Bytes of commands that went to the nodes."""
    return sum(node.control.up for node in voyage.nodes)


def test_a_killed_proof_leaves_no_container(voyage: Voyage) -> None:
    new = voyage.next()
    for node in voyage.nodes:
        node.docker("create", "--label", "dev.sparkimage.proof=1", "--network=none", NAME)
    voyage.complete(new)


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
