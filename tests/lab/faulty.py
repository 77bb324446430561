"""A proxy in front of a real registry that fails in one chosen way, and else passes all on."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.lab.node import READY_S
from tests.lab.servers import LOOPBACK, answering

PIECE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as the proxy sees it."""

    method: str
    path: str
    length: int
    begin: int
    """Where its bytes begin in an upload."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer this instead of asking the registry."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """End the connection after so many bytes of the body, whether the registry got them or not;
    ``answered``: after the registry had it all, in place of its answer."""

    after: int = 0
    passed_on: bool = False
    answered: bool = False


Fault = Answer | Cut | None
Rule = Callable[[Asked], Fault]


@dataclass(kw_only=True)
class Proxy:
    """Its address, what it does, and what was asked."""

    address: str
    rule: Rule
    seen: list[Asked] = field(default_factory=list)


@contextmanager
def proxy(upstream: str, rule: Rule = lambda _: None) -> Iterator[Proxy]:
    """Serve until the context ends."""
    made = Proxy(address="", rule=rule)

    class Handler(_Handler):
        to, state = upstream, made

    with answering(Handler) as port:
        made.address = f"{LOOPBACK}:{port}"
        yield made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to: str
    state: Proxy

    def handle(self) -> None:
        # A TLS greeting is no request.
        with contextlib.suppress(ConnectionError, ValueError):
            super().handle()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        begin = (self.headers.get("Content-Range") or "0").partition("-")[0]
        asked = Asked(method=self.command, path=self.path, length=length, begin=int(begin))
        self.state.seen.append(asked)
        fault = self.state.rule(asked)
        if isinstance(fault, Answer):
            self.rfile.read(length)
            self._say(fault.status, dict(fault.headers), fault.body)
            return
        with contextlib.closing(http.client.HTTPConnection(self.to, timeout=READY_S)) as upstream:
            self._pass_on(upstream, fault, length)

    def _pass_on(
        self, upstream: http.client.HTTPConnection, fault: Cut | None, length: int
    ) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        if isinstance(fault, Cut) and not fault.answered:
            data = self.rfile.read(fault.after)
            if fault.passed_on:
                upstream.endheaders(data)
            upstream.close()
            self._hang_up()
            return
        upstream.endheaders()
        left = length
        while left and (data := self.rfile.read(min(left, PIECE))):
            upstream.send(data)
            left -= len(data)
        if left:
            # Whoever sent it was killed.
            self.close_connection = True
            return
        answer = upstream.getresponse()
        body = answer.read()
        if isinstance(fault, Cut):
            upstream.close()
            self._hang_up()
            return
        headers = {k: v for k, v in answer.getheaders() if k.lower() != "transfer-encoding"}
        self._say(answer.status, headers, body)

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        if status != 204 and not any(name.lower() == "content-length" for name in headers):
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        """A reset, as of a cable that was pulled."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        pass


def once(rule: Rule) -> Rule:
    """The rule, until it has failed something once."""
    lock = threading.Lock()
    done: list[Fault] = []

    def act(asked: Asked) -> Fault:
        with lock:
            if done:
                return None
            fault = rule(asked)
            if fault is not None:
                done.append(fault)
            return fault

    return act
