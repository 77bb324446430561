"""What BuildKit is doing, from its own event stream, as a live table or as plain lines.

``buildx --progress=rawjson`` writes one JSON document after the other, each a ``SolveStatus``
(https://pkg.go.dev/github.com/moby/buildkit/client#SolveStatus): vertexes (steps), statuses
(bytes moved within a step) and logs.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparkimage.core.board import Board, LiveBoard
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STEP = re.compile(r"^\[[^\]]*?(?P<stage>\S+) \d+/\d+\] ")
"""A step's name ends with its stage, or with the target where that stands on scratch."""
EXPORT = "export"
LINE_S = 10.0
"""Seconds between two lines about a transfer, where there is no terminal."""
Moved = Callable[[int], None]
"""Takes the number of bytes that have moved since the last call."""


@dataclass
class Row:
    """What is known of one layer (or of the export): its state, times in seconds, and bytes."""

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
    """The state of one build, moved on by events. No output of its own."""

    layers: Sequence[str]
    rows: dict[str, Row] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    owner: dict[str, str] = field(default_factory=dict)
    moved: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    foreign: str | None = None
    """The layer whose Dockerfile is not ours: it has every stage that is not a layer's name."""

    def __post_init__(self) -> None:
        self.rows = {name: Row(name) for name in (*self.layers, EXPORT)}

    def event(self, event: dict[str, Any]) -> list[Row]:
        """Take in one ``SolveStatus``; returns the rows whose state changed."""
        changed = []
        # An error is explained by the log before it, which may come in the same document.
        for vertex in event.get("vertexes") or ():
            self._row(vertex)
        for log in event.get("logs") or ():
            self._log(log)
        for vertex in event.get("vertexes") or ():
            row = self._row(vertex)
            if row is not None and self._vertex(row, vertex) and row not in changed:
                changed.append(row)
        for status in event.get("statuses") or ():
            self._status(status)
        return changed

    def _exporting(self) -> None:
        """Once the export runs, a layer that has shown no step has none to show."""
        for name in self.layers:
            if self.rows[name].state == "waiting":
                self.rows[name].state = "no step"

    def _row(self, vertex: dict[str, Any]) -> Row | None:
        name = vertex.get("name", "")
        step = STEP.match(name)
        stage = step["stage"].rpartition("--")[2] if step is not None else None
        if stage in self.rows:
            self.owner[vertex["digest"]] = stage
        elif stage is not None and self.foreign is not None:
            self.owner[vertex["digest"]] = self.foreign
        elif "exporting to" in name:
            self.owner[vertex["digest"]] = EXPORT
        owner = self.owner.get(vertex["digest"])
        return self.rows[owner] if owner is not None else None

    def _vertex(self, row: Row, vertex: dict[str, Any]) -> bool:
        before = row.state
        if vertex.get("error"):
            row.state, row.ended = "failed", self.clock()
            if "context canceled" not in vertex["error"]:
                self.errors.append(self._explain(vertex))
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
                self._exporting()
        return row.state != before

    def _explain(self, vertex: dict[str, Any]) -> str:
        lines = self.logs.get(vertex["digest"], [])[-20:]
        return "\n".join([vertex.get("name", ""), *lines, vertex["error"]])

    def _status(self, status: dict[str, Any]) -> None:
        owner = self.owner.get(status["vertex"])
        if owner is None:
            return
        row = self.rows[owner]
        row.last = status.get("id", "")
        # Only what has bytes: "exporting layers" and the like count nothing.
        self.moved[(owner, status["id"])] = (status.get("current", 0), status.get("total", 0))
        row.current = sum(c for (o, _), (c, _t) in self.moved.items() if o == owner)
        row.total = sum(t for (o, _), (_c, t) in self.moved.items() if o == owner)

    def _log(self, log: dict[str, Any]) -> None:
        text = base64.b64decode(log.get("data") or b"").decode("utf-8", "replace")
        lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines:
            self.logs.setdefault(log["vertex"], []).extend(lines)
            owner = self.owner.get(log["vertex"])
            if owner is not None:
                self.rows[owner].last = lines[-1].strip()


