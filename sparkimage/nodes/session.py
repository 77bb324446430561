"""One node that gets an image: what it has, what is sent to it, and what may go wrong."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import CommandError, NodeError, SparkError, UnreachableError
from sparkimage.core.process import Completed
from sparkimage.core.program import program
from sparkimage.core.progress import Moved
from sparkimage.core.units import human
from sparkimage.image import archive
from sparkimage.image.archive import Part, Step
from sparkimage.image.store import Image, Layer, Store
from sparkimage.nodes import delta, engines, fabric, reading, refusals, snapshot, ssh
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import TRANSPORT, RemoteScript
from sparkimage.nodes.snapshot import SKEW_S, NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import IMAGES, Remote, RemoteForward

if TYPE_CHECKING:
    from sparkimage.nodes.pull_server import PullServer

UNPACK_RATE = 10_000_000
"""Bytes of blobs a second that an engine unpacks at least; a slower one counts as hung."""
SPARE = 500_000_000
"""Bytes that stay free on a node's disk beside what the image needs."""
ATTEMPTS = 3
PULL_FROM = 32_000_000
"""Bytes from which on a pull is worth a connection of its own."""
NEARLY_ALL = 0.9
"""An overlay2 node pulls when it lacks this part of an image's bytes or more."""


@dataclass(kw_only=True, eq=False)
class NodeSession:
    """A node, and what it has got of an image."""

    remote: Remote
    seen: NodeSnapshot | None = None
    """The latest snapshot."""
    warnings: list[str] = field(default_factory=list)
    """From the latest snapshot."""
    repaired: list[str] = field(default_factory=list)
    """What was repaired there without being asked for."""
    lacking: list[int] = field(default_factory=list)
    """The indexes of the image's layers that it lacks."""
    expected: int = 0
    """Bytes that will have been sent to it in all."""
    proven: Sequence[str] = ()
    """What more was proven there."""
    target: str = ""
    """The image's id on this node, once it is there and proven."""
    sent: int = 0
    """Bytes sent to it."""
    layers_sent: int = 0
    source: str | None = None
    """What else it got them from: a node, or a registry's repository."""
    distrusts_content: bool = False
    """containerd listed blobs that it had lost: only those of its images count."""
    relay_error: str = ""
    """Why a relay did not bring it the image."""

    @property
    def name(self) -> str:
        return self.remote.name

    @property
    def now(self) -> NodeSnapshot:
        """The latest snapshot."""
        assert self.seen is not None
        return self.seen

    def open(
        self, *parts: str, lock: bool = False, owner: str = "", model: str = ""
    ) -> NodeSnapshot:
        """Connect with the script that takes a snapshot with these parts. ``lock`` keeps other
        runs away until the connection ends, and tells them ``owner``.

        Raises ``UnreachableError`` or ``NodeError``; with ``IMAGES`` among the parts also
        ``EngineError`` when its Docker cannot be used.
        """
        output = self.remote.open(self.remote.snapshot(*parts, lock=lock, owner=owner, model=model))
        self.seen = reading.read(output, self.remote.node, now=self.remote.answered_at)
        holder = self.now.lock.removeprefix("busy: ")
        if self.now.lock.startswith("busy") and holder != owner:
            raise NodeError(
                f"{self.name}: another run changes its images: {holder or 'of an unknown user'}",
                hint="wait for it; the lock of a run that was killed ends within a minute",
            )
        slow = fabric.slow(self.now)
        self.warnings = [slow] if slow is not None else []
        if abs(self.now.skew_s or 0) > SKEW_S:
            self.warnings.append(
                f"{self.name}: its clock is {self.now.skew_s:+.0f} s off: there, timedatectl"
            )
        if self.now.lock.startswith("none"):
            self.warnings.append(f"{self.name}: not locked: {self.now.lock[6:]}")
        if IMAGES in parts and (error := self.now.docker_error()) is not None:
            raise error
        return self.now

    def look(self, *parts: str, model: str = "") -> NodeSnapshot:
        """A new snapshot of a connected node; ``now`` stays as it is.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        output = self.remote.run(self.remote.snapshot(*parts, model=model)).stdout
        return reading.read(output, self.remote.node, now=time.time())

    def check(self, image: Image) -> None:
        """Whether the image is for its architecture. Raises ``NodeError``."""
        arch = image.platform.partition("/")[2]
        if self.now.arch != arch:
            raise NodeError(
                f"{self.name}: the image is for {arch}, the node is {self.now.arch}",
                hint="build a variant for the node's platform, or leave the node out",
            )

    def has(self, image: Image) -> NodeImage | None:
        """The image itself, under whatever name, if it is complete there."""
        config = image.manifest["config"]["digest"]
        local = self.now.by_id(image.digest if self.now.docker.containerd else config)
        # containerd's store names an image before it has unpacked it.
        diff_ids = tuple(layer.diff_id for layer in image.layers)
        return local if local is not None and local.diff_ids == diff_ids else None

    def missing(self, parts: Sequence[Part], known: Mapping[str, Iterable[str]]) -> list[int]:
        """The indexes of the layers that it lacks of the last of ``parts``; ``known`` are the
        layers of other images by their manifests."""
        layers = parts[-1].layers
        if not self.now.docker.containerd:
            return delta.missing(layers, chains=self.now.chains(), blobs=())
        own = {part.manifest.digest: [layer.digest for layer in part.layers] for part in parts}
        now = replace(self.now, content=None) if self.distrusts_content else self.now
        return delta.missing(layers, chains=None, blobs=now.blobs({**known, **own}))

    def check_space(self, blobs: int, unpacked: int, largest: int) -> None:
        """Whether so many bytes fit: of blobs, of their files, of the largest step's blobs.

        Both stores keep the files; containerd's keeps the blobs as well, overlay2 has up to two
        steps' in its tmp folder. Raises ``NodeError``.
        """
        need = unpacked + (blobs if self.now.docker.containerd else min(blobs, 2 * largest)) + SPARE
        tight = min(self.now.image_disks, key=lambda disk: disk.free, default=None)
        if tight is not None and tight.free < need:
            raise NodeError(
                f"{self.name}: {tight.at} has {human(tight.free)} free, the image needs "
                f"{human(need)}",
                hint=f"free some: {program()} gc; there: docker system df",
            )

    def remove_staged(self) -> None:
        """Remove all that is under staging names there, so that all layers are sent again.

        Asks docker itself: a snapshot leaves out damaged images. It lists an image's references by
        digest only once its tags are gone, and docker 29 on a terminal only with ``--all``.
        """
        form = "{{.Repository}}:{{.Tag}}\n{{.Repository}}@{{.Digest}}"
        words = [*self.remote.docker.split(), "image", "ls", "--all", "--digests", "--format", form]
        removed: set[str] = set()
        while staged := [
            name
            for name in self.remote.run(words, check=False).stdout.split()
            if snapshot.is_staging(name) and name not in removed
        ]:
            self.clean(staged)
            removed |= set(staged)
        if removed:
            self.repaired.append(f"{self.name}: removed staged layers that were damaged")

    def clean(self, references: Sequence[str], *, timeout_s: float | None = None) -> Completed:
        """Remove these images there, and the containers of proofs that were killed."""
        words = self.now.docker.root, *references
        return self.call("clean", *words, timeout_s=timeout_s, check=False)

    def call(
        self, script: str, *words: str, timeout_s: float | None = None, check: bool = True
    ) -> Completed:
        """Run a script of ``data/node`` there to its end. Raises as ``refusal`` when ``check`` and
        it failed."""
        argv = self.remote.script(script, *words)
        done = self.remote.run(argv, check=False, timeout_s=timeout_s)
        if check and done.returncode != 0:
            raise self.refusal(done.returncode, done.stdout + done.stderr)
        return done

    def abandon(self) -> None:
        """Kill what runs with this node."""
        self.remote.abandon()

    # Staging

    def load(
        self,
        steps: tuple[Step, ...],
        store: Store,
        moved: Moved,
        *,
        followers: Sequence[NodeSession] = (),
    ) -> None:
        """Load these steps one after the other and prove the last one.

        While a step is unpacked the next one is sent already, but for its end. The node relays it
        all to the first of ``followers``, and that one to the next; those that got the image have
        a ``target`` afterwards, the others a ``relay_error``.
        """
        with contextlib.ExitStack() as loads:
            before: Load | None = None
            for step in steps:
                load = Load(
                    self, step, before.part.name if before is not None else "",
                    prove=step is steps[-1], followers=followers,
                )  # fmt: skip
                loads.callback(load.kill)
                body, end = archive.partial(step, store)
                for piece in body:
                    if before is not None and before.ended:
                        before.finish()
                        before = None
                    load.send(piece)
                    self._count(len(piece), moved)
                if before is not None:
                    before.finish()
                load.send(end)
                self._count(len(end), moved)
                self.layers_sent += len(step.send)
                before = load
            output = load.finish()
            for follower in followers:
                _, section = _section(output, follower)
                try:
                    follower.prove(section, steps[-1].part)
                except NodeError as error:
                    follower.relay_error = refusals.last_line(section) or error.message
            self.prove(_section(output, self)[1] if followers else output, steps[-1].part)

    def pulls(self, layers: Sequence[Layer]) -> bool:
        """Whether its engine gets the lacking layers of these sooner by a pull than by ``load``.

        It unpacks what it pulls without writing an archive first: docs/benchmarks.md. But overlay2
        would pull the layers again that came by load, which it does not know by their blobs; and
        what containerd's store still holds of a broken pull, layers or parts of them (for 8 hours:
        https://github.com/moby/moby/pull/48910), only a pull can use.
        """
        size = sum(layers[index].size for index in self.lacking)
        if not self.now.docker.containerd:
            return size >= max(PULL_FROM, NEARLY_ALL * sum(layer.size for layer in layers))
        unpacked = {diff_id for image in self.now.images for diff_id in image.diff_ids}
        left = any(
            index not in self.lacking and layer.diff_id not in unpacked
            for index, layer in enumerate(layers)
        )
        partly = any(layers[index].digest in self.now.incomplete for index in self.lacking)
        return size >= PULL_FROM or left or partly

    def pull(self, steps: tuple[Step, ...], server: PullServer, moved: Moved) -> str:
        """Let its engine pull these steps from here, and prove the last one. Returns why it cannot
        pull, for a reason that does not concern ``load``, else nothing. Raises as ``load``.

        Engines keep nothing of a pull that breaks off: each step is pulled as soon as its layers
        are unpacked, which keeps them; one after the other where that needs it: see ``engines``.
        """
        try:
            with self.remote.remote_forward(server.socket) as forward:
                code, output = self._pull_through(forward, steps, server, moved)
        except CommandError:
            return "its sshd forwards no port to here (AllowTcpForwarding)"
        if code != 0:
            if refusals.is_engine_fault(output):
                raise self.refusal(code, output)
            return refusals.last_line(output)
        self.adopt(steps[-1].part.name, steps[-1].part)
        self.layers_sent = sum(len(step.send) for step in steps)
        return ""

    def _pull_through(
        self, forward: RemoteForward, steps: tuple[Step, ...], server: PullServer, moved: Moved
    ) -> tuple[int, str]:
        """Let its engine pull through a forwarded port; the exit code and output of pull.sh.

        Raises ``NodeError`` and its kin when it hangs or a connection ends.
        """
        patience, registry = self.remote.patience_s, f"127.0.0.1:{forward.port}"
        parts, docker = [step.part for step in steps], self.now.docker
        whole = engines.keeps_of_one_pull(docker.numbers, containerd=docker.containerd)
        words = self.remote.script(
            "pull", f"{registry}/{snapshot.STAGING}",
            "whole" if whole else "parts", parts[-1].manifest.digest,
            *(word for part in parts for word in (
                part.name, part.manifest.digest, part.layers[-1].digest[7:19],
            )),
        )  # fmt: skip
        left = sum(step.size for step in steps)
        script = RemoteScript(self.remote, words, forward=forward)

        def sent(count: int, waits: bool) -> None:
            self._count(count, moved)
            # When all has arrived it may still be unpacked.
            script.extend(patience + (0 if waits else left / UNPACK_RATE))

        client = server.admit(sent)
        output = []
        try:
            with script.limit():
                with contextlib.suppress(OSError):
                    script.write(f"{client.config(registry)}\n".encode())
                # Its input stays open: the pull ends with it.
                for line in script.lines():
                    output.append(line)
                    left -= sum(step.size for step in steps if line == f"@@ kept {step.part.name}")
            output.append(script.rest())
        finally:
            script.kill()
        if script.code != 0 and (lost := script.lost()) is not None:
            raise lost
        return script.code, "\n".join(output)

    def _count(self, count: int, moved: Moved) -> None:
        self.sent += count
        moved(count)

    def adopt(self, origin: str, part: Part, *, size: int = 0) -> None:
        """Give an image that is there (its id), or that the node is to pull (NAME@DIGEST, of
        ``size`` bytes), the staging name and prove it. Raises as ``load``."""
        limit = self.remote.patience_s + size / UNPACK_RATE
        done = self.call("stage", part.name, origin, "", "prove", timeout_s=limit, check=False)
        output = done.stdout + done.stderr
        if done.returncode == refusals.NOT_PULLED and not refusals.is_engine_fault(output):
            raise NodeError(
                f"{self.name}: it could not pull the image: {refusals.last_line(output)}",
                hint="does the registry have this digest, and may the node pull it? "
                f"{self.remote.ssh} {self.remote.docker} pull {origin}",
            )
        if done.returncode != 0:
            raise self.refusal(done.returncode, output)
        self.prove(done.stdout, part)

    def prove(self, output: str, part: Part) -> None:
        """Whether stage.sh has found the image under the staging name, with the layers that were
        sent, and created a container. Sets ``target``. Raises ``NodeError``."""
        lines = [line[3:] for line in output.splitlines() if line.startswith("@@ ")]
        image = next((line[6:] for line in lines if line.startswith("image ")), "")
        if not image or "created" not in lines:
            raise NodeError(f"{self.name}: the image could not be proven there", detail=output)
        id, _platform, diff_ids = json.loads(image)
        expected = part.manifest.digest if self.now.docker.containerd else part.config.digest
        if diff_ids != [layer.diff_id for layer in part.layers] or id != expected:
            raise NodeError(
                f"{self.name}: it has another image than was sent: {id[:19]}, not {expected[:19]}",
                hint="run the same command again; that image is not used",
            )
        self.target = id

    def refusal(self, code: int, output: str) -> NodeError:
        """The error for a script's exit code and output, after repairing what can be repaired."""
        self.distrusts_content |= refusals.BLOB_LOST.search(output) is not None
        error, record = refusals.error_for(self.remote, code, output), refusals.stale_record(output)
        if not record:
            return error
        *sudo, _ = self.remote.docker.split()
        done = self.remote.run([*sudo, "rm", "-r", "--", record], check=False)
        if done.returncode != 0:
            error.detail = refusals.last_line(done.stderr)
            return error
        what = f"{self.name}: {refusals.RECORD_LEFT}"
        self.repaired.append(f"{what}: removed ({record})")
        return UnreachableError(f"{what}; it is removed")


