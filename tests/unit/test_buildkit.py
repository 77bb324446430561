"""What BuildKit's event stream says of each layer: a recorded stream, and hard cases by hand."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sparkimage.build import buildkit
from sparkimage.build.buildkit import Build, Events, Row
from sparkimage.core.progress import View

RECORDED = Path(__file__).parents[1] / "golden" / "rawjson.txt"
"""What buildx wrote with --progress=rawjson, shortened in its middle."""


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def documents() -> list[dict[str, Any]]:
    events = Events()
    found = [one for line in RECORDED.read_text().splitlines() for one in events.feed(line)]
    assert events.other == []
    assert events.lines == []
    return found


def vertex(digest: str, name: str, **more: object) -> dict[str, Any]:
    return {"vertexes": [{"digest": digest, "name": name, **more}]}


def logged(digest: str, text: str) -> dict[str, Any]:
    return {"logs": [{"vertex": digest, "data": base64.b64encode(text.encode()).decode()}]}


def rows(build: Build) -> dict[str, str]:
    return {row.name: row.state for row in build.rows.values()}


def test_a_recorded_stream() -> None:
    clock = Clock()
    build = Build(["debian", "python", "absent"], clock=clock)
    changes = []
    for document in documents():
        clock.now += 1
        changes += [(row.name, row.state) for row in build.event(document)]
    assert rows(build) == {
        "debian": "done", "python": "done", "absent": "cached", "export": "done",
    }  # fmt: skip
    assert build.errors == []
    assert [state for name, state in changes if name == "debian"] == ["running", "done"]
    # The step of debian that is shown for it, too, is debian's.
    assert [state for name, state in changes if name == "python"] == ["running", "done"]
    assert changes[-1] == ("export", "done")
    assert 0 < build.rows["debian"].seconds(clock.now) < build.rows["python"].seconds(clock.now)
    assert build.rows["absent"].seconds(clock.now) == 0.0


@given(st.randoms(use_true_random=False))
def test_the_stream_may_be_cut_anywhere_between_lines_of_other_text(random: Any) -> None:
    text = RECORDED.read_text()
    whole = documents()
    some = random.sample(whole, 5)
    events, found = Events(), []
    for one in some:
        form = json.dumps(one, indent=random.choice([None, 1, 2]))
        for line in ["WARNING: some words", *form.splitlines()]:
            found += list(events.feed(line))
    assert found == some
    assert events.other == ["WARNING: some words"] * 5
    assert text.count("\n{\n") + 1 == len(whole)


def test_a_document_that_is_none_is_kept_as_words() -> None:
    events = Events()
    assert list(events.feed("{broken}")) == []
    assert list(events.feed('{"vertexes": []}')) == [{"vertexes": []}]
    assert events.other == ["{broken}"]


def test_time_goes_on_with_the_next_step_of_a_layer() -> None:
    clock = Clock()
    build = Build(["low"], clock=clock)
    build.event(vertex("1", "[t low 1/2] RUN a", started="t"))
    clock.now = 5
    build.event(vertex("1", "[t low 1/2] RUN a", started="t", completed="t"))
    clock.now = 7
    row = build.rows["low"]
    assert (row.state, row.seconds(clock.now)) == ("done", 5)
    build.event(vertex("2", "[t low 2/2] RUN b", started="t"))
    clock.now = 30
    assert (row.state, row.seconds(clock.now)) == ("running", 30)
    build.event(vertex("2", "[t low 2/2] RUN b", started="t", completed="t"))
    assert (row.state, row.seconds(99)) == ("done", 30)


def test_a_cached_step_beside_one_that_ran_makes_no_layer_cached() -> None:
    build = Build(["low", "all"], clock=Clock())
    build.event(vertex("1", "[t low 1/2] RUN a", started="t"))
    build.event(vertex("1", "[t low 1/2] RUN a", started="t", completed="t"))
    build.event(vertex("2", "[t low 2/2] RUN b", started="t", completed="t", cached=True))
    build.event(vertex("3", "[t all 1/1] RUN b", started="t", completed="t", cached=True))
    assert rows(build)["low"] == "done"
    assert rows(build)["all"] == "cached"


def test_a_failed_layer_stays_failed_and_is_explained_by_its_last_lines() -> None:
    build = Build(["low"], clock=Clock())
    build.event(vertex("1", "[t low 1/2] RUN a", started="t"))
    build.event(logged("1", "".join(f"line {i}\n" for i in range(30))))
    # The last words may come in the same document as the error.
    build.event(
        {
            **vertex("1", "[t low 1/2] RUN a", started="t", completed="t", error="exit code: 1"),
            **logged("1", "the reason\r\n"),
        }
    )
    build.event(vertex("2", "[t low 2/2] RUN b", started="t", completed="t", cached=True))
    build.event(vertex("3", "[t low 2/2] RUN c", started="t"))
    assert rows(build)["low"] == "failed"
    (error,) = build.errors
    lines = error.splitlines()
    assert lines[0] == "[t low 1/2] RUN a"
    assert lines[-2:] == ["the reason", "exit code: 1"]
    assert "line 29" in lines
    assert "line 0" not in lines


def test_what_another_failure_canceled_is_no_error() -> None:
    build = Build(["low", "high"], clock=Clock())
    build.event(vertex("1", "[t low 1/1] RUN a", started="t"))
    build.event(vertex("1", "[t low 1/1] RUN a", started="t", error="context canceled"))
    assert build.errors == []


def test_bytes_are_added_up_over_what_moves() -> None:
    build = Build(["low"], clock=Clock())
    build.event(vertex("1", "[t low 1/1] ADD x", started="t"))
    for name, current, total in (("a", 5, 10), ("b", 1, 4), ("a", 10, 10)):
        build.event({"statuses": [{"id": name, "vertex": "1", "current": current, "total": total}]})
    assert (build.rows["low"].current, build.rows["low"].total) == (11, 14)
    build.event({"statuses": [{"id": "c", "vertex": "unknown", "current": 9}]})
    assert build.rows["low"].current == 11


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("[vllm1_0-arm64--low low 2/3] RUN x", "low"),
        ("[linux/arm64 low 2/3] RUN x", "low"),
        ("[low 1/1] RUN x", "low"),
        ("[low 1/1] RUN x\n  y", "low"),
        ("[t] exporting to image", "export"),
        ("[t] exporting to oci image format", "export"),
        ("[t internal] load build context", None),
        ("[t other 1/1] RUN low", None),
    ],
)
def test_whose_step_it_is(name: str, layer: str | None) -> None:
    build = Build(["low"], clock=Clock())
    changed = build.event(vertex("1", name, started="t"))
    assert [row.name for row in changed] == ([layer] if layer else [])


def test_a_foreign_dockerfiles_stages_are_the_source_layers() -> None:
    build = Build(["cuda-base", "vllm-source", "nccl-apt"], foreign="vllm-source")
    build.event(vertex("a", "[v--nccl-apt base 3/9] RUN compile", started="2026"))
    build.event(vertex("b", "[v--nccl-apt nccl-apt 1/1] RUN install", started="2026"))
    build.event(vertex("c", "[context layer] load metadata", started="2026"))
    states = rows(build)
    assert (states["vllm-source"], states["nccl-apt"]) == ("running", "running")
    assert states["cuda-base"] == "waiting"


def test_stages_of_our_dockerfiles_are_their_layers() -> None:
    build = Build(["low", "high"], stages={"build": "high"})
    build.event(vertex("a", "[v build 3/9] RUN compile", started="2026"))
    assert rows(build)["high"] == "running"
    # A stage that several layers have is told by its target.
    build.event(vertex("b", "[v--low wheels 1/1] RUN install", started="2026"))
    assert rows(build)["low"] == "running"


@pytest.mark.parametrize("seen", [("low", "high"), ("high", "low")])
def test_a_step_that_is_shown_for_the_layers_above_too_is_the_lowest_ones(
    seen: tuple[str, str],
) -> None:
    build = Build(["low", "high"])
    for layer in seen:
        build.event(vertex("a", f"[v--{layer} wheels 1/1] RUN install", started="2026"))
    assert rows(build) == {"low": "running", "high": "waiting", "export": "waiting"}
    build.event(vertex("b", "[v--high wheels 1/1] RUN install", started="2026"))
    assert rows(build)["high"] == "running"


def test_an_error_of_an_unknown_stage_is_kept_with_its_output() -> None:
    build = Build(["low"], hide=lambda text: text.replace("secret", "***"))
    build.event(logged("a", "it is secret\n"))
    build.event(vertex("a", "[v other 1/1] RUN x", error="exit code: 1"))
    build.event(vertex("b", "[v other 1/1] RUN y", error="context canceled"))
    assert build.errors == ["[v other 1/1] RUN x\nit is ***\nexit code: 1"]


def view(terminal: bool, *, quiet: bool = False) -> tuple[str, Build]:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=80, height=30)
    build = Build(["debian", "python"], clock=Clock())
    with buildkit.show(View(console, quiet=quiet), build, "building [x]") as feed:
        for line in RECORDED.read_text().splitlines():
            feed(line)
    return said.getvalue(), build


def test_plain_lines_have_a_time_and_a_change_each() -> None:
    text, _ = view(terminal=False)
    lines = text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    said = [line[9:] for line in lines]
    assert said[0] == "building [x]"
    assert "layer debian: running" in said
    assert "layer debian: done after 0.0 s" in said
    assert said[-1].startswith("export: done")
    assert "\x1b" not in text


def test_the_live_table_fits_and_ends_with_every_state() -> None:
    text, build = view(terminal=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    # With room for the terminal's own ^C.
    assert all(len(line) <= 78 for line in re.split(r"[\r\n]+", shown))
    last = shown[shown.rindex("layer ") :]
    for row in build.rows.values():
        assert re.search(rf"✓ +{row.name} +done", last), last


def test_quiet_is_silent_and_still_knows() -> None:
    text, build = view(terminal=True, quiet=True)
    assert text == ""
    assert rows(build)["python"] == "done"


def test_a_row_without_a_start_has_no_time() -> None:
    assert Row("x").seconds(100.0) == 0.0
    assert Row("x", started=0.0, ended=0.0).seconds(100.0) == 0.0
