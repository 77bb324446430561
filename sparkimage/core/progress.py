"""Progress: live on a terminal, timestamped lines elsewhere, nothing where quiet."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from sparkimage.core.markup import fill
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, Task

LINE_S = 10.0
"""Without a terminal: seconds between two lines about one transfer or count."""
RATE_S = 5.0
"""The rate of a transfer is measured over this many seconds."""
WAIT_S = 1.0
"""A wait that is over sooner is not shown."""
BAR = 12
"""Columns of a progress bar."""
MARKS = {"proven": "✓", "ready": "✓", "failed": "✗"}
"""The marks of final states."""
Moved = Callable[[int], None]
"""Takes the bytes transferred since the last call."""


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show ``text`` and its time on a terminal while the block runs, if it takes longer than
    ``WAIT_S``; nothing of it is left there."""
    # A dumb terminal cannot erase.
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    over = threading.Event()

    def show() -> None:
        if over.wait(WAIT_S):
            return
        with View().row(text):
            over.wait()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class TransferProgress:
    """The state and the transfer of several nodes or ranks at once. This one shows nothing."""

    def total(self, name: str, count: int) -> None:
        """``count`` more bytes have to be transferred to ``name``."""

    def moved(self, name: str, count: int) -> None:
        """``count`` more bytes were transferred to ``name``."""

    def state(self, name: str, text: str, detail: str = "") -> None:
        """``name`` is in this state now; ``detail`` says how far."""


class LiveProgress(TransferProgress):
    """A row for each name on a terminal, and one for all where there are several."""

    def __init__(self, progress: Progress, names: Sequence[str], state: str = "") -> None:
        self.progress, self.states = progress, dict.fromkeys(names, state)
        self.lock = threading.Lock()
        self.rows = {name: progress.add_task(name, total=None, state=state) for name in names}
        self.all = progress.add_task("all", total=None, visible=len(names) > 1, state="")

    def total(self, name: str, count: int) -> None:
        with self.lock:
            for row in (self.rows[name], self.all):
                self.progress.update(row, total=(self.progress.tasks[row].total or 0) + count)

    def moved(self, name: str, count: int) -> None:
        for row in (self.rows[name], self.all):
            self.progress.advance(row, count)

    def state(self, name: str, text: str, detail: str = "") -> None:
        with self.lock:
            if self.states[name] != text:
                # A row shows the time since its state changed.
                self.progress.tasks[self.rows[name]].start_time = self.progress.get_time()
            self.states[name] = text
            self.progress.update(self.rows[name], state=f"{text} {detail}".rstrip())
            if text == "proven":
                # What a node has in another way than by a transfer that is counted.
                rest = self.progress.tasks[self.rows[name]].remaining or 0
                for row in (self.rows[name], self.all):
                    self.progress.advance(row, rest)
            states = list(self.states.values())
            proven = states.count("proven")
            end = "failed" if "failed" in states else "proven" * (proven == len(states))
            shown = f"{proven} of {len(states)} proven"
            self.progress.update(self.all, state=shown, mark=MARKS.get(end))


