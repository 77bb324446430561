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
    """Its ``errors`` get the nodes that fail."""
    look: Callable[[ModelNode], None]
    """Connects with a node and looks at what it has. Raises ``NodeError``."""
    warnings: list[str]
    """Get what went wrong and was made good."""
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
        while todo:
            self._attempt(todo, board, began)
            todo = self._left(todo, board)
            if todo:
                threading.Event().wait(WAIT_S)
                self._reconnect(todo, board)
                todo = self._ready(todo)

    def _ready(self, nodes: Sequence[ModelNode]) -> list[ModelNode]:
        """Those that have not failed."""
        return [node for node in nodes if node.name not in self.update.errors]

    def _attempt(self, todo: Sequence[ModelNode], board: TransferProgress, began: float) -> None:
        """Send once what these nodes lack."""
        self.update.errors |= run_on_all(todo, ModelNode.ready, stop=ModelNode.abandon)
        todo = self._ready(todo)
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
            self.warnings.append(
                f"{name}: {self.source[sha256].path} arrived damaged, and is sent again"
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

        self.update.errors |= run_on_all(nodes, act, stop=ModelNode.abandon)
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
                    self.look(node)
                    return
                except UnreachableError as error:
                    node.tries += 1
                    if error.definite or node.tries >= ATTEMPTS:
                        raise
                    board.state(node.name, f"again: {error.message}")
                    if node.session.remote.abandoned.wait(WAIT_S):
                        raise

        errors = run_on_all(nodes, act, stop=ModelNode.abandon)
        for name in errors:
            board.state(name, "failed")
        self.update.errors |= errors
