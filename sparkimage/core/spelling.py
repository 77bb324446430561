"""What a misspelled name may mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 80
"""Letters of a name that are compared: the time grows with their square."""


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The known name that ``name`` may be a misspelling of: so much of both, 0 to 1, is alike."""
    names = sorted(known)[:1000]
    return next(iter(difflib.get_close_matches(name[:LONGEST], names, n=1, cutoff=cutoff)), None)
