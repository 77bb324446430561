"""The progress of a build, from BuildKit's event stream, as a live table or as plain lines.

``buildx --progress=rawjson`` writes one JSON document after the other, each a ``SolveStatus``
(https://pkg.go.dev/github.com/moby/buildkit/client#SolveStatus): vertexes (steps), statuses
(bytes moved within a step) and logs.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparkimage.core.progress import View, beside_interrupt
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.table import Table

STEP = re.compile(r"^\[(?P<words>[^\]]*\S) \d+/\d+\] ")
"""The first word in the brackets is the target, the last one the stage, or the target again if that
is FROM scratch."""
FROM = re.compile(r"^FROM\s.*\sAS\s+(\S+)", re.MULTILINE | re.IGNORECASE)
EXPORT = "export"


@dataclass
class Row:
    """The state of a layer or of the export: times in seconds, sizes in bytes."""

    name: str
    state: str = "waiting"
    started: float | None = None
    ended: float | None = None
    current: int = 0
    total: int = 0
    last: str = ""

    def seconds(self, now: float) -> float:
        if self.started is None:
            return 0.0
        return (now if self.ended is None else self.ended) - self.started


@dataclass
class Build:
    """The state of a build, updated by events. Prints nothing."""

    layers: Sequence[str]
    rows: dict[str, Row] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    owner: dict[str, str] = field(default_factory=dict)
    moved: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Of all steps, in the order in which they began."""
    clock: Callable[[], float] = time.monotonic
    foreign: str | None = None
    """The layer that its source's own Dockerfile builds, in stages that are no layer's name."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """The layer of each stage of our Dockerfiles, and of targets that are not called as layers."""
    hide: Callable[[str], str] = str
    """What replaces the values of secrets in the steps' output."""

    def __post_init__(self) -> None:
        self.rows = {name: Row(name) for name in (*self.layers, EXPORT)}

    def event(self, event: dict[str, Any]) -> list[Row]:
        """Apply one ``SolveStatus``; returns the rows whose state changed."""
        changed = []
        # The log that explains an error may be in the same document.
        for vertex in event.get("vertexes") or ():
            self._row(vertex)
        for log in event.get("logs") or ():
            self._log(log)
        for vertex in event.get("vertexes") or ():
            row = self._row(vertex)
            if row is None:
                # The step of a stage that is no layer's.
                self._fail(vertex)
            elif self._vertex(row, vertex) and row not in changed:
                changed.append(row)
        for status in event.get("statuses") or ():
            self._status(status)
        return changed

    def _row(self, vertex: dict[str, Any]) -> Row | None:
        name = vertex.get("name", "")
        if vertex.get("started"):
            self.names.setdefault(vertex["digest"], name)
        step = STEP.match(name)
        # The stage tells best: BuildKit may name another target that has the same step.
        words = step["words"].split() if step is not None else []
        target, stage = (self._layer(words[n]) if words else None for n in (0, -1))
        if step is not None and (owner := stage or self.foreign or target) is not None:
            self._own(vertex["digest"], owner)
        elif "exporting to" in name:
            self.owner[vertex["digest"]] = EXPORT
        owner = self.owner.get(vertex["digest"])
        return self.rows[owner] if owner is not None else None

    def _own(self, step: str, owner: str) -> None:
        """A step shown for several layers is the lowest one's: the others are made of it."""
        order = list(self.rows)
        before = self.owner.get(step, owner)
        self.owner[step] = min(before, owner, key=order.index)
        if before != self.owner[step] and before not in self.owner.values():
            # Nothing of it has begun.
            self.rows[before] = Row(before)

    def _layer(self, name: str) -> str | None:
        """The layer of a stage or of a target; None where it is no layer's own."""
        name = self.stages.get(name, name.rpartition("--")[2])
        return name if name in self.rows else None

    def _vertex(self, row: Row, vertex: dict[str, Any]) -> bool:
        before = row.state
        if vertex.get("error"):
            row.state, row.ended = "failed", self.clock()
            self._fail(vertex)
        elif row.state == "failed":
            pass
        elif vertex.get("cached"):
            if row.started is None:
                row.state = "cached"
        elif vertex.get("completed"):
            if row.state == "running":
                row.state, row.ended = "done", self.clock()
        elif vertex.get("started") and row.state != "running":
            row.state, row.ended = "running", None
            row.started = self.clock() if row.started is None else row.started
            if row.name == EXPORT:
                # All steps of a layer that reported none are cached.
                for layer in self.rows.values():
                    layer.state = "cached" if layer.state == "waiting" else layer.state
        return row.state != before

    def transcript(self) -> str:
        """The output of every step, below its name, and the errors."""
        steps = ["\n".join([name, *self.logs.get(step, ())]) for step, name in self.names.items()]
        return "\n\n".join([*steps, *self.errors]) + "\n"

    def _fail(self, vertex: dict[str, Any]) -> None:
        """Keep the error of a step that has one."""
        if vertex.get("error") and "context canceled" not in vertex["error"]:
            self.errors.append(self._explain(vertex))

    def _explain(self, vertex: dict[str, Any]) -> str:
        lines = self.logs.get(vertex["digest"], [])[-20:]
        return "\n".join([vertex.get("name", ""), *lines, vertex["error"]])

    def _status(self, status: dict[str, Any]) -> None:
        owner = self.owner.get(status["vertex"])
        if owner is None:
            return
        row = self.rows[owner]
        row.last = status.get("id", "")
        self.moved[(owner, status["id"])] = (status.get("current", 0), status.get("total", 0))
        sizes = [size for (name, _), size in self.moved.items() if name == owner]
        row.current, row.total = map(sum, zip(*sizes, strict=True))

    def _log(self, log: dict[str, Any]) -> None:
        text = self.hide(base64.b64decode(log.get("data") or b"").decode("utf-8", "replace"))
        lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines:
            self.logs.setdefault(log["vertex"], []).extend(lines)
            owner = self.owner.get(log["vertex"])
            if owner is not None:
                self.rows[owner].last = lines[-1].strip()


