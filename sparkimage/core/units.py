"""Human-readable sizes and times."""

from __future__ import annotations

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def byte_count(size: str) -> int:
    """The bytes of a size such as ``107GB``, in powers of 1000."""
    return int(float(size[:-2]) * UNITS[size[-2:]])


def human(count: float) -> str:
    """A size in bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def clock(seconds: float) -> str:
    """A time in seconds."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}m {int(seconds) % 60:02}s"


def plural(count: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{count} {noun}{'s' * (count != 1)}"
