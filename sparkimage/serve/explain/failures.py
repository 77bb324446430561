"""The known failures. docs/troubleshooting.md is made from this table (``make schema``).

The words of every message are those of the sources named beside it.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparkimage.serve.explain.entries import Entry
from sparkimage.serve.explain.table import (  # fmt: skip
    arguments,
    docker,
    image,
    memory,
    model,
    nccl,
    network,
    running,
)

WEDGES = ("2.28.9",)
"""Releases of NCCL with which long generations over four nodes were seen to wedge."""

TABLE: tuple[Entry, ...] = (
    *docker.ENTRIES, *image.ENTRIES, *arguments.ENTRIES, *model.ENTRIES,
    *memory.ENTRIES, *network.ENTRIES, *nccl.ENTRIES, *running.ENTRIES,
)  # fmt: skip
"""The first sign of an entry on a line counts; a line may show several entries."""

BY_ID = {entry.id: entry for entry in TABLE}
MIXED_NCCL = BY_ID["mixed-nccl"]
COLD_CACHE = BY_ID["cold-cache"]


def judge_nccl(versions: Iterable[str]) -> str:
    """What is known of these versions of NCCL; empty: nothing."""
    releases = dict.fromkeys(version.split("+")[0] for version in versions)
    bad = [release for release in releases if release in WEDGES]
    return f" ({', '.join(bad)} is known to wedge long generations at TP=4)" if bad else ""
