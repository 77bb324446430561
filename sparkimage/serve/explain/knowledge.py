"""Reads logs and names the failures that are known; the table is in ``failures``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkimage.serve.explain import failures
from sparkimage.serve.explain.failures import Entry, Occurrences
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.loglines import clean, node_of

QUOTES = "Received request "
"""vLLM's log of a request holds the words of a user: what they quote did not happen here."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A known failure that was found in a log."""

    entry: Entry
    line_number: int
    """Of the first line that shows it, from 1; 0: it shows in no single line."""
    line: str
    captured: dict[str, str]
    """What the line names: a version, a port, a file."""
    count: int
    """How often it was there."""
    source: str = ""
    """The log's name, where it has one."""
    note: str = ""
    """What else the log says of it."""

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "id": self.entry.id,
            "title": self.entry.title,
            "source": self.source or None,
            "line_number": self.line_number or None,
            "line": self.line,
            "captured": self.captured,
            "count": self.count,
            "note": self.note or None,
            "cause": self.entry.cause,
            "fix": self.entry.fix,
            "sources": self.entry.sources,
        }


@dataclass(kw_only=True)
class Reading:
    """One log while it is read: memory does not grow with it."""

    source: str = ""
    facts: Facts = field(default_factory=Facts)
    lines: int = 0
    known: failures.Failures = field(default_factory=failures.known)
    _found: dict[str, Occurrences] = field(default_factory=dict)

    def take(self, line: str | bytes) -> None:
        """Read one more line."""
        self.lines += 1
        text = clean(line)
        if not text or QUOTES in text:
            return
        self.facts.take(self.lines, text, node_of(text))
        hit: set[str] = set()
        for literal, entry, sign in self.known.signs:
            # Most lines are of no interest: a hundred thousand of them are to take a second.
            if literal in text and entry.id not in hit:
                captured = sign.match(text)
                if captured is not None:
                    hit.add(entry.id)
                    self._note(entry, text, captured)

    def _note(self, entry: Entry, text: str, captured: dict[str, str]) -> None:
        seen = self._found.get(entry.id)
        if seen is None:
            self._found[entry.id] = Occurrences(
                line_number=self.lines,
                line=text,
                captured=captured,
                last_number=self.lines,
                while_up=self.facts.up,
                nccl=tuple(self.facts.nccl),
            )
            return
        seen.count += 1
        seen.last_number = self.lines
        seen.while_up = seen.while_up or self.facts.up
        for name, value in captured.items():
            seen.captured.setdefault(name, value)

    def matches(self) -> list[Match]:
        """The failures, in the order in which they first show; what is a mere consequence of any
        other is left out."""
        found = [
            self._match(entry, self._found[entry.id])
            for entry in self.known.by_id.values()
            if entry.id in self._found and entry.holds(self._found[entry.id], self.facts)
        ]
        found += [match for match in (self._mixed(), self._cold()) if match is not None]
        plain = [match for match in found if not match.entry.generic]
        return sorted(plain or found, key=lambda match: match.line_number)

    def _match(self, entry: Entry, seen: Occurrences) -> Match:
        captured, note = dict(seen.captured), ""
        if entry.tells_nccl:
            # A preload is refused before any library says what it is.
            loaded = seen.nccl or tuple(self.facts.nccl)
            captured["nccl"] = ", ".join(loaded)
            note = (
                f"NCCL that was loaded: {captured['nccl']}{self.known.judge_nccl(loaded)}"
                if loaded
                else "which NCCL was loaded is not in this log; NCCL_DEBUG=INFO makes it say so"
            )
        return Match(
            entry=entry,
            line_number=seen.line_number,
            line=seen.line,
            captured=captured,
            count=seen.count,
            source=self.source,
            note=note,
        )

    def _mixed(self) -> Match | None:
        if len(self.facts.releases) < 2:
            return None
        number, line = self.facts.nccl_line
        return _mixed(self.facts.releases, number, line, self.source)

    def _cold(self) -> Match | None:
        for folder, lines in self.facts.rebuilt.items():
            if len(lines) > 1:
                return Match(
                    entry=self.known.by_id[failures.COLD_CACHE],
                    line_number=lines[1],
                    line=folder,
                    captured={"folder": folder},
                    count=len(lines),
                    source=self.source,
                )
        return None


def read(lines: Iterable[str | bytes], *, source: str = "") -> list[Match]:
    """The known failures in a log, which may have no end: its lines are not kept.

    Colours, docker's timestamps and JSON, and names before the lines are no hindrance. Raises
    nothing of its own.
    """
    reading = Reading(source=source)
    for line in lines:
        reading.take(line)
    return reading.matches()


def across(readings: Sequence[Reading]) -> list[Match]:
    """What shows only when the logs of several nodes are laid side by side."""
    releases: dict[str, list[str]] = {}
    for reading in readings:
        for release, nodes in reading.facts.releases.items():
            releases.setdefault(release, []).extend(node or reading.source for node in nodes)
    if len(releases) < 2 or any(len(reading.facts.releases) > 1 for reading in readings):
        return []
    return [_mixed(releases, 0, "", "")]


def _mixed(releases: dict[str, list[str]], number: int, line: str, source: str) -> Match:
    said = "; ".join(
        f"{release} ({', '.join(dict.fromkeys(n for n in nodes if n)) or 'no name on the line'})"
        for release, nodes in sorted(releases.items())
    )
    return Match(
        entry=failures.known().by_id[failures.MIXED_NCCL],
        line_number=number,
        line=line,
        captured={"nccl": ", ".join(sorted(releases))},
        count=1,
        source=source,
        note=said,
    )
