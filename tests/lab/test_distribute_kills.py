"""A command that is interrupted or killed, at every moment; see test_distribute_faults.py."""

from __future__ import annotations

import signal

import pytest

from tests.lab.shipment import NAME, NODE_FAILED, layers
from tests.lab.voyage import Running, Voyage, cases, stores

INTERRUPTED = 130


def said(voyage: Voyage) -> int:
    """Bytes of commands that went to the nodes."""
    return sum(node.control.up for node in voyage.nodes)


def kill_after(voyage: Voyage, running: Running, line: str, count: int) -> None:
    """Kill it once it has said this line and sent so many bytes after it, if it comes to that."""
    running.until(line)
    began = said(voyage)
    while said(voyage) < began + count and running.process.poll() is None:
        pass
    running.kill()


@cases("an interrupt", "number", (signal.SIGINT,), (signal.SIGTERM,))
def test_an_interrupt(voyage: Voyage, number: signal.Signals) -> None:
    node, new = voyage.nodes[1], voyage.next()
    with voyage.run() as running:
        running.until("looking at 2 nodes")
        assert running.kill(number) == INTERRUPTED
    voyage.kept(new)
    with voyage.held(node) as running:
        assert running.kill(number) == INTERRUPTED, running.said
    assert "interrupted: no name was changed; the same command goes on" in running.said
    voyage.kept(new)
    node.data.restore()
    with voyage.held(node) as running:
        running.until(*voyage.others(node))
        assert running.kill(number) == INTERRUPTED
    voyage.kept(new)
    node.data.restore()
    for line in ("asking 2 nodes", f"moving {NAME}"):
        with voyage.run() as running:
            running.until(line)
            assert running.kill(number) in (0, INTERRUPTED), running.said
        voyage.quiet()
        moved = voyage.moved(new)
        assert ("no name was changed" in running.said) is not moved, running.said
    voyage.complete(new)


def test_a_kill_before_the_move(voyage: Voyage) -> None:
    node, new = voyage.nodes[1], voyage.next()
    with voyage.run() as running:
        running.until("looking at 2 nodes")
        running.kill()
    voyage.kept(new)
    with voyage.held(node) as running:
        running.kill()
    voyage.kept(new)
    node.data.restore()
    voyage.quiet()
    with voyage.held(node) as running:
        running.until(*voyage.others(node))
        running.kill()
    voyage.kept(new)
    node.data.restore()
    voyage.complete(new)


@pytest.mark.thorough
def test_kills_around_the_move(voyage: Voyage) -> None:
    """At every moment that can be told from outside: a line, or what went over the wires."""
    new, ended = voyage.next(), set()
    moments = [
        ("asking 2 nodes", 0), ("asking 2 nodes", 3000), ("asking 2 nodes", 9000),
        (f"moving {NAME}", 0), (f"moving {NAME}", 1), (f"moving {NAME}", 150),
    ]  # fmt: skip
    for line, count in moments:
        with voyage.run() as running:
            kill_after(voyage, running, line, count)
        voyage.quiet()
        moved = voyage.moved(new)
        ended.add(moved)
        if moved:
            voyage.complete(new)
            new = voyage.next()
    voyage.complete(new)
    assert ended == {True, False}


@pytest.mark.thorough
def test_kills_around_a_rollback(voyage: Voyage) -> None:
    former, ended = voyage.old, set()
    voyage.complete(voyage.next())
    for line, count in (("asking 2 nodes", 3000), (f"moving {NAME}", 0), (f"moving {NAME}", 150)):
        assert former is not None
        with voyage.run(command="rollback") as running:
            kill_after(voyage, running, line, count)
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


@pytest.mark.thorough
@stores("an engine killed before a rollback")
def test_an_engine_that_is_killed_before_a_rollback_moves(voyage: Voyage, store: str) -> None:
    former, node = voyage.old, voyage.node(store)
    assert former is not None
    voyage.complete(voyage.next())
    node.kill_dockerd()
    with voyage.run(command="rollback") as running:
        assert running.end() == NODE_FAILED
    assert f"{node.name}: its Docker" in running.said
    node.start_dockerd()
    voyage.kept(former)
    with voyage.run(command="rollback") as running:
        assert running.end() == 0, running.said
    assert voyage.moved(former)
    voyage.old, voyage.used = former, {}
    voyage.complete(voyage.next())


def test_a_killed_proof_leaves_no_container(voyage: Voyage) -> None:
    new = voyage.next()
    for node in voyage.nodes:
        node.docker("create", "--label", "dev.sparkimage.proof=1", "--network=none", NAME)
    voyage.complete(new)
