"""Reads logs and names the known failures in them; ``failures`` has the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparkimage.serve.explain import failures
from sparkimage.serve.explain.failures import Entry, Match
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.loglines import clean, node_of

QUOTES = "Received request "
"""vLLM's log of a request quotes a user's text: what it says did not happen here."""


@dataclass(kw_only=True)
class Reading:
    """One log while it is read; memory does not grow with it."""

    source: str = ""
    facts: Facts = field(default_factory=Facts)
    lines: int = 0
    known: failures.Failures = field(default_factory=failures.known)
    _found: dict[str, Match] = field(default_factory=dict)

    def take(self, line: str | bytes) -> None:
        """Read the next line."""
        self.lines += 1
        text = clean(line)
        if not text or QUOTES in text:
            return
        self.facts.take(self.lines, text, node_of(text))
        hit: set[str] = set()
        for literal, entry, sign in self.known.signs:
            # Few lines hold any: a hundred thousand lines are to take a second.
            if literal in text and entry.id not in hit:
                captured = sign.match(text)
                if captured is not None:
                    hit.add(entry.id)
                    self._note(entry, text, captured)

    def _note(self, entry: Entry, text: str, captured: dict[str, str]) -> None:
        match = self._found.get(entry.id)
        if match is None:
            match = self._found[entry.id] = Match(
                entry=entry, line_number=self.lines, line=text, captured={}, count=0,
                source=self.source, nccl=tuple(self.facts.nccl),
            )  # fmt: skip
        match.count += 1
        match.last_number = self.lines
        match.while_up = match.while_up or self.facts.up
        match.captured = {**captured, **match.captured}

    def matches(self) -> list[Match]:
        """The failures in the order in which they first show, without mere consequences of
        others."""
        found = [
            self._with_nccl(self._found[id]) if entry.tells_nccl else self._found[id]
            for id, entry in self.known.by_id.items()
            if id in self._found and entry.holds(self._found[id], self.facts)
        ]
        if len(self.facts.releases) > 1:
            found.append(_mixed(self.facts.releases, *self.facts.nccl_line, self.source))
        found += self._cold()[:1]
        specific = [match for match in found if not match.entry.generic]
        return sorted(specific or found, key=lambda match: match.line_number)

    def _with_nccl(self, match: Match) -> Match:
        # A preload is refused before any library prints its version.
        loaded = match.nccl or tuple(self.facts.nccl)
        versions = ", ".join(loaded)
        note = "this log does not show which NCCL was loaded; NCCL_DEBUG=INFO makes it do so"
        if loaded:
            note = f"NCCL that was loaded: {versions}"
            note += self.known.judge_nccl(loaded, match.entry.id)
        return replace(match, captured={**match.captured, "nccl": versions}, note=note)

    def _cold(self) -> list[Match]:
        return [
            Match(
                entry=self.known.by_id[failures.COLD_CACHE], line_number=lines[1], line=folder,
                captured={"folder": folder}, count=len(lines), source=self.source,
            )
            for folder, lines in self.facts.rebuilt.items()
            if len(lines) > 1
        ]  # fmt: skip


def read(lines: Iterable[str | bytes], *, source: str = "") -> list[Match]:
    """The known failures in a log, which may be endless: its lines are not kept.

    Colours, docker's timestamps and JSON, and names before the lines are skipped. Raises nothing.
    """
    reading = Reading(source=source)
    for line in lines:
        reading.take(line)
    return reading.matches()


def across(readings: Sequence[Reading]) -> list[Match]:
    """What shows only in the logs of several nodes together."""
    releases: dict[str, list[str]] = {}
    for reading in readings:
        for release, nodes in reading.facts.releases.items():
            releases.setdefault(release, []).extend(node or reading.source for node in nodes)
    if len(releases) < 2 or any(len(reading.facts.releases) > 1 for reading in readings):
        return []
    return [_mixed(releases, 0, "", "")]


def _mixed(releases: Mapping[str, Sequence[str]], number: int, line: str, source: str) -> Match:
    note = "; ".join(
        f"{release} ({', '.join(dict.fromkeys(n for n in nodes if n)) or 'no name on the line'})"
        for release, nodes in sorted(releases.items())
    )
    return Match(
        entry=failures.known().by_id[failures.MIXED_NCCL], line_number=number, line=line,
        captured={"nccl": ", ".join(sorted(releases))}, source=source, note=note,
    )  # fmt: skip
