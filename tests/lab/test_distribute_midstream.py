"""Links, engines and disks that fail while an image travels; see test_distribute_faults.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from sparkimage.image.store import Image
from sparkimage.nodes.snapshot import STAGING, chain_ids
from tests.lab.distribution import (
    LOADED,
    NOTHING_MOVED,
    PATIENCES,
    PAYLOAD,
    PULLED,
    Distribution,
    Way,
    cases,
    kept,
    stores,
    ways,
    ways_and_stores,
    ways_and_stores_that_wait,
)
from tests.lab.node import Node, put, wait
from tests.lab.payload import Part
from tests.lab.shipment import MB, NAME, NODE_FAILED, spread

# The link


@ways("a link that comes back")
def test_link_that_recovers_costs_one_step(distribution: Distribution, way: Way) -> None:
    nodes, new = distribution.nodes, way.image(distribution)
    before = spread(distribution.fleet)
    for node in nodes:
        node.data.rate(way.rate)
        node.data.cut_after(way.midway)
    with distribution.run("--step", "10") as running:
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
    distribution.arrived(new)
    assert "cannot pull" not in running.said
    sent = sum(layer.size for layer in new.layers)
    for node in nodes:
        # What was on the link, and on its way to be unpacked.
        assert node.data.up - before[node.name] < sent + way.midway


def two_layers(distribution: Distribution, node: Node, new: Image) -> int:
    """A run whose link to ``node`` is cut for good once two layers of ``new`` are there; the lowest
    one was there before. How many there are then."""
    node.data.hang_after(new.layers[1].size)
    there = 0

    def cut() -> bool:
        """Until then the bytes go in portions, as fast as we see what comes of them."""
        nonlocal there
        if (there := kept(node)) >= 2:
            node.data.cut()
        elif node.data.hangs:
            node.data.hang_after(MB)
        return there >= 2

    with distribution.run("--step", "1") as running:
        wait(lambda: cut() or running.process.poll() is not None, "no layer came")
        assert running.end() == NODE_FAILED
        assert there >= 2, running.said
    assert NOTHING_MOVED in running.said, running.said
    assert f"{node.name} cannot be reached at its data address 127.0.0.2" in running.said
    running.until(*distribution.others(node))
    distribution.kept(new)
    return there


@pytest.mark.thorough
@ways_and_stores("a link that stays cut")
def test_link_that_stays_cut_costs_one_step(
    distribution: Distribution, way: Way, store: str
) -> None:
    node, new = distribution.node(store), distribution.fresh(5, way.size)
    before = spread(distribution.fleet)
    there = two_layers(distribution, node, new)
    # Not only when all had come: an engine pulls three at once.
    most = sum(layer.size for layer in new.layers[1:4]) + 2 * MB
    assert node.data.up - before[node.name] < most
    if way is LOADED:
        # One step is unpacked while the next one is on its way, and no third one.
        passed = sum(layer.size for layer in new.layers[1 : kept(node)])
        assert node.data.up - before[node.name] - passed < 2 * new.layers[-1].size + MB // 4
    wait(
        lambda: not any(one.traces for one in distribution.looks().values()),
        "the pull has left traces",
    )
    node.data.restore()
    before = spread(distribution.fleet)
    came = distribution.complete(new, "--step", "1")
    assert came[distribution.other(node).name]["sent"] == 0
    assert came[node.name]["layers_kept"] >= there
    assert came[node.name]["layers_sent"] <= len(new.layers) - there
    missing = sum(layer.size for layer in new.layers[there:])
    assert node.data.up - before[node.name] < missing + MB


@ways_and_stores("a bit that flips on the wire")
def test_bit_flip_on_the_wire(distribution: Distribution, way: Way, store: str) -> None:
    node, new = distribution.node(store), way.image(distribution)
    node.data.flip_after(way.midway)
    with distribution.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: " in running.said
    distribution.arrived(new)


@ways_and_stores_that_wait("a link that hangs")
def test_hung_link_does_not_block_other_nodes(
    distribution: Distribution, way: Way, store: str
) -> None:
    node = distribution.node(store)
    for patience in PATIENCES:
        new = way.image(distribution)
        with distribution.held(node, "--patience", patience, after=way.midway) as running:
            assert running.end() == NODE_FAILED
        node.data.restore()
        if running.said.count("it hangs") == 1:
            break
    running.until(*distribution.others(node))
    assert NOTHING_MOVED in running.said, running.said
    assert f"{node.name}: no progress for {patience} s: it hangs" in running.said
    distribution.kept(new)
    distribution.complete(new)


# The engine


@pytest.mark.thorough
@ways_and_stores_that_wait("an engine that hangs")
def test_hung_dockerd_does_not_block_other_nodes(
    distribution: Distribution, way: Way, store: str
) -> None:
    node = distribution.node(store)
    for patience in PATIENCES:
        new = way.image(distribution)
        with distribution.held(node, "--patience", patience, after=way.midway) as running:
            node.pause_dockerd()
            node.data.restore()
            assert running.end() == NODE_FAILED
        node.resume_dockerd()
        if running.said.count("it hangs") == 1:
            break
    running.until(*distribution.others(node))
    assert f"{node.name}: no progress for {patience} s: it hangs" in running.said
    distribution.kept(new)
    distribution.complete(new)


@ways_and_stores("an engine killed in mid-stream")
def test_dockerd_killed_in_mid_transfer(distribution: Distribution, way: Way, store: str) -> None:
    node, new = distribution.node(store), way.image(distribution)
    with distribution.held(node, after=way.midway) as running:
        running.until(*distribution.others(node))
        node.kill_dockerd()
        node.data.restore()
        assert running.end() == NODE_FAILED
    assert f"{node.name}: its Docker" in running.said
    node.start_dockerd()
    distribution.kept(new)
    distribution.complete(new, interrupted=node)


@ways_and_stores_that_wait("a disk that fills in mid-stream")
def test_disk_full_in_mid_transfer(distribution: Distribution, way: Way, store: str) -> None:
    node, new = distribution.node(store), way.image(distribution)
    with distribution.held(node, after=way.midway) as running:
        node.fill_disk(3 * MB)
        node.data.restore()
        assert running.end() == NODE_FAILED
    running.until(*distribution.others(node))
    assert f"{node.name}: its disk is full" in running.said
    node.free_disk()
    distribution.kept(new)
    distribution.complete(new)


RECORDS = "/var/lib/docker/image/overlay2/layerdb/sha256"


@ways("the record of a layer that is gone: removed")
def test_stale_layer_record_after_a_full_disk_is_removed(
    distribution: Distribution, way: Way
) -> None:
    """overlay2 renames a layer's record and then removes the layer; where no block is left for
    another name it goes on, and will never again take the layer."""
    node, new = distribution.node("overlay2"), way.image(distribution)
    record = leave_record(distribution, new, {"user": "sudoer", "sudo": True})
    with distribution.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: {GONE}" in running.said
    assert f"warning: {node.name}: {GONE}: removed ({record})" in running.said
    distribution.arrived(new)


@pytest.mark.thorough
@ways("the record of a layer that is gone: reported")
def test_stale_layer_record_that_only_root_may_remove(distribution: Distribution, way: Way) -> None:
    node, new = distribution.node("overlay2"), way.image(distribution)
    leave_record(distribution, new, {"user": "worker"})
    with distribution.run() as running:
        assert running.end() == NODE_FAILED
    running.until(*distribution.others(node))
    remedy = re.search(
        rf"{node.name}: {GONE}, and Docker refuses .*\n.*Permission denied\n"
        r".* worker@\S+ sudo (rm -r .*)",
        running.said,
    )
    assert remedy is not None, running.said
    distribution.kept(new)
    node.exec(*remedy[1].split())
    distribution.complete(new)


GONE = "a full disk has left the record of a layer that is gone"


def leave_record(distribution: Distribution, new: Image, user: Mapping[str, object]) -> str:
    """Make overlay2 think that it has the top layer; this user is to bring the image there."""
    node, data = distribution.node("overlay2"), distribution.fleet.data()
    data["nodes"][node.name] |= user
    distribution.shipment.nodes(data)
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
def test_damaged_staged_layers_are_sent_again(
    distribution: Distribution, store: str, restarted: bool
) -> None:
    """A crash may keep an engine's record of a layer and not its files: it says that it has it."""
    node, new = distribution.node(store), distribution.fresh()
    other = distribution.other(node)
    with distribution.held(other, after=PULLED.midway) as running:
        running.until(*distribution.others(other))
        running.kill()
    other.data.restore()
    distribution.quiet()
    if store == "containerd":
        # As a pull that was killed leaves it: with a digest and no tag.
        (staged,) = (name for name in node.images() if name.startswith(STAGING))
        by_digest = f"127.0.0.1:5/{STAGING}@{node.images()[staged]}"
        names = f"docker.io/library/{staged}", by_digest
        node.exec("ctr", "--namespace", "moby", "images", "tag", *names)
    node.exec("sh", "-c", DAMAGE[store])
    if restarted:
        # Its engine reads its records anew.
        node.stop_dockerd()
        node.start_dockerd()
    with distribution.run() as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: its layers are damaged" in running.said
    assert f"warning: {node.name}: removed staged layers that were damaged" in running.said
    distribution.arrived(new)