@contextmanager
def sessions(fleet: Fleet, patience_s: float) -> Iterator[list[NodeSession]]:
    """The fleet's nodes, not yet connected; their connections end with the context."""
    with ssh.remotes(fleet.nodes, patience_s) as remotes:
        yield [NodeSession(remote=remote) for remote in remotes]


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node's snapshot, or why there is none."""

    node: Node
    snapshot: NodeSnapshot | None = None
    error: SparkError | None = None

    @property
    def name(self) -> str:
        return self.node.name


def survey(
    fleet: Fleet,
    *parts: str,
    patience_s: float,
    model: str = "",
    also: Callable[[NodeSession], None] = lambda _session: None,
    then: Callable[[Sequence[NodeSession]], None] = lambda _nodes: None,
) -> tuple[NodeReport, ...]:
    """A snapshot with these parts of every node, and ``also``, all at once, one connection each;
    ``then`` is called while the connections are open. Errors as ``NodeSession.open`` raises
    them."""
    with sessions(fleet, patience_s) as nodes:

        def look(session: NodeSession) -> None:
            session.open(*parts, model=model)
            also(session)

        errors = run_on_all(nodes, look, stop=NodeSession.abandon)
        then(nodes)
    return tuple(
        NodeReport(
            node=session.remote.node,
            snapshot=session.seen if session.name not in errors else None,
            error=errors.get(session.name),
        )
        for session in nodes
    )


