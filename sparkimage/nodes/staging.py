"""Brings layers into the engine of a node, under a staging name: it loads or pulls them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from sparkimage.core.errors import CommandError, NodeError
from sparkimage.core.progress import Moved
from sparkimage.image import archive
from sparkimage.image.archive import Part, Step
from sparkimage.image.store import Layer, Store
from sparkimage.nodes import engines, refusals, ssh
from sparkimage.nodes.engine_api import CLOSED, EngineApi, Exchange, RefusedError
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.nodes.snapshot import STAGING

if TYPE_CHECKING:
    from sparkimage.nodes.pull_server import PullServer

UNPACK_RATE = 10_000_000
"""Bytes of blobs a second that an engine unpacks at least; a slower one counts as hung."""
PULL_FROM = 32_000_000
"""Bytes from which on a pull is worth a connection of its own."""
NEARLY_ALL = 0.9
"""An overlay2 node pulls when it lacks this part of an image's bytes or more."""
UNPACKED = ("Pull complete", "Already exists")
"""What an engine says of a layer that is ready."""


# Load


def load(session: NodeSession, steps: Sequence[Step], store: Store, moved: Moved) -> None:
    """Let a node's engine load these steps, and prove the last one. Raises ``NodeError``."""

    def begin(step: Step, earlier: str) -> Load:
        exchange = Exchange(engine)
        with session.refused(Act.LOAD), exchange.step():
            exchange.begin("/images/load?quiet=1")
        return Load(sessions=[session], step=step, earlier=earlier, channel=exchange)

    with session.remote.bulk() as engine:
        _load(session, steps, store, moved, begin)
    session.prove(steps[-1].part)


def relay(
    sessions: Sequence[NodeSession], steps: Sequence[Step], store: Store, moved: Moved
) -> None:
    """Let the first node's engine load these steps, while the node relays them to the second one,
    and that one to the next; prove the last step.

    The others that got the image have a ``target`` afterwards, else a ``relay_error``. Raises
    ``NodeError`` for the first one.
    """
    first, *others = sessions
    said: dict[str, str] = {}
    hops: list[str] = []
    for remote in (session.remote for session in others):
        hop = remote.hop_to(remote.node.data or remote.node.control)
        hops += [*hop, remote.name, remote.docker]

    def begin(step: Step, earlier: str) -> Load:
        text = ssh.text("relay")
        words = ["sh", "-c", text, "relay", text, first.name, first.remote.docker, *hops]
        script = RemoteScript(first.remote, words, bulk=True)
        return RelayLoad(sessions=sessions, step=step, earlier=earlier, channel=script, said=said)

    _load(first, steps, store, moved, begin)
    for session in others:
        try:
            session.prove(steps[-1].part)
        except NodeError as error:
            session.relay_error = refusals.last_line(said.get(session.name, "")) or error.message
    first.prove(steps[-1].part)


