"""One node on its way to an image: what it has, what it gets, and how it goes wrong."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import CommandError, NodeError, SparkError, UnreachableError
from sparkimage.core.process import Completed
from sparkimage.core.progress import Moved
from sparkimage.core.units import human
from sparkimage.image import archive
from sparkimage.image.archive import Part, Step
from sparkimage.image.store import Image, Store
from sparkimage.nodes import delta, fabric, reading, refusals, snapshot, ssh
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.delta import ImageManifest
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.snapshot import SKEW_S, TELLS_UNPACKED, NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import IMAGES, Remote, RemoteForward

if TYPE_CHECKING:
    from sparkimage.nodes.pull_server import Serving

UNPACK_RATE = 10_000_000
"""Bytes of blobs a second that an engine at least unpacks; below it counts as hung."""
SPARE = 500_000_000
"""Bytes that a node's disk keeps free beside what the image needs."""
ATTEMPTS = 3
PULL_FROM = 32_000_000
"""Bytes from which on a pull is worth another connection."""
NEARLY_ALL = 0.9
"""The part of an image's bytes that an overlay2 node lacks at least when it is to pull them."""


@dataclass(kw_only=True)
class NodeSession:
    """A node, and how far it is."""

    remote: Remote
    seen: NodeSnapshot | None = None
    warnings: list[str] = field(default_factory=list)
    """Of what was seen when it was looked at last."""
    repaired: list[str] = field(default_factory=list)
    """What was changed there that nobody had asked for."""
    target: str = ""
    """The image's id on this node, once it is there and proven."""
    sent: int = 0
    """Bytes that went to it."""
    layers_sent: int = 0
    source: str = ""
    """Where else it got them from."""
    forgets: bool = False
    """containerd had listed blobs that it did not have later: only what its images are made of
    counts."""
    unrelayed: str = ""
    """Why a relay did not bring it the image."""

    @property
    def name(self) -> str:
        return self.remote.name

    @property
    def now(self) -> NodeSnapshot:
        assert self.seen is not None
        return self.seen

    def connect(
        self, *parts: str, lock: bool = False, owner: str = "", model: str = ""
    ) -> NodeSnapshot:
        """Open its connection with the script that takes its snapshot, of these parts; ``lock``
        keeps other runs away for as long as the connection holds, and tells them of ``owner``.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        words = self.remote.snapshot(*parts, lock=lock, owner=owner, model=model)
        said = self.remote.open(words)
        self.seen = reading.read(said, self.remote.node, now=self.remote.heard_at)
        busy = self.now.lock.removeprefix("busy: ")
        if self.now.lock.startswith("busy") and busy != owner:
            raise NodeError(
                f"{self.name}: another run changes its images: {busy or 'of an unknown user'}",
                hint="wait for it; a run that was killed lets go within a minute",
            )
        self.warnings = [said for said in (fabric.slow(self.now),) if said]
        if abs(self.now.skew_s or 0) > SKEW_S:
            self.warnings.append(
                f"{self.name}: its clock is {self.now.skew_s:+.0f} s off: there, timedatectl"
            )
        if self.now.lock.startswith("none"):
            self.warnings.append(f"{self.name}: not locked: {self.now.lock[6:]}")
        return self.now

    def open(
        self, *parts: str, lock: bool = False, owner: str = "", model: str = ""
    ) -> NodeSnapshot:
        """As ``connect``, of a node whose Docker is needed. Raises ``EngineError``, too."""
        error = self.connect(*parts, lock=lock, owner=owner, model=model).docker_error()
        if error is not None:
            raise error
        return self.now

    def look(self, *parts: str, model: str = "") -> NodeSnapshot:
        """A snapshot now, of a node that is connected; the one before stays what it was.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        said = self.remote.run(self.remote.snapshot(*parts, model=model)).stdout
        return reading.read(said, self.remote.node, now=time.time())

    def check(self, image: Image) -> None:
        """Whether it can take the image at all. Raises ``NodeError``."""
        arch = image.platform.partition("/")[2]
        if self.now.arch != arch:
            raise NodeError(
                f"{self.name}: the image is for {arch}, the node is {self.now.arch}",
                hint="build a variant of the node's platform, or leave the node out",
            )

    def has(self, image: Image) -> NodeImage | None:
        """The image itself, under whatever name it is there, if it is whole."""
        config = image.manifest["config"]["digest"]
        held = self.now.by_id(image.digest if self.now.docker.containerd else config)
        # containerd's store names an image before it has unpacked it.
        whole = tuple(layer.diff_id for layer in image.layers)
        return held if held is not None and held.diff_ids == whole else None

    def lacking(self, whole: ImageManifest, known: Mapping[str, Iterable[str]]) -> list[int]:
        """The places of the layers that it lacks."""
        if not self.now.docker.containerd:
            return delta.missing(whole.image, chains=self.now.chains(), blobs=())
        own = {
            one.manifest.digest: [layer.digest for layer in one.layers]
            for one in delta.parts(whole)
        }
        seen = replace(self.now, content=None) if self.forgets else self.now
        return delta.missing(whole.image, chains=None, blobs=seen.blobs({**known, **own}))

    def room(self, blobs: int, unpacked: int, largest: int) -> None:
        """Whether so many bytes fit: of blobs, of their files, of the largest step's blobs.

        Both stores keep the files; containerd's keeps the blobs as well, the other one has up to
        two steps' in its tmp folder. Raises ``NodeError``.
        """
        need = unpacked + (blobs if self.now.docker.containerd else min(blobs, 2 * largest)) + SPARE
        tight = min(self.now.image_disks, key=lambda disk: disk.free, default=None)
        if tight is not None and tight.free < need:
            raise NodeError(
                f"{self.name}: {tight.at} has {human(tight.free)} free, the image needs "
                f"{human(need)}",
                hint="free some: python build.py gc; there: docker system df",
            )

    def stale(self, keep: str = "") -> list[str]:
        """Staging names that earlier runs left."""
        return [
            tag
            for image in self.now.images
            for tag in image.tags
            if snapshot.is_staging(tag) and tag != keep
        ]

    def drop(self) -> None:
        """Remove what is under staging names there: what is brought next is all new.

        What it was seen to have does not say: it leaves out what is damaged.
        """
        form = "{{.Repository}}:{{.Tag}}\n{{.Repository}}@{{.Digest}}"
        words = [*self.remote.docker.split(), "image", "ls", "--digests", "--format", form]
        listed = self.remote.run(words, check=False).stdout.split()
        names = [one for one in listed if snapshot.is_staging(one)]
        if not names:
            return
        self.clean(names)
        self.repaired.append(f"{self.name}: what was there of the image was damaged: removed")

    def clean(self, references: Sequence[str], *, timeout_s: float | None = None) -> Completed:
        """Remove these images there, and the containers of proofs that were killed."""
        words = self.now.docker.root, *references
        return self.call("clean", *words, timeout_s=timeout_s, check=False)

    def call(
        self, script: str, *words: str, timeout_s: float | None = None, check: bool = True
    ) -> Completed:
        """Run one of our scripts there to its end. Raises as ``refusal`` when ``check`` and it
        failed."""
        argv = self.remote.script(script, *words)
        done = self.remote.run(argv, check=False, timeout_s=timeout_s)
        if check and done.returncode != 0:
            raise self.refusal(done.returncode, done.stdout + done.stderr)
        return done

    def abandon(self) -> None:
        """Make an end of what is going on with it."""
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
        """Load these steps one behind the other and prove the last one.

        While one is being unpacked the next one is on its way already, but for its end. The node
        passes all of it on to the first of ``followers``, and that to the next one; those that
        it came to have their ``target`` afterwards, the others do not.
        """
        before: Loading | None = None
        current: Loading | None = None
        try:
            for step in steps:
                earlier = before.part.name if before is not None else ""
                current = Loading(self, step, earlier, prove=step is steps[-1], followers=followers)
                body, end = archive.partial(step, store)
                for piece in body:
                    if before is not None and before.script.ended:
                        before.finish()
                        before = None
                    current.write(piece)
                    self._count(len(piece), moved)
                if before is not None:
                    before.finish()
                current.write(end)
                self._count(len(end), moved)
                self.layers_sent += len(step.send)
                before = current
            assert before is not None
            said = before.finish()
            for follower in followers:
                _, words = _section(said, follower)
                try:
                    follower.prove(words, steps[-1].part)
                except NodeError as error:
                    follower.unrelayed = words.strip().splitlines()[-1] if words else error.message
            self.prove(_section(said, self)[1] if followers else said, steps[-1].part)
        except BaseException:
            # The children end with us, whatever the reason.
            for one in (before, current):
                if one is not None:
                    one.script.kill()
            raise

    def pulls(self, whole: ImageManifest, lacking: Sequence[int]) -> bool:
        """Whether its engine gets these layers sooner by pulling them than by ``load``.

        It unpacks what it pulls without writing an archive first: docs/benchmarks.md. But overlay2
        would pull the layers again that came by load, which it does not know by their blobs; and
        what containerd's store still holds of a broken pull, layers or parts of them (for 8 hours:
        https://github.com/moby/moby/pull/48910), only a pull goes on with.
        """
        layers = whole.image.layers
        lacks = sum(layers[place].size for place in lacking)
        if not self.now.docker.containerd:
            return lacks >= max(PULL_FROM, NEARLY_ALL * sum(layer.size for layer in layers))
        unpacked = {diff_id for image in self.now.images for diff_id in image.diff_ids}
        broken = any(
            place not in lacking and layer.diff_id not in unpacked
            for place, layer in enumerate(layers)
        )
        begun = any(layers[place].digest in self.now.begun for place in lacking)
        return lacks >= PULL_FROM or broken or begun

    @property
    def _tells(self) -> bool:
        """Whether its engine says when it has unpacked a layer that it pulls."""
        docker = self.now.docker
        return not docker.containerd or docker.numbers >= TELLS_UNPACKED

    def pull(self, steps: tuple[Step, ...], serving: Serving, moved: Moved) -> str:
        """Let its engine pull these steps from here, and prove the last one; why it cannot, for a
        reason that ``load`` may do without, else nothing. Raises as ``load``.

        Engines keep nothing of a pull that was broken off: each step is pulled as soon as its
        layers are unpacked, which keeps them; one after the other where nothing tells when.
        """
        try:
            with self.remote.remote_forward(serving.socket) as forward:
                code, said = self._pulled(steps, serving, forward, moved)
        except CommandError:
            return "its sshd forwards no port to here (AllowTcpForwarding)"
        if code != 0:
            if refusals.of_the_engine(said):
                raise self.refusal(code, said)
            return refusals.last(said)
        self.adopt(steps[-1].part.name, steps[-1].part)
        self.layers_sent = sum(len(one.send) for one in steps)
        return ""

    def _pulled(
        self, steps: tuple[Step, ...], serving: Serving, forward: RemoteForward, moved: Moved
    ) -> tuple[int, str]:
        """Have its engine pull through a lent port; its script's exit code, and what it said.

        Raises ``NodeError`` and its kin when it hangs or a connection ends.
        """
        patience, registry = self.remote.patience_s, f"127.0.0.1:{forward.port}"
        parts = [step.part for step in steps]
        words = self.remote.script(
            "pull", f"{registry}/{snapshot.STAGING}",
            "whole" if self._tells else "parts", parts[-1].manifest.digest,
            *(word for part in parts for word in (
                part.name, part.manifest.digest, part.layers[-1].digest[7:19],
            )),
        )  # fmt: skip
        left = sum(step.size for step in steps)
        script = RemoteScript(self.remote, words, forward=forward)

        def went(count: int, waits: bool) -> None:
            self._count(count, moved)
            # What has all arrived may still be unpacked.
            script.watch.extend(patience + (0 if waits else left / UNPACK_RATE))

        guest = serving.admit(went)
        said = []
        try:
            with script.limit():
                with contextlib.suppress(OSError):
                    script.write(f"{guest.config(registry)}\n".encode())
                # Its input stays open: where that ends, the pull does.
                for line in script.lines():
                    said.append(line)
                    left -= sum(s.size for s in steps if line == f"@@ kept {s.part.name}")
            said.append(script.rest())
        finally:
            script.kill()
        if script.code != 0 and (lost := script.lost()) is not None:
            raise lost
        return script.code, "\n".join(said)

    def _count(self, count: int, moved: Moved) -> None:
        self.sent += count
        moved(count)

    def adopt(self, origin: str, part: Part, *, size: int = 0) -> None:
        """Give an image that is there (its id), or that the node is to pull (NAME@DIGEST, of
        ``size`` bytes), the staging name and prove it. Raises as ``load``."""
        limit = self.remote.patience_s + size / UNPACK_RATE
        done = self.call("stage", part.name, origin, "", "prove", timeout_s=limit, check=False)
        said = done.stdout + done.stderr
        if done.returncode == refusals.NOT_PULLED and not refusals.of_the_engine(said):
            raise NodeError(
                f"{self.name}: it could not pull the image: {refusals.last(said)}",
                hint="is it there under this digest, and may the node have it? "
                f"{self.remote.ssh} {self.remote.docker} pull {origin}",
            )
        if done.returncode != 0:
            raise self.refusal(done.returncode, said)
        self.prove(done.stdout, part)

    def prove(self, said: str, part: Part) -> None:
        """What is there under the staging name is this image, and can run. Raises ``NodeError``."""
        lines = [line[3:] for line in said.splitlines() if line.startswith("@@ ")]
        found = next((line.removeprefix("image ") for line in lines if line[:6] == "image "), "")
        if not found or "created" not in lines:
            raise NodeError(f"{self.name}: the image could not be proven there", detail=said)
        id, _platform, diff_ids = json.loads(found)
        expected = part.manifest.digest if self.now.docker.containerd else part.config.digest
        if diff_ids != [layer.diff_id for layer in part.layers] or id != expected:
            raise NodeError(
                f"{self.name}: another image is there than was sent: {id[:19]}, not "
                f"{expected[:19]}",
                hint="run it again; what is there is not used",
            )
        self.target = id

    def refusal(self, code: int, said: str) -> NodeError:
        """What a script's exit code and words mean; fixes what it may."""
        self.forgets |= refusals.BLOB_LOST.search(said) is not None
        error, record = refusals.meaning(self.remote, code, said), refusals.left_over(said)
        if not record:
            return error
        *sudo, _ = self.remote.docker.split()
        done = self.remote.run([*sudo, "rm", "-r", "--", record], check=False)
        if done.returncode != 0:
            error.detail = refusals.last(done.stderr)
            return error
        found = f"{self.name}: {refusals.RECORD_LEFT}"
        self.repaired.append(f"{found}: removed ({record})")
        return UnreachableError(f"{found}; it is removed", definite=False)


