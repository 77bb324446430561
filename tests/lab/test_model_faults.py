"""What happens to a push of a model on its way: no node has half of it, and no byte is sent twice
that has arrived."""

from __future__ import annotations

import signal
import time

import pytest

from tests.lab.distribution import Running
from tests.lab.modelling import MB, OWN, REPLACED_NONE, THERE, Models, fill
from tests.lab.node import Node, wait

FAILED, INTERRUPTED = 13, 130
BIG = {"config.json": 700, "model-1.safetensors": 12 * MB, "model-2.safetensors": 2 * MB}
SIZE = sum(BIG.values())


def kept(models: Models, before: dict[str, dict[str, str]]) -> None:
    """All nodes have what they had."""
    assert models.fleet.each(models.there) == before


def kill_after(models: Models, running: Running, line: str, count: int) -> None:
    """Kill it after this line of its output and so many bytes to the nodes after it."""
    running.until(line)
    began = sum(node.control.up for node in models.nodes)
    while sum(node.control.up for node in models.nodes) < began + count:
        if running.process.poll() is not None:
            return
    running.kill()


def old(models: Models) -> dict[str, dict[str, str]]:
    """A first model everywhere, and another one here."""
    fill(models.here)
    models.push()
    before = models.fleet.each(models.there)
    for file in models.here.iterdir():
        file.unlink()
    fill(models.here, BIG, seed=1)
    for node in models.nodes:
        node.data.forget()
    return before


def parts(models: Models) -> dict[str, int]:
    """Bytes that lie on each node beside the folder."""
    ask = f"cat {OWN}/blobs/* 2>/dev/null | wc -c"
    return models.fleet.each(lambda node: int(node.exec("sh", "-c", ask)))


def test_killed_push_goes_on_within_a_file(models: Models) -> None:
    before = old(models)
    with models.held(after=7 * MB) as running:
        wait(lambda: min(parts(models).values()) >= 5 * MB, "nothing arrives at the last node")
        running.kill()
    kept(models, before)
    models.nodes[0].data.restore()
    models.quiet()
    arrived = min(parts(models).values())
    assert arrived >= 5 * MB
    models.nodes[0].data.forget()
    models.push()
    models.arrived()
    assert models.nodes[0].data.up < SIZE - arrived + MB // 2


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(models: Models, number: signal.Signals) -> None:
    before = old(models)
    with models.held(after=3 * MB) as running:
        assert running.kill(number) == INTERRUPTED, running.said
    assert (
        "interrupted: no folder was changed, and what was copied is kept; run the" in running.said
    )
    kept(models, before)
    models.nodes[0].data.restore()
    models.quiet()
    models.push()
    models.arrived()


@pytest.mark.thorough
def test_kills_around_the_move(models: Models) -> None:
    """All nodes have the old folder, or all have the new one."""
    before = old(models)
    expected = dict.fromkeys(models.fleet.nodes, models.expected())
    ended = set()
    moments = (("asking 4 nodes", 0), ("moving", 0), ("moving", 1), ("moving", 150))
    for line, count in moments:
        with models.running("push") as running:
            kill_after(models, running, line, count)
        models.quiet()
        wait(
            lambda: models.fleet.each(models.there) in (before, expected),
            "the fleet is mixed",
            20,
        )
        ended.add(moved := models.fleet.each(models.there) == expected)
        if moved:
            break
    assert ended == {False, True}
    models.push()
    models.arrived()


@pytest.mark.thorough
def test_link_from_here_that_recovers(models: Models) -> None:
    old(models)
    wire = models.nodes[0].data
    wire.cut_after(6 * MB)
    with models.running("push") as running:
        running.until("node1: again: cannot be reached at its data address")
        wire.restore()
        assert running.end() == 0, running.said
    models.arrived()
    # What was on its way is lost.
    assert wire.up < SIZE + 3 * MB