def damage(node: Node, image: Image, count: int) -> None:
    """Remove the files of the highest of the lowest ``count`` layers, and not its record."""
    chain = chain_ids([layer.diff_id for layer in image.layers])[count - 1]
    if node.store == "overlay2":
        file = f"{RECORDS}/{chain.removeprefix('sha256:')}/cache-id"
        node.exec("rm", "-r", f"/var/lib/docker/overlay2/{node.exec('cat', file)}")
        return
    view = ("ctr", "--namespace", "moby", "snapshots")
    said = node.exec(*view, "view", "--mounts", "damaged", chain)
    node.exec(*view, "rm", "damaged")
    folders = re.findall(r"/var/lib/containerd/\S*?/snapshots/\d+", said)
    node.exec("rm", "-r", folders[0])


@pytest.mark.thorough
@ways_and_stores("layers that are damaged below what is still to come")
def test_damaged_layers_below_those_to_come_are_sent_again(
    distribution: Distribution, way: Way, store: str
) -> None:
    """What comes next is unpacked on them."""
    node, new = distribution.node(store), distribution.fresh(5, way.size)
    there = two_layers(distribution, node, new)
    node.data.restore()
    distribution.quiet()
    damage(node, new, there)
    with distribution.run("--step", "1") as running:
        assert running.end() == 0, running.said
    assert f"{node.name}: again: its layers are damaged" in running.said
    distribution.arrived(new)


