"""An image on every node of a fleet, or on none.

Look at all nodes; bring each the layers that it lacks, under a staging name; prove it there; and
only when it is proven everywhere, move the name, everywhere. What a failed run has brought stays
under the staging names, for the next one to go on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkimage.core.errors import DamagedError, SparkError, UnreachableError
from sparkimage.core.progress import Moved, TransferProgress, View
from sparkimage.core.units import human
from sparkimage.image import layerindex
from sparkimage.image.archive import Document, Step
from sparkimage.image.store import Image, Store
from sparkimage.nodes import delta, receipts, retag
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.delta import ImageManifest
from sparkimage.nodes.retag import PREVIOUS, Retag
from sparkimage.nodes.session import ATTEMPTS, NodeSession
from sparkimage.nodes.ssh import IMAGES, Remote
from sparkimage.verify.policy import PolicyDecision

if TYPE_CHECKING:
    from sparkimage.nodes.pull_server import Serving

PROVEN = ("layers", "config", "platform", "container")
"""What every node proves of an image before its name is moved."""
WAIT_S = (1.0, 3.0)
"""Seconds between two attempts at a node that could not be reached."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to go about it."""

    partial: bool = False
    """Leave a mixed fleet when some nodes fail."""
    dry_run: bool = False
    relay: bool = False
    """Nodes that lack the same layers pass them on; only one of them gets them from here."""
    via: str = ""
    """A repository of a registry that the nodes pull from; empty: the layers go out from here."""
    step: int = delta.STEP
    """Bytes after which a node keeps what has arrived, whatever becomes of the rest."""


