"""How far a launch is: rows on a terminal, lines elsewhere, nothing where JSON is asked for."""

from __future__ import annotations

import io

from rich.console import Console

from sparkimage.core.progress import View
from sparkimage.serve.screen import Rows, Screen, screen

NAMES = ("spark-with-a-long-name-1", "spark2")


def test_rows_fit_80_columns() -> None:
    said = io.StringIO()
    console = Console(file=said, width=80, force_terminal=True, color_system=None)
    with screen(View(console), NAMES, "vllm: ds4-flash, ds4-mtp") as shown:
        assert isinstance(shown, Rows)
        shown.phase(0, "weights", "3/46")
        shown.phase(1, "ready")
        plain = io.StringIO()
        Console(file=plain, width=80).print(shown.table())
    lines = plain.getvalue().splitlines()
    assert any("spark2" in line and "ready" in line for line in lines)
    assert any(NAMES[0] in line and "weights" in line and "3/46" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_lines_come_once_a_phase() -> None:
    said = io.StringIO()
    with screen(View(Console(file=said)), NAMES, "title") as shown:
        for detail in ("1/46", "2/46", "3/46"):
            shown.phase(1, "weights", detail)
    assert [line[9:] for line in said.getvalue().splitlines()] == [
        "title", "spark2 (rank 1): weights",
    ]  # fmt: skip


def test_nothing_where_it_is_to_be_quiet() -> None:
    said = io.StringIO()
    with screen(View(Console(file=said), quiet=True), NAMES, "title") as shown:
        shown.phase(0, "weights")
        assert type(shown) is Screen
    assert said.getvalue() == ""
