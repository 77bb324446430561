"""Brings an image to every node of a fleet, or to none.

Look at all nodes; send each the layers that it lacks, under a staging name; prove the image there;
and only when it is proven everywhere, move the name, everywhere. What a failed run has sent stays
under the staging names, and the next one goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkimage.core.errors import DamagedError, SparkError, UnreachableError
from sparkimage.core.progress import Moved, TransferProgress, View
from sparkimage.core.units import human, plural
from sparkimage.image.archive import Step
from sparkimage.image.store import Image, Store
from sparkimage.nodes import delta, receipts, staging
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.connection import Connection
from sparkimage.nodes.retag import AGAIN, FleetUpdate, Retag
from sparkimage.nodes.session import ATTEMPTS, NodeSession
from sparkimage.nodes.ssh import IMAGES
from sparkimage.verify.policy import PolicyDecision

if TYPE_CHECKING:
    from sparkimage.nodes.pull_server import PullServer

PROVEN = ("layers", "config", "platform", "container")
"""What every node proves of an image before its name is moved."""
WAIT_S = (1.0, 3.0)
"""Seconds between two attempts at a node that could not be reached."""


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """The outcome for one node."""

    node: str
    state: str
    """``moved``, ``unchanged``, ``planned`` or ``failed``."""
    sent: int
    """Bytes sent to it from here; with ``planned`` those to send."""
    source: str | None
    """What else it got the layers from: another node's name, or the registry's repository."""
    layers_sent: int
    layers_kept: int
    error: SparkError | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a distribution."""

    name: str
    digest: str
    nodes: tuple[NodeResult, ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[NodeResult, ...]:
        return tuple(node for node in self.nodes if node.error is not None)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        nodes = [
            {**vars(node), "error": node.error.message if node.error is not None else None}
            for node in self.nodes
        ]
        return {**vars(self), "seconds": round(self.seconds, 3), "nodes": nodes}


@dataclass(kw_only=True)
class Distribution:
    """The distribution of one image to a fleet."""

    image: Image
    name: str
    decision: PolicyDecision
    store: Store
    remotes: Sequence[Connection]
    """Its nodes, not connected, or begun with ``Connection.begin``; the caller closes them."""
    owner: str
    """Who distributes, as ``ssh.lock_owner`` says."""
    view: View
    partial: bool = False
    """Leave a mixed fleet when some nodes fail."""
    dry_run: bool = False
    relay: bool = False
    """Nodes that lack the same layers pass them on; only the first one gets them from here."""
    via: str = ""
    """A registry's repository that the nodes pull from; empty: the layers are sent from here."""
    step: int
    """Bytes after which a node keeps what has arrived, even when the rest does not arrive."""
    receipts_folder: Path
    """The folder for this machine's receipts."""
    examine: Callable[[NodeSession, str], Sequence[str]] | None = None
    """Proves more of the image of this name on a node, before any name is moved; returns what."""

    def __post_init__(self) -> None:
        self.parts = delta.parts(self.store, self.image)
        self.whole = self.parts[-1]
        self.update = FleetUpdate(
            name=self.name,
            sessions=[NodeSession(remote=remote) for remote in self.remotes],
            partial=self.partial,
            say=self.view.say,
        )

    def run(self) -> Outcome:
        """Run it. Raises ``NodeError`` with every node that failed; then no name was moved, or
        (``partial``) only the other nodes'. ``MixedFleetError`` when a failed move could not be
        undone everywhere."""
        began, update = time.monotonic(), self.update
        update.look(self._look, "nothing was sent")
        connected = update.ready
        unchanged = [session.name for session in connected if self._is_named(session)]
        # An image that is there already is proven, too, unless a receipt says that it was and there
        # is no more to prove.
        todo = [
            session
            for session in connected
            if session.name not in unchanged
            or self.examine
            or not session.now.receipt(self.image.digest).get("proven")
        ]
        if self.dry_run:
            return self._outcome(unchanged, began, "planned")
        self._stage(todo)
        again = f"{AGAIN}: what has arrived stays there"
        update.check("no name was moved: every node keeps what it had", again)
        ready = [session for session in todo if session in update.ready]
        update.move([Retag(session=session, tag=self.name) for session in ready])
        update.check("the move was undone: every node has what it had", again)
        run_on_all(
            [session for session in connected if session in update.ready],
            lambda session: self._finish(session, moved=session in ready),
            stop=NodeSession.abandon,
        )
        return self._outcome(unchanged, began, "moved")

    @cached_property
    def known(self) -> Mapping[str, list[str]]:
        """The layers of every image in the store, by its manifest."""
        return {
            image.digest: [layer.digest for layer in image.layers] for image in self.store.images()
        }

    # Phases

    def _look(self, session: NodeSession) -> None:
        session.open(IMAGES, lock=not self.dry_run, owner=self.owner)
        session.check(self.image)
        session.lacking = []
        if not session.has(self.image):
            session.lacking = session.missing(self.parts, self.known)
        layers = [self.image.layers[index] for index in session.lacking]
        if layers:
            from sparkimage.image import layerindex

            session.check_space(
                sum(layer.size for layer in layers),
                sum(layerindex.unpacked_size(self.store, layer) for layer in layers),
                max(step.size for step in self._steps(session)),
            )

    def _is_named(self, session: NodeSession) -> bool:
        """Whether the image has its name there already."""
        image = session.has(self.image)
        return image is not None and image.id == session.now.id_of(self.name)

    def _stage(self, todo: Sequence[NodeSession]) -> None:
        if not todo:
            return
        title = f"{self.name} to {plural(len(todo), 'node')}"
        with self.view.board([session.name for session in todo], title) as board:
            for session in todo:
                self._show(session, board)
            relay = self.relay and not self.via
            if relay:
                self._relay(todo, board)
            left = [session for session in todo if not session.target or self.examine is not None]
            with self._server(left) as server:

                def send(session: NodeSession) -> None:
                    if relay:
                        self._reconnect(session, board)
                    try:
                        self._send(session, board, server)
                    except SparkError:
                        board.state(session.name, "failed")
                        raise

                self.update.run(left, send)

    def _server(self, sessions: Sequence[NodeSession]) -> AbstractContextManager[PullServer | None]:
        """The registry that these pull from; None when none of them pulls."""
        if self.via or not any(staging.pulls(session, self.image.layers) for session in sessions):
            return nullcontext()
        # An HTTP server takes time to import, which a run that sends nothing saves.
        from sparkimage.nodes.pull_server import PullServer

        documents = (document for part in self.parts for document in (part.manifest, part.config))
        socket = sessions[0].remote.sockets / "serving"
        return closing(PullServer(socket, self.store, documents, self.image.layers))

    def _relay(self, todo: Sequence[NodeSession], board: TransferProgress) -> None:
        """Relay chains of nodes that lack the same layers; nodes that it does not reach get them
        from here afterwards."""
        groups: dict[tuple[int, ...], list[NodeSession]] = {}
        for session in todo:
            if not session.has(self.image):
                groups.setdefault(tuple(session.lacking), []).append(session)

        def chain(sessions: list[NodeSession]) -> None:
            first, *others = sessions
            for session in others:
                board.state(session.name, f"by relay from {first.name}")
                self._expect(session, board, 0)
            steps = self._steps(first)
            why = "the relay was interrupted"
            try:
                staging.relay(sessions, steps, self.store, self._moving(first, board))
            except SparkError as error:
                why = error.message
                raise
            finally:
                for session in sessions:
                    if session.target:
                        session.layers_sent = sum(len(step.send) for step in steps)
                        session.source = first.name if session is not first else None
                        board.state(session.name, "proven")
                    else:
                        self.update.warnings.append(
                            f"{session.name}: not reached by relay, its layers are sent from here: "
                            f"{session.relay_error or why}"
                        )

        # An error shows again, and is reported, when the layers are sent from here.
        run_on_all(
            [group for group in groups.values() if len(group) > 1], chain,
            name=lambda group: group[0].name, stop=lambda group: group[0].abandon(),
        )  # fmt: skip

    def _send(
        self, session: NodeSession, board: TransferProgress, server: PullServer | None
    ) -> None:
        """Bring the image to a node and prove it there; retried after what may be transient, and
        once from nothing where the staged layers are damaged."""
        removed = False
        for attempt in range(ATTEMPTS):
            is_last = attempt == ATTEMPTS - 1
            try:
                self._transfer(session, board, server)
                if self.examine is not None:
                    board.state(session.name, "verifying")
                    session.proven = self.examine(session, self.whole.name)
                board.state(session.name, "proven")
                return
            except DamagedError:
                # Layers of an earlier run that a crash of the node or its disk cut short.
                if removed or is_last:
                    raise
                removed = True
                board.state(session.name, "again: its layers are damaged")
                session.remove_staged()
            except UnreachableError as error:
                abandoned = session.remote.abandoned
                if error.definite or is_last or abandoned.is_set():
                    raise
                why = error.message.removeprefix(f"{session.name}").lstrip(": ")
                board.state(session.name, f"again: {why}")
                abandoned.wait(WAIT_S[attempt])
            self._reconnect(session, board)

    def _transfer(
        self, session: NodeSession, board: TransferProgress, server: PullServer | None
    ) -> None:
        """Get the image there under the staging name: it has it, pulls it, or loads it."""
        via, image = self.via, session.has(self.image)
        if image is not None:
            session.adopt(image.id, self.whole)
            return
        if via:
            board.state(session.name, f"pulls from {via}")
            origin = f"{via}@{self.image.digest}"
            staging.pull_from(session, origin, self.whole, self._bytes(session))
            session.source, session.layers_sent = via, len(session.lacking)
            return
        steps, moved = self._steps(session), self._moving(session, board)
        if server is not None and staging.pulls(session, self.image.layers):
            board.state(session.name, "pulls")
            why = staging.pull(session, steps, server, moved)
            if not why:
                return
            board.state(session.name, f"cannot pull, loads: {why}")
            self._expect(session, board, self._bytes(session))
        staging.load(session, steps, self.store, moved)

    def _reconnect(self, session: NodeSession, board: TransferProgress) -> None:
        session.remote.close()
        self._look(session)
        self._show(session, board)

    def _finish(self, session: NodeSession, *, moved: bool) -> None:
        """Keep the receipt where the name was ``moved``, and remove the staging names, and what
        killed runs left: theirs, and the containers of their proofs. Failures to remove are
        ignored."""
        if moved:
            receipt = self._receipt(session)
            receipts.keep(self.receipts_folder, receipt)
            words = ["sh", "-c", receipts.KEEP, "keep", receipts.file_of(receipt)]
            try:
                session.remote.run(words, stdin=receipts.text_of(receipt))
            except SparkError:
                session.warnings.append(f"{session.name}: could not write its receipt there")
        session.remote.engine.remove(*{*session.now.staged(), self.whole.name})
        session.remove_proofs()

    # Progress

    def _show(self, session: NodeSession, board: TransferProgress) -> None:
        """Show what a node has and what will be sent to it."""
        layers, count, size = len(self.image.layers), len(session.lacking), ""
        if self.via:
            self._expect(session, board, 0)
        else:
            self._expect(session, board, self._bytes(session))
            size = f", {human(self._bytes(session))} to send"
        board.state(session.name, f"{layers - count} of {layers} layers are there{size}")

    def _expect(self, session: NodeSession, board: TransferProgress, count: int) -> None:
        """So many more bytes will be sent to it from here."""
        total = session.sent + count
        board.total(session.name, total - session.expected)
        session.expected = total

    def _moving(self, session: NodeSession, board: TransferProgress) -> Moved:
        """Counts on the board what is sent to it, and shows when all has been."""

        def moved(count: int) -> None:
            before = session.sent - count
            board.moved(session.name, count)
            if before < session.expected <= session.sent:
                board.state(session.name, "unpacking")

        return moved

    def _steps(self, session: NodeSession) -> tuple[Step, ...]:
        return delta.steps(self.parts, session.lacking, size=self.step)

    def _bytes(self, session: NodeSession) -> int:
        """Bytes of the layers that it lacks."""
        return sum(self.image.layers[index].size for index in session.lacking)

    # Results

    def _outcome(self, unchanged: Sequence[str], began: float, state: str) -> Outcome:
        def result(session: NodeSession) -> NodeResult:
            lacking = len(session.lacking)
            error = self.update.errors.get(session.name)
            is_planned = state == "planned"
            own = "unchanged" if session.name in unchanged else state
            return NodeResult(
                node=session.name,
                state="failed" if error is not None else own,
                sent=self._bytes(session) if is_planned else session.sent,
                source=session.source,
                layers_sent=lacking if is_planned else session.layers_sent,
                layers_kept=len(self.image.layers) - lacking,
                error=error,
            )

        return Outcome(
            name=self.name,
            digest=self.image.digest,
            nodes=tuple(result(session) for session in self.update.sessions),
            seconds=time.monotonic() - began,
            warnings=self.update.warned(),
        )

    def _receipt(self, session: NodeSession) -> dict[str, Any]:
        verdict = self.decision.verdict
        return {
            "version": 1,
            "node": session.name,
            "name": self.name,
            "digest": self.image.digest,
            "platform": self.image.platform,
            "config": self.image.manifest["config"]["digest"],
            "layers": [layer.digest for layer in self.image.layers],
            "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "by": self.owner,
            "engine": f"{session.now.docker.version} {session.now.docker.store}",
            "proven": [*PROVEN, *session.proven],
            "seal": {
                "result": verdict.result,
                "when": verdict.newest.finished,
                "tiers": list(verdict.tiers),
                "checks": len(verdict.checks),
            }
            if verdict is not None
            else None,
            "unverified": self.decision.unverified or None,
        }
