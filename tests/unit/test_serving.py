"""The registry that nodes pull from, as their engines speak to it."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from sparkimage.image.archive import Document
from sparkimage.image.store import Image, Store
from sparkimage.nodes.pull_server import PullClient, PullServer
from sparkimage.nodes.snapshot import STAGING
from tests.unit.oci_maker import Files, make_image

TLS = bytes.fromhex("16030100050100000100")
"""How a ClientHello begins; engines wait for an answer after it."""
DOCUMENT = Document.of(b'{"mediaType": "application/vnd.test"}')
LAYERS: list[Files] = [{"low": b"l" * 3_000_000}, {"high": b"h" * 10}]


class Connection(HTTPConnection):
    """To a socket in a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__("node")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


@dataclass(kw_only=True)
class Registry:
    """A server, and what it has counted as sent to its client."""

    server: PullServer
    image: Image
    store: Store
    client: PullClient
    sent: list[tuple[int, bool]]
    change: threading.Condition

    def ask(self, path: str, method: str = "GET", **headers: str) -> HTTPResponse:
        connection = Connection(self.server.socket)
        connection.request(method, path, headers=headers)
        return connection.getresponse()

    def take(self, path: str, method: str = "GET", **headers: str) -> HTTPResponse:
        """As the client."""
        login = json.loads(base64.urlsafe_b64decode(self.client.header("r")))
        assert login["serveraddress"] == "r"
        pair = base64.b64encode(f"{login['username']}:{login['password']}".encode()).decode()
        return self.ask(path, method, Authorization=f"Basic {pair}", **headers)

    def until(self, count: int) -> None:
        """Until so many bytes were sent, and the client waits for none: it may have them before."""

        def met() -> bool:
            return sum(size for size, _ in self.sent) == count and self.sent[-1] == (0, False)

        with self.change:
            assert self.change.wait_for(met, 20), self.sent

    def blob(self, index: int) -> str:
        return f"/v2/{STAGING}/blobs/{self.image.layers[index].digest}"

    def bytes(self, index: int) -> bytes:
        return self.store.path(self.image.layers[index].digest).read_bytes()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    store = Store.open(tmp_path / "store")
    image = make_image(store, LAYERS, packed="")
    server = PullServer(tmp_path / "s", store, [DOCUMENT], image.layers)
    sent: list[tuple[int, bool]] = []
    change = threading.Condition()

    def count(size: int, waits: bool) -> None:
        with change:
            sent.append((size, waits))
            change.notify_all()

    yield Registry(
        server=server, image=image, store=store, client=server.admit(count), sent=sent,
        change=change,
    )  # fmt: skip
    server.close()


def test_a_tls_handshake_is_refused(registry: Registry) -> None:
    connection = Connection(registry.server.socket)
    connection.connect()
    with connection.sock as sock:
        sock.sendall(TLS)
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("authorization", ["", "Basic ", "Basic bm9kZTpvdGhlcg=="])
def test_other_credentials_are_refused(registry: Registry, authorization: str) -> None:
    for path in ("/v2/", f"/v2/{STAGING}/manifests/{DOCUMENT.digest}", registry.blob(0), "/"):
        answer = registry.ask(path, Authorization=authorization)
        assert (answer.status, answer.read()) == (401, b"")
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_each_client_has_a_password_of_its_own(registry: Registry) -> None:
    clients = [registry.server.admit(lambda _count, _waits: None) for _ in range(9)]
    assert len({client.credentials for client in (*clients, registry.client)}) == 10


def test_manifests_and_blobs_by_digest(registry: Registry) -> None:
    assert registry.take("/v2/").status == 200
    for kind in ("manifests", "blobs"):
        path = f"/v2/{STAGING}/{kind}/{DOCUMENT.digest}"
        head, answer = registry.take(path, "HEAD"), registry.take(path)
        assert answer.read() == DOCUMENT.data
        for each in (head, answer):
            assert each.headers["Content-Type"] == "application/vnd.test"
            assert each.headers["Docker-Content-Digest"] == DOCUMENT.digest
            assert each.headers["Content-Length"] == str(len(DOCUMENT.data))
    answer = registry.take(registry.blob(0))
    assert answer.read() == registry.bytes(0)
    registry.until(len(registry.bytes(0)))
    assert all(waits for _, waits in registry.sent[:-1])


def test_the_rest_of_a_blob(registry: Registry) -> None:
    data = registry.bytes(0)
    answer = registry.take(registry.blob(0), Range="bytes=1000-")
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes 1000-{len(data) - 1}/{len(data)}"
    assert answer.read() == data[1000:]


def test_other_blobs_of_the_store_are_not_served(registry: Registry) -> None:
    other = registry.store.put_bytes(b"another image's", "application/octet-stream")
    for path in (
        f"/v2/{STAGING}/blobs/{other.digest}",
        f"/v2/other/blobs/{registry.image.layers[0].digest}",
        f"/v2/{STAGING}/blobs/../../etc/passwd",
        f"/v2/{STAGING}/tags/list",
    ):
        assert registry.take(path).status == 404


def test_a_layer_that_is_missing_or_truncated_is_not_found(registry: Registry) -> None:
    path = registry.store.path(registry.image.layers[0].digest)
    data = path.read_bytes()
    path.unlink()
    assert registry.take(registry.blob(0)).status == 404
    path.write_bytes(data[:-1])
    assert registry.take(registry.blob(0)).status == 404


def test_lower_layers_go_first(registry: Registry) -> None:
    low = registry.take(registry.blob(0))
    with registry.change:
        # The answer's head comes before the layer stands in line.
        assert registry.change.wait_for(lambda: registry.sent, 20)
    high = registry.take(registry.blob(1))
    # More than a socket holds: it waits for a reader.
    assert sum(count for count, _ in registry.sent) < len(registry.bytes(0))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(high.read()))
    reader.start()
    assert low.read() == registry.bytes(0)
    reader.join(20)
    assert got == [registry.bytes(1)]
    registry.until(len(registry.bytes(0)) + len(registry.bytes(1)))
    assert [count for count, _ in registry.sent if count][-1] == len(registry.bytes(1))


def test_a_client_that_hangs_up_blocks_no_other(registry: Registry) -> None:
    registry.take(registry.blob(0)).close()
    assert registry.take(registry.blob(1)).read() == registry.bytes(1)
