"""File locks between commands of this machine, and whether an owner of leftovers still runs.

A command that waits tells for which process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]
"""Prints a line for the user."""


def silent(_line: str) -> None:
    """A ``Say`` that prints nothing."""


def owner() -> str:
    """Host name and process id, "spark-1-4711": valid as a label's value and in a tag."""
    return f"{os.uname().nodename}-{os.getpid()}"


def has_ended(owner: str) -> bool:
    """Whether that process was on this machine and has ended; False for another machine's."""
    machine, _, pid = owner.rpartition("-")
    return machine == os.uname().nodename and not is_running(pid)


def is_running(pid: int | str) -> bool:
    """Whether a process of this machine has this id."""
    return Path("/proc", str(pid)).exists()


@contextmanager
def exclusive(path: Path, say: Say = silent, what: str = "") -> Iterator[None]:
    """Lock ``path`` exclusively; wait for other holders.

    ``path`` is a folder, or a file, which is created. The kernel releases the lock when the
    process ends. ``say`` gets one line when there is a holder: "waiting for process 12, which
    ``what``". Raises ``OSError``.
    """
    while True:
        with _opened(path) as handle:
            _lock(handle, fcntl.LOCK_EX, say, what)
            # The previous holder may have removed the file.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
                yield
                return


@contextmanager
def shared(path: Path, say: Say, what: str) -> Iterator[None]:
    """As ``exclusive``, but together with other shared holders."""
    with _opened(path) as handle:
        _lock(handle, fcntl.LOCK_SH, say, what)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, how: int, say: Say, what: str) -> None:
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for {_holder(handle)}, which {what}")
        fcntl.flock(handle, how)


def _holder(handle: int) -> str:
    """The processes that hold the lock: https://man7.org/linux/man-pages/man5/proc_locks.5.html.

    Only the inode is compared: on some file systems the kernel's device number is not that of
    ``stat``.
    """
    inode = str(os.fstat(handle).st_ino)
    pids = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            pids.add(int(words[4]))
    # A process of another PID namespace has the number 0.
    return ", ".join(f"process {pid}" for pid in sorted(pids - {0})) or "another process"
