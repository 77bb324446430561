"""A command that is interrupted or killed, at every moment; see test_distribute_faults.py."""

from __future__ import annotations

import signal

import pytest

from tests.lab.distribution import Distribution, Running, cases, stores
from tests.lab.shipment import NAME, NODE_FAILED, layers

INTERRUPTED = 130


def sent(distribution: Distribution) -> int:
    """Bytes of commands that went to the nodes."""
    return sum(node.control.up for node in distribution.nodes)


def kill_after(distribution: Distribution, running: Running, line: str, count: int) -> None:
    """Kill it after this line of its output and so many bytes after it, if it gets there."""
    running.until(line)
    began = sent(distribution)
    while sent(distribution) < began + count and running.process.poll() is None:
        pass
    running.kill()


@cases("an interrupt", "number", (signal.SIGINT,), (signal.SIGTERM,))
def test_interrupt(distribution: Distribution, number: signal.Signals) -> None:
    node, new = distribution.nodes[1], distribution.next()
    with distribution.run() as running:
        running.until("looking at 2 nodes")
        assert running.kill(number) == INTERRUPTED
    distribution.kept(new)
    with distribution.held(node) as running:
        assert running.kill(number) == INTERRUPTED, running.said
    assert "interrupted: no name was changed; run the same command again" in running.said
    distribution.kept(new)
    node.data.restore()
    with distribution.held(node) as running:
        running.until(*distribution.others(node))
        assert running.kill(number) == INTERRUPTED
    distribution.kept(new)
    node.data.restore()
    for line in ("asking 2 nodes", f"moving {NAME}"):
        with distribution.run() as running:
            running.until(line)
            assert running.kill(number) in (0, INTERRUPTED), running.said
        distribution.quiet()
        moved = distribution.moved(new)
        assert ("no name was changed" in running.said) is not moved, running.said
    distribution.complete(new)


def test_kill_before_the_move(distribution: Distribution) -> None:
    node, new = distribution.nodes[1], distribution.next()
    with distribution.run() as running:
        running.until("looking at 2 nodes")
        running.kill()
    distribution.kept(new)
    with distribution.held(node) as running:
        running.kill()
    distribution.kept(new)
    node.data.restore()
    distribution.quiet()
    with distribution.held(node) as running:
        running.until(*distribution.others(node))
        running.kill()
    distribution.kept(new)
    node.data.restore()
    distribution.complete(new)


@pytest.mark.thorough
def test_kills_around_the_move(distribution: Distribution) -> None:
    """At every moment that can be told from outside: a line, or what went over the wires."""
    new, ended = distribution.next(), set()
    moments = [
        ("asking 2 nodes", 0), ("asking 2 nodes", 300), ("asking 2 nodes", 1000),
        (f"moving {NAME}", 0), (f"moving {NAME}", 1), (f"moving {NAME}", 150),
    ]  # fmt: skip
    for line, count in moments:
        with distribution.run() as running:
            kill_after(distribution, running, line, count)
        distribution.quiet()
        moved = distribution.moved(new)
        ended.add(moved)
        if moved:
            distribution.complete(new)
            new = distribution.next()
    distribution.complete(new)
    assert ended == {True, False}


@pytest.mark.thorough
def test_kills_around_a_rollback(distribution: Distribution) -> None:
    former, ended = distribution.old, set()
    distribution.complete(distribution.next())
    for line, count in (("asking 2 nodes", 0), (f"moving {NAME}", 0), (f"moving {NAME}", 150)):
        assert former is not None
        with distribution.run(command="rollback") as running:
            kill_after(distribution, running, line, count)
        distribution.quiet()
        ended.add(distribution.moved(former))
        if distribution.moved(former):
            distribution.old, former = former, distribution.old
        assert former is not None
        for node in distribution.nodes:
            assert "+".join(node.diff_ids(f"{NAME}-previous")) == layers(former)
    assert ended == {True, False}
    distribution.used = {}
    distribution.complete(distribution.next())


@pytest.mark.thorough
@stores("an engine killed before a rollback")
def test_dockerd_killed_before_a_rollback_moves(distribution: Distribution, store: str) -> None:
    former, node = distribution.old, distribution.node(store)
    assert former is not None
    distribution.complete(distribution.next())
    node.kill_dockerd()
    with distribution.run(command="rollback") as running:
        assert running.end() == NODE_FAILED
    assert f"{node.name}: its Docker" in running.said
    node.start_dockerd()
    distribution.kept(former)
    with distribution.run(command="rollback") as running:
        assert running.end() == 0, running.said
    assert distribution.moved(former)
    distribution.old, distribution.used = former, {}
    distribution.complete(distribution.next())


def test_a_killed_proof_leaves_no_container(distribution: Distribution) -> None:
    new = distribution.next()
    for node in distribution.nodes:
        node.docker("create", "--label", "dev.sparkimage.proof=1", "--network=none", NAME)
    distribution.complete(new)