class LineProgress(TransferProgress):
    """A line for each change of a state, and one every ``LINE_S`` for the whole transfer."""

    def __init__(self, say: Callable[[str], None], title: str, total: int = 0) -> None:
        self.say, self.title, self.bytes, self.done = say, title, total, 0
        self.began = self.printed = time.monotonic()
        self.states: dict[str, str] = {}
        self.lock = threading.Lock()

    def total(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.bytes += count

    def moved(self, name: str, count: int) -> None:  # noqa: ARG002
        with self.lock:
            self.done += count
            now = time.monotonic()
            if now - self.printed >= LINE_S:
                self.printed, rate = now, self.done / (now - self.began)
                left = f", {clock((self.bytes - self.done) / rate)} left"
                more = left * (self.bytes > self.done)
                self.say(f"{self.title}: {human(self.done)}, {human(rate)}/s{more}")

    def state(self, name: str, text: str, detail: str = "") -> None:  # noqa: ARG002
        if self.states.get(name) != text:
            self.states[name] = text
            self.say(f"{name}: {text}")


class View:
    """Shows phases and transfers on ``console``, by default on standard error."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console
        self.quiet = quiet

    @property
    def console(self) -> Console:
        """What draws on a terminal."""
        # It takes 25 ms to import, which lines do not need.
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False)
        return self._console

    @property
    def stream(self) -> IO[str]:
        """Where it is shown."""
        return self._console.file if self._console is not None else sys.stderr

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        if self.quiet:
            return False
        return self._console.is_terminal if self._console is not None else self.stream.isatty()

    def say(self, text: str) -> None:
        """Print a line about what starts now."""
        if self.is_live:
            lines = fill(text, self.console.width, first="[dim]·[/] ", rest="  ")
            self.console.print(lines, highlight=False, soft_wrap=True)
        elif not self.quiet:
            self.stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            self.stream.flush()

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show ``text`` and its time while the block runs."""
        with self.counted(text):
            yield

    @contextmanager
    def counted(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """As ``busy``, with a count. Yields a function that takes the number done and the total."""
        if not self.is_live:
            self.say(text)
            printed = time.monotonic()

            def line(done: int, total: int) -> None:
                nonlocal printed
                if time.monotonic() - printed >= LINE_S:
                    printed = time.monotonic()
                    self.say(f"{text} {done}/{total}")

            yield line
            return
        with self.row(text) as task:
            yield lambda done, total: task.fields.update(state=f"{done}/{total}")
        count = f" {task.fields['state']}".rstrip()
        self.say(f"{text}{count} [dim]({clock(task.elapsed or 0)})[/]")

    @contextmanager
    def row(self, text: str) -> Iterator[Task]:
        """A row on the terminal while the block runs."""
        with self._rows(transient=True) as progress:
            row = progress.add_task(text, total=None, state="")
            yield progress.tasks[row]

    @contextmanager
    def transfer(self, text: str, total: int) -> Iterator[Moved]:
        """Show a transfer of ``total`` bytes (0: unknown). Yields a function that takes the number
        of bytes transferred since its last call."""
        if self.is_live:
            with self._rows(moving=True) as progress:
                live = LiveProgress(progress, [text])
                if total:
                    live.total(text, total)
                try:
                    yield lambda count: live.moved(text, count)
                except Exception:
                    live.state(text, "failed")
                    raise
            return
        self.say(f"{text}: {human(total)}" if total else text)
        lines = LineProgress(self.say, text, total)
        yield lambda count: lines.moved(text, count)
        self.say(f"{text}: {human(lines.done)} in {clock(time.monotonic() - lines.began)}")

    @contextmanager
    def board(self, names: Sequence[str], title: str) -> Iterator[TransferProgress]:
        """Show the transfer to each of ``names``, and to all of them together."""
        if self.is_live:
            self.console.print(title, style="bold", markup=False, highlight=False)
            with self._rows(moving=True) as progress:
                yield LiveProgress(progress, names)
        else:
            yield TransferProgress() if self.quiet else LineProgress(self.say, title)

    @contextmanager
    def states(self, names: Sequence[str], title: str, first: str) -> Iterator[TransferProgress]:
        """Show the state of each of ``names``, at first ``first``, and its time in that state."""
        if self.is_live:
            self.console.print(title, style="bold", markup=False, highlight=False)
            with self._rows(transient=True) as progress:
                live = LiveProgress(progress, names, first)
                progress.update(live.all, visible=False)
                yield live
        else:
            self.say(title)
            yield TransferProgress() if self.quiet else LineProgress(self.say, title)

    def _rows(self, *, moving: bool = False, transient: bool = False) -> Progress:
        """Rows on the terminal; with ``moving``, each has a bar, bytes, a rate and a time left."""
        from rich.progress import BarColumn, Progress, ProgressColumn
        from rich.table import Column
        from rich.text import Text

        console = self.console

        class Rows(Progress):
            """All rows."""

            def get_renderables(self) -> Iterator[RenderableType]:
                for rows in super().get_renderables():
                    yield beside_interrupt(rows, console)

        class Cell(ProgressColumn):
            """A column of text."""

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
        return Rows(
            Cell(_mark, style="cyan"),
            Cell(lambda task: task.description, style="cyan"),
            *(bytes_ if moving else []),
            # A long text, such as an error, is cut off and does not push the bars aside.
            Cell(lambda task: task.fields["state"], ratio=1, overflow="ellipsis", style="dim"),
            *([] if moving else [Cell(lambda task: clock(task.elapsed or 0), justify="right")]),
            console=console,
            expand=True,
            transient=transient,
            speed_estimate_period=RATE_S,
        )


def beside_interrupt(rows: RenderableType, console: Console) -> RenderableType:
    """Rows that are drawn again and again, with room for the ^C that a terminal shows: were it on
    a line of its own, they would be drawn one line too low from then on."""
    from rich.constrain import Constrain

    return Constrain(rows, max(1, console.width - len("^C")))


def _mark(task: Task) -> str:
    state = task.fields["state"]
    mark = task.fields.get("mark") or MARKS.get(state)
    return str(mark or ("✓" if task.finished and not state else "⧗"))


def _moves(task: Task) -> bool:
    fields = task.fields
    ended = fields["state"] in MARKS or fields.get("mark")
    return bool(task.speed and task.total and task.remaining) and not ended


def _pair(done: float, total: float | None) -> str:
    """Both sizes in one unit: ``4.2 / 31.1 MB``."""
    if not total:
        return human(done) if done else "" if total is None else "nothing"
    size, unit = human(total).split()
    moved = min(done, total) / {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[unit]
    return f"{moved:.1f} / {size} {unit}" if "." in size else f"{moved:.0f} / {size} {unit}"
