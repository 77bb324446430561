"""A network cable that tests may cut: a TCP proxy on the loopback, which counts what passes.

What it forwards never enters Python (splice), unless a bit of it is to be flipped.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CHUNK = 1 << 20
"""Bytes in one pipe between two sockets."""
PACE_S = 0.05
"""A wire with a rate forwards this many seconds' worth at a time."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(kw_only=True)
class _Way:
    """One direction of a wire."""

    passed: int = 0
    flip_at: int | None = None
    cut_at: int | None = None
    hang_at: int | None = None
    free_at: float = 0.0
    """When the next byte may pass, on a wire with a rate."""

    def budget(self, rate: float | None) -> int:
        """The bytes that may pass before something happens."""
        limits = [CHUNK]
        limits += [max(1, int(rate * PACE_S))] if rate is not None else []
        limits += [
            at - self.passed for at in (self.flip_at, self.cut_at, self.hang_at) if at is not None
        ]
        return max(0, min(limits))


@dataclass(kw_only=True, eq=False)
class Wire:
    """Listens on ``address``:``port`` and forwards to ``target``, which may be set later.

    Whoever connects while the wire hangs is held in the line; while it is cut, he is refused.
    "Upstream" is from him who connects to the target.
    """

    address: str
    port: int = 0
    target: tuple[str, int] | None = None
    _state: threading.Condition = field(default_factory=threading.Condition)
    _up: _Way = field(default_factory=_Way)
    _down: _Way = field(default_factory=_Way)
    _rate: float | None = None
    _hangs: bool = False
    _cut: bool = True
    _socket: socket.socket | None = None
    _open: set[socket.socket] = field(default_factory=set)
    _threads: set[threading.Thread] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._bind()
        self.restore()

    @property
    def up(self) -> int:
        """Bytes that went upstream since ``forget``."""
        return self._up.passed

    @property
    def down(self) -> int:
        """Bytes that came back since ``forget``."""
        return self._down.passed

    @property
    def connections(self) -> int:
        """How many are open."""
        with self._state:
            return len(self._open) // 2

    def cut(self) -> None:
        """Close all connections, and refuse new ones until ``restore``."""
        with self._state:
            if not self._cut:
                self._cut = True
                assert self._socket is not None
                # Wakes accept; a bound socket that does not listen refuses.
                self._socket.shutdown(socket.SHUT_RDWR)
                self._socket.close()
                self._bind()
            for one in self._open:
                _reset(one)
            self._state.notify_all()

    def hang(self) -> None:
        """Forward nothing until ``restore``; every connection stays open."""
        with self._state:
            self._hangs = True

    @property
    def hangs(self) -> bool:
        """Whether it forwards nothing now."""
        return self._hangs

    def restore(self) -> None:
        """A good wire: listens, forwards, has no rate, and no fault ahead."""
        with self._state:
            self._hangs, self._rate = False, None
            for way in (self._up, self._down):
                way.flip_at = way.cut_at = way.hang_at = None
                way.free_at = 0.0
            self._state.notify_all()
            if not self._cut:
                return
            self._cut = False
            assert self._socket is not None
            self._socket.listen()
            self._run(self._accept, self._socket)

    def flip_after(self, count: int) -> None:
        """Flip one bit, once, of the byte after the next ``count`` ones upstream."""
        with self._state:
            self._up.flip_at = self._up.passed + count

    def cut_after(self, count: int) -> None:
        """Cut when ``count`` more bytes have gone upstream."""
        if count == 0:
            self.cut()
            return
        with self._state:
            self._up.cut_at = self._up.passed + count

    def hang_after(self, count: int) -> None:
        """Forward nothing more when ``count`` more bytes have gone upstream; they may go now."""
        with self._state:
            self._up.hang_at, self._hangs = self._up.passed + count, False
            self._state.notify_all()

    def rate(self, bytes_per_s: float | None) -> None:
        """Let no more pass in either direction, all connections together."""
        with self._state:
            self._rate = bytes_per_s
            self._state.notify_all()

    def forget(self) -> None:
        """Count from nothing."""
        with self._state:
            for way in (self._up, self._down):
                for name in ("flip_at", "cut_at", "hang_at"):
                    at = getattr(way, name)
                    setattr(way, name, None if at is None else at - way.passed)
                way.passed = 0

    def close(self) -> None:
        """Cut for good; every thread has ended afterwards."""
        self.cut()
        assert self._socket is not None
        self._socket.close()
        while threads := self._running():
            for thread in threads:
                thread.join()

    def _running(self) -> list[threading.Thread]:
        """Its threads; one that accepts may begin another one."""
        with self._state:
            return list(self._threads)

    def _bind(self) -> None:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((self.address, self.port))
        self.port = made.getsockname()[1]
        self._socket = made

    def _run(self, work: object, *given: object) -> None:
        def run() -> None:
            try:
                work(*given)  # type: ignore[operator]
            finally:
                with self._state:
                    self._threads.discard(thread)

        thread = threading.Thread(target=run, daemon=True, name=f"wire {self.port}")
        with self._state:
            self._threads.add(thread)
            thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            with self._state:
                if self._cut or self.target is None:
                    near.close()
                    continue
                far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self._open |= {near, far}
            self._run(self._carry, near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """One connection, to its end."""
        try:
            with self._state:
                self._state.wait_for(lambda: self._cut or not self._hangs)
                target = self.target
            assert target is not None
            far.connect(target)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._pump, args=(far, near, self._down), daemon=True)
            back.start()
            self._pump(near, far, self._up)
            back.join()
        except OSError:
            _reset(near)
        finally:
            with self._state:
                self._open -= {near, far}
            near.close()
            far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: _Way) -> None:
        """Forward until ``source`` ends, then end ``sink``'s input."""
        reading, writing = os.pipe()
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, CHUNK)
            while True:
                budget = self._budget(way)
                if budget == 0:
                    count = self._flip(source, sink)
                else:
                    count = os.splice(source.fileno(), writing, budget)
                    left = count
                    self._let_pass(way, count)
                    while left:
                        left -= os.splice(reading, sink.fileno(), left)
                if count == 0:
                    sink.shutdown(socket.SHUT_WR)
                    return
                self._passed(way, count)
        except OSError:
            # One side is gone: so is the other one.
            _reset(source)
            _reset(sink)
        finally:
            os.close(reading)
            os.close(writing)

    def _budget(self, way: _Way) -> int:
        """How much may be read now; 0 where the next byte is to be flipped."""
        with self._state:
            self._state.wait_for(lambda: self._cut or not self._hangs)
            budget = way.budget(self._rate)
            if budget == 0 and way.flip_at is None:
                # A cut that another connection has come to.
                raise ConnectionResetError
            return budget

    def _let_pass(self, way: _Way, count: int) -> None:
        """Wait for the rate, and while the wire hangs."""
        with self._state:
            if self._rate is not None:
                now = time.monotonic()
                way.free_at = max(now, way.free_at) + count / self._rate
                self._state.wait_for(
                    lambda: self._cut or self._rate is None, max(0.0, way.free_at - now)
                )
            self._state.wait_for(lambda: self._cut or not self._hangs)
            if self._cut:
                raise ConnectionResetError

    def _flip(self, source: socket.socket, sink: socket.socket) -> int:
        data = source.recv(1)
        with self._state:
            self._up.flip_at = None
        self._let_pass(self._up, len(data))
        sink.sendall(bytes(byte ^ 1 for byte in data))
        return len(data)

    def _passed(self, way: _Way, count: int) -> None:
        with self._state:
            way.passed += count
            if way.hang_at is not None and way.passed >= way.hang_at:
                way.hang_at, self._hangs = None, True
            due = way.cut_at is not None and way.passed >= way.cut_at
        if due:
            self.cut()


@contextmanager
def wire(address: str, target: tuple[str, int] | None = None) -> Iterator[Wire]:
    """A wire to ``target``; closed afterwards."""
    made = Wire(address=address, target=target)
    try:
        yield made
    finally:
        made.close()


def _reset(one: socket.socket) -> None:
    """End a connection that another thread may be reading from; that one closes it."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
