"""The logs of several nodes as one story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparkimage.serve.explain import failures
from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.explain.story import by_rank, different, follow, mixed


def across(readings: Sequence[Reading]) -> list[Match]:
    """What shows only in the logs of several nodes together."""
    releases: dict[str, list[str]] = {}
    builds: dict[str, list[str]] = {}
    for reading in readings:
        for found, all_ in ((reading.facts.releases, releases), (reading.facts.builds, builds)):
            for version, nodes in found.items():
                all_.setdefault(version, []).extend(node or reading.source for node in nodes)
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
    return follow(by_rank([*common, *matches]))


def _ended(matches: Sequence[Match]) -> Sequence[Match]:
    """Those of one log; where all that it says is that a worker died, it is what became of that
    process, of which other logs have the echo."""
    if [match.entry.id for match in matches] != [failures.WORKER_DIED]:
        return matches
    (died,) = matches
    return [replace(died, entry=died.entry.model_copy(update={"rank": "outcome"}))]
