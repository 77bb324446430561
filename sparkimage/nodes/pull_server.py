"""A read-only registry of one image, for the engines of nodes to pull from.

It listens on a Unix socket; ssh forwards a port of a node's loopback to it. Each node has a
password of its own. Blobs go out by sendfile, from the page cache where another node has just
pulled them.
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
from sparkimage.image.store import MANIFEST, Layer, Store
from sparkimage.image.streams import CHUNK
from sparkimage.nodes.snapshot import STAGING

USER = "node"
HANDSHAKE = b"\x16"
"""The first byte of a TLS handshake, which engines try first."""
NO_TLS = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""Makes them use plain HTTP: https://pkg.go.dev/net/http#ErrSchemeMismatch"""
BASE = "/v2/"
PATH = re.compile(rf"{BASE}{STAGING}/(?:manifests|blobs)/(sha256:[0-9a-f]{{64}})")
RANGE = re.compile(r"bytes=(\d+)-")

Sent = Callable[[int, bool], None]
"""Gets the bytes that were sent to a node, and whether it waits for more."""


@dataclass(kw_only=True)
class PullClient:
    """A node that may pull."""

    sent: Sent
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _requested: list[int] = field(default_factory=list)
    """The indexes of the layers that are on their way to it."""
    _change: threading.Condition = field(default_factory=threading.Condition)

    @property
    def credentials(self) -> str:
        """Its user and password, as of HTTP Basic authentication."""
        return base64.b64encode(f"{USER}:{self.password}".encode()).decode()

    def header(self, registry: str) -> str:
        """The header with which an engine can pull from this address:
        https://docs.docker.com/reference/api/engine/#section/Authentication"""
        login = {"username": USER, "password": self.password, "serveraddress": registry}
        return base64.urlsafe_b64encode(json.dumps(login).encode()).decode()

    @contextmanager
    def request(self, index: int) -> Iterator[None]:
        """A request for the layer with this index, as long as the block."""
        with self._change:
            self._requested.append(index)
            self.sent(0, True)
        try:
            yield
        finally:
            with self._change:
                self._requested.remove(index)
                self._change.notify_all()
                self.sent(0, bool(self._requested))

    def wait_turn(self, index: int) -> None:
        """Until this is the lowest layer that it has requested.

        An engine requests many layers at once, and unpacks them from the lowest up: in this order
        it can begin sooner, and has complete ones when the link is cut.
        """
        with self._change:
            self._change.wait_for(lambda: index == min(self._requested))

    def count(self, count: int) -> None:
        """So many bytes were sent to it."""
        with self._change:
            self.sent(count, True)


class PullServer:
    """Serves these documents, and these layers of a store, to the clients that it has admitted."""

    def __init__(
        self, socket: Path, store: Store, documents: Iterable[Document], layers: Iterable[Layer]
    ) -> None:
        self.socket = socket
        self.documents = {document.digest: document.data for document in documents}
        self.layers = {
            layer.digest: (index, store.path(layer.digest), layer.size)
            for index, layer in enumerate(layers)
        }
        self.clients: dict[str, PullClient] = {}
        self._server = _Server(str(socket), type("Handler", (_Handler,), {"registry": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def admit(self, sent: Sent) -> PullClient:
        """A new client, with a password of its own."""
        client = PullClient(sent=sent)
        self.clients[client.credentials] = client
        return client

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: PullServer

    def handle(self) -> None:
        # A client that hangs up is no error here; pull.sh reports why it did.
        with suppress(OSError):
            if self.rfile.peek(1)[:1] == HANDSHAKE:  # type: ignore[attr-defined]
                self.wfile.write(NO_TLS)
                return
            super().handle()

    def do_GET(self) -> None:
        credentials = (self.headers["Authorization"] or "").removeprefix("Basic ")
        client = self.registry.clients.get(credentials)
        path = PATH.fullmatch(self.path)
        digest = path.group(1) if path is not None else ""
        if client is None:
            self._answer(401, {"WWW-Authenticate": 'Basic realm="sparkimage"'})
        elif self.path == BASE:
            self._answer(200)
        elif digest in self.registry.documents:
            data = self.registry.documents[digest]
            self._answer(200, {"Content-Type": _type(data), "Docker-Content-Digest": digest}, data)
        elif digest in self.registry.layers:
            self._send_layer(client, *self.registry.layers[digest])
        else:
            self._answer(404)

    do_HEAD = do_GET  # noqa: N815

    def _send_layer(self, client: PullClient, index: int, path: Path, size: int) -> None:
        requested = RANGE.match(self.headers["Range"] or "")
        begin = int(requested.group(1)) if requested is not None else 0
        try:
            file = path.open("rb")
        except OSError:
            self._answer(404)
            return
        with file:
            if os.fstat(file.fileno()).st_size != size or begin > size:
                self._answer(404)
                return
            rest = {"Content-Range": f"bytes {begin}-{size - 1}/{size}"} if begin else {}
            self._answer(206 if begin else 200, {"Content-Length": str(size - begin), **rest})
            if self.command == "HEAD":
                return
            with client.request(index):
                while begin < size:
                    client.wait_turn(index)
                    count = os.sendfile(self.connection.fileno(), file.fileno(), begin, CHUNK)
                    if count == 0:
                        # The file shrank meanwhile: the engine sees that the blob is incomplete.
                        return
                    begin += count
                    client.count(count)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response_only(status)
        # A connection that an engine keeps open would keep the forwarded port open, too.
        headers = {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _type(document: bytes) -> str:
    return str(json.loads(document).get("mediaType", MANIFEST))