@contextmanager
def sessions(fleet: Fleet, patience_s: float) -> Iterator[list[NodeSession]]:
    """The fleet's nodes, not yet connected; their connections end with the context."""
    with ssh.remotes(fleet.nodes, patience_s) as made:
        yield [NodeSession(remote=one) for one in made]


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """A node that was asked: its snapshot, or why there is none."""

    node: Node
    snapshot: NodeSnapshot | None = None
    error: SparkError | None = None

    @property
    def name(self) -> str:
        return self.node.name


def survey(fleet: Fleet, *parts: str, patience_s: float, model: str = "") -> tuple[NodeReport, ...]:
    """These parts of every node's snapshot, asked of all at once, one connection each; a Docker
    that cannot be used is an error where its images are asked for."""
    with sessions(fleet, patience_s) as all_:

        def ask(session: NodeSession) -> None:
            (session.open if IMAGES in parts else session.connect)(*parts, model=model)

        errors = run_on_all(all_, ask, stop=NodeSession.abandon)
    return tuple(
        NodeReport(
            node=one.remote.node,
            snapshot=one.seen if one.name not in errors else None,
            error=errors.get(one.name),
        )
        for one in all_
    )


class Loading:
    """One ``docker load`` on a node, fed from here."""

    def __init__(
        self,
        session: NodeSession,
        step: Step,
        earlier: str,
        *,
        prove: bool,
        followers: Sequence[NodeSession] = (),
    ) -> None:
        self.session, self.part = session, step.part
        self.size = step.size
        self.relayed = bool(followers)
        last = "prove" if prove else ""
        docker = session.remote.docker
        words = session.remote.script("stage", step.part.name, "-", earlier, last)
        if followers:
            texts = ssh.text("relay"), ssh.text("stage")
            hops = [w for one in followers for w in (one.remote.hop, one.name, one.remote.docker)]
            words = [
                "sh", "-c", texts[0], "relay", *texts, step.part.name, earlier, last,
                session.name, docker, *hops,
            ]  # fmt: skip
        self.script = RemoteScript(session.remote, words, bulk=True)

    def write(self, piece: bytes) -> None:
        """Send a piece. Raises ``NodeError`` when it is not taken."""
        try:
            with self.script.limit():
                self.script.write(piece)
        except (BrokenPipeError, ValueError):
            self.finish()
            raise NodeError(f"{self.session.name}: it ended before all was sent") from None

    def finish(self) -> str:
        """Wait for its end; returns what it said. Raises ``NodeError``."""
        session, script = self.session, self.script
        said = script.rest(session.remote.patience_s + self.size / UNPACK_RATE)
        if (lost := script.lost()) is not None:
            raise lost
        code, words = script.code, said
        if code == 0 and self.relayed:
            code, words = _section(said, session)
        if code != 0:
            raise session.refusal(code, words)
        return said


def _section(said: str, session: NodeSession) -> tuple[int, str]:
    """What a relay says of one node: the exit code of its load, and its words."""
    code, mine = ssh.TRANSPORT, False
    lines: list[str] = []
    for line in said.splitlines():
        if line.startswith("@@ of "):
            words = line.split()
            mine = words[2] == session.name
            if mine:
                code = int(words[3])
        elif mine:
            lines.append(line)
    return code, "\n".join(lines)
