"""Links, engines and disks that fail while an image travels; see test_distribute_faults.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from sparkimage.image.store import Image
from sparkimage.nodes.snapshot import chain_ids
from tests.lab.node import put, wait
from tests.lab.payload import Part
from tests.lab.shipment import MB, NAME, NODE_FAILED, spread
from tests.lab.voyage import (
    LOADED,
    NOTHING_MOVED,
    PATIENCES,
    PAYLOAD,
    PULLED,
    Voyage,
    Way,
    cases,
    kept,
    stores,
    ways,
    ways_and_stores,
    ways_and_stores_that_wait,
)

# The link


@ways("a link that comes back")
def test_a_link_that_comes_back_costs_what_was_on_it(voyage: Voyage, way: Way) -> None:
    nodes, new = voyage.nodes, way.image(voyage)
    before = spread(voyage.fleet)
    for node in nodes:
        node.data.rate(way.rate)
        node.data.cut_after(way.midway)
    with voyage.run("--step", "10") as running:
        cut = list(nodes)

        def back() -> bool:
            """Each link soon after its cut: a run does not try for ever."""
            for node in [one for one in cut if f"{one.name}: again: " in running.said]:
                node.data.restore()
                cut.remove(node)
            return not cut

        wait(lambda: back() or running.process.poll() is not None, "a link was not cut")
        assert running.end() == 0, running.said
        assert not cut
    for node in nodes:
        assert f"{node.name}: again: cannot be reached" in running.said
    voyage.arrived(new)
    assert "cannot pull" not in running.said
    sent = sum(layer.size for layer in new.layers)
    for node in nodes:
        # What was on the link, and on its way to be unpacked.
        assert node.data.up - before[node.name] < sent + way.midway


@pytest.mark.thorough
@ways_and_stores("a link that stays cut")
def test_a_link_that_stays_cut_costs_what_was_on_it(voyage: Voyage, way: Way, store: str) -> None:
    node, new = voyage.node(store), voyage.fresh(5, way.size)
    before = spread(voyage.fleet)
    node.data.hang_after(new.layers[1].size)
    there = 0

    def cut() -> bool:
        """Once two layers are there; the lowest one was there before. Until then the bytes go in
        portions, as fast as we see what comes of them."""
        nonlocal there
        if (there := kept(node)) >= 2:
            node.data.cut()
        elif node.data.hangs:
            node.data.hang_after(MB)
        return there >= 2

    with voyage.run("--step", "1") as running:
        wait(lambda: cut() or running.process.poll() is not None, "no layer came")
        assert running.end() == NODE_FAILED
        assert there >= 2, running.said
    assert NOTHING_MOVED in running.said, running.said
    assert f"{node.name} cannot be reached at its data address 127.0.0.2" in running.said
    running.until(*voyage.others(node))
    voyage.kept(new)
    if way is LOADED:
        # One step is unpacked while the next one is on its way, and no third one.
        passed = sum(layer.size for layer in new.layers[1 : kept(node)])
        assert node.data.up - before[node.name] - passed < 2 * new.layers[-1].size + MB // 4
    wait(lambda: not any(one.traces for one in voyage.looks().values()), "the pull has left traces")
    node.data.restore()
    before = spread(voyage.fleet)
    came = voyage.complete(new, "--step", "1")
    assert came[voyage.other(node).name]["sent"] == 0
    assert came[node.name]["layers_kept"] >= there
    assert came[node.name]["layers_sent"] <= len(new.layers) - there
    missing = sum(layer.size for layer in new.layers[there:])
    assert node.data.up - before[node.name] < missing + MB


@ways_and_stores("a bit that flips on the wire")
def test_a_bit_that_flips_on_the_wire(voyage: Voyage, way: Way, store: str) -> None:
    node, new = voyage.node(store), way.image(voyage)
    node.data.flip_after(way.midway)
    with voyage.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: " in running.said
    voyage.arrived(new)


@ways_and_stores_that_wait("a link that hangs")
def test_a_link_that_hangs_holds_nobody_else(voyage: Voyage, way: Way, store: str) -> None:
    node = voyage.node(store)
    for patience in PATIENCES:
        new = way.image(voyage)
        with voyage.held(node, "--patience", patience, after=way.midway) as running:
            assert running.end() == NODE_FAILED
        node.data.restore()
        if running.said.count("it hangs") == 1:
            break
    running.until(*voyage.others(node))
    assert NOTHING_MOVED in running.said, running.said
    assert f"{node.name}: no progress for {patience} s: it hangs" in running.said
    voyage.kept(new)
    voyage.complete(new)


# The engine


@pytest.mark.thorough
@ways_and_stores_that_wait("an engine that hangs")
def test_an_engine_that_hangs_holds_nobody_else(voyage: Voyage, way: Way, store: str) -> None:
    node = voyage.node(store)
    for patience in PATIENCES:
        new = way.image(voyage)
        with voyage.held(node, "--patience", patience, after=way.midway) as running:
            node.pause_dockerd()
            node.data.restore()
            assert running.end() == NODE_FAILED
        node.resume_dockerd()
        if running.said.count("it hangs") == 1:
            break
    running.until(*voyage.others(node))
    assert f"{node.name}: no progress for {patience} s: it hangs" in running.said
    voyage.kept(new)
    voyage.complete(new)


@ways_and_stores("an engine killed in mid-stream")
def test_an_engine_killed_in_mid_stream(voyage: Voyage, way: Way, store: str) -> None:
    node, new = voyage.node(store), way.image(voyage)
    with voyage.held(node, after=way.midway) as running:
        running.until(*voyage.others(node))
        node.kill_dockerd()
        node.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name}: its Docker" in running.said
    node.start_dockerd()
    voyage.kept(new)
    voyage.complete(new)


@ways_and_stores_that_wait("a disk that fills in mid-stream")
def test_a_disk_that_fills_in_mid_stream(voyage: Voyage, way: Way, store: str) -> None:
    node, new = voyage.node(store), way.image(voyage)
    with voyage.held(node, after=way.midway) as running:
        node.fill_disk(3 * MB)
        node.data.restore()
        assert running.end() == NODE_FAILED
    running.until(*voyage.others(node))
    assert f"{node.name}: its disk is full" in running.said
    node.free_disk()
    voyage.kept(new)
    voyage.complete(new)


RECORDS = "/var/lib/docker/image/overlay2/layerdb/sha256"


@ways("the record of a layer that is gone: removed")
def test_the_record_of_a_layer_that_a_full_disk_left(voyage: Voyage, way: Way) -> None:
    """overlay2 renames a layer's record and then removes the layer; where no block is left for
    another name it goes on, and will never again take the layer."""
    node, new = voyage.node("overlay2"), way.image(voyage)
    record = leave_record(voyage, new, {"user": "sudoer", "sudo": True})
    with voyage.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: {GONE}" in running.said
    assert f"warning: {node.name}: {GONE}: removed ({record})" in running.said
    voyage.arrived(new)


@pytest.mark.thorough
@ways("the record of a layer that is gone: said")
def test_the_record_of_a_layer_that_only_root_may_remove(voyage: Voyage, way: Way) -> None:
    node, new = voyage.node("overlay2"), way.image(voyage)
    leave_record(voyage, new, {"user": "worker"})
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    running.until(*voyage.others(node))
    remedy = re.search(
        rf"{node.name}: {GONE}, and Docker there .*\n.*Permission denied\n"
        r".* worker@\S+ sudo (rm -r .*)",
        running.said,
    )
    assert remedy is not None, running.said
    voyage.kept(new)
    node.exec(*remedy[1].split())
    voyage.complete(new)


GONE = "a full disk has left the record of a layer that is gone"


def leave_record(voyage: Voyage, new: Image, user: Mapping[str, object]) -> str:
    """Make overlay2 think that it has the top layer; this user is to bring the image there."""
    node, data = voyage.node("overlay2"), voyage.fleet.data()
    data["nodes"][node.name] |= user
    voyage.shipment.nodes(data)
    top = chain_ids([layer.diff_id for layer in new.layers])[-1].removeprefix("sha256:")
    record = f"{RECORDS}/{top}"
    node.exec("mkdir", record)
    put(node, {f"{record}/cache-id": (0o644, b"5" * 64)})
    return record


OVERLAY2 = f"""
cd {RECORDS}
rm -r "/var/lib/docker/overlay2/$(cat "$(ls -t | head -n 1)/cache-id")"
"""
CONTAINERD = """
cd /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots
rm -r "$(ls -t | head -n 1)"
"""


DAMAGE = {"overlay2": OVERLAY2, "containerd": CONTAINERD}


@pytest.mark.thorough
@cases(
    "layers that are damaged", "store, restarted",
    ("overlay2", False), ("overlay2", True), ("containerd", False),
)  # fmt: skip
def test_layers_that_are_damaged_on_a_node(voyage: Voyage, store: str, restarted: bool) -> None:
    """A crash may keep an engine's record of a layer and not its files: it says that it has it."""
    node, new = voyage.node(store), voyage.fresh()
    other = voyage.other(node)
    with voyage.held(other, after=PULLED.midway) as running:
        running.until(*voyage.others(other))
        running.kill()
    other.data.restore()
    voyage.quiet()
    node.exec("sh", "-c", DAMAGE[store])
    if restarted:
        # Its engine reads its records anew.
        node.stop_dockerd()
        node.start_dockerd()
    with voyage.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: it is damaged there" in running.said
    assert f"warning: {node.name}: what was there of the image was damaged" in running.said
    voyage.arrived(new)


