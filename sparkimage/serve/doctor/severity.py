"""How bad a finding is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is. ``unknown``: it could not be examined, or there was nothing to examine."""

    UNKNOWN = "unknown"
    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


ORDER = list(Severity)


def worst(some: Iterable[Severity]) -> Severity:
    """The worst of them; ``UNKNOWN`` where there is none."""
    return max(some, key=ORDER.index, default=Severity.UNKNOWN)
