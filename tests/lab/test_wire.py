"""A wire does what its faults say, to the byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.lab.node import READY_S, wait
from tests.lab.servers import LOOPBACK
from tests.lab.wire import Wire, wire

DATA = bytes(range(256)) * 4096


class Echo:
    """A server that keeps what comes, and sends it back."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.server = socket.create_server((LOOPBACK, 0))
        self.threads = [threading.Thread(target=self._serve, daemon=True)]
        self.threads[0].start()

    @property
    def address(self) -> tuple[str, int]:
        return (LOOPBACK, self.server.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._echo, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    self.got += data
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def line(echo: Echo) -> Iterator[Wire]:
    with wire(LOOPBACK, echo.address) as made:
        yield made


def connect(line: Wire) -> socket.socket:
    return socket.create_connection((line.address, line.port), timeout=READY_S)


def exchange(line: Wire, data: bytes = DATA) -> bytes:
    """Send ``data``, end, and return all that comes back."""
    with connect(line) as mine:
        sender = threading.Thread(target=_send, args=(mine, data), daemon=True)
        sender.start()
        found = bytearray()
        with suppress(ConnectionError):
            while more := mine.recv(1 << 16):
                found += more
        sender.join()
    return bytes(found)


def _send(mine: socket.socket, data: bytes) -> None:
    try:
        mine.sendall(data)
        mine.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_a_good_wire_forwards_and_counts(line: Wire) -> None:
    assert exchange(line) == DATA
    wait(lambda: line.connections == 0, "the connection is still there")
    assert (line.up, line.down) == (len(DATA), len(DATA))
    line.forget()
    assert (line.up, line.down) == (0, 0)


def test_a_cut_ends_what_is_open_and_refuses_what_comes(line: Wire) -> None:
    with connect(line) as mine:
        mine.sendall(b"a")
        assert mine.recv(1) == b"a"
        line.cut()
        assert ended(mine)
    with pytest.raises(ConnectionRefusedError):
        connect(line)
    line.restore()
    assert exchange(line, b"again") == b"again"


def ended(mine: socket.socket) -> bool:
    try:
        return mine.recv(1) == b""
    except ConnectionError:
        return True


def test_what_hangs_says_nothing_and_goes_on(line: Wire, echo: Echo) -> None:
    with connect(line) as mine, connect(line) as other:
        mine.sendall(b"a")
        assert mine.recv(1) == b"a"
        line.hang()
        before = bytes(echo.got)
        mine.sendall(b"b")
        other.sendall(b"c")
        for one in (mine, other):
            one.settimeout(0.2)
            with pytest.raises(TimeoutError):
                one.recv(1)
            one.settimeout(READY_S)
        assert bytes(echo.got) == before
        line.restore()
        assert mine.recv(1) == b"b"
        assert other.recv(1) == b"c"


def test_one_bit_is_flipped_once(line: Wire, echo: Echo) -> None:
    line.flip_after(100_000)
    exchange(line)
    differ = [n for n, (a, b) in enumerate(zip(DATA, echo.got, strict=True)) if a != b]
    assert differ == [100_000]
    assert (DATA[100_000] ^ echo.got[100_000]).bit_count() == 1
    echo.got.clear()
    assert exchange(line) == DATA


def test_a_cut_comes_after_so_many_bytes(line: Wire) -> None:
    line.cut_after(100_000)
    assert len(exchange(line)) <= 100_000
    assert line.up == 100_000
    with pytest.raises(ConnectionRefusedError):
        connect(line)
    line.restore()
    assert exchange(line) == DATA


def test_a_rate_holds_for_all_connections_together(line: Wire) -> None:
    line.rate(1_000_000)
    begin = time.monotonic()
    threads = [threading.Thread(target=exchange, args=(line, bytes(300_000))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin > 0.5
    line.rate(None)
    assert exchange(line) == DATA


def test_a_wire_to_nowhere_ends_what_comes(echo: Echo) -> None:
    with wire(LOOPBACK) as empty:
        with connect(empty) as mine:
            assert ended(mine)
        empty.target = echo.address
        assert exchange(empty, b"now") == b"now"