@dataclass(frozen=True, kw_only=True)
class NodeResult:
    """What came of a node."""

    name: str
    state: str
    """``moved``, ``unchanged``, ``planned`` or ``failed``."""
    sent: int = 0
    """Bytes that went to it from here; with ``planned`` those that would."""
    source: str = ""
    """Where else it got the layers from: another node's name, or the registry's repository."""
    layers_sent: int = 0
    layers_kept: int = 0
    error: SparkError | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it all."""

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
        return {
            "name": self.name,
            "digest": self.digest,
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "nodes": [
                {
                    "node": one.name,
                    "state": one.state,
                    "sent": one.sent,
                    "source": one.source or None,
                    "layers_sent": one.layers_sent,
                    "layers_kept": one.layers_kept,
                    "error": one.error.message if one.error is not None else None,
                }
                for one in self.nodes
            ],
        }


@dataclass(kw_only=True)
class Distribution:
    """One image on its way to a fleet."""

    image: Image
    name: str
    decision: PolicyDecision
    store: Store
    remotes: Sequence[Remote]
    """Its nodes, not connected, or begun with ``Remote.snapshot``; closed by whoever made them."""
    owner: str
    """Who brings it, as ``ssh.lock_owner`` says."""
    view: View
    options: Options = field(default_factory=Options)
    receipts_folder: Path | None = None
    """The folder of our own receipts; None to keep none."""
    examine: Callable[[NodeSession, str], Sequence[str]] | None = None
    """Proves the image of this name on a node further, before any name is moved; says how."""

    def __post_init__(self) -> None:
        self.whole = ImageManifest(
            image=self.image,
            manifest=self._document(self.image.digest),
            config=self._document(self.image.manifest["config"]["digest"]),
        )
        self.part = delta.part(self.whole, len(self.image.layers))
        self.lacking: dict[str, list[int]] = {}
        self.expected: dict[str, int] = {}
        self.warnings: list[str] = []
        self.sessions = [NodeSession(remote=one) for one in self.remotes]
        self.proven: dict[str, Sequence[str]] = {}

    def run(self) -> Outcome:
        """Do it. Raises ``NodeError`` with every node that failed; then nothing was moved, or
        (``partial``) only the others' names. ``MixedFleetError`` when what failed in the last
        phase could not be undone everywhere."""
        began = time.monotonic()
        all_ = self.sessions
        self.view.say(f"looking at {retag.nodes(all_)}")
        errors = run_on_all(all_, self._look, stop=NodeSession.abandon)
        self._decide(all_, errors, "nothing was sent", "run the same command again")
        well = [one for one in all_ if one.name not in errors]
        there = {one.name for one in well if self._is_there(one)}
        # One that has it already is proven all the same, where it has not been or there is
        # more to prove.
        todo = [
            one
            for one in well
            if one.name not in there or self.examine or not self._was_proven(one)
        ]
        if self.options.dry_run:
            return self._outcome(all_, errors, there, began, "planned")
        errors |= self._stage(todo)
        self._decide(all_, errors, "no name was moved: every node keeps what it had")
        ready = [one for one in todo if one.name not in errors]
        moves = [self._move(one) for one in ready]
        retag.move(moves, errors, partial=self.options.partial, say=self.view.say)
        self._decide(all_, errors, "what was moved has been undone: every node has what it had")
        self._clean([one for one in well if one.name not in errors])
        self._keep_receipts([one for one in ready if one.name not in errors])
        return self._outcome(all_, errors, there, began, "moved")

    def warned(self) -> tuple[str, ...]:
        """What a user should know so far, of the run and of every node; however it ends."""
        of_nodes = (said for one in self.sessions for said in (*one.warnings, *one.repaired))
        return (*self.warnings, *of_nodes)

    @cached_property
    def known(self) -> Mapping[str, list[str]]:
        """The layers of every image of ours, by its manifest; read when a node lacks something."""
        return {one.digest: [layer.digest for layer in one.layers] for one in self.store.images()}

    # Phases

    def _look(self, session: NodeSession) -> None:
        session.open(IMAGES, lock=not self.options.dry_run, owner=self.owner)
        session.check(self.image)
        lacking = self.lacking[session.name] = (
            [] if session.has(self.image) else session.lacking(self.whole, self.known)
        )
        layers = [self.image.layers[place] for place in lacking]
        if layers:
            steps = self._steps(lacking)
            session.room(
                sum(layer.size for layer in layers),
                sum(layerindex.unpacked_size(self.store, layer) for layer in layers),
                max(step.size for step in steps),
            )

    def _is_there(self, session: NodeSession) -> bool:
        held, named = session.has(self.image), session.now.by_tag(self.name)
        return held is not None and named is not None and held.id == named.id

    def _was_proven(self, session: NodeSession) -> bool:
        return bool(session.now.receipt(self.image.digest).get("proven"))

    def _stage(self, todo: Sequence[NodeSession]) -> Errors:
        if not todo:
            return {}
        text = f"{self.name} to {retag.nodes(todo)}"
        with self.view.board([one.name for one in todo], text) as board:
            for one in todo:
                self._expect(one, board, 0 if self.options.via else self._bytes(one))
                board.state(one.name, self._reused(one))
            if self.options.relay and not self.options.via:
                self._relay(todo, board)
            left = [one for one in todo if not one.target or self.examine is not None]
            with self._serving(left) as serving:
                return run_on_all(
                    left, lambda one: self._bring(one, board, serving), stop=NodeSession.abandon
                )

    @contextmanager
    def _serving(self, some: Sequence[NodeSession]) -> Iterator[Serving | None]:
        """What those that pull from here pull from; None when nobody does."""
        if self.options.via or not any(self._pulls(one) for one in some):
            yield None
            return
        # An HTTP server takes time to import, which a run that sends nothing should not pay.
        from sparkimage.nodes.pull_server import Serving

        documents = (
            document for one in delta.parts(self.whole) for document in (one.manifest, one.config)
        )
        socket = some[0].remote.sockets / "serving"
        serving = Serving(socket, self.store, documents, self.image.layers)
        try:
            yield serving
        finally:
            serving.close()

    def _pulls(self, session: NodeSession) -> bool:
        return session.pulls(self.whole, self.lacking[session.name])

    def _relay(self, todo: Sequence[NodeSession], board: TransferProgress) -> None:
        """Chains of nodes that lack the same; what it does not bring is brought from here."""
        groups: dict[tuple[int, ...], list[NodeSession]] = {}
        for one in todo:
            if not one.has(self.image):
                groups.setdefault(tuple(self.lacking[one.name]), []).append(one)

        def chain(sessions: list[NodeSession]) -> None:
            first, *others = sessions
            for one in others:
                board.state(one.name, f"by relay from {first.name}")
                self._expect(one, board, 0)
            steps = self._steps(self.lacking[first.name])
            why = "it ended before its time"
            try:
                first.load(steps, self.store, self._moving(first, board), followers=others)
            except SparkError as error:
                why = error.message
                raise
            finally:
                for one in sessions:
                    if one.target:
                        one.layers_sent = sum(len(step.send) for step in steps)
                        one.source = first.name if one is not first else ""
                        board.state(one.name, "proven")
                    else:
                        self.warnings.append(
                            f"{one.name}: not reached by relay, its layers go out from here: "
                            f"{one.unrelayed or why}"
                        )

        # What went wrong is seen again, and told, when it is brought from here.
        run_on_all(
            [g for g in groups.values() if len(g) > 1], chain, name=lambda g: g[0].name,
            stop=lambda g: g[0].abandon(),
        )  # fmt: skip

    def _bring(
        self, session: NodeSession, board: TransferProgress, serving: Serving | None
    ) -> None:
        """Load and prove it there; what can pass is tried again, what is damaged brought anew."""
        if self.options.relay and not self.options.via:
            self._again(session, board)
        dropped = False
        for attempt in range(ATTEMPTS):
            try:
                held = session.has(self.image)
                if held is not None:
                    session.adopt(held.id, self.part)
                elif self.options.via:
                    pulled = f"{self.options.via}@{self.image.digest}"
                    board.state(session.name, f"pulls from {self.options.via}")
                    session.adopt(pulled, self.part, size=self._bytes(session))
                    session.source = self.options.via
                    session.layers_sent = len(self.lacking[session.name])
                else:
                    self._send(session, board, serving)
                if self.examine is not None:
                    board.state(session.name, "being examined")
                    self.proven[session.name] = self.examine(session, self.part.name)
                board.state(session.name, "proven")
                return
            except DamagedError:
                # Layers that an earlier run left, and a crash of the node or its disk cut short.
                if dropped or attempt == ATTEMPTS - 1:
                    board.state(session.name, "failed")
                    raise
                dropped = True
                board.state(session.name, "again: it is damaged there")
                session.drop()
                self._again(session, board)
            except UnreachableError as error:
                if error.definite or attempt == ATTEMPTS - 1 or session.remote.given_up.is_set():
                    board.state(session.name, "failed")
                    raise
                why = error.message.removeprefix(f"{session.name}").lstrip(": ")
                board.state(session.name, f"again: {why}")
                session.remote.given_up.wait(WAIT_S[attempt])
                self._again(session, board)
            except SparkError:
                board.state(session.name, "failed")
                raise

    def _send(self, session: NodeSession, board: TransferProgress, serving: Serving | None) -> None:
        """The layers from here: its engine pulls them, or loads them where it cannot."""
        steps, moved = self._steps(self.lacking[session.name]), self._moving(session, board)
        if serving is not None and self._pulls(session):
            board.state(session.name, "pulls")
            why = session.pull(steps, serving, moved)
            if not why:
                return
            board.state(session.name, f"cannot pull, loads: {why}")
            self._expect(session, board, self._bytes(session))
        session.load(steps, self.store, moved)

    def _again(self, session: NodeSession, board: TransferProgress) -> None:
        session.remote.close()
        self._look(session)
        self._expect(session, board, 0 if self.options.via else self._bytes(session))
        board.state(session.name, self._reused(session))

    def _expect(self, session: NodeSession, board: TransferProgress, count: int) -> None:
        """So many bytes are still to go to it from here."""
        total = session.sent + count
        board.total(session.name, total - self.expected.get(session.name, 0))
        self.expected[session.name] = total

    def _moving(self, session: NodeSession, board: TransferProgress) -> Moved:
        """Counts on the board what goes to it, and says when all has gone."""

        def moved(count: int) -> None:
            before = session.sent - count
            board.moved(session.name, count)
            if before < self.expected[session.name] <= session.sent:
                board.state(session.name, "unpacking")

        return moved

    def _reused(self, session: NodeSession) -> str:
        layers, count = len(self.image.layers), len(self.lacking[session.name])
        size = f", {human(self._bytes(session))} to send" if not self.options.via else ""
        return f"{layers - count} of {layers} layers are there{size}"

    def _move(self, session: NodeSession) -> Retag:
        named = session.now.by_tag(self.name)
        before = session.now.by_tag(self.name + PREVIOUS)
        return Retag(
            session=session,
            name=self.name,
            previous=self.name + PREVIOUS,
            target=session.target,
            former=named.id if named is not None else "",
            before=before.id if before is not None else "",
            staging=self.part.name,
            receipt=self._receipt(session),
        )

    def _clean(self, well: Sequence[NodeSession]) -> None:
        """Remove what killed runs left: staging names and the containers of their proofs; a
        failure is no one's trouble."""

        def one(session: NodeSession) -> None:
            stale = session.stale(keep=self.part.name)
            if stale or session.now.docker.stopped:
                session.clean(stale)

        run_on_all(well, one, stop=NodeSession.abandon)

    def _keep_receipts(self, moved: Sequence[NodeSession]) -> None:
        if self.receipts_folder is not None:
            for session in moved:
                receipts.keep(self.receipts_folder, self._receipt(session))

    # Words

    def _decide(
        self,
        all_: Sequence[NodeSession],
        errors: Errors,
        what: str,
        again: str = "run the same command again: what has arrived stays there",
    ) -> None:
        partial = self.options.partial
        retag.decide(self.name, len(all_), errors, what, partial=partial, again=again)

    def _outcome(
        self,
        all_: Sequence[NodeSession],
        errors: Errors,
        there: Collection[str],
        began: float,
        state: str,
    ) -> Outcome:
        def result(one: NodeSession) -> NodeResult:
            lacking = self.lacking.get(one.name, [])
            return NodeResult(
                name=one.name,
                state="failed"
                if one.name in errors
                else "unchanged"
                if one.name in there
                else state,
                sent=one.sent if state != "planned" else self._bytes(one),
                source=one.source,
                layers_sent=one.layers_sent if state != "planned" else len(lacking),
                layers_kept=len(self.image.layers) - len(lacking),
                error=errors.get(one.name),
            )

        return Outcome(
            name=self.name,
            digest=self.image.digest,
            nodes=tuple(result(one) for one in all_),
            seconds=time.monotonic() - began,
            warnings=self.warned(),
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
            "proven": [*PROVEN, *self.proven.get(session.name, ())],
            "seal": {
                "result": verdict.result,
                "when": verdict.when,
                "tiers": list(verdict.tiers),
                "checks": len(verdict.checks),
            }
            if verdict is not None
            else None,
            "unverified": self.decision.unverified or None,
        }

    def _steps(self, lacking: Sequence[int]) -> tuple[Step, ...]:
        return delta.steps(self.whole, lacking, size=self.options.step)

    def _bytes(self, session: NodeSession) -> int:
        places = self.lacking.get(session.name, ())
        return sum(self.image.layers[place].size for place in places)

    def _document(self, digest: str) -> Document:
        with self.store.open_blob(digest) as blob:
            return Document(digest=digest, data=blob.read())
