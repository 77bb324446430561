"""Human-readable sizes and times."""

from __future__ import annotations


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
