"""How a node's engine is asked: by a forwarded socket or by its command, and whatever it answers.

`ssh` is a program here that runs the command on this machine and forwards by a link; the engine is
an HTTP server that says what each test tells it to.
"""

from __future__ import annotations

import json
import select
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

import pytest

from sparkimage.config.inventory import Node
from sparkimage.core.errors import NodeError, UnreachableError
from sparkimage.nodes import engine_api, reading
from sparkimage.nodes.connection import Connection
from sparkimage.nodes.engine_api import EngineApi, Exchange, RefusedError
from sparkimage.nodes.snapshot import NodeSnapshot
from tests.unit import engine_29

SSH = """#!/bin/sh
case " $* " in *' -G '*) echo 'hostname n'; echo 'ciphers x'; exit ;; esac
for last; do [ "$before" != -L ] || [ ! -e {folder}/forwards ] || ln -sf {engine} "${{last%%:*}}"
before=$last; done
PATH={folder}:$PATH exec sh -c "$last"
"""
DOCKER = """#!{python}
import os, socket, sys, threading
assert sys.argv[1:] == ["system", "dial-stdio"], sys.argv
engine = socket.socket(socket.AF_UNIX)
try:
    engine.connect("{engine}")
except OSError as error:
    sys.exit(f"failed to open the raw stream connection: {{error}}")
def pump(read, write):
    while data := read():
        write(data)
threading.Thread(target=pump, args=(lambda: os.read(0, 65536), engine.sendall), daemon=True).start()
pump(lambda: engine.recv(65536), lambda data: os.write(1, data))
"""
SUDO = '#!/bin/sh\n[ "$1" = -n ] && shift && exec "$@"\n'
SCRIPT = """
echo '@@ ask {way} images containers'
read -r answer
echo "@@ answer"
echo "$answer"
printf '\\n@@ clock\\nnow=0\\n@@ end\\n'
read -r end && exit 255
"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def _answer(self) -> None:
        with self.engine.change:
            self.engine.asked.append(f"{self.command} {self.path}")
        answer = self.engine.answers.get(self.path.partition("?")[0])
        if answer is None:
            self.say({"message": f"no such thing: {self.path}"}, 404)
        elif callable(answer):
            answer(self)
        else:
            self.say(answer)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def say(self, document: object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, *lines: str, whole: bool = True) -> None:
        self.send_response_only(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line) + 2, line.encode() + b"\r\n"))
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Whoever asked has gone."""


@dataclass(kw_only=True)
class Engine:
    """An engine's answers by path, and what it was asked."""

    folder: Path
    answers: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    change: threading.Lock = field(default_factory=threading.Lock)

    @property
    def socket(self) -> Path:
        return self.folder / "engine"

    def remote(self, *, sudo: bool = False) -> Connection:
        node = Node(name="n", control="n", sudo=sudo)
        return Connection(node=node, sockets=self.folder, patience_s=20)

    def look(self, remote: Connection, way: str = "socket") -> NodeSnapshot:
        output = remote.open(["sh", "-c", SCRIPT.format(way=way)])
        return reading.read(output, remote.node, now=0.0)

    def api(self, remote: Connection) -> EngineApi:
        self.look(remote)
        return remote.engine


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine(folder=tmp_path)
    for name, text in (("ssh", SSH), ("docker", DOCKER), ("sudo", SUDO)):
        words = {"folder": tmp_path, "engine": made.socket, "python": sys.executable}
        (tmp_path / name).write_text(text if name == "sudo" else text.format(**words))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "forwards").touch()
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    made.answers |= {
        "/info": engine_29.INFO,
        "/images/json": [{"Id": engine_29.MANIFEST}, {"Id": "sha256:damaged"}],
        f"/images/{engine_29.MANIFEST}/json": engine_29.IMAGE,
        "/containers/json": [{"Id": "c1"}, {"Id": "removed"}],
        "/containers/c1/json": {"Id": "c1", "Name": "/vllm"},
    }
    with Server(str(made.socket), type("H", (Handler,), {"engine": made})) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        server.shutdown()


@pytest.fixture
def remote(engine: Engine) -> Iterator[Connection]:
    made = engine.remote()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("way", "sudo", "forwards", "dials"),
    [
        ("socket", False, True, False),
        ("socket", False, False, True),
        ("command", False, True, True),
        ("command", True, True, True),
    ],
)
def test_what_an_engine_says_by_socket_or_by_command(
    engine: Engine, way: str, sudo: bool, forwards: bool, dials: bool
) -> None:
    if not forwards:
        (engine.folder / "forwards").unlink()
    remote = engine.remote(sudo=sudo)
    snapshot = engine.look(remote, way)
    assert (snapshot.docker.version, snapshot.docker.store) == ("29.2.1", "containerd")
    assert [image.id for image in snapshot.images] == [engine_29.MANIFEST]
    assert [container["Name"] for container in snapshot.containers] == ["/vllm"]  # type: ignore[index]
    assert remote.dials is dials
    again = remote.look(["sh", "-c", SCRIPT.format(way=way)])
    assert "\n@@ answer\ncontainerd|/var/lib/docker\n" in again
    remote.close()