@pytest.mark.thorough
def test_link_from_here_that_stays_cut_concerns_one_node(models: Models) -> None:
    before = old(models)
    models.nodes[0].data.cut_after(6 * MB)
    done = models.run("push")
    assert done.returncode == FAILED
    assert f"1 of 4 nodes failed; {REPLACED_NONE}" in done.stderr
    assert "node1 cannot be reached at its data address" in done.stderr
    kept(models, before)
    assert list(parts(models).values())[1:] == [SIZE] * 3
    models.nodes[0].data.restore()
    models.push()
    models.arrived()


@pytest.mark.thorough
def test_nodes_that_cannot_reach_each_other(models: Models) -> None:
    old(models)
    models.fleet["node2"].part(models.fleet["node3"])
    done = models.run("push")
    assert done.returncode == 0, done.stderr
    models.arrived()
    assert "warning: node3: not reached from node2, gets its files from here" in done.stderr
    assert done.stderr.count("warning") == 1
    up = {node.name: node.data.up for node in models.nodes}
    assert up["node1"] < SIZE + MB
    assert SIZE < up["node3"] < SIZE + MB
    assert up["node2"] == up["node4"] == 0


@pytest.mark.thorough
def test_another_machine_at_the_address_of_a_node(models: Models) -> None:
    """A node sends nothing to a machine without the host key that is known here."""
    old(models)
    node1, node2, node3, _ = models.nodes

    def lead_to(other: Node) -> None:
        node1.exec("pkill", "-f", f"[T]CP-LISTEN:{node2.port},")
        listen = f"TCP-LISTEN:{node2.port},bind={node2.data.address},fork,reuseaddr"
        forward = f"setsid socat {listen} TCP:{other.inside}:22 </dev/null >/dev/null 2>&1 &"
        node1.exec("sh", "-c", forward)

    with models.strangers():
        lead_to(node3)
        try:
            done = models.run("push")
        finally:
            lead_to(node2)
    assert done.returncode == 0, done.stderr
    models.arrived()
    assert "node2: not reached from node1, gets its files from here: " in done.stderr
    assert "Host key verification failed" in done.stderr


@pytest.mark.thorough
def test_node_without_perl(models: Models) -> None:
    before = old(models)
    node = models.fleet["node2"]
    node.exec("mv", "/usr/bin/perl", "/usr/bin/no-perl")
    try:
        done = models.run("push")
    finally:
        node.exec("mv", "/usr/bin/no-perl", "/usr/bin/perl")
    assert done.returncode == FAILED
    assert "node2: model.sh ready failed (code 71): perl is missing there: install perl-base" in (
        done.stderr
    )
    kept(models, before)


@pytest.mark.thorough
def test_link_between_nodes_that_breaks_in_mid_stream(models: Models) -> None:
    old(models)
    with models.held(after=7 * MB) as running:
        wait(lambda: min(parts(models).values()) >= 5 * MB, "nothing arrives at the last node")
        models.fleet["node2"].exec("pkill", "--exact", "ssh")
        models.nodes[0].data.restore()
        assert running.end() == 0, running.said
    models.arrived()
    assert "not reached from node2" in running.said
    assert models.fleet["node3"].data.up < SIZE - 5 * MB + MB


@pytest.mark.thorough
def test_node_that_hangs_does_not_block_the_others(models: Models) -> None:
    before = old(models)
    node = models.nodes[0]
    with models.held("--patience", "5", after=7 * MB) as running:
        assert running.end() == FAILED, running.said
    assert f"1 of 4 nodes failed; {REPLACED_NONE}" in running.said
    assert f"{node.name}: no progress for 5 s: it hangs" in running.said
    kept(models, before)
    node.data.restore()
    models.push()
    models.arrived()