class Events:
    """Splits a stream of lines into JSON documents; keeps the lines that are none."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.other: list[str] = []

    def feed(self, line: str) -> Iterator[dict[str, Any]]:
        """Yield the document that ``line`` completes, if any."""
        if not self.lines and not line.startswith("{"):
            self.other.append(line)
            return
        self.lines.append(line)
        if line.startswith("}") or (len(self.lines) == 1 and line.rstrip().endswith("}")):
            text = "\n".join(self.lines)
            self.lines = []
            try:
                yield json.loads(text)
            except ValueError:
                self.other.append(text)


@contextmanager
def show(view: View, build: Build, title: str) -> Iterator[Callable[[str], None]]:
    """Show ``build`` while it runs. Yields a function that takes the event stream, line by line."""
    events = Events()

    def take(line: str) -> None:
        for event in events.feed(line):
            for row in build.event(event):
                if not view.is_live:
                    view.say(_plain(row, build.clock()))

    if view.is_live:
        from rich.live import Live

        with Live(
            console=view.console,
            get_renderable=lambda: beside_interrupt(_table(build, title), view.console),
            refresh_per_second=6,
        ):
            yield take
    else:
        view.say(title)
        yield take
    build.errors += [line for line in events.other if line.startswith("ERROR")]


def _plain(row: Row, now: float) -> str:
    size = f", {human(row.current)}" if row.current else ""
    seconds = f" after {clock(row.seconds(now))}" if row.state in ("done", "failed") else ""
    name = row.name if row.name == EXPORT else f"layer {row.name}"
    return f"{name}: {row.state}{seconds}{size}"


MARKS = {
    "waiting": "[dim]·[/]",
    "running": "[cyan]⧗[/]",
    "done": "[green]✓[/]",
    "cached": "[green]=[/]",
    "failed": "[red]✗[/]",
}


def _table(build: Build, title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    now = build.clock()
    table = Table(box=None, title=title, title_justify="left", title_style="bold", expand=True)
    for name in ("", "layer", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("time", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in build.rows.values():
        seconds = clock(row.seconds(now)) if row.started is not None else ""
        moved = human(row.current) if row.current else ""
        if row.total > row.current:
            moved += f" / {human(row.total)}"
        last = escape(row.last) if row.state == "running" else ""
        table.add_row(MARKS[row.state], row.name, row.state, seconds, moved, f"[dim]{last}[/]")
    return table
