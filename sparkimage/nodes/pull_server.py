"""An image for the engines of nodes to pull: a registry that only gives.

It listens on a socket in a folder of ours; ssh leads a port of a node's loopback to it. Each node
has a password of its own. The kernel sends a blob from its page cache, where it is when another
node has just had it.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

from sparkimage.image.archive import Document
from sparkimage.image.store import CHUNK, MANIFEST, Layer, Store
from sparkimage.nodes.snapshot import STAGING

USER = "node"
HANDSHAKE = b"\x16"
"""The first byte of TLS, which engines try first."""
NO_TLS = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What tells them to go without: https://pkg.go.dev/net/http#ErrSchemeMismatch"""
BASE = "/v2/"
ASKED = re.compile(rf"{BASE}{STAGING}/(?:manifests|blobs)/(sha256:[0-9a-f]{{64}})")
FROM = re.compile(r"bytes=(\d+)-")

Moved = Callable[[int, bool], None]
"""Takes the bytes that went to a node, and whether it still waits for some."""


@dataclass(kw_only=True)
class PullClient:
    """A node that may pull."""

    moved: Moved
    word: str = field(
        default_factory=lambda: base64.b64encode(
            f"{USER}:{secrets.token_urlsafe(24)}".encode()
        ).decode()
    )
    """User and password as HTTP has them."""
    _wanted: list[int] = field(default_factory=list)
    """The places of the layers that it has asked for and has not got."""
    _change: threading.Condition = field(default_factory=threading.Condition)

    def config(self, registry: str) -> str:
        """What its docker command's config.json must say to pull from this address."""
        return json.dumps({"auths": {registry: {"auth": self.word}}})

    @contextmanager
    def wanting(self, place: int) -> Iterator[None]:
        """It asks for the layer at this place."""
        with self._change:
            self._wanted.append(place)
            self.moved(0, True)
        try:
            yield
        finally:
            with self._change:
                self._wanted.remove(place)
                self._change.notify_all()
                self.moved(0, bool(self._wanted))

    def turn(self, place: int) -> None:
        """Until it is this layer's turn to go on.

        An engine asks for many layers at once, and unpacks them from the lowest up: it gets them
        in this order, so that it can begin, and has whole ones should the link be cut.
        """
        with self._change:
            self._change.wait_for(lambda: place == min(self._wanted))

    def went(self, count: int) -> None:
        """So many bytes went to it."""
        with self._change:
            self.moved(count, True)


class Serving:
    """Gives these documents, and these layers of a store, to those that it has admitted."""

    def __init__(
        self, socket: Path, store: Store, documents: Iterable[Document], layers: Iterable[Layer]
    ) -> None:
        self.socket = socket
        self.documents = {one.digest: one.data for one in documents}
        self.layers = {
            layer.digest: (place, store.path(layer.digest), layer.size)
            for place, layer in enumerate(layers)
        }
        self.guests: dict[str, PullClient] = {}
        self._server = _Server(str(socket), type("Handler", (_Handler,), {"serving": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def admit(self, moved: Moved) -> PullClient:
        """One more that may pull."""
        guest = PullClient(moved=moved)
        self.guests[guest.word] = guest
        return guest

    def close(self) -> None:
        """No more."""
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: Serving

    def handle(self) -> None:
        # Whoever hangs up is no error of ours; why he does is seen where he was asked to pull.
        with suppress(OSError):
            if self.rfile.peek(1)[:1] == HANDSHAKE:  # type: ignore[attr-defined]
                self.wfile.write(NO_TLS)
                return
            super().handle()

    def do_GET(self) -> None:
        word = (self.headers["Authorization"] or "").removeprefix("Basic ")
        guest = self.serving.guests.get(word)
        asked = ASKED.fullmatch(self.path)
        digest = asked.group(1) if asked is not None else ""
        if guest is None:
            self._say(401, {"WWW-Authenticate": 'Basic realm="sparkimage"'})
        elif self.path == BASE:
            self._say(200)
        elif digest in self.serving.documents:
            data = self.serving.documents[digest]
            self._say(200, {"Content-Type": _type(data), "Docker-Content-Digest": digest}, data)
        elif digest in self.serving.layers:
            self._layer(guest, *self.serving.layers[digest])
        else:
            self._say(404)

    do_HEAD = do_GET  # noqa: N815

    def _layer(self, guest: PullClient, place: int, path: Path, size: int) -> None:
        wanted = FROM.match(self.headers["Range"] or "")
        begin = int(wanted.group(1)) if wanted is not None else 0
        try:
            file = path.open("rb")
        except OSError:
            self._say(404)
            return
        with file:
            if os.fstat(file.fileno()).st_size != size or begin > size:
                self._say(404)
                return
            rest = {"Content-Range": f"bytes {begin}-{size - 1}/{size}"} if begin else {}
            self._say(206 if begin else 200, {"Content-Length": str(size - begin), **rest})
            if self.command == "HEAD":
                return
            with guest.wanting(place):
                while begin < size:
                    guest.turn(place)
                    count = os.sendfile(self.connection.fileno(), file.fileno(), begin, CHUNK)
                    if count == 0:
                        # It shrank meanwhile: the engine sees that something is missing.
                        return
                    begin += count
                    guest.went(count)

    def _say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response_only(status)
        # An engine that kept it open would keep the way here open, too.
        headers = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _type(document: bytes) -> str:
    return str(json.loads(document).get("mediaType", MANIFEST))
