"""Shows what goes on: live on a terminal, timestamped lines elsewhere, nothing where quiet."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

LINE_S = 10.0
"""Seconds between two lines about what moves or is counted, where there is no terminal."""
RATE_S = 5.0
"""On a terminal the rate of a transfer is that of so many last seconds."""
BAR = 12
"""Columns of a bar."""
MARKS = {"proven": "✓", "ready": "✓", "failed": "✗"}
"""Of a row whose state is its last one."""
Moved = Callable[[int], None]
"""Takes the number of bytes that have moved since the last call."""


class TransferProgress:
    """What goes on at once, a row each: its state, and the bytes that move. It shows nothing."""

    def total(self, name: str, count: int) -> None:
        """``count`` more bytes will move to ``name``."""

    def moved(self, name: str, count: int) -> None:
        """``count`` more bytes have moved to ``name``."""

    def state(self, name: str, text: str, detail: str = "") -> None:
        """What ``name`` is doing now, and how far it is with that."""


class LiveProgress(TransferProgress):
    """A line for each name on a terminal, and one for all where bytes move to several."""

    def __init__(self, shown: Progress, names: Sequence[str], state: str = "") -> None:
        self.shown, self.states = shown, dict.fromkeys(names, state)
        self.lock = threading.Lock()
        self.rows = {name: shown.add_task(name, total=None, state=state) for name in names}
        self.all = shown.add_task("all", total=None, visible=len(names) > 1, state="")

    def total(self, name: str, count: int) -> None:
        with self.lock:
            for row in (self.rows[name], self.all):
                self.shown.update(row, total=(self.shown.tasks[row].total or 0) + count)

    def moved(self, name: str, count: int) -> None:
        for row in (self.rows[name], self.all):
            self.shown.advance(row, count)

    def state(self, name: str, text: str, detail: str = "") -> None:
        with self.lock:
            if self.states[name] != text:
                # The time of a row is that of its state.
                self.shown.tasks[self.rows[name]].start_time = self.shown.get_time()
            self.states[name] = text
            self.shown.update(self.rows[name], state=f"{text} {detail}".rstrip())
            proven = list(self.states.values()).count("proven")
            self.shown.update(self.all, state=f"{proven} of {len(self.states)} proven")


class LineProgress(TransferProgress):
    """A line for each change of a state, and now and then one for the bytes of all."""

    def __init__(self, say: Callable[[str], None], title: str, total: int = 0) -> None:
        self.say, self.title, self.bytes, self.done = say, title, total, 0
        self.began = self.said = time.monotonic()
        self.states: dict[str, str] = {}
        self.lock = threading.Lock()

    def total(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.bytes += count

    def moved(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.said >= LINE_S:
                self.said, rate = now, self.done / (now - self.began)
                left = f", {clock((self.bytes - self.done) / rate)} left"
                more = left * (self.bytes > self.done)
                self.say(f"{self.title}: {human(self.done)}, {human(rate)}/s{more}")

    def state(self, name: str, text: str, detail: str = "") -> None:  # noqa: ARG002
        if self.states.get(name) != text:
            self.states[name] = text
            self.say(f"{name}: {text}")


class View:
    """Shows phases and transfers on ``console``."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self.console.is_terminal and not self.quiet

    def say(self, text: str) -> None:
        """One line about what begins now."""
        if self.is_live:
            self.console.print(f"[dim]·[/] {text}", highlight=False)
        elif not self.quiet:
            stamp = time.strftime("%H:%M:%S")
            self.console.print(f"{stamp} {text}", highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show that ``text`` is going on, with the seconds so far."""
        with self.counted(text):
            yield

    @contextmanager
    def counted(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show that ``text`` is going on, and how far it is; yields what takes how many are done,
        and of how many."""
        if not self.is_live:
            self.say(text)
            said = time.monotonic()

            def line(done: int, total: int) -> None:
                nonlocal said
                if time.monotonic() - said >= LINE_S:
                    said = time.monotonic()
                    self.say(f"{text} {done}/{total}")

            yield line
            return
        with self._rows(transient=True) as shown:
            row = shown.add_task(text, total=None, state="")
            yield lambda done, total: shown.update(row, state=f"{done}/{total}")
            task = shown.tasks[row]
        said_last = f"{text} {task.fields['state']}".rstrip()
        self.say(f"{said_last} [dim]({clock(task.elapsed or 0)})[/]")

    @contextmanager
    def transfer(self, text: str, total: int) -> Iterator[Moved]:
        """Show bytes that move, of ``total`` (0: not known); yields what takes their number."""
        if self.is_live:
            with self._rows(moving=True) as shown:
                live = LiveProgress(shown, [text])
                if total:
                    live.total(text, total)
                yield lambda count: live.moved(text, count)
            return
        self.say(f"{text}: {human(total)}" if total else text)
        board = LineProgress(self.say, text, total)
        yield lambda count: board.moved(text, count)
        self.say(f"{text}: {human(board.done)} in {clock(time.monotonic() - board.began)}")

    @contextmanager
    def board(self, names: Sequence[str], title: str) -> Iterator[TransferProgress]:
        """Show how far each of ``names`` is with the bytes that move to it, and all of them."""
        if self.is_live:
            self.console.print(title, style="bold", markup=False, highlight=False)
            with self._rows(moving=True) as shown:
                yield LiveProgress(shown, names)
        else:
            yield TransferProgress() if self.quiet else LineProgress(self.say, title)

    @contextmanager
    def states(self, names: Sequence[str], title: str, first: str) -> Iterator[TransferProgress]:
        """Show the state of each of ``names``, which is ``first`` now, with its time."""
        if self.is_live:
            self.console.print(title, style="bold", markup=False, highlight=False)
            with self._rows(transient=True) as shown:
                board = LiveProgress(shown, names, first)
                shown.update(board.all, visible=False)
                yield board
        else:
            self.say(title)
            yield TransferProgress() if self.quiet else LineProgress(self.say, title)

    def _rows(self, *, moving: bool = False, transient: bool = False) -> Progress:
        """Rows on the terminal; ``moving``: with bars, bytes and rates."""
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.table import Column
        from rich.text import Text

        class Cell(ProgressColumn):
            """A text of a row."""

            def __init__(self, text: Callable[[Task], str], **options: object) -> None:
                super().__init__(Column(no_wrap=True, **options))  # type: ignore[arg-type]
                self.text = text

            def render(self, task: Task) -> Text:
                return Text(self.text(task))

        bytes_ = [
            BarColumn(bar_width=BAR),
            Cell(lambda task: _pair(task.completed, task.total), justify="right"),
            Cell(
                lambda task: f"{human(task.speed or 0)}/s" if _moves(task) else "", justify="right"
            ),
            Cell(lambda task: clock(task.time_remaining or 0) * _moves(task), justify="right"),
        ]
        return Progress(
            Cell(_mark, style="cyan"),
            Cell(lambda task: task.description, style="cyan"),
            *(bytes_ if moving else []),
            # What is long, such as an error, never pushes the bars aside.
            Cell(lambda task: task.fields["state"], ratio=1, overflow="ellipsis", style="dim"),
            *([] if moving else [Cell(lambda task: clock(task.elapsed or 0), justify="right")]),
            console=self.console,
            expand=True,
            transient=transient,
            speed_estimate_period=RATE_S,
        )


def _mark(task: Task) -> str:
    state = task.fields["state"]
    return MARKS.get(state, "✓" if task.finished and not state else "⧗")


def _moves(task: Task) -> bool:
    return bool(task.speed and task.total and task.remaining) and task.fields["state"] not in MARKS


def _pair(done: float, total: float | None) -> str:
    """Both numbers in one unit: ``4.2 / 31.1 MB``."""
    if not total:
        return human(done) if done else "" if total is None else "nothing"
    size, unit = human(total).split()
    moved = min(done, total) / {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    return f"{moved:.1f} / {size} {unit}" if "." in size else f"{moved:.0f} / {size} {unit}"