@pytest.mark.thorough
@stores("layers that are damaged in another image")
def test_damaged_layers_of_another_image_stay(distribution: Distribution, store: str) -> None:
    """They stay as long as that image does, which nobody removes for the user."""
    # No image before it has such a layer.
    node, below = distribution.node(store), PAYLOAD.changed(-1, seed=4711 + distribution.seed)
    other = distribution.other(node)
    distribution.complete(distribution.next(below))
    node.exec("sh", "-c", DAMAGE[store])
    before = distribution.fleet.each(lambda node: node.images()[NAME])
    if store == "containerd":
        # What shows the image itself is taken for it where it was proven, and nowhere else.
        with distribution.run() as running:
            assert running.end() == 0, running.said
    else:
        node.exec("rm", "-r", "/root/.local/state/sparkimage/receipts")
        with distribution.run() as running:
            assert running.end() == NODE_FAILED
        assert "1 of 2 nodes failed; no name was moved" in running.said
        assert f"{node.name}: layers are damaged there" in running.said
    new = distribution.next(
        replace(below, parts=(*below.parts, Part(size=MB, seed=distribution.seed)))
    )
    with distribution.run() as running:
        assert running.end() == NODE_FAILED
    assert f"{node.name}: layers are damaged there" in running.said
    assert "images there that share its layers may be damaged, too: remove" in running.said
    running.until(f"{other.name}: proven")
    assert distribution.fleet.each(lambda node: node.images()[NAME]) == before
    node.docker("rmi", NAME)
    distribution.complete(new)
