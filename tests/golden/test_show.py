"""The plan of the real matrix as a table on a narrow terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparkimage.cli import show
from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.plan import Origin

PROJECT = Path(__file__).resolve().parents[2]


def test_the_table_at_80_columns(golden: Callable[[str, str], None]) -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    held = lockfile.load(PROJECT / "matrix.lock")
    plans = planning.make_all(read, read.variants, held, Origin(source="s", revision="r", epoch=0))
    text = show.plans_table(plans).text(80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for one in plans:
        assert one.variant in text
    golden("table.txt", text)
