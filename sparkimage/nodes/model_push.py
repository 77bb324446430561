"""Brings the folder of a model to every node of a fleet, or to none.

Look at all nodes, and hash there what may be the model's already; send what is missing down chains
of nodes, beside the folder; and only when every node has proven all files, put the new folder in
the place of the old one, everywhere. What a failed run has sent stays, and the next one goes on
from there, also within a file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparkimage.core.errors import NodeError, SparkError, UnreachableError
from sparkimage.core.progress import TransferProgress, View
from sparkimage.core.units import human
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.model_manifest import Manifest, Source, hash_file
from sparkimage.nodes.model_node import FolderMove, ModelNode, by_name
from sparkimage.nodes.model_plan import (
    HERE,
    build,
    differences,
    lacking,
    listing,
    misbuilt,
    plan,
)
from sparkimage.nodes.model_stream import Limiter, Report, Stream, Watch, corrupt
from sparkimage.nodes.retag import AGAIN, FleetUpdate, count_nodes
from sparkimage.nodes.session import ATTEMPTS, NodeSession
from sparkimage.nodes.ssh import Remote

KEPT = "no folder was replaced: every node keeps what it had"
WAIT_S = 2.0
"""Seconds between two attempts."""


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """The outcome for one node."""

    node: str
    state: str
    """``copied``, ``verified`` (it was there), ``unchanged`` (and proven before), ``planned`` or
    ``failed``."""
    sent: int
    """Bytes that it lacked."""
    seconds: float
    """How long they took."""
    error: SparkError | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a push."""

    folder: str
    digest: str
    files: int
    size: int
    sent: int
    """Bytes that left this machine."""
    seconds: float
    nodes: tuple[NodeResult, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        nodes = [
            {**vars(node), "error": node.error.message if node.error is not None else None}
            for node in self.nodes
        ]
        return {**vars(self), "nodes": nodes}


@dataclass(kw_only=True)
class Push:
    """The push of one model to a fleet."""

    folder: str
    """The path on the nodes."""
    source: Source
    remotes: Sequence[Remote]
    """Its nodes, not connected, or begun with ``Remote.snapshot``; the caller closes them."""
    owner: str
    """Who pushes, as ``ssh.lock_owner`` says."""
    view: View
    hash: Callable[[], Manifest]
    """Makes the manifest of the source."""
    limit: float | None = None
    """Bytes a second that leave this machine at most."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        self.nodes = [
            ModelNode(session=NodeSession(remote=remote), folder=self.folder)
            for remote in self.remotes
        ]
        self.warnings: list[str] = []
        self.sent = 0
        self.cut: dict[tuple[str, str], str] = {}
        self.limiter = Limiter(self.limit)
        self.update = FleetUpdate(
            name=self.folder, sessions=[node.session for node in self.nodes], say=self.view.say
        )

    @property
    def ready(self) -> list[ModelNode]:
        """The nodes that have not failed."""
        return [node for node in self.nodes if node.name not in self.update.errors]

    def run(self) -> Outcome:
        """Run it. Raises ``NodeError`` with every node that failed; then no folder was replaced.
        ``MixedFleetError`` when a failed move could not be undone everywhere."""
        began, update = time.monotonic(), self.update
        named = by_name(self.nodes)
        update.look(lambda session: self._look(named[session.name]), "nothing was sent")
        self.manifest = self.hash()
        self.files = {
            entry.sha256: file
            for entry, file in zip(self.manifest.entries, self.source.files, strict=True)
        }
        unchanged = [n.name for n in self.nodes if not differences(self.manifest, n.now)]
        self._hash([node for node in self.nodes if node.name not in unchanged])
        self._run(ModelNode.check_space, self.manifest)
        update.check("nothing was sent")
        for node in self.nodes:
            node.expected = sum(lacking(self.manifest, node.now).values())
        if self.dry_run:
            return self._outcome(began, unchanged)
        self._transfer()
        again = f"{AGAIN}: what has arrived stays there"
        update.check(KEPT, again)
        same = [node for node in self.nodes if not differences(self.manifest, node.now)]
        differing = [node for node in self.nodes if node not in same]
        update.errors |= run_on_all(differing, self._build, stop=_abandon)
        update.check(KEPT, again)
        update.move([FolderMove(node=node) for node in differing])
        update.check("the move was undone: every node has what it had", again)
        update.errors |= run_on_all(
            [node for node in same if node.name not in unchanged],
            lambda node: node.record(self.manifest), stop=_abandon,
        )  # fmt: skip
        # What is left there harms nothing, and goes with the next run.
        left = [node for node in self.nodes if node in differing or node.now.staged]
        run_on_all(left, ModelNode.clean, stop=_abandon)
        update.check("the folders are there and proven; it could not be recorded everywhere")
        return self._outcome(began, unchanged)

    def warned(self) -> tuple[str, ...]:
        """All warnings so far, also those about single nodes."""
        return (*self.warnings, *(text for node in self.nodes for text in node.session.warnings))

    # Phases

    def _look(self, node: ModelNode) -> None:
        node.session.open(lock=not self.dry_run, owner=self.owner)
        node.look()
        node.check()

    def _run(self, act: Callable[..., None], *given: Any) -> None:
        self.update.errors |= run_on_all(self.nodes, lambda node: act(node, *given), stop=_abandon)

    def _hash(self, nodes: Sequence[ModelNode]) -> None:
        """What is on the nodes already."""
        title = f"hashing what {count_nodes(nodes)} have of it"
        work = {node.name: node.unhashed(self.manifest) for node in nodes}
        nodes = [node for node in nodes if work[node.name]]
        if not nodes:
            return
        with self.view.board([node.name for node in nodes], title) as board:

            def act(node: ModelNode) -> None:
                board.total(node.name, work[node.name])
                board.state(node.name, "hashing")
                node.hash(self.manifest, lambda count: board.moved(node.name, count))
                board.state(node.name, "hashed")

            self.update.errors |= run_on_all(nodes, act, stop=_abandon)

    def _transfer(self) -> None:
        todo = [node for node in self.ready if lacking(self.manifest, node.now)]
        if not todo:
            return
        title = f"{self.folder} to {count_nodes(todo)}"
        with self.view.board([node.name for node in todo], title) as board:
            for node in todo:
                board.total(node.name, node.expected)
                board.state(node.name, f"{human(node.expected)} to send")
            began = time.monotonic()
            while todo:
                self._attempt(todo, board, began)
                todo = self._left(todo, board)
                if todo:
                    threading.Event().wait(WAIT_S)
                    self._reconnect(todo, board)
                    todo = [node for node in todo if node in self.ready]

    def _attempt(self, todo: Sequence[ModelNode], board: TransferProgress, began: float) -> None:
        """Send once what these nodes lack."""
        self.update.errors |= run_on_all(todo, ModelNode.ready, stop=_abandon)
        todo = [node for node in todo if node in self.ready]
        nodes = by_name(todo)
        left = {node.name: set(lacking(self.manifest, node.now)) for node in todo}

        def proven(name: str, sha256: str) -> None:
            left[name].discard(sha256)
            if not left[name]:
                nodes[name].seconds = time.monotonic() - began
                board.state(name, "proven")

        report = Report(proven=proven)
        parts = {node.name: node.now.parts for node in todo}
        chains = plan(self.manifest.contents, parts, left, self.cut)
        streams = [
            Stream(
                chain=chain, nodes=nodes, source=self.files, limiter=self.limiter, report=report,
                name=str(number),
            )
            for number, chain in enumerate(chains)
        ]  # fmt: skip
        for chain in chains:
            self.sent += chain.size
            for before, name in zip(chain.nodes, chain.nodes[1:], strict=False):
                board.state(name, f"from {before}")
        with ExitStack() as stack:
            for node in todo:
                stack.enter_context(closing(Watch(node, partial(board.moved, node.name))))
            errors = run_on_all(streams, Stream.run, stop=Stream.kill)
        for error in errors.values():
            raise error
        self._take(report, nodes)

    def _take(self, report: Report, nodes: dict[str, ModelNode]) -> None:
        """What an attempt has shown of the nodes, the hops and the source."""
        if report.error is not None:
            raise report.error
        for name, why in report.failed.items():
            nodes[name].failed = why
        for sha256 in dict.fromkeys(sha256 for _, sha256 in report.damaged):
            own = hash_file(self.files[sha256], threading.Event(), lambda _: None)
            if own != sha256:
                raise corrupt(self.files[sha256].real, own, sha256)
        for name, sha256 in report.damaged:
            self.warnings.append(
                f"{name}: {self.files[sha256].path} arrived damaged, and is sent again"
            )
        for (before, name), why in report.cut.items():
            if before != HERE and (before, name) not in self.cut:
                self.warnings.append(
                    f"{name}: not reached from {before}, gets its files from here: {why}"
                )
        self.cut |= report.cut

    def _left(self, nodes: Sequence[ModelNode], board: TransferProgress) -> list[ModelNode]:
        """Those of them that ``_is_left``."""
        left: list[ModelNode] = []

        def act(node: ModelNode) -> None:
            if self._is_left(node, board):
                left.append(node)

        self.update.errors |= run_on_all(nodes, act, stop=_abandon)
        return left

    def _is_left(self, node: ModelNode, board: TransferProgress) -> bool:
        """Whether a node still lacks something and may get it by another attempt."""
        error: SparkError | None = None
        before = sum(lacking(self.manifest, node.now).values())
        try:
            node.look()
            if not lacking(self.manifest, node.now):
                return False
            if sum(lacking(self.manifest, node.now).values()) < before:
                node.tries = 0
        except UnreachableError as lost:
            error = lost
        except NodeError as other:
            error, node.tries = other, ATTEMPTS
        node.tries += 1
        why = self.cut.get((HERE, node.name), "")
        if node.failed:
            error = node.refusal("writing what arrived", 1, node.failed)
        elif error is None:
            error = NodeError(
                why or f"{node.name}: not all of it arrives", hint=AGAIN if why else ""
            )
        if node.failed or node.tries >= ATTEMPTS:
            self.update.errors[node.name] = error
            board.state(node.name, "failed")
            return False
        short = (why or error.message).removeprefix(node.name).lstrip(": ")
        board.state(node.name, f"again: {short}")
        return True

    def _reconnect(self, nodes: Sequence[ModelNode], board: TransferProgress) -> None:
        """Look again at nodes that did not get all; one that does not answer has its next
        attempts."""

        def act(node: ModelNode) -> None:
            while True:
                try:
                    node.session.remote.close()
                    self._look(node)
                    return
                except UnreachableError as error:
                    node.tries += 1
                    if error.definite or node.tries >= ATTEMPTS:
                        raise
                    board.state(node.name, f"again: {error.message}")
                    if node.session.remote.abandoned.wait(WAIT_S):
                        raise

        errors = run_on_all(nodes, act, stop=_abandon)
        for name in errors:
            board.state(name, "failed")
        self.update.errors |= errors

    def _build(self, node: ModelNode) -> None:
        """Make the new folder beside the old one, and see that it is all there."""
        built = node.call("build", given=build(self.manifest, node.now)).stdout
        wrong = misbuilt(self.manifest, node.now, listing(built.splitlines()))
        if wrong:
            raise NodeError(f"{node.name}: {wrong[0]}", detail="\n".join(wrong[1:]), hint=AGAIN)

    def _outcome(self, began: float, unchanged: Sequence[str]) -> Outcome:
        def state(node: ModelNode) -> str:
            if node.name in unchanged:
                return "unchanged"
            if not differences(self.manifest, node.now):
                return "verified"
            return "planned" if self.dry_run else "copied"

        return Outcome(
            folder=self.folder,
            digest=self.manifest.digest,
            files=len(self.manifest.entries),
            size=self.manifest.size,
            sent=self.sent,
            seconds=round(time.monotonic() - began, 3),
            nodes=tuple(
                NodeResult(
                    node=node.name, state=state(node), sent=node.expected,
                    seconds=round(node.seconds, 3), error=self.update.errors.get(node.name),
                )
                for node in self.nodes
            ),
            warnings=self.warned(),
        )  # fmt: skip


def _abandon(node: ModelNode) -> None:
    node.session.abandon()
