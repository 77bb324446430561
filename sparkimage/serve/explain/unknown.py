"""A failure that no entry knows, told with where it began."""

from __future__ import annotations

from collections.abc import Sequence

from sparkimage.serve.explain import failures, places
from sparkimage.serve.explain.firstfault import Fault
from sparkimage.serve.explain.found import Match


def as_match(
    known: failures.Failures, same: Sequence[Fault], source: str, id_: str = failures.FIRST_FAULT
) -> Match:
    """The first of the same faults of several processes, told as the entry ``id_``."""
    first = same[0]
    processes = ", ".join(dict.fromkeys(f.line.process for f in same if f.line.process))
    place = None
    if id_ == failures.FIRST_FAULT:
        place = places.find(known.places, first.frames, first.line.text)
    if place and place.title and first.frames and not place.has_file(first.frames[-1]):
        # What was called in it failed.
        place = place.model_copy(update={"title": ""})
    kind = None
    if id_ == failures.FIRST_FAULT and first.frames:
        kind = next((kind for kind in known.kinds if kind.says.search(first.line.text)), None)
    said = first.message.lines if first.message else []
    seen = [f"in {processes}"] if processes else []
    if first.frames and not first.frames[-1].startswith("nccl/"):
        seen.append(f"raised in {places.PACKAGES.sub('', first.frames[-1])}")
    return Match(
        entry=known.by_id[id_], line_number=first.number,
        line=first.line.text, captured={}, count=len(same), source=source,
        process=first.line.process, time=first.line.time,
        near=(*first.before, first.line.text, *(said or first.after)),
        message=said,
        note=", ".join(seen),
        place=place, kind=kind,
    )  # fmt: skip
