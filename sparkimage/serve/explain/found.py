"""A failure that was found in a log, with what is told of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sparkimage.core.program import as_called
from sparkimage.serve.explain.failures import FIRST_FAULT, Entry, Value
from sparkimage.serve.explain.messages import advice
from sparkimage.serve.explain.places import Kind, Place

SAID = re.compile(r"\b[A-Z]\w+(?:Error|Exception): (?P<message>\S.*)")
"""An exception's message."""
LONGEST_TITLE = 120
"""Characters of a message in a title."""


@dataclass(kw_only=True)
class Match:
    """A known failure in a log."""

    entry: Entry
    line_number: int
    """Of the first line that shows it, from 1; 0: no single line shows it."""
    line: str
    captured: dict[str, str]
    """What the lines name: a version, a port, a file."""
    count: int = 1
    """How often it occurs."""
    source: str = ""
    """The log's name, where it has one."""
    note: str = ""
    """What else the log says of it."""
    process: str = ""
    """The first one that says it."""
    time: str = ""
    """Of the first line, without the year (``11-29 17:20:45``); empty: no line so far has one."""
    near: tuple[str, ...] = ()
    """The lines before and after, where the failure is none that is known."""
    message: list[str] = field(default_factory=list)
    """What the lines below go on to say, where the message has several lines."""
    last_number: int = 0
    """The last line that shows it."""
    last_time: str = ""
    """Of that line, or of the last one before it that has a time."""
    while_up: bool = False
    """Whether the server was serving at one of them."""
    nccl: tuple[str, ...] = ()
    """The versions of NCCL that were loaded at the first one."""
    place: Place | None = None
    """The part of the software in which a failure began that no entry knows."""
    kind: Kind | None = None
    """The kind of its exception."""

    @property
    def known(self) -> bool:
        """Whether it is one of the known failures, not merely where an unknown one began."""
        return self.entry.id != FIRST_FAULT

    @property
    def title(self) -> str:
        """What failed."""
        said = SAID.search(self.line)
        message = f": {said['message'][:LONGEST_TITLE]}" if said else ""
        if self.place and self.place.title and said and (not self.kind or self.kind.titled):
            return f"{self.place.title}{message}"
        if self.kind:
            where = f", {self.place.where}" if self.place else ""
            return f"{self.kind.title}{where}{message}"
        if self.place:
            return f"Not in the list of known failures; it began {self.place.where}"
        title = (self._value and self._value.title) or self.entry.title
        return f"{title}: {self._told[:LONGEST_TITLE]}" if self._told else title

    @property
    def cause(self) -> str:
        """Why, by what the line names."""
        of_kind = [self.kind.cause] if self.kind else []
        if of_kind and not self.place:
            return as_called(of_kind[0])
        cause = (self.place or self._value or self.entry).cause or self.entry.cause
        return as_called(" ".join([*of_kind, cause]))

    @property
    def fix(self) -> str:
        """What to do, by what the line names."""
        told = self.place or self.kind or self._value or self.entry
        fix = as_called(told.fix or self.entry.fix)
        says_all = self._told or not self.known
        said = advice([self.line, *self.message]) if says_all else ""
        return f"The message says it: {said}. Else: {fix}" if said else fix

    @property
    def _told(self) -> str:
        """The text that says all, where the entry has such a one."""
        return "" if self._value else self.captured.get(self.entry.tells, "")

    @property
    def sources(self) -> list[str]:
        """The pages that show it, first those of this very value."""
        return [*(self._value.sources if self._value else ()), *self.entry.sources]

    @property
    def _value(self) -> Value | None:
        return next((value for value in self.entry.values if value.fits(self.captured)), None)

    def as_lines(self) -> list[str]:
        """For an error's detail."""
        source = f" ({self.source})" if self.source else ""
        note = [f"    {self.note}"] if self.note else []
        cause, fix = f"    {self.cause}", f"    → {self.fix}"
        if not self.known:
            near = [f"    {line}" for line in self.near]
            return [f"{self.title}{source}:", *near, *note, cause, fix]
        said = [f"    {line}" for line in (self.line.strip(), *self.message) if line]
        return [f"known: {self.title}{source}", *said, *note, cause, fix]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "id": self.entry.id,
            "title": self.title,
            "cause": self.cause,
            "fix": self.fix,
            "sources": self.sources,
            "rank": self.entry.rank,
            "known": self.known,
            "place": self.place.id if self.place else None,
            "kind": self.kind.id if self.kind else None,
            "source": self.source or None,
            "line_number": self.line_number or None,
            "line": self.line,
            "captured": self.captured,
            "count": self.count,
            "note": self.note or None,
            "process": self.process or None,
            "time": self.time or None,
            "near": list(self.near),
            "message": list(self.message),
        }