@pytest.mark.thorough
@stores("layers that are damaged in another image")
def test_layers_that_are_damaged_in_another_image_too(voyage: Voyage, store: str) -> None:
    """They stay as long as that image does, which nobody removes for the user."""
    # No image before it has such a layer.
    node, below = voyage.node(store), PAYLOAD.changed(-1, seed=4711 + voyage.seed)
    other = voyage.other(node)
    voyage.complete(voyage.next(below))
    node.exec("sh", "-c", DAMAGE[store])
    before = voyage.fleet.each(lambda node: node.images()[NAME])
    if store == "containerd":
        # What shows the image itself is taken for it where it was proven, and nowhere else.
        with voyage.run() as running:
            assert running.end() == 0, running.said
    else:
        node.exec("rm", "-r", "/root/.local/state/sparkimage/receipts")
        with voyage.run() as running:
            assert running.end() == NODE_FAILED
        assert "1 of 2 nodes failed; no name was moved" in running.said
        assert f"{node.name}: layers are damaged there" in running.said
    new = voyage.next(replace(below, parts=(*below.parts, Part(size=MB, seed=voyage.seed))))
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    assert f"{node.name}: layers are damaged there" in running.said
    assert "images there that share its layers may be damaged, too: remove" in running.said
    running.until(f"{other.name}: proven")
    assert voyage.fleet.each(lambda node: node.images()[NAME]) == before
    node.docker("rmi", NAME)
    voyage.complete(new)
