"""A node's engine, asked over its HTTP API through an ssh connection that is open already.

The connection forwards a socket here to the engine's; where that is forbidden, or the engine is not
at the usual place or needs sudo, `docker system dial-stdio` there takes its place. Paths name no
version of the API: 20.10 and 29 have none in common, and each engine answers as its newest.
https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from sparkimage.core.errors import NodeError, UnreachableError
from sparkimage.nodes import reading
from sparkimage.nodes.script import CLOSE_S, Limited, Link
from sparkimage.nodes.ssh import CONTAINERS, IMAGES, TRANSPORT, Remote

DIAL = ("system", "dial-stdio")
"""The docker command that connects its input and output to the engine's API."""
CLOSED = (OSError, ValueError, http.client.HTTPException)
"""What the standard library raises where a connection has ended."""
GRACE_S = 1.0
"""Seconds after the end of a request in which its ssh connection is seen to end, too."""
PIECE = 1 << 16
FAILED = 400
"""The status from which on an answer is an error."""
MISSING = 404
CONNECT_ERROR = "error during connect"
"""How docker's own command begins what it says then."""
INFO_S = 20.0
"""Seconds that an engine gets to say what it is; it hangs when it does not."""
LAUNCHED = "dev.sparkimage.launch"
"""The label of the containers of `launch`."""


class RefusedError(Exception):
    """An engine's error, in its own words; or why there is no engine that answers."""

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.is_missing = status == MISSING
        """It does not have what was named."""