def test_no_engine_or_one_that_hangs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = engine.remote()
    hangs = threading.Event()
    engine.answers["/info"] = lambda _: hangs.wait(20)
    monkeypatch.setattr(engine_api, "INFO_S", 0.1)
    error = engine.look(remote).docker_error()
    assert error is not None
    assert error.message == "n: its Docker does not answer: it hangs"
    remote.close()
    engine.socket.unlink()
    error = engine.look(remote).docker_error()
    assert error is not None
    assert "its Docker does not answer: [Errno" in error.message
    hangs.set()
    remote.close()


def test_refusals_are_the_engines_own_words(engine: Engine, remote: Connection) -> None:
    api = engine.api(remote)
    with pytest.raises(RefusedError, match="no such thing: /images/x/json") as caught:
        api.image("x")
    assert caught.value.is_missing
    engine.answers["/images/x"] = lambda handler: handler.say({"message": "in use"}, 409)
    with pytest.raises(RefusedError, match=r"^in use$") as caught:
        api.delete("/images/x")
    assert not caught.value.is_missing
    api.remove("x", "y")
    assert engine.asked[-2:] == ["DELETE /images/x", "DELETE /images/y"]


def test_a_kept_connection_that_has_ended_is_replaced(engine: Engine, remote: Connection) -> None:
    api = engine.api(remote)

    def hang_up(handler: Handler) -> None:
        engine.answers["/x"] = {"fine": True}
        handler.close_connection = True

    engine.answers["/x"] = hang_up
    assert api.get("/x") == {"fine": True}
    engine.answers["/x"] = lambda handler: setattr(handler, "close_connection", True)
    with pytest.raises(RefusedError, match="error during connect: the engine hung up"):
        api.get("/x")


def test_an_engine_that_answers_too_late(engine: Engine, remote: Connection) -> None:
    api, hangs = engine.api(remote), threading.Event()
    engine.answers["/x"] = lambda _: hangs.wait(20)
    with pytest.raises(NodeError, match="n: no progress for 20 s: it hangs"):
        api.ask("GET", "/x", limit_s=0.1)
    hangs.set()


def test_a_connection_that_is_lost(engine: Engine, remote: Connection) -> None:
    api = engine.api(remote)

    def cut(handler: Handler) -> None:
        api.link.script.write(b"\n")
        handler.close_connection = True

    engine.answers["/x"] = cut
    with pytest.raises(UnreachableError, match="n cannot be reached: the connection was lost"):
        api.get("/x")


@pytest.mark.parametrize(
    ("lines", "whole", "error"),
    [
        (['{"status":"a"}', '{"status":"b"}'], True, ""),
        (['{"status":"a"}', '{"error":"no space left on device"}'], True, "no space left"),
        (['{"status":"a"}'], False, "the engine hung up"),
    ],
)
def test_messages_of_an_answer(
    engine: Engine, remote: Connection, lines: list[str], whole: bool, error: str
) -> None:
    exchange = Exchange(engine.api(remote))
    engine.answers["/x"] = lambda handler: handler.stream(*lines, whole=whole)

    def read() -> list[str]:
        with exchange.step():
            exchange.request("POST", "/x")
            return [each["status"] for each in exchange.messages()]

    if error:
        with pytest.raises(RefusedError, match=error):
            read()
    else:
        assert read() == ["a", "b"]
    exchange.close()


def test_an_archive_in_pieces(engine: Engine, remote: Connection) -> None:
    exchange, got = Exchange(engine.api(remote)), []

    def load(handler: Handler) -> None:
        while size := int(handler.rfile.readline(), 16):
            got.append(handler.rfile.read(size))
            handler.rfile.readline()
        got.append(b"end")
        handler.stream('{"stream":"Loaded image: x"}')

    engine.answers["/images/load"] = load
    with exchange.step():
        exchange.begin("/images/load?quiet=1")
        for piece in (b"one", b"", b"two"):
            exchange.write(piece)
        exchange.end()
        assert [each["stream"] for each in exchange.messages()] == ["Loaded image: x"]
    assert got == [b"one", b"two", b"end"]
    # Until the engine has closed the connection.
    select.select([exchange], [], [], 20)
    assert exchange.ended
    exchange.close()
    # One that breaks off has an end, too.
    broken = Exchange(engine.api(remote))
    with broken.step():
        broken.begin("/images/load?quiet=1")
        broken.write(b"three")
    broken.close()
    assert got[3:] == [b"three", b"end"]
