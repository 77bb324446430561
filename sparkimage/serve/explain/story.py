"""Which failure came first, and which ones only follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sparkimage.serve.explain import failures, turns
from sparkimage.serve.explain.failures import RANKS
from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.messages import LINES

CAUSES = ("root", "general", "transport", "outcome")
PASSED_S = 3600
"""What follows from a failure of the network is told within minutes (NCCL's timeout in torch is 600
seconds): what fails so long after it has another cause."""


def by_rank(matches: Iterable[Match]) -> list[Match]:
    """What began it first; then by time where all have one, else by line."""
    matches = list(matches)
    timed = all(match.time for match in matches)
    return sorted(
        matches,
        key=lambda match: (
            RANKS.index(match.entry.rank), match.time if timed else "", match.line_number,
        ),
    )  # fmt: skip


def follow(matches: Sequence[Match]) -> list[Match]:
    """The same, with the cause that an echo or a failure of the network follows from."""
    causes = [match for match in matches if match.entry.rank in CAUSES]
    return [replace(match, note=_note(match, causes)) for match in matches]


def _note(match: Match, causes: Sequence[Match]) -> str:
    if match.entry.rank in CAUSES or "follows from" in match.note:
        return match.note
    earlier = [cause for cause in causes if _is_before(cause, match)]
    if not earlier:
        return match.note
    cause = earlier[0]
    where = f"line {cause.line_number}" if cause.line_number else "all logs together"
    if cause.source != match.source:
        where = f"{cause.source}, {where}"
    if cause.time:
        where += f", {cause.time}"
    what = cause.title if cause.known else cause.line.strip()[:200]
    note = f"follows from: {what} ({where})"
    return f"{match.note}; {note}" if match.note else note


def _is_before(cause: Match, match: Match) -> bool:
    if cause.source == match.source:
        return cause.line_number < match.line_number
    return not (cause.time and match.time) or cause.time <= match.time


def passed(match: Match, matches: Iterable[Match], facts: Facts) -> bool:
    """Whether a failure that may pass was over: ranks worked after it, or the next failure came
    much later. That a request was let in is enough where nothing else failed."""
    if not match.entry.passing:
        return False
    after = [other for other in matches if other.line_number > match.last_number]
    if not after:
        is_echo = match.entry.rank == "echo"
        return match.last_number < (facts.worked if is_echo else facts.answered)
    next_ = min(after, key=lambda other: other.line_number)
    return match.last_number < facts.worked or _seconds(match.last_time, next_.time) > PASSED_S


def _seconds(earlier: str, later: str) -> float:
    """Between two times of a log, which have no year; 0 where one is none."""
    try:
        # A year with 29 February.
        first, second = (
            datetime.strptime(f"2024-{time}", "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            for time in (earlier, later)
        )
    except ValueError:
        return 0
    return (second - first).total_seconds()


def without_heads(matches: Sequence[Match]) -> list[Match]:
    """Without what only heads a message in which more is known."""
    return [
        match
        for match in matches
        if not match.entry.heads
        or not any(
            other.entry.rank in CAUSES and 0 < other.line_number - match.line_number <= LINES
            for other in matches
        )
    ]


def different(
    releases: Mapping[str, Sequence[str]], builds: Mapping[str, Sequence[str]]
) -> Mapping[str, Sequence[str]]:
    """What ranks loaded where it is not the same: releases of NCCL, else builds of one release;
    empty: it is the same."""
    return releases if len(releases) > 1 else builds if len(builds) > 1 else {}


def mixed(releases: Mapping[str, Sequence[str]], number: int, line: str, source: str) -> Match:
    """Ranks that loaded different releases or builds of NCCL."""
    note = "; ".join(
        f"{release} ({', '.join(dict.fromkeys(n for n in nodes if n)) or 'no name on the line'})"
        for release, nodes in sorted(releases.items())
    )
    return Match(
        entry=failures.known().by_id[failures.MIXED_NCCL], line_number=number, line=line,
        captured={"nccl": ", ".join(sorted(releases))}, source=source, note=note,
    )  # fmt: skip


def cold(facts: Facts, source: str) -> list[Match]:
    """Caches of compiled graphs into which the same was compiled more than once."""
    return [
        Match(
            entry=failures.known().by_id[failures.COLD_CACHE], line_number=lines[1], line=folder,
            captured={"folder": folder}, count=len(lines), source=source,
        )
        for folder, lines in facts.rebuilt.items()
        if len(lines) > 1
    ]  # fmt: skip


def with_nccl(match: Match, facts: Facts, known: failures.Failures, died: Match | None) -> Match:
    """The same, with the NCCL that was loaded and what is known of it; an echo with the worker that
    died, where one did."""
    # A preload is refused before any library prints its version.
    loaded = match.nccl or tuple(facts.nccl)
    versions = ", ".join(loaded)
    note = "this log does not show which NCCL was loaded; NCCL_DEBUG=INFO makes it do so"
    if loaded:
        note = f"NCCL that was loaded: {versions}"
        note += known.judge_nccl(loaded, match.entry.id, facts.nodes)
    captured = {**match.captured, "nccl": versions}
    if match.entry.rank == "echo" and died and died.captured.get("worker"):
        captured["worker"] = died.captured["worker"]
        note = f"{captured['worker']} ended (line {died.line_number}); {note}"
    return replace(match, captured=captured, note=note)


def not_after(unknown: Iterable[Match], found: Iterable[Match]) -> list[Match]:
    """The first faults; not what has no message after an echo, or only waited: it follows."""
    echoes = [match.line_number for match in found if match.entry.rank == "echo"]
    return [
        match
        for match in unknown
        if not (echoes and (bare := turns.BARE.search(match.line)))
        or (match.line_number < min(echoes) and not bare["waited"])
    ]
