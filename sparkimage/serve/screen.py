"""How far each rank of a set is: one row a node, live on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparkimage.core.units import clock
from sparkimage.serve.readiness import PHASES

if TYPE_CHECKING:
    from rich.table import Table

    from sparkimage.core.progress import View


class Screen:
    """Takes in each rank's phase; by itself it shows nothing."""

    def phase(self, rank: int, phase: str, detail: str = "") -> None:
        """``rank`` is at ``phase`` now, ``detail`` says how far."""


class Lines(Screen):
    """A line for each change of a phase; its details come and go too fast."""

    def __init__(self, view: View, names: Sequence[str]) -> None:
        self.view, self.names = view, names
        self.said: dict[int, str] = {}

    def phase(self, rank: int, phase: str, detail: str = "") -> None:  # noqa: ARG002
        if self.said.get(rank) != phase:
            self.said[rank] = phase
            self.view.say(f"{self.names[rank]} (rank {rank}): {phase}")


class Rows(Screen):
    """A row for each rank, with the time that its phase takes."""

    def __init__(self, view: View, names: Sequence[str], title: str) -> None:
        from rich.live import Live

        self.names, self.title = names, title
        self.began = time.monotonic()
        self.rows = dict.fromkeys(range(len(names)), (PHASES[0], "", self.began))
        self.shown = Live(
            console=view.console, get_renderable=self.table, refresh_per_second=4, transient=True
        )

    def phase(self, rank: int, phase: str, detail: str = "") -> None:
        before, _, since = self.rows[rank]
        self.rows[rank] = phase, detail, since if before == phase else time.monotonic()

    def table(self) -> Table:
        """What is on the terminal now."""
        from rich.markup import escape
        from rich.table import Table

        now = time.monotonic()
        table = Table(
            box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left",
            title_style="bold", title=f"{self.title}  {clock(now - self.began)}",
        )  # fmt: skip
        for column in ("node", "rank", "phase", "", "for"):
            table.add_column(column, justify="right" if column in ("rank", "for") else "left")
        for rank, (phase, detail, since) in self.rows.items():
            colour = "green" if phase == PHASES[-1] else "cyan"
            table.add_row(
                escape(self.names[rank]), str(rank), f"[{colour}]{phase}[/]",
                f"[dim]{escape(detail)}[/]", clock(now - since),
            )  # fmt: skip
        return table


@contextmanager
def screen(view: View, names: Sequence[str], title: str) -> Iterator[Screen]:
    """The screen that fits ``view``."""
    if view.quiet:
        yield Screen()
    elif not view.console.is_terminal:
        view.say(title)
        yield Lines(view, names)
    else:
        rows = Rows(view, names, title)
        with rows.shown:
            yield rows
