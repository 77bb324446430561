"""File locks between commands of this machine, and whether the owner of what was left still lives.

Who waits says for which process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]
"""Takes a line for whoever watches."""


def silent(_line: str) -> None:
    """A ``Say`` that says nothing."""


def owner() -> str:
    """This process, on this machine: "spark-1-4711". Fit for a label's value and for a tag."""
    return f"{os.uname().nodename}-{os.getpid()}"


def has_ended(owner: str) -> bool:
    """Whether that process was one of this machine and has ended.

    What is shared with another machine may have an owner there, who cannot be seen from here.
    """
    machine, _, pid = owner.rpartition("-")
    return machine == os.uname().nodename and not is_running(pid)


def is_running(pid: int | str) -> bool:
    """Whether a process of this machine has this id."""
    return Path("/proc", str(pid)).exists()


@contextmanager
def exclusive(path: Path, say: Say = silent, what: str = "") -> Iterator[None]:
    """Hold ``path`` alone for as long as the context lasts; wait for whoever holds it.

    ``path`` is a folder, or a file that is made where there is none. Nothing is left in it, and the
    kernel lets go when the process ends. ``say`` takes one line when there is somebody to wait
    for; ``what`` goes on "waiting for process 12, which". Raises ``OSError``.
    """
    while True:
        with _opened(path) as handle:
            _lock(handle, fcntl.LOCK_EX, say, what)
            # Whoever held it may have removed the file.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
                yield
                return


@contextmanager
def shared(path: Path, say: Say, what: str) -> Iterator[None]:
    """As ``exclusive``, together with all others that hold it shared."""
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
    """The processes that hold the lock, by https://man7.org/linux/man-pages/man5/proc_locks.5.html.

    The kernel numbers devices otherwise than ``stat`` on some file systems, so only the inode is
    compared.
    """
    inode = str(os.fstat(handle).st_ino)
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "->" not in words and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
            found.add(int(words[4]))
    # Of another PID namespace it has the number 0.
    named = ", ".join(f"process {pid}" for pid in sorted(found) if pid > 0)
    return named or "another process"
