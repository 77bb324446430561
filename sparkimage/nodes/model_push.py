"""Brings the folder of a model to every node of a fleet, or to none.

Look at all nodes, and hash there what may be the model's already; send what is missing down chains
of nodes, beside the folder; and only when every node has proven all files, put the new folder in
the place of the old one, everywhere. What a failed run has sent stays, and the next one goes on
from there, also within a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.core.errors import NodeError, SparkError
from sparkimage.core.progress import View
from sparkimage.core.units import plural
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.connection import Connection
from sparkimage.nodes.model_manifest import Manifest, Source
from sparkimage.nodes.model_node import FolderMove, ModelNode, by_name
from sparkimage.nodes.model_plan import build, differences, lacking, listing, misbuilt
from sparkimage.nodes.model_transfer import Transfer
from sparkimage.nodes.retag import AGAIN, FleetUpdate
from sparkimage.nodes.session import NodeSession

KEPT = "no folder was replaced: every node keeps what it had"


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
    remotes: Sequence[Connection]
    """Its nodes, not connected, or begun with ``Connection.begin``; the caller closes them."""
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
        self.sent = 0
        self.update = FleetUpdate(
            name=self.folder, sessions=[node.session for node in self.nodes], say=self.view.say
        )

    def run(self) -> Outcome:
        """Run it. Raises ``NodeError`` with every node that failed; then no folder was replaced.
        ``MixedFleetError`` when a failed move could not be undone everywhere."""
        began, update = time.monotonic(), self.update
        named = by_name(self.nodes)
        update.look(lambda session: self._look(named[session.name]), "nothing was sent")
        self.manifest = self.hash()
        unchanged = [n.name for n in self.nodes if not differences(self.manifest, n.now)]
        self._hash([node for node in self.nodes if node.name not in unchanged])
        update.run(self.nodes, lambda node: node.check_space(self.manifest))
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
        update.run(differing, self._build)
        update.check(KEPT, again)
        update.move([FolderMove(node=node) for node in differing])
        update.check("the move was undone: every node has what it had", again)
        verified = [node for node in same if node.name not in unchanged]
        update.run(verified, lambda node: node.record(self.manifest))
        # What is left there harms nothing, and goes with the next run.
        left = [node for node in self.nodes if node in differing or node.now.staged]
        run_on_all(left, ModelNode.clean, stop=ModelNode.abandon)
        update.check("the folders are there and proven; it could not be recorded everywhere")
        return self._outcome(began, unchanged)

    # Phases

    def _look(self, node: ModelNode) -> None:
        node.session.open(lock=not self.dry_run, owner=self.owner)
        node.look()
        node.check()

    def _hash(self, nodes: Sequence[ModelNode]) -> None:
        """What is on the nodes already."""
        title = f"hashing what {plural(len(nodes), 'node')} have of it"
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

            self.update.run(nodes, act)

    def _transfer(self) -> None:
        files = {
            entry.sha256: file
            for entry, file in zip(self.manifest.entries, self.source.files, strict=True)
        }
        transfer = Transfer(
            manifest=self.manifest, source=files, limit=self.limit, update=self.update,
            look=self._look,
        )  # fmt: skip
        todo = [node for node in self.nodes if node.expected]
        if todo:
            title = f"{self.folder} to {plural(len(todo), 'node')}"
            with self.view.board([node.name for node in todo], title) as board:
                transfer.run(todo, board)
        self.sent = transfer.sent

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
            warnings=self.update.warned(),
        )  # fmt: skip
