"""What the lab makes once and keeps for all its tests, and one process at a time may make."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sparkimage.core import paths

TOOLS = paths.home() / "lab-tools"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone") + os.environ.get("LAB_SUFFIX", "")
"""Of the processes that run tests at once, this one: what would change hands has its name. Two
checkouts that test on one machine at once tell theirs apart by LAB_SUFFIX."""


@contextmanager
def making(name: str) -> Iterator[None]:
    """No other process is within, with this name, meanwhile; it then finds what was made."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
