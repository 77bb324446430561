"""What the fleet's commands show: bars that keep their place, one row for one distribution."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sparkimage.config.inventory import Node
from sparkimage.core.board import LiveBoard, Meter
from sparkimage.nodes import maintenance, receipts
from sparkimage.nodes.maintenance import Held, NodeView


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0], total=1000)
    assert Meter(total=1000).left is None
    for second in range(1, 21):
        now[0] = float(second)
        meter.moved(10 if second <= 10 else 50)
    assert meter.rate == 50
    assert meter.left == (1000 - 600) / 50
    stopped = Meter(clock=lambda: now[0], total=1000, state="failed", last=meter.last)
    assert stopped.rate is None
    assert stopped.left is None


def test_a_long_state_pushes_no_bar_aside() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    board = LiveBoard(console, ["spark-1", "spark-2"], "an image")
    for name in ("spark-1", "spark-2"):
        board.total(name, 25_000_000_000)
        board.moved(name, 4_200_000_000)
    board.state("spark-1", "again: cannot be reached: " + "ssh says a lot of it " * 9)
    board.state("spark-2", "proven")
    with console.capture() as said:
        console.print(board.table())
    title, first, second, all_ = said.get().splitlines()
    assert title.startswith("an image")
    assert "━━──────────" in first
    assert "4.2 / 25.0 GB" in first
    assert "again: " in first
    assert first.rstrip().endswith("…")
    assert second.startswith("✓ spark-2")
    assert "8.4 / 50.0 GB" in all_
    assert "1 of 2 proven" in all_
    assert all(len(line) <= 80 for line in (title, first, second, all_))


def receipt(node: str, when: str, **more: Any) -> dict[str, Any]:
    return {"node": node, "name": "r:x", "digest": "sha256:1", "when": when, **more}


def test_receipts_of_one_distribution_are_one_row() -> None:
    found = [
        receipt("a", "2026-01-01T10:00:00Z"),
        receipt("b", "2026-01-01T10:00:03Z"),
        receipt("c", "2026-01-01T10:00:04Z", proven=["run"]),
        receipt("b", "2026-01-02T10:00:04Z"),
        receipt("a", "of no time"),
    ]
    assert [nodes for _, nodes in receipts.grouped(found)] == [["a", "b"], ["c"], ["b"], ["a"]]
    # Two distributions in one second, whose receipts come in turn.
    turns = [{**receipt(node, "2026-01-01T10:00:00Z"), "digest": f"sha256:{digest * 64}"}
             for node in "ab" for digest in "12"]  # fmt: skip
    assert [nodes for _, nodes in receipts.grouped(turns)] == [["a", "b"], ["a", "b"]]


def test_a_digest_that_one_node_knows_holds_for_the_same_image_elsewhere() -> None:
    def view(name: str, identity: str, digest: str | None) -> NodeView:
        held = Held(name="r:x", identity=identity, digest=digest, when=None)
        return NodeView(node=Node(name=name, control=name), images=(held,))

    same = [view("a", "1", None), view("b", "1", "sha256:1")]
    (one,) = maintenance.standings(same, "r:x")
    assert (one.digest, one.nodes) == ("sha256:1", ("a", "b"))
    assert maintenance.differing(same) == []
    more = [*same, view("c", "2", None), NodeView(node=Node(name="d", control="d"))]
    assert [one.nodes for one in maintenance.standings(more, "r:x")] == [("a", "b"), ("c",), ("d",)]
    assert maintenance.differing(more) == ["r:x"]


def test_sizes_as_docker_says_them() -> None:
    id = "sha256:" + "a" * 64
    assert maintenance.read_sizes(f"{id} 13.6MB\nno line\n") == {id: 13_600_000}
    assert maintenance.read_sizes(f"{id} 0B") == {id: 0}
    assert maintenance.read_sizes(f"{id} 25.1GB") == {id: 25_100_000_000}
