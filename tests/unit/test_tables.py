"""Tables in terminals of several widths, and in pipes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core import markup
from sparkimage.core.tables import Table
from tests.lab import command, terminal

PROJECT = Path(__file__).resolve().parents[2]
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
NAME = "spark-vllm:vllm0.33.0-nccl2.30.7-arm64"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "SPARKIMAGE_HOME": "nowhere", "SPARKIMAGE_MIRRORS": os.devnull, **more}


def table() -> Table:
    made = Table(
        columns=["", "name", "digest", "size", "nodes"], right=["size"], wrap=["nodes"],
        drop=["size"],
    )  # fmt: skip
    made.add_row("[green]=[/]", NAME, "0123456789ab", "3.8 GB", "node1, node2, node3, node4")
    made.add_row("[red]≠[/]", "short:name", "", "12 B", "[yellow]none[/]")
    return made


@pytest.mark.parametrize("columns", [120, 80, 70, 60, 40])
def test_no_name_is_folded(columns: int) -> None:
    text = table().text(columns)
    first, *rest = text.splitlines()
    assert NAME in text
    assert "0123456789ab" in text
    assert "name" in first
    assert all("node" not in line or line.rstrip(",") for line in rest)
    # What has to be there takes 58 columns.
    if columns >= 80:
        assert all(markup.width(line) <= columns for line in text.splitlines())


def test_columns_go_by_importance_and_that_is_said() -> None:
    wide, narrow = table().text(120), table().text(70)
    assert "3.8 GB" in wide
    assert "not shown" not in wide
    assert "3.8 GB" not in narrow
    assert narrow.splitlines()[-1] == "not shown: size (a wider terminal or a pipe has all)"


def test_a_pipe_gets_whole_lines_with_tabs() -> None:
    assert table().text(None).splitlines() == [
        "\tname\tdigest\tsize\tnodes",
        f"=\t{NAME}\t0123456789ab\t3.8 GB\tnode1, node2, node3, node4",
        "≠\tshort:name\t\t12 B\tnone",
    ]


@given(st.text())
def test_text_of_others_has_no_styles(text: str) -> None:
    said = markup.render(markup.plain(f"[red]{text}"), colour=True)
    assert "\x1b" not in said
    assert said.startswith("[red]")


@given(st.lists(st.from_regex(r"[\w.:/-]{1,20}", fullmatch=True), min_size=1), st.integers(1, 80))
def test_words_stay_whole_in_filled_text(words: list[str], columns: int) -> None:
    text = "[bold]" + " ".join(words) + "[/]"
    filled = markup.fill(text, columns)
    assert markup.render(filled, colour=False).split() == words
    # Each line closes what it opens.
    assert all(line.count("[bold]") == line.count("[/]") for line in filled.splitlines())


@pytest.mark.parametrize("columns", [60, 80])
def test_the_plan_in_a_terminal(columns: int) -> None:
    shown = terminal.call(["--matrix", "--print", "table"], environment(), columns, cwd=PROJECT)
    assert shown.returncode == 0
    assert "\x1b[31mnot resolved\x1b[0m" in shown.stdout
    lines = terminal.lines(shown.stdout)
    assert all(len(line) <= columns for line in lines)
    assert any(line.split()[0] == "vllm0.33.0-nccl2.30.7-arm64" for line in lines)
    plain = environment(NO_COLOR="1")
    without = terminal.call(["--matrix", "--print", "table"], plain, columns, cwd=PROJECT)
    assert without.stdout.splitlines() == lines


def test_the_plan_in_a_pipe() -> None:
    done = command.call(["--matrix", "--print", "table"], environment(COLUMNS="40"), cwd=PROJECT)
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == ["variant", "platform", "versions", "layers", "download"]
    plans = command.call(["--matrix", "--print", "json"], environment(), cwd=PROJECT).stdout
    assert [row[0] for row in rows] == [plan["variant"] for plan in json.loads(plans)]
    assert all(len(row) == len(head) for row in rows)
