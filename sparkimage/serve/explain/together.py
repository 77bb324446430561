"""The logs of several nodes as one story."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sparkimage.serve.explain import failures
from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.explain.story import CAUSES, by_rank, different, follow, mixed


def across(readings: Sequence[Reading]) -> list[Match]:
    """What shows only in the logs of several nodes together."""
    releases: dict[str, list[str]] = {}
    builds: dict[str, list[str]] = {}
    for reading in readings:
        for found, all_ in ((reading.facts.releases, releases), (reading.facts.builds, builds)):
            for version, nodes in found.items():
                named = [node for node in nodes if node]
                all_.setdefault(version, []).extend(named or [reading.source])
    unlike = different(releases, builds)
    alone = (different(one.facts.releases, one.facts.builds) for one in readings)
    return [mixed(unlike, 0, "", "")] if unlike and not any(alone) else []


def in_order(readings: Sequence[Reading]) -> list[Match]:
    """All failures of several logs as one story: what it began with first, echoes after."""
    common = across(readings)
    told = {match.entry.id for match in common}
    matches = [
        match
        for reading in readings
        for match in _ended(reading.matches())
        if match.entry.id not in told
    ]
    found = follow(by_rank([*common, *matches]))
    if any(match.entry.rank in CAUSES for match in found):
        return found
    silent = [reading for reading in readings if not reading.matches()]
    return [_with_silent(match, silent) for match in found]


def _with_silent(match: Match, silent: Sequence[Reading]) -> Match:
    """An echo with the log of the rank that it names, where that shows nothing: who is killed from
    outside writes no last line."""
    for reading in silent:
        nodes = [node for named in reading.facts.releases.values() for node in named if node]
        for node in nodes:
            if re.search(rf"\b{re.escape(node)}\b", match.line):
                note = f"the log of {node} ({reading.source}) shows no failure: it was killed"
                return replace(match, note=note)
    return match


def _ended(matches: Sequence[Match]) -> Sequence[Match]:
    """Those of one log; where all that it says is that a worker died, it is what became of that
    process, of which other logs have the echo."""
    if [match.entry.id for match in matches] != [failures.WORKER_DIED]:
        return matches
    (died,) = matches
    return [replace(died, entry=died.entry.model_copy(update={"rank": "outcome"}))]
