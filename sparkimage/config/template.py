"""Text of a matrix with ``{NAME}`` in it, for the values of a variant's axes and pins. Pure."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """A text in pieces: plain text, and the name (or None) whose value comes after it."""

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse ``text``; a brace that is meant as such is doubled.

        Raises ``ValueError`` with what is wrong: names only, since a format such as
        ``{axis:>3000000000}`` would be filled in, too.
        """
        pieces = [*string.Formatter().parse(text)]
        for _, name, form, conversion in pieces:
            if form or conversion:
                raise ValueError(f"{name!r} takes no format")
        return cls(tuple((plain, name) for plain, name, _, _ in pieces))

    def missing(self, known: Collection[str]) -> tuple[str, ...]:
        """The names that are not ``known``."""
        return tuple(n for _, n in self.pieces if n is not None and n not in known)

    def fill(self, words: Mapping[str, str]) -> str:
        """The text with the value of each name. Raises ``KeyError`` for one without a value."""
        return "".join(
            text + (words[name] if name is not None else "") for text, name in self.pieces
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.missing(())
