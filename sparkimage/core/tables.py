"""Tables: aligned on a terminal, tab-separated elsewhere.

On a narrow terminal some columns wrap between words and the least important ones are left out;
nothing is ever cut or folded inside a word, so that names and digests can be copied. Elsewhere
each row is one line with all columns, for ``cut``, ``awk`` and ``column -t -s $'\\t'``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from sparkimage.core.markup import fill, render, width

NARROW = 16
"""The least width of a column that wraps; a longer word makes it wider."""


@dataclass(kw_only=True)
class Table:
    """Rows of cells, which may have markup."""

    columns: Sequence[str]
    right: Collection[str] = ()
    """Columns aligned right."""
    wrap: Collection[str] = ()
    """Columns that wrap where a row is too long."""
    drop: Sequence[str] = ()
    """Columns that are left out where rows are still too long: the first one first."""
    title: str = ""
    header: bool = True
    gap: int = 2
    """Spaces between columns."""
    rows: list[list[str]] = field(default_factory=list)

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row, all of it in ``style``; cells left out at its end are empty."""
        texts = [cell.replace("\n", " ").replace("\t", " ") for cell in cells]
        texts += [""] * (len(self.columns) - len(cells))
        self.rows.append([f"[{style}]{cell}[/]" if style and cell else cell for cell in texts])

    def tabbed(self) -> Iterator[str]:
        """Its lines for other programs, without markup."""
        if self.title:
            yield self.title
        for cells in [list(self.columns)] * self.header + self.rows:
            yield "\t".join(cells)

    def aligned(self, columns: int) -> Iterator[str]:
        """Its lines, with markup, for a terminal of this width."""
        if self.title:
            yield f"[bold]{self.title}[/]"
        heads = [f"[bold]{name}[/]" if name else "" for name in self.columns]
        rows = [heads] * self.header + self.rows
        sizes = {
            number: max((width(row[number]) for row in rows), default=0)
            for number in range(len(self.columns))
        }
        dropped = self._fit(sizes, columns)
        for row in rows:
            yield from self._row(row, sizes)
        if dropped:
            note = f"not shown: {', '.join(dropped)} (a wider terminal or a pipe has all)"
            yield fill(f"[dim]{note}[/]", columns)

    def _fit(self, sizes: dict[int, int], columns: int) -> list[str]:
        """Narrow the sizes and leave columns out until a row fits; the names of those left out."""
        dropped = []
        drop = [self.columns.index(name) for name in self.drop]
        least = {
            n: min(size, max([NARROW, *self._words(n)]))
            for n, size in sizes.items()
            if self.columns[n] in self.wrap
        }
        while (excess := sum(sizes.values()) + self.gap * (len(sizes) - 1) - columns) > 0:
            slack = sum(sizes[n] - least[n] for n in least if n in sizes)
            if slack >= excess or not drop:
                self._narrow(sizes, least, min(excess, slack))
                break
            number = drop.pop(0)
            del sizes[number]
            dropped.append(self.columns[number])
        return dropped

    def _words(self, number: int) -> list[int]:
        """The widths of all words in a column."""
        return [width(word) for row in self.rows for word in row[number].split(" ")]

    def _narrow(self, sizes: dict[int, int], least: Mapping[int, int], excess: int) -> None:
        """Take the excess from the columns that wrap: always one column from the widest."""
        for _ in range(excess):
            free = (n for n in least if n in sizes and sizes[n] > least[n])
            sizes[max(free, key=lambda n: sizes[n])] -= 1

    def _row(self, row: Sequence[str], sizes: dict[int, int]) -> Iterator[str]:
        cells = [
            fill(row[n], size).split("\n") if self.columns[n] in self.wrap else [row[n]]
            for n, size in sizes.items()
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            line = ""
            for (number, size), part in zip(sizes.items(), parts, strict=True):
                space = " " * (size - width(part))
                right = self.columns[number] in self.right
                line += (space + part if right else part + space) + " " * self.gap
            yield line.rstrip()

    def text(self, columns: int | None, *, colour: bool = False) -> str:
        """All of it, for a terminal of this width, or for none."""
        lines = self.tabbed() if columns is None else self.aligned(columns)
        return "".join(f"{render(line, colour=colour)}\n" for line in lines)
