"""Links, engines and disks that fail while an image travels; see test_distribute_faults.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sparkimage.fleets.probe import chain_ids
from tests.lab.fleet import each
from tests.lab.node import Node, put, wait
from tests.lab.payload import Part
from tests.lab.shipment import MB, NAME, NODE_FAILED, NODES, spread
from tests.lab.voyage import (
    LOADED,
    PAYLOAD,
    PULLED,
    Voyage,
    Way,
    both,
    either,
    kept,
    nothing_moved,
    others,
)

# The link


@both
def test_a_link_that_comes_back_costs_what_was_on_it(voyage: Voyage, way: Way) -> None:
    nodes, new = voyage.nodes, way.image(voyage)
    before = spread(voyage.shipment.fleet)
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


@either(loaded=["node2"], pulled=NODES)
def test_a_link_that_stays_cut_costs_what_was_on_it(
    voyage: Voyage, way: Way, names: Sequence[str]
) -> None:
    nodes, new = [voyage.shipment.fleet[name] for name in names], voyage.fresh(5, way.size)
    before = spread(voyage.shipment.fleet)
    for node in nodes:
        node.data.hang_after(new.layers[1].size)
    came: dict[str, int] = {}

    def cut(node: Node) -> None:
        """Once two layers are there; the lowest one was there before. Until then the bytes go in
        portions, as fast as we see what comes of them."""
        if (there := kept(node)) >= 2:
            node.data.cut()
            came[node.name] = there
        elif node.data.hangs:
            node.data.hang_after(MB)

    def all_are_cut() -> bool:
        each([node for node in nodes if node.name not in came], cut)
        return len(came) == len(nodes)

    with voyage.run("--step", "1") as running:
        wait(lambda: all_are_cut() or running.process.poll() is not None, "no layer came")
        assert running.end() == NODE_FAILED
        assert len(came) == len(nodes), running.said
    assert nothing_moved(names) in running.said, running.said
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
    with voyage.held(names, "--patience", "8", after=way.midway) as running:
        assert running.end() == NODE_FAILED
    running.until(*others(names))
    assert nothing_moved(names) in running.said, running.said
    for name in names:
        assert f"{name}: no progress for 8 s: it hangs" in running.said
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
    with voyage.held(names, "--patience", "8", after=way.midway) as running:
        for node in nodes:
            node.pause_dockerd()
            node.data.restore()
        assert running.end() == NODE_FAILED
    running.until(*others(names))
    for node in nodes:
        assert f"{node.name}: no progress for 8 s: it hangs" in running.said
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
    before = fleet.each(lambda node: node.images()[NAME])
    # What shows the image itself is taken for it where it was proven, and nowhere else.
    fleet["node1"].exec("rm", "-r", "/root/.local/state/sparkimage/receipts")
    with voyage.run() as running:
        assert running.end() == NODE_FAILED
    assert "1 of 4 nodes failed; no name was moved" in running.said
    assert "node1: layers are damaged there" in running.said
    new = voyage.next(replace(below, parts=(*below.parts, Part(size=MB, seed=4711))))
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