@pytest.mark.thorough
def test_node_that_leaves(models: Models) -> None:
    before = old(models)
    node = models.fleet["node2"]
    with models.held(after=7 * MB) as running:
        node.control.cut()
        node.data.cut()
        node.exec("pkill", "-KILL", "-f", "model relay")
        models.nodes[0].data.restore()
        assert running.end() == FAILED, running.said
    assert f"1 of 4 nodes failed; {REPLACED_NONE}" in running.said
    assert "node2 cannot be reached" in running.said
    kept(models, before)
    # Without it: what the others have is not sent again.
    for other in models.nodes:
        other.data.forget()
    models.write_fleet("node1", "node3", "node4")
    models.push()
    assert sum(other.data.up for other in models.nodes) < MB
    for wire in node.wires:
        wire.restore()
    models.write_fleet()
    models.push()
    models.arrived()


def test_disk_that_fills_in_mid_stream(models: Models) -> None:
    before = old(models)
    node = models.fleet["node2"]
    with models.held(after=4 * MB) as running:
        node.fill_disk(1 * MB)
        models.nodes[0].data.restore()
        assert running.end() == FAILED, running.said
    assert f"1 of 4 nodes failed; {REPLACED_NONE}" in running.said
    assert f"node2: the disk of {THERE} is full" in running.said
    kept(models, before)
    others = [size for name, size in parts(models).items() if name != "node2"]
    assert others == [SIZE] * 3
    node.free_disk()
    models.push()
    models.arrived()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["written", "cut"])
def test_source_that_changes_in_mid_copy(models: Models, how: str) -> None:
    before = old(models)
    file = models.here / "model-1.safetensors"
    with models.held(after=2 * MB) as running:
        if how == "cut":
            with file.open("r+b") as data:
                data.truncate(3 * MB)
        else:
            with file.open("r+b") as data:
                data.seek(11 * MB)
                data.write(b"other")
        models.nodes[0].data.restore()
        assert running.end() == FAILED, running.said
    assert f"{file} has changed since it was hashed; no folder was replaced" in running.said
    kept(models, before)
    models.quiet()
    models.push()
    models.arrived()


@pytest.mark.thorough
def test_bit_that_flips_on_the_wire(models: Models) -> None:
    old(models)
    models.nodes[0].data.flip_after(5 * MB)
    with models.running("push") as running:
        assert running.end() == 0, running.said
    assert "node1: again: " in running.said
    models.arrived()


@pytest.mark.thorough
def test_bit_that_flips_on_a_node(models: Models) -> None:
    """In what had arrived before a push was killed."""
    old(models)
    with models.held(after=7 * MB) as running:
        wait(lambda: min(parts(models).values()) >= 5 * MB, "nothing arrives at the last node")
        running.kill()
    models.nodes[0].data.restore()
    models.quiet()
    models.fleet["node3"].exec(
        "sh", "-c",
        f"cd {OWN}/blobs && for file in *.part; do "
        "printf x | dd of=$file bs=1 seek=99 conv=notrunc status=none; done",
    )  # fmt: skip
    done = models.run("push")
    assert done.returncode == 0, done.stderr
    models.arrived()
    assert "node3: model-1.safetensors arrived damaged, and is sent again" in done.stderr


@pytest.mark.thorough
def test_source_that_is_corrupt(models: Models) -> None:
    """A blob of Hugging Face's cache that is not what it is called."""
    fill(models.here, {"config.json": 700})
    blob = models.here / "blobs" / ("5" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"no such hash")
    done = models.run("push")
    assert done.returncode == FAILED
    assert f"{blob} is corrupt: its sha256 is " in done.stderr
    kept(models, {node.name: {} for node in models.nodes})


@pytest.mark.thorough
def test_two_pushes_at_once(models: Models) -> None:
    old(models)
    with models.held(after=3 * MB) as running:
        done = models.run("push")
        assert done.returncode == FAILED
        assert "4 of 4 nodes failed; nothing was sent" in done.stderr
        assert "node4: another run changes its images: " in done.stderr
        models.nodes[0].data.restore()
        assert running.end() == 0, running.said
    models.arrived()


@pytest.mark.thorough
def test_limit(models: Models) -> None:
    old(models)
    began = time.monotonic()
    models.push("--limit", "4")
    assert time.monotonic() - began > SIZE / (4 * MB)
    models.arrived()
