"""What an entry of the table of known failures is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparkimage.serve.explain.logfacts import Facts


class Area(StrEnum):
    """Where a failure belongs; also the order and the headings of the page made of the table."""

    DOCKER = "Docker and its runtimes"
    IMAGE = "What is in the image"
    ARGUMENTS = "Arguments"
    MODEL = "The model's files"
    MEMORY = "Memory and disk"
    NETWORK = "Nodes that find each other"
    NCCL = "NCCL and RDMA"
    RUNNING = "While it serves"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Something on one line of a log: a literal, which is looked for first, and a pattern."""

    literal: str
    pattern: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None

    def match(self, line: str) -> dict[str, str] | None:
        """What the pattern's named groups hold; None when this is not on the line."""
        if self.literal not in line:
            return None
        if self.unless is not None and self.unless.search(line):
            return None
        if self.pattern is None:
            return {}
        found = self.pattern.search(line)
        if found is None:
            return None
        return {name: value for name, value in found.groupdict().items() if value is not None}


def sign(literal: str, pattern: str = "", *, unless: str = "") -> Sign:
    """A sign from the texts of its patterns."""
    return Sign(
        literal=literal,
        pattern=re.compile(pattern) if pattern else None,
        unless=re.compile(unless) if unless else None,
    )


@dataclass(kw_only=True)
class Tally:
    """Where an entry's signs were in one log."""

    line_number: int
    line: str
    captured: dict[str, str]
    count: int = 1
    last_number: int = 0
    while_up: bool = False
    """Once at least it was there while the server served."""
    nccl: tuple[str, ...] = ()
    """What was known to be loaded when it first was there."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A known failure: its signs, why it comes, what mends it, and where that is documented."""

    id: str
    area: Area
    title: str
    says: str
    """The message as it stands in a log; `…` for what differs."""
    signs: tuple[Sign, ...]
    cause: str
    cure: str
    sources: tuple[str, ...]
    holds: Callable[[Tally, Facts], bool] | None = None
    """Whether the signs mean this failure, in the light of the whole log; None: always."""
    why_not: str = ""
    """In words, when they do not."""
    generic: bool = False
    """It only says that something failed: named where nothing else was found."""
    tells_nccl: bool = False
    """Which NCCL was loaded is a part of the answer."""