class Events:
    """Cuts a stream of lines into the JSON documents that it is made of."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.other: list[str] = []

    def feed(self, line: str) -> Iterator[dict[str, Any]]:
        """Yield the document that ends with ``line``, if one does."""
        if not self.held and not line.startswith("{"):
            self.other.append(line)
            return
        self.held.append(line)
        if line.startswith("}") or (len(self.held) == 1 and line.rstrip().endswith("}")):
            text = "\n".join(self.held)
            self.held = []
            try:
                yield json.loads(text)
            except ValueError:
                self.other.append(text)


class View:
    """Shows phases and builds on ``console``: live on a terminal, timestamped lines elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line about what begins now."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.print(f"[dim]·[/] {text}", highlight=False)
        else:
            stamp = time.strftime("%H:%M:%S")
            self.console.print(f"{stamp} {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that ``text`` is going on, with the seconds so far."""
        if self.quiet or not self.console.is_terminal:
            self.say(text)
            yield
            return
        with self._live(lambda: text):
            yield

    @contextmanager
    def counted(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show that ``text`` is going on, and how far it is; yields what takes how many are done,
        and of how many."""
        shown = text

        def take(done: int, total: int) -> None:
            nonlocal shown
            shown = f"{text} {done}/{total}"

        if self.quiet:
            yield take
        elif self.console.is_terminal:
            with self._live(lambda: shown):
                yield take
        else:
            self.say(text)
            with self._lines(lambda: shown):
                yield take

    @contextmanager
    def _lines(self, text: Callable[[], str]) -> Iterator[None]:
        """Say ``text`` when it has changed, but not more often than every ``LINE_S``."""
        over = threading.Event()
        said = text()

        def watch() -> None:
            nonlocal said
            while not over.wait(LINE_S):
                if said != (now := text()):
                    said = now
                    self.say(said)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    @contextmanager
    def _live(self, text: Callable[[], str]) -> Iterator[None]:
        from rich.live import Live
        from rich.text import Text

        began = time.monotonic()

        class Line:
            def __rich__(self) -> Text:
                return Text(f"⧗ {text()}  {clock(time.monotonic() - began)}", style="cyan")

        with Live(Line(), console=self.console, refresh_per_second=4, transient=True):
            yield
        self.say(f"{text()} [dim]({clock(time.monotonic() - began)})[/]")

    @contextmanager
    def transfer(self, text: str, total: int) -> Iterator[Moved]:
        """Show bytes that move, of ``total`` (0: not known); yields what takes their number."""
        if self.quiet or not self.console.is_terminal:
            lines = Lines(self, text, total)
            self.say(f"{text}: {human(total)}" if total else text)
            yield lines.moved
            self.say(f"{text}: {human(lines.done)} in {clock(time.monotonic() - lines.began)}")
            return
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
            progress.DownloadColumn(), progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )  # fmt: skip
        with progress.Progress(*columns, console=self.console) as shown:
            task = shown.add_task(text, total=total or None)
            yield lambda count: shown.advance(task, count)

    @contextmanager
    def board(self, names: Sequence[str], text: str) -> Iterator[Board]:
        """Show how far each of ``names`` is, and all of them."""
        if self.quiet:
            yield Board()
        elif not self.console.is_terminal:
            yield PlainBoard(self, text)
        else:
            board = LiveBoard(self.console, names, text)
            with board.shown:
                yield board

    @contextmanager
    def build(self, build: Build, title: str) -> Iterator[Callable[[str], None]]:
        """Show ``build`` while it runs; yields what takes in the stream's lines."""
        events = Events()
        if self.quiet or not self.console.is_terminal:
            if not self.quiet:
                self.say(title)

            def plain(line: str) -> None:
                for event in events.feed(line):
                    for row in build.event(event):
                        self.say(_plain(row, build.clock()))

            yield plain
        else:
            from rich.live import Live

            class Now:
                def __rich__(self) -> Table:
                    return _table(build, title)

            with Live(Now(), console=self.console, refresh_per_second=6):

                def live(line: str) -> None:
                    for event in events.feed(line):
                        build.event(event)

                yield live
        build.errors += [line for line in events.other if line.startswith("ERROR")]


class PlainBoard(Board):
    """Lines: each change of a state, and now and then how far all are."""

    def __init__(self, view: View, text: str) -> None:
        self.view = view
        self.lines = Lines(view, text, 0)
        self.lock = threading.Lock()

    def total(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.lines.total += count

    def moved(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.lines.moved(count)

    def state(self, name: str, text: str) -> None:
        self.view.say(f"{name}: {text}")


@dataclass
class Lines:
    """Bytes that move, as a line now and then."""

    view: View
    text: str
    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def moved(self, count: int) -> None:
        """Take in that ``count`` more bytes have moved."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= LINE_S:
            self.said = now
            rate = self.done / (now - self.began)
            left = f", {clock((self.total - self.done) / rate)} left" * (self.total > self.done)
            self.view.say(f"{self.text}: {human(self.done)}, {human(rate)}/s{left}")


def _plain(row: Row, now: float) -> str:
    size = f", {human(row.current)}" if row.current else ""
    seconds = f" after {clock(row.seconds(now))}" if row.state in ("done", "failed") else ""
    return (
        f"layer {row.name}: {row.state}{seconds}{size}"
        if row.name != EXPORT
        else (f"export: {row.state}{seconds}{size}")
    )


MARKS = {
    "waiting": "[dim]·[/]",
    "no step": "[dim]·[/]",
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
    for name in ("", "layer", "state", "time", "bytes"):
        right = name in ("time", "bytes")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in build.rows.values():
        seconds = clock(row.seconds(now)) if row.started is not None else ""
        moved = human(row.current) if row.current else ""
        if row.total > row.current:
            moved += f" / {human(row.total)}"
        last = escape(row.last) if row.state == "running" else ""
        table.add_row(MARKS[row.state], row.name, row.state, seconds, moved, f"[dim]{last}[/]")
    return table