class EngineApi:
    """The engine of a node, through one of its ssh connections."""

    def __init__(self, remote: Remote, link: Link) -> None:
        self.remote, self.link = remote, link
        self._kept: Exchange | None = None

    def get(self, path: str, **query: str) -> Any:
        return self.ask("GET", path, query)

    def delete(self, path: str) -> Any:
        return self.ask("DELETE", path)

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        limit_s: float | None = None,
    ) -> Any:
        """What the engine answers, as JSON; it has ``limit_s``, by default the node's patience.

        Raises ``RefusedError``; ``UnreachableError`` and ``NodeError`` as ``Remote.run``.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        while True:
            kept, self._kept = self._kept, None
            exchange = kept or Exchange(self)
            try:
                with exchange.limit(limit_s):
                    exchange.request(method, target, body)
                    answer = exchange.answer()
            except CLOSED:
                again = kept is not None or (not exchange.timed_out and self._dials_instead())
                error = None if again else exchange.ended_early()
                exchange.close()
                if error is not None:
                    raise error from None
                continue
            except RefusedError:
                self._kept = exchange
                raise
            self._kept = exchange
            return answer

    def tag(self, image: str, name: str) -> None:
        """Give an image a name. Raises as ``ask``."""
        self.ask("POST", _tagging(image, name))

    def remove(self, *images: str) -> None:
        """Remove these names or images where that is possible. Raises as ``ask`` but for what the
        engine says."""
        for image in images:
            with contextlib.suppress(RefusedError):
                self.delete(f"/images/{image}")

    def images(self) -> list[dict[str, Any]]:
        """All images, briefly. Raises as ``ask``."""
        return list(self.get("/images/json", all="1"))

    def image(self, name: str) -> dict[str, Any]:
        """An image, as `docker image inspect` shows it. Raises as ``ask``."""
        return dict(self.get(f"/images/{name}/json"))

    def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers with a label, briefly. Raises as ``ask``."""
        return list(self.get("/containers/json", all="1", filters=json.dumps({"label": [label]})))

    def prove(self, image: str, label: str) -> None:
        """Create a container of an image, with this label, and remove it. Raises as ``ask``."""
        container = {
            "Image": image, "Entrypoint": ["/proof"], "Labels": {label: "1"},
            "HostConfig": {"NetworkMode": "none"},
        }  # fmt: skip
        made = self.ask("POST", "/containers/create", body=container)
        self.delete(f"/containers/{made['Id']}")

    def close(self) -> None:
        """Close the connection that is kept for the next question."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _dials_instead(self) -> bool:
        """Whether the command takes the place of the forwarded socket, which has led nowhere."""
        untried = self.remote.dials is None
        self.remote.dials = self.remote.dials or untried
        return untried


class Exchange(Limited):
    """A connection to an engine, for one request after the other."""

    def __init__(self, api: EngineApi) -> None:
        super().__init__(api.remote)
        self.link = api.link
        self.http = http.client.HTTPConnection("docker")
        # What has ended is not opened again.
        self.http.auto_open = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_sending = False
        self.watch()

    @contextmanager
    def step(self, limit_s: float | None = None) -> Iterator[None]:
        """``limit``; raises ``RefusedError``, or the node's error, where the connection ends."""
        try:
            with self.limit(limit_s):
                yield
        except CLOSED:
            raise self.ended_early() from None

    @property
    def ended(self) -> bool:
        """The answer has begun, or the connection has ended."""
        return self.http.sock is None or bool(select.select([self.http.sock], [], [], 0)[0])

    def fileno(self) -> int:
        """The file descriptor of its connection."""
        return int(self.http.sock.fileno())

    def request(self, method: str, target: str, body: Any = None, **headers: str) -> None:
        """Send a request; ``body`` as JSON. Raises what is in ``CLOSED``."""
        self.connect()
        data = json.dumps(body).encode() if body is not None else None
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        self.http.request(method, target, data, headers)

    def begin(self, target: str) -> None:
        """Begin to send an archive. Raises what is in ``CLOSED``."""
        self.connect()
        self.http.putrequest("POST", target)
        self.http.putheader("Content-Type", "application/x-tar")
        self.http.putheader("Transfer-Encoding", "chunked")
        self.http.endheaders()
        self._is_sending = True

    def write(self, piece: bytes) -> None:
        """Send a piece of the archive. Raises what is in ``CLOSED``."""
        # An empty one would end it.
        if piece:
            self.http.send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end(self) -> None:
        """End the archive. Raises what is in ``CLOSED``."""
        self._is_sending = False
        self.http.send(b"0\r\n\r\n")

    def answer(self) -> Any:
        """The answer to a request, as JSON. Raises ``RefusedError``, and what is in ``CLOSED``."""
        response = self.http.getresponse()
        data = response.read()
        self._check(response.status, data)
        return json.loads(data) if data else None

    def messages(self) -> Iterator[Mapping[str, Any]]:
        """The messages of an answer, as they come. Raises as ``answer``."""
        response, rest = self.http.getresponse(), b""
        if response.status >= FAILED:
            self._check(response.status, response.read())
        while piece := response.read1(PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            for message in map(json.loads, lines):
                if "error" in message:
                    raise RefusedError(str(message["error"]))
                yield message

    def ended_early(self) -> Exception:
        """Why it ended before its answer: ``RefusedError``, or an error of the node's."""
        if self.timed_out:
            return self.remote.timed_out("progress")
        # Either ends a moment after what goes through it.
        script, holder = self._process, self.link.script
        with contextlib.suppress(subprocess.TimeoutExpired):
            (script or holder.process).wait(GRACE_S)
        errors = "the engine hung up"
        if script is not None:
            script.kill()
            assert script.stderr is not None
            errors = script.stderr.read().decode("utf-8", "replace").strip() or errors
        if script.returncode == TRANSPORT if script is not None else holder.ended:
            return self.remote.unreachable(errors if script else holder.errors(), bulk=holder.bulk)
        return RefusedError(f"{CONNECT_ERROR}: {errors}")

    def stop(self) -> None:
        if self.http.sock is not None:
            with contextlib.suppress(OSError):
                self.http.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; what the engine has not finished it gives up.

        An archive is ended first where it broke off: containerd keeps for a day what comes of one
        whose connection ends.
        """
        if self._is_sending and not self.timed_out:
            with contextlib.suppress(*CLOSED), self.limit(CLOSE_S):
                self.end()
                self.http.getresponse().read()
        self.unwatch()
        self.stop()
        self.http.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()

    def connect(self) -> None:
        """Connect with the engine, if that is not done. Raises what is in ``CLOSED``."""
        if self.http.sock is not None:
            return
        if self.remote.dials:
            words = [*self.remote.docker.split(), *DIAL]
            self.http.sock, there = socket.socketpair()
            with there:
                self._process = self.remote.start(words, to=self.link.to, stream=there)
        else:
            self.http.sock = socket.socket(socket.AF_UNIX)
            self.http.sock.connect(str(self.link.engine))

    def _check(self, status: int, data: bytes) -> None:
        if self.remote.dials is None:
            self.remote.dials = False
        if status < FAILED:
            return
        text = data.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = str(json.loads(data)["message"])
        raise RefusedError(text, status)


def tag_requests(names: Mapping[str, str]) -> bytes:
    """The requests that give images these names, one after the other; the engine closes the
    connection when it has answered all."""
    requests = (
        f"POST {_tagging(image, name)} HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n"
        for name, image in names.items()
    )
    return ("\r\n".join(requests) + "Connection: close\r\n\r\n").encode()


def _tagging(image: str, name: str) -> str:
    repository, _, tag = name.rpartition(":")
    return f"/images/{image}/tag?{urlencode({'repo': repository, 'tag': tag})}"


def describe(
    api: EngineApi, parts: Collection[str], answer: Callable[[bytes], None]
) -> Iterator[str]:
    """What a snapshot tells of an engine, in parts as of ``data/node/snapshot.sh``, with a JSON
    document a line. The script gets an ``answer``: its kind of store and its root folder.

    An image whose content is damaged is left out, and a container that is removed at this moment.
    Raises ``UnreachableError`` and ``OSError`` where the connection ends.
    """
    yield "@@ docker"
    try:
        line = json.dumps(api.ask("GET", "/info", limit_s=INFO_S))
    except UnreachableError:
        raise
    except (RefusedError, NodeError) as error:
        yield str(error) if isinstance(error, RefusedError) else reading.LATE
        answer(b"\n")
        return
    yield line
    engine = reading.engine([line])
    answer(f"{engine.store}|{engine.root}\n".encode())
    if IMAGES in parts:
        yield "@@ images"
        with contextlib.suppress(RefusedError):
            for id in sorted({image["Id"] for image in api.images()}):
                with contextlib.suppress(RefusedError):
                    yield json.dumps(api.image(id))
    if CONTAINERS in parts:
        yield "@@ containers"
        try:
            for container in api.containers(LAUNCHED):
                with contextlib.suppress(RefusedError):
                    yield json.dumps(api.get(f"/containers/{container['Id']}/json"))
        except RefusedError as error:
            yield f"@failed {error}"
