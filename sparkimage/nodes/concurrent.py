"""One act for many at once: on nodes, on connections, on chains of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import TypeVar

from sparkimage.core.errors import SparkError

Errors = dict[str, SparkError]
"""What went wrong, by node."""
Item = TypeVar("Item")


def together(
    items: Sequence[Item],
    act: Callable[[Item], None],
    *,
    name: Callable[[Item], str] = attrgetter("name"),
    stop: Callable[[Item], None] = lambda _item: None,
) -> Errors:
    """Do ``act`` for all items at once and to the end; returns every error.

    When this is interrupted, ``stop`` makes an end of what is going on with an item.
    """
    errors: Errors = {}

    def one(item: Item) -> None:
        try:
            act(item)
        except SparkError as error:
            errors[name(item)] = error

    if items:
        with ThreadPoolExecutor(len(items)) as pool:
            try:
                for done in [pool.submit(one, item) for item in items]:
                    done.result()
            except BaseException:
                # Not handled: the pool waits for its threads.
                for item in items:
                    stop(item)
                raise
    return errors
