"""The progress of commands; receipts and digests as tables show them."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Any

import pytest
from rich.console import Console

from sparkimage.config.inventory import Node
from sparkimage.core import progress
from sparkimage.core.progress import LiveProgress, TransferProgress, View
from sparkimage.nodes import maintenance, receipts
from sparkimage.nodes.maintenance import NodeView, TaggedImage

NAMES = ("spark-with-a-long-name-1", "spark2")


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=80, force_terminal=terminal, color_system=None), output


def shown(board: TransferProgress) -> list[str]:
    """What is on the terminal now."""
    assert isinstance(board, LiveProgress)
    plain = io.StringIO()
    Console(file=plain, width=80).print(*board.progress.get_renderables())
    return plain.getvalue().splitlines()


def test_a_long_state_pushes_no_bar_aside() -> None:
    to, output = console(terminal=True)
    with View(to).board(["spark-1", "spark-2"], "an [image]") as board:
        for name in ("spark-1", "spark-2"):
            board.total(name, 25_000_000_000)
            board.moved(name, 4_200_000_000)
        board.state("spark-1", "again: cannot be reached: " + "ssh says a lot of it " * 9)
        board.state("spark-2", "proven")
        first, second, all_ = shown(board)
    assert output.getvalue().startswith("an [image]")
    assert "━━" in first
    assert "4.2 / 25.0 GB" in first
    assert "again: " in first
    assert first.rstrip().endswith("…")
    assert second.startswith("✓ spark-2")
    # What is proven is there, whatever was counted on its way.
    assert "25.0 / 25.0 GB" in second
    assert "29.2 / 50.0 GB" in all_
    assert "1 of 2 proven" in all_
    assert all(len(line) <= 80 for line in (first, second, all_))


@pytest.mark.parametrize(("last", "mark"), [("unpacking", "⧗"), ("proven", "✓"), ("failed", "✗")])
def test_the_row_for_all_ends_as_the_nodes_do(last: str, mark: str) -> None:
    to, _ = console(terminal=True)
    with View(to).board(["spark-1", "spark-2"], "an image") as board:
        for name, state in (("spark-1", "proven"), ("spark-2", last)):
            board.total(name, 1_000)
            board.state(name, state)
        all_ = shown(board)[-1]
    assert all_.startswith(f"{mark} all")


def test_one_transfer_has_no_row_for_all() -> None:
    to, _ = console(terminal=True)
    with View(to).board(["spark-1"], "an image") as board:
        board.total("spark-1", 0)
        board.state("spark-1", "proven")
        (row,) = shown(board)
    assert row.startswith("✓ spark-1")
    assert "nothing" in row


def test_the_interrupt_that_a_terminal_shows_fits_beside_the_rows() -> None:
    to, output = console(terminal=True)
    with View(to).transfer("a file", 5_000_000) as moved:
        moved(1_000_000)
    rows = [row for row in output.getvalue().split("\x1b[2K") if "a file" in row]
    assert rows
    plain = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row).strip("\r\n") for row in rows)
    assert max(map(len, plain)) <= 80 - len("^C")


def test_a_transfer_that_failed_is_not_shown_as_done() -> None:
    to, output = console(terminal=True)

    def read() -> None:
        with View(to).transfer("a file", 5) as moved:
            moved(5)
            raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        read()
    assert "✗ a file" in output.getvalue().rpartition("\x1b[2K")[2]


def test_what_moves_is_said_in_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    to, output = console(terminal=False)
    with View(to).board(NAMES, "an image") as board:
        board.total("spark2", 2_000_000)
        board.moved("spark2", 500_000)
        board.state("spark2", "proven")
    moved, state = [line[9:] for line in output.getvalue().splitlines()]
    assert moved.startswith("an image: 500 kB, ")
    assert moved.endswith(" left")
    assert state == "spark2: proven"


def test_states_fit_80_columns() -> None:
    to, output = console(terminal=True)
    with View(to).states(NAMES, "vllm: ds4-flash, ds4-mtp", "start") as board:
        first, second = shown(board)
        assert first.split()[1:3] == [NAMES[0], "start"]
        board.state(NAMES[0], "weights", "3/46")
        board.state("spark2", "ready")
        first, second = shown(board)
    assert first.split()[1:4] == [NAMES[0], "weights", "3/46"]
    assert second.split()[:3] == ["✓", "spark2", "ready"]
    assert second.rstrip().endswith(" s")
    assert max(map(len, (first, second))) <= 80
    assert output.getvalue().startswith("vllm: ds4-flash, ds4-mtp\n")


def test_a_long_line_is_continued_below_its_words() -> None:
    to, output = console(terminal=True)
    View(to).say("the model takes " + "all the memory " * 6 + "[dim](1 s)[/]")
    first, *rest = output.getvalue().splitlines()
    assert first.startswith("· the model")
    assert rest
    assert all(line.startswith("  ") and line[2] != " " for line in rest)
    assert output.getvalue().split()[-2:] == ["(1", "s)"]


def test_lines_come_once_a_state() -> None:
    to, output = console(terminal=False)
    with View(to).states(NAMES, "title", "start") as board:
        for detail in ("1/46", "2/46", "3/46"):
            board.state("spark2", "weights", detail)
    assert [line[9:] for line in output.getvalue().splitlines()] == ["title", "spark2: weights"]


def test_nothing_where_it_is_to_be_quiet() -> None:
    to, output = console(terminal=False)
    view = View(to, quiet=True)
    with view.states(NAMES, "title", "start") as board, view.board(NAMES, "title") as moving:
        board.state("spark2", "weights")
        moving.total("spark2", 1)
        moving.moved("spark2", 1)
    with view.busy("busy"), view.transfer("a file", 5) as moved:
        moved(5)
    assert output.getvalue() == ""


def test_a_wait_is_shown_on_a_terminal_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "WAIT_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    ours, its = os.openpty()
    seen = b""
    with open(ours, "rb", buffering=0) as screen, open(its, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.waiting("looking at the nodes"):
            while b"looking at the nodes" not in seen:
                seen += screen.read(4096)
        terminal.write("the result\n")
        terminal.flush()
        while b"the result" not in seen:
            seen += screen.read(4096)
    # The row is erased, and the cursor is there again.
    row, _, after = seen.rpartition(b"looking at the nodes")
    assert b"\x1b[?25l" in row
    assert b"\x1b[2K" in after
    assert b"\x1b[?25h" in after


def test_a_wait_says_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "WAIT_S", 0.0)
    with progress.waiting("looking at the nodes"):
        pass
    assert capsys.readouterr() == ("", "")


def receipt(node: str, when: str, **more: Any) -> dict[str, Any]:
    return {"node": node, "name": "r:x", "digest": "sha256:1", "when": when, **more}


def test_receipts_of_one_distribution_are_grouped() -> None:
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


def test_digest_from_one_node_applies_to_the_same_image_elsewhere() -> None:
    def view(name: str, identity: str, digest: str | None) -> NodeView:
        image = TaggedImage(name="r:x", identity=identity, digest=digest, when=None)
        return NodeView(node=Node(name=name, control=name), images=(image,))

    same = [view("a", "1", None), view("b", "1", "sha256:1")]
    (one,) = maintenance.tag_states(same, "r:x")
    assert (one.digest, one.nodes) == ("sha256:1", ("a", "b"))
    assert maintenance.differing(same) == []
    more = [*same, view("c", "2", None), NodeView(node=Node(name="d", control="d"))]
    assert [one.nodes for one in maintenance.tag_states(more, "r:x")] == [
        ("a", "b"),
        ("c",),
        ("d",),
    ]
    assert maintenance.differing(more) == ["r:x"]
