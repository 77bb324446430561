"""How far each of several transfers is, live on a terminal: a bar for each and one for all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WINDOW_S = 5.0
"""The rate is that of so many last seconds."""
BAR = 12
"""Columns of a bar."""
MARKS = {"proven": "[green]✓[/]", "failed": "[red]✗[/]"}


class Board:
    """Takes in how far each of several transfers is; by itself it shows nothing."""

    def total(self, name: str, count: int) -> None:
        """So many bytes will move to ``name``."""

    def moved(self, name: str, count: int) -> None:
        """``count`` more bytes have moved to ``name``."""

    def state(self, name: str, text: str) -> None:
        """What ``name`` is doing now."""


@dataclass
class Meter:
    """The bytes of one transfer: how many, how fast, how long still. No output of its own."""

    clock: Callable[[], float] = time.monotonic
    total: int = 0
    done: int = 0
    state: str = ""
    last: deque[tuple[float, int]] = field(default_factory=deque)

    def moved(self, count: int) -> None:
        """Take in that ``count`` more bytes have moved."""
        now = self.clock()
        self.done += count
        if not self.last:
            self.last.append((now, self.done - count))
        self.last.append((now, self.done))
        while len(self.last) > 2 and now - self.last[1][0] > WINDOW_S:
            self.last.popleft()

    @property
    def rate(self) -> float | None:
        """Bytes a second; None while that is not known, or nothing is to move any more."""
        if not self.last or self.done >= self.total or self.state in MARKS:
            return None
        (began, before), now = self.last[0], self.clock()
        return (self.done - before) / (now - began) if now > began else None

    @property
    def left(self) -> float | None:
        """Seconds, at this rate."""
        rate = self.rate
        return (self.total - self.done) / rate if rate else None


class LiveBoard(Board):
    """A line for each, and one for all where there are several."""

    def __init__(self, console: Console, names: Sequence[str], title: str) -> None:
        from rich.live import Live

        self.title = title
        self.lock = threading.Lock()
        self.meters = {name: Meter() for name in names}
        self.all = Meter()
        self.shown = Live(console=console, get_renderable=self.table, refresh_per_second=6)

    def total(self, name: str, count: int) -> None:
        with self.lock:
            self.meters[name].total += count
            self.all.total += count

    def moved(self, name: str, count: int) -> None:
        with self.lock:
            self.meters[name].moved(count)
            self.all.moved(count)

    def state(self, name: str, text: str) -> None:
        with self.lock:
            self.meters[name].state = text

    def table(self) -> Table:
        """What is on the terminal now."""
        from rich.table import Table

        with self.lock:
            table = Table(
                box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True, title=self.title,
                title_justify="left", title_style="bold",
            )  # fmt: skip
            for column in ("", "name", "bar", "bytes", "rate", "left"):
                right = column in ("bytes", "rate", "left")
                table.add_column(column, justify="right" if right else "left", no_wrap=True)
            # What is long, such as an error, never pushes the bars aside.
            table.add_column("state", ratio=1, no_wrap=True, overflow="ellipsis")
            table.show_header = False
            for name, one in self.meters.items():
                _add(table, MARKS.get(one.state, "[cyan]⧗[/]"), name, one)
            if len(self.meters) > 1:
                proven = sum(one.state == "proven" for one in self.meters.values())
                self.all.state = f"{proven} of {len(self.meters)} proven"
                _add(table, "", "all", self.all)
        return table


def _add(table: Table, mark: str, name: str, one: Meter) -> None:
    from rich.markup import escape

    table.add_row(
        mark, escape(name), _bar(one), _pair(one.done, one.total),
        f"{human(one.rate)}/s" if one.rate else "", clock(one.left) if one.left else "",
        f"[dim]{escape(one.state)}[/]",
    )  # fmt: skip


def _bar(one: Meter) -> Text:
    from rich.text import Text

    part = min(1.0, one.done / one.total) if one.total else float(one.state == "proven")
    full = int(part * BAR)
    colour = {"proven": "green", "failed": "red"}.get(one.state, "cyan")
    return Text.assemble(("━" * full, colour), ("─" * (BAR - full), "bright_black"))


def _pair(done: int, total: int) -> str:
    """Both numbers in one unit: ``4.2 / 31.1 MB``."""
    if not total:
        return "nothing" if not done else human(done)
    size, unit = human(total).split()
    step = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    moved = min(done, total) / step
    return f"{moved:.1f} / {size} {unit}" if "." in size else f"{moved:.0f} / {size} {unit}"
