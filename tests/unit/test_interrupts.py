"""Interrupts: taken where nothing is half done, and never later than threads can be stopped."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from sparkimage.core import interrupts
from sparkimage.core.errors import NodeError
from sparkimage.core.interrupts import Interrupted
from sparkimage.nodes import concurrent
from sparkimage.nodes.concurrent import run_on_all


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass
class Work:
    """What hangs until it is stopped, where it can be."""

    name: str
    hangs: bool = False
    deaf: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    def act(self) -> None:
        if self.hangs:
            os.kill(os.getpid(), signal.SIGINT)
            self.stopped.wait()

    def stop(self) -> None:
        if not self.deaf:
            self.stopped.set()


def test_outside_of_a_block_an_interrupt_is_an_exception() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Interrupted):
            signal.raise_signal(number)


def test_a_block_ends_before_it_is_interrupted() -> None:
    steps = []

    def act() -> None:
        with interrupts.deferred() as block:
            signal.raise_signal(signal.SIGINT)
            with interrupts.deferred():
                signal.raise_signal(signal.SIGINT)
            steps.append("done")
            block.notes.append("the name has been moved")

    with pytest.raises(Interrupted) as interrupt:
        act()
    assert steps == ["done"]
    assert interrupt.value.__notes__ == ["the name has been moved"]
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_stops_all_that_goes_on() -> None:
    works = [Work("a"), Work("b", hangs=True), Work("c", hangs=True)]
    with pytest.raises(Interrupted):
        run_on_all(works, Work.act, stop=Work.stop)
    assert all(work.stopped.is_set() for work in works)


def test_an_interrupt_waits_for_no_thread_that_does_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrent, "STOP_S", 0.01)
    deaf = Work("b", hangs=True, deaf=True)
    with pytest.raises(Interrupted):
        run_on_all([Work("a"), deaf], Work.act, stop=Work.stop)
    assert not deaf.stopped.is_set()
    deaf.stopped.set()


def test_every_error_is_returned_and_a_defect_is_raised() -> None:
    def act(work: Work) -> None:
        if work.name == "a":
            raise NodeError("a: no space left on device")
        if work.name == "defect":
            raise ZeroDivisionError

    errors = run_on_all([Work("a"), Work("b")], act)
    assert {name: error.message for name, error in errors.items()} == {
        "a": "a: no space left on device"
    }
    other = Work("other")
    with pytest.raises(ZeroDivisionError):
        run_on_all([Work("defect"), other], act, stop=Work.stop)


def test_a_block_of_another_thread_defers_nothing() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with interrupts.deferred():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)
    leave.set()
    thread.join()
