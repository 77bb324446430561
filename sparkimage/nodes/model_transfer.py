"""Brings the nodes what they lack of a model, attempt after attempt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial

from sparkimage.core.errors import NodeError, SparkError, UnreachableError
from sparkimage.core.progress import TransferProgress
from sparkimage.core.units import human
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.model_manifest import Manifest, SourceFile, hash_file
from sparkimage.nodes.model_node import ModelNode, by_name
from sparkimage.nodes.model_plan import HERE, lacking, plan
from sparkimage.nodes.model_stream import Limiter, Report, Stream, Watch, corrupt
from sparkimage.nodes.retag import AGAIN, FleetUpdate
from sparkimage.nodes.session import ATTEMPTS

WAIT_S = 2.0
"""Seconds between two attempts."""


@dataclass(kw_only=True)
class Transfer:
    """All that is sent for one push."""

    manifest: Manifest
    source: Mapping[str, SourceFile]
    """Files by their sha256."""
    limit: float | None
    """Bytes a second that leave this machine at most."""
    update: FleetUpdate
    """Its ``errors`` get the nodes that fail, its ``warnings`` what was made good."""
    look: Callable[[ModelNode], None]
    """Connects with a node and looks at what it has. Raises ``NodeError``."""
    sent: int = 0
    """Bytes that left this machine."""
    cut: dict[tuple[str, str], str] = field(default_factory=dict)
    """Hops that failed, and why."""

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.limit)

    def run(self, todo: Sequence[ModelNode], board: TransferProgress) -> None:
        """Until these nodes have all, or have failed. Raises ``SparkError`` for what is wrong with
        the source."""
        for node in todo:
            board.total(node.name, node.expected)
            board.state(node.name, f"{human(node.expected)} to send")
        began = time.monotonic()
        while todo := self._on_all(todo, ModelNode.ready, board):
            self._attempt(todo, board, began)
            todo = self._on_all(todo, partial(self._look_after, board=board), board)
            todo = [node for node in todo if self._missing(node)]
            if todo:
                threading.Event().wait(WAIT_S)
                todo = self._on_all(todo, partial(self._reconnect, board=board), board)

    def _on_all(
        self, nodes: Sequence[ModelNode], act: Callable[[ModelNode], None], board: TransferProgress
    ) -> list[ModelNode]:
        """Run ``act`` for these nodes at once; those that it has not failed for, in their order."""
        errors = self.update.run(nodes, act)
        for name in errors:
            board.state(name, "failed")
        return [node for node in nodes if node.name not in errors]

    def _missing(self, node: ModelNode) -> int:
        """Bytes that a node lacks."""
        return sum(lacking(self.manifest, node.now).values())

    def _attempt(self, todo: Sequence[ModelNode], board: TransferProgress, began: float) -> None:
        """Send once what these nodes lack."""
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
                chain=chain, nodes=nodes, source=self.source, limiter=self.limiter, report=report,
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
            own = hash_file(self.source[sha256], threading.Event(), lambda _: None)
            if own != sha256:
                raise corrupt(self.source[sha256].real, own, sha256)
        for name, sha256 in report.damaged:
            self.update.warnings.append(
                f"{name}: {self.source[sha256].path} arrived damaged, and is sent again"
            )
        for (before, name), why in report.cut.items():
            if before != HERE and (before, name) not in self.cut:
                self.update.warnings.append(
                    f"{name}: not reached from {before}, gets its files from here: {why}"
                )
        self.cut |= report.cut

    def _look_after(self, node: ModelNode, board: TransferProgress) -> None:
        """Look at what a node has after an attempt. Raises ``SparkError`` where it lacks something
        that no other attempt brings."""
        lost: SparkError | None = None
        before = self._missing(node)
        try:
            node.look()
        except UnreachableError as error:
            lost = error
        missing = self._missing(node)
        if not missing:
            return
        node.tries = 1 if missing < before else node.tries + 1
        if node.failed:
            raise node.refusal("writing what arrived", 1, node.failed)
        why = self.cut.get((HERE, node.name), "")
        failure = lost or NodeError(
            why or f"{node.name}: not all of it arrives", hint=AGAIN if why else ""
        )
        if node.tries >= ATTEMPTS:
            raise failure
        short = (why or failure.message).removeprefix(node.name).lstrip(": ")
        board.state(node.name, f"again: {short}")

    def _reconnect(self, node: ModelNode, board: TransferProgress) -> None:
        """Connect again with a node that did not get all; one that does not answer has its next
        attempts."""
        while True:
            try:
                node.session.remote.close()
                self.look(node)
                return
            except UnreachableError as error:
                node.tries += 1
                if error.definite or node.tries >= ATTEMPTS:
                    raise
                board.state(node.name, f"again: {error.message}")
                if node.session.remote.abandoned.wait(WAIT_S):
                    raise