class Load(RemoteScript):
    """One ``docker load`` on a node that gets its archive from here, and maybe relays it."""

    def __init__(
        self,
        session: NodeSession,
        step: Step,
        earlier: str,
        *,
        prove: bool,
        followers: Sequence[NodeSession] = (),
    ) -> None:
        self.session, self.part, self.size = session, step.part, step.size
        self.relays = bool(followers)
        words = step.part.name, earlier, "prove" if prove else ""
        argv = session.remote.script("stage", words[0], "-", *words[1:])
        if followers:
            texts = ssh.text("relay"), ssh.text("stage")
            hops = [w for n in followers for w in (n.remote.hop, n.name, n.remote.docker)]
            own = session.name, session.remote.docker
            argv = ["sh", "-c", texts[0], "relay", *texts, *words, *own, *hops]
        super().__init__(session.remote, argv, bulk=True)

    def send(self, piece: bytes) -> None:
        """Send a piece of the archive. Raises ``NodeError`` when it is not taken."""
        try:
            with self.limit():
                self.write(piece)
        except (BrokenPipeError, ValueError):
            self.finish()
            raise NodeError(
                f"{self.session.name}: docker load ended before it had read the archive"
            ) from None

    def finish(self) -> str:
        """Wait for its end; its output. Raises ``NodeError``."""
        output = self.rest(self.session.remote.patience_s + self.size / UNPACK_RATE)
        if (lost := self.lost()) is not None:
            raise lost
        code, section = self.code, output
        if code == 0 and self.relays:
            code, section = _section(output, self.session)
        if code != 0:
            raise self.session.refusal(code, section)
        return output


def _section(output: str, session: NodeSession) -> tuple[int, str]:
    """What relay.sh reports of one node: the exit code of its load, and its output."""
    code, is_own = TRANSPORT, False
    lines: list[str] = []
    for line in output.splitlines():
        if line.startswith("@@ of "):
            name, number = line.split()[2:4]
            is_own = name == session.name
            code = int(number) if is_own else code
        elif is_own:
            lines.append(line)
    return code, "\n".join(lines)
