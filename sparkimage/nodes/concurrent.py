"""Runs one function for many nodes at once, each in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import TypeVar

from sparkimage.core import interrupts
from sparkimage.core.errors import SparkError

STOP_S = 10.0
"""Seconds that threads get to end after an interrupt. They end with the process in any case, and
the next run cleans up what it left on a node."""
WAKE_S = 0.5
"""Seconds after which the main thread interrupts its wait. A signal just before a thread blocks on
a lock does not wake it, and Python's handler runs only when the thread does:
https://docs.python.org/3/library/signal.html#execution-of-python-signal-handlers."""
Errors = dict[str, SparkError]
"""Errors by node."""
Item = TypeVar("Item")


def run_on_all(
    items: Sequence[Item],
    act: Callable[[Item], None],
    *,
    name: Callable[[Item], str] = attrgetter("name"),
    stop: Callable[[Item], None] = lambda _item: None,
) -> Errors:
    """Run ``act`` for all items at once, each to its end; returns every error by ``name``.

    On an interrupt, or an exception other than ``SparkError``, ``stop`` is called for each item,
    and after at most ``STOP_S`` the interrupt or the exception is raised.
    """
    errors: Errors = {}
    if not items:
        return errors
    # Finished futures, and None for an interrupt.
    events: SimpleQueue[Future[None] | None] = SimpleQueue()
    # Not as a context manager, which would wait for threads that hang.
    pool = ThreadPoolExecutor(len(items))
    with interrupts.deferred(lambda: events.put(None)):
        names: dict[Future[None], str] = {}
        try:
            for item in items:
                future = pool.submit(act, item)
                names[future] = name(item)
                future.add_done_callback(events.put)
            while names:
                try:
                    ended = events.get(timeout=WAKE_S)
                except Empty:
                    continue
                if ended is None:
                    break
                try:
                    ended.result()
                except SparkError as error:
                    errors[names[ended]] = error
                del names[ended]
        finally:
            if names:
                for item in items:
                    stop(item)
                wait(names, STOP_S)
            pool.shutdown(wait=False)
    return errors
