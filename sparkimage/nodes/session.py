"""One node that gets an image: what it has, what is sent to it, and what may go wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import NodeError, SparkError, UnreachableError
from sparkimage.core.process import Completed
from sparkimage.core.program import program
from sparkimage.core.progress import Moved
from sparkimage.core.units import human
from sparkimage.image.store import Image
from sparkimage.nodes import connection, fabric, reading, refusals, snapshot
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.connection import Connection
from sparkimage.nodes.engine_api import RefusedError
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.snapshot import SKEW_S, NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import IMAGES

if TYPE_CHECKING:
    from sparkimage.image.archive import Part

SPARE = 500_000_000
"""Bytes that stay free on a node's disk beside what the image needs."""
ATTEMPTS = 3
PROOF = "dev.sparkimage.proof"
"""The label of the containers that prove an image."""


@dataclass(kw_only=True, eq=False)
class NodeSession:
    """A node, and what it has got of an image."""

    remote: Connection
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
        output = self.remote.look(self.remote.snapshot(*parts, model=model))
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
        own = {part.manifest.digest: [layer.digest for layer in part.layers] for part in parts}
        now = replace(self.now, content=None) if self.distrusts_content else self.now
        return now.missing(parts[-1].layers, {**known, **own})

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

        Asks the engine itself: a snapshot leaves out damaged images. An image's references by
        digest may be listed only once its tags are gone.
        """
        removed: set[str] = set()
        while staged := [
            name
            for image in self.remote.engine.images()
            for name in (*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ()))
            if snapshot.is_staging(name) and name not in removed
        ]:
            self.remote.engine.remove(*staged)
            removed |= set(staged)
        if self.now.docker.containerd:
            self.remote.run(self.remote.script("unlease"), check=False)
        if removed:
            self.repaired.append(f"{self.name}: removed staged layers that were damaged")

    def remove_proofs(self) -> None:
        """Remove the containers of proofs that were killed."""
        engine = self.remote.engine
        for container in engine.containers(PROOF):
            with contextlib.suppress(RefusedError):
                engine.delete(f"/containers/{container['Id']}")

    def call(self, script: str, *words: str, timeout_s: float | None = None) -> Completed:
        """Run a script of ``data/node`` there to its end. Raises ``NodeError`` when it failed."""
        argv = self.remote.script(script, *words)
        done = self.remote.run(argv, check=False, timeout_s=timeout_s)
        if done.returncode != 0:
            raise self.refusal(Act.RUN, done.stdout + done.stderr)
        return done

    def abandon(self) -> None:
        """Kill what runs with this node."""
        self.remote.abandon()

    def count(self, count: int, moved: Moved) -> None:
        """So many bytes more were sent to it."""
        self.sent += count
        moved(count)

    # The image there

    def adopt(self, image: str, part: Part) -> None:
        """Give an image that is there (its id, or NAME@DIGEST) the staging name and prove it.
        Raises as ``refusal`` says."""
        with self.refused(Act.TAG):
            self.remote.engine.tag(image, part.name)
        self.prove(part)

    def prove(self, part: Part) -> None:
        """Whether the image under the staging name has the layers that were sent, and a container
        can be created from it. Sets ``target``. Raises ``NodeError``."""
        with self.refused(Act.CREATE):
            image = self.remote.engine.image(part.name)
        id, expected = image["Id"], part.config.digest
        if self.now.docker.containerd:
            expected = part.manifest.digest
        diff_ids = [layer.diff_id for layer in part.layers]
        if image["RootFS"].get("Layers") != diff_ids or id != expected:
            raise NodeError(
                f"{self.name}: it has another image than was sent: {id[:19]}, not {expected[:19]}",
                hint="run the same command again; that image is not used",
            )
        self.create(part.name)
        self.target = id

    def create(self, image: str) -> None:
        """Create a container from an image, and remove it. Raises ``NodeError``."""
        with self.refused(Act.CREATE):
            self.remote.engine.prove(image, PROOF)

    @contextmanager
    def refused(self, act: Act) -> Iterator[None]:
        """Turns what its engine says in the block into ``refusal``."""
        try:
            yield
        except RefusedError as error:
            raise self.refusal(act, str(error)) from None

    def refusal(self, act: Act, output: str) -> NodeError:
        """The error for what its engine said, after repairing what can be repaired."""
        self.distrusts_content |= refusals.BLOB_LOST.search(output) is not None
        error, record = refusals.error_for(self.remote, act, output), refusals.stale_record(output)
        if not record:
            return error
        *sudo, _ = self.remote.docker.split()
        done = self.remote.run([*sudo, "rm", "-r", "--", record], check=False)
        if done.returncode != 0:
            error.detail = refusals.last_line(done.stderr)
            return error
        what = f"{self.name}: {refusals.RECORD_LEFT}"
        self.repaired.append(f"{what}: removed ({record})")
        return UnreachableError(f"{what}; it is removed", hint="run the same command again")


@contextmanager
def sessions(fleet: Fleet, patience_s: float) -> Iterator[list[NodeSession]]:
    """The fleet's nodes, not yet connected; their connections end with the context."""
    with connection.connections(fleet.nodes, patience_s) as remotes:
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
    also: Callable[[NodeSession], None] = lambda _session: None,
) -> tuple[NodeReport, ...]:
    """``reports`` of a fleet's nodes."""
    with connection.connections(fleet.nodes, patience_s) as remotes:
        return reports(remotes, *parts, also=also)


def reports(
    remotes: Sequence[Connection],
    *parts: str,
    model: str = "",
    also: Callable[[NodeSession], None] = lambda _session: None,
    then: Callable[[Sequence[NodeSession]], None] = lambda _nodes: None,
) -> tuple[NodeReport, ...]:
    """A snapshot with these parts of every node, and ``also``, all at once; ``then`` is called
    afterwards. The caller closes the connections. Errors as ``NodeSession.open`` raises them."""
    nodes = [NodeSession(remote=remote) for remote in remotes]

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