def _load(
    session: NodeSession,
    steps: Sequence[Step],
    store: Store,
    moved: Moved,
    begin: Callable[[Step, str], Load],
) -> None:
    """Load steps one after the other. While one is unpacked the next one is sent already, but for
    its end. ``begin`` begins one, and gets the name of the one before it."""
    with contextlib.ExitStack() as loads:
        before: Load | None = None
        earlier = ""
        for step in steps:
            load = begin(step, earlier)
            loads.callback(load.channel.close)
            body, end = archive.partial(step, store)
            for piece in body:
                if before is not None and before.channel.ended:
                    before.finish()
                    before = None
                load.send(piece)
                session.count(len(piece), moved)
            if before is not None:
                before.finish()
            load.send(end)
            session.count(len(end), moved)
            session.layers_sent += len(step.send)
            before, earlier = load, step.part.name
        assert before is not None
        before.finish()


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load of a step that gets its archive from here, by the engine of the first of these nodes.
    The ``earlier`` name is not needed after it."""

    sessions: Sequence[NodeSession]
    step: Step
    earlier: str
    channel: Exchange | RemoteScript

    def send(self, piece: bytes) -> None:
        """Send a piece of the archive. Raises ``NodeError`` when it is not taken."""
        try:
            with self.channel.limit():
                self.channel.write(piece)
        except CLOSED:
            self.finish()
            first, why = self.sessions[0], "it hung up before it had read the archive"
            raise first.refusal(Act.LOAD, why) from None

    def finish(self) -> None:
        """Wait for its end. Raises ``NodeError``."""
        first = self.sessions[0]
        try:
            said = self._end(first.remote.patience_s + self.step.size / UNPACK_RATE)
            if refusals.UNPACK_FAILED in said:
                raise RefusedError(said)
        except RefusedError as error:
            # It has named the image all the same, which later looks as if it were complete.
            first.remote.engine.remove(self.step.part.name)
            raise first.refusal(Act.LOAD, str(error)) from None
        for session in self.sessions if self.earlier else ():
            session.remote.engine.remove(self.earlier)

    def _end(self, limit_s: float) -> str:
        """What the engine says of it. Raises ``NodeError`` and ``RefusedError``."""
        assert isinstance(self.channel, Exchange)
        with self.channel.step(limit_s):
            # An engine that refuses the archive does not read its end.
            with contextlib.suppress(OSError):
                self.channel.end()
            return "".join(str(each.get("stream", "")) for each in self.channel.messages())


@dataclass(frozen=True, kw_only=True)
class RelayLoad(Load):
    """A load of which the first node relays the archive. ``said``: what each node says of it."""

    said: dict[str, str]

    def _end(self, limit_s: float) -> str:
        assert isinstance(self.channel, RemoteScript)
        output = self.channel.rest(limit_s)
        if (lost := self.channel.lost()) is not None:
            raise lost
        own, code, name = self.sessions[0].name, "", ""
        for line in output.splitlines():
            if line.startswith("@@ of "):
                name, number = line.split()[2:4]
                self.said[name] = ""
                code = number if name == own else code
            elif name:
                self.said[name] += f"{line}\n"
        if code != "0":
            raise RefusedError(self.said.get(own, output))
        return self.said[own]


# Pull


def pulls(session: NodeSession, layers: Sequence[Layer]) -> bool:
    """Whether its engine gets the lacking layers of these sooner by a pull than by a load.

    It unpacks what it pulls without writing an archive first: docs/benchmarks.md. But overlay2
    would pull the layers again that came by load, which it does not know by their blobs; and
    what containerd's store still holds of a broken pull, layers or parts of them (for 8 hours:
    https://github.com/moby/moby/pull/48910), only a pull can use.
    """
    now, lacking = session.now, session.lacking
    size = sum(layers[index].size for index in lacking)
    if not now.docker.containerd:
        return size >= max(PULL_FROM, NEARLY_ALL * sum(layer.size for layer in layers))
    unpacked = {diff_id for image in now.images for diff_id in image.diff_ids}
    left = any(
        index not in lacking and layer.diff_id not in unpacked for index, layer in enumerate(layers)
    )
    partly = any(layers[index].digest in now.incomplete for index in lacking)
    return size >= PULL_FROM or left or partly


def pull(session: NodeSession, steps: Sequence[Step], server: PullServer, moved: Moved) -> str:
    """Let a node's engine pull these steps from here, and prove the last one. Returns why it cannot
    pull, for a reason that does not concern a load, else nothing. Raises ``NodeError``.

    Engines keep nothing of a pull that breaks off: each step is pulled as soon as its layers
    are unpacked, which keeps them; one after the other where that needs it: see ``engines``.
    """
    try:
        with session.remote.bulk() as engine:
            port = session.remote.remote_forward(server.socket, engine.link.to)
            Pulling(session, engine, steps, f"127.0.0.1:{port}", server, moved).run()
    except CommandError:
        return "its sshd forwards no port to here (AllowTcpForwarding)"
    except RefusedError as error:
        if refusals.is_engine_fault(str(error)):
            raise session.refusal(Act.PULL, str(error)) from None
        return refusals.last_line(str(error))
    session.prove(steps[-1].part)
    session.layers_sent = sum(len(step.send) for step in steps)
    return ""


class Pulling:
    """Pulls of one image, and of its steps, from a registry here."""

    def __init__(
        self,
        session: NodeSession,
        engine: EngineApi,
        steps: Sequence[Step],
        registry: str,
        server: PullServer,
        moved: Moved,
    ) -> None:
        self.session, self.engine, self.steps = session, engine, list(steps)
        self.repository, self.moved = f"{registry}/{STAGING}", moved
        self.left = sum(step.size for step in steps)
        self.earlier = ""
        self.exchange: Exchange | None = None
        self.headers = {"X-Registry-Auth": server.admit(self._sent).header(registry)}

    def run(self) -> None:
        """Pull, and keep each step under its name. Raises ``NodeError`` and ``RefusedError``."""
        docker, last = self.session.now.docker, self.steps[-1]
        at_once = engines.keeps_of_one_pull(docker.numbers, containerd=docker.containerd)
        while not at_once and len(self.steps) > 1:
            self._keep_first()
        for message in self._messages(last):
            step = self.steps[0]
            top = step.part.layers[-1].digest[7:19]
            if message.get("id") == top and message.get("status") in UNPACKED and step is not last:
                # All of it is there: this brings nothing but its name.
                with contextlib.suppress(RefusedError):
                    self._keep_first()
        self._keep(last)

    def _keep_first(self) -> None:
        step = self.steps.pop(0)
        for _ in self._messages(step):
            pass
        self._keep(step)

    def _keep(self, step: Step) -> None:
        """Give what was pulled the name of its step, in place of the one before it."""
        engine = self.session.remote.engine
        pulled = f"{self.repository}@{step.part.manifest.digest}"
        engine.tag(pulled, step.part.name)
        engine.remove(pulled, *([self.earlier] if self.earlier else []))
        self.earlier = step.part.name
        self.left -= step.size

    def _messages(self, step: Step) -> Iterator[Mapping[str, Any]]:
        """The messages of a pull, which ends with the connection."""
        query = urlencode({"fromImage": self.repository, "tag": step.part.manifest.digest})
        outer, self.exchange = self.exchange, Exchange(self.engine)
        exchange = self.exchange
        try:
            with exchange.step():
                exchange.request("POST", f"/images/create?{query}", **self.headers)
                yield from exchange.messages()
        finally:
            exchange.close()
            self.exchange = outer

    def _sent(self, count: int, waits: bool) -> None:
        """So much more was sent to it; or it ``waits`` for more."""
        self.session.count(count, self.moved)
        if self.exchange is not None:
            # When all has arrived it may still be unpacked.
            more = 0 if waits else self.left / UNPACK_RATE
            self.exchange.extend(self.session.remote.patience_s + more)


def pull_from(session: NodeSession, origin: str, part: Part, size: int) -> None:
    """Let a node's docker pull NAME@DIGEST, of ``size`` bytes, as its user may, and prove it.
    Raises ``NodeError``."""
    remote = session.remote
    words = [*remote.docker.split(), "pull", "--quiet", origin]
    done = remote.run(words, check=False, timeout_s=remote.patience_s + size / UNPACK_RATE)
    output = done.stdout + done.stderr
    if done.returncode != 0 and refusals.is_engine_fault(output):
        raise session.refusal(Act.PULL, output)
    if done.returncode != 0:
        raise NodeError(
            f"{session.name}: it could not pull the image: {refusals.last_line(output)}",
            hint="does the registry have this digest, and may the node pull it? "
            f"{remote.ssh} {remote.docker} pull {origin}",
        )
    session.adopt(origin, part)
    remote.engine.remove(origin)
