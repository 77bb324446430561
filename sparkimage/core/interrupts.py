"""Ctrl-C and SIGTERM: an exception where one can be caught, a message where threads are at work.

An exception out of a signal handler may come between any two instructions of the main thread, also
where it holds a lock that other threads wait for. So whoever starts a process, or waits for
threads, defers the interrupt and takes it where nothing is half done:
https://docs.python.org/3/library/signal.html#handlers-and-exceptions.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, of which typer makes an exit code of its own."""


@dataclass
class Deferred:
    """Interrupts that wait for the end of a block."""

    on_interrupt: Callable[[], None] = lambda: None
    pending: bool = False
    notes: list[str] = field(default_factory=list)
    """What an interrupted user is told when the block is over."""


_outermost: list[Deferred] = []
"""The block that interrupts wait for now, or none."""


def install() -> None:
    """Handle SIGINT and SIGTERM from now on; for the main thread of the program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


def _handle(_number: int, _frame: FrameType | None) -> None:
    if not _outermost:
        raise Interrupted
    for block in _outermost:
        block.pending = True
        block.on_interrupt()


@contextmanager
def deferred(on_interrupt: Callable[[], None] = lambda: None) -> Iterator[Deferred]:
    """Let interrupts wait until the block has ended; then ``Interrupted`` is raised.

    ``on_interrupt`` is called from the signal handler, for a block that wants to end early: it may
    do no more than put something into a ``SimpleQueue``, whose ``put`` is reentrant. Within
    another such block, and in another thread than the main one, nothing is deferred here: the
    outer block decides.
    """
    block = Deferred(on_interrupt)
    if _outermost or threading.current_thread() is not threading.main_thread():
        yield block
        return
    _outermost.append(block)
    try:
        yield block
    finally:
        _outermost.clear()
        if block.pending:
            interrupt = Interrupted()
            for note in block.notes:
                interrupt.add_note(note)
            raise interrupt
