"""Moves a name to another image on all nodes of a fleet, or on none.

Each node is asked first. Only when all are ready, and everything is as expected, are they told to
move, with one write to a helper that tells all of them; it runs to its end by itself, even when
this process dies. What failed is undone everywhere.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sparkimage.core import interrupts
from sparkimage.core.errors import MixedFleetError, NodeError, SparkError, UnreachableError
from sparkimage.core.process import start_bytes
from sparkimage.core.program import program
from sparkimage.core.units import plural
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.engine_api import Exchange, RefusedError, tag_requests
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.session import NodeSession

PREVIOUS = "-previous"
"""What is added to a name for the image that had it before."""
AGAIN = "run the same command again"
FIX = f"fix the errors above, then {AGAIN}"


def failure(
    errors: Errors, count: int, what: str, kind: type[SparkError] = NodeError, hint: str = FIX
) -> SparkError:
    """The error for those of ``count`` nodes that failed."""
    failed = f"{len(errors)} of {count} nodes" if count > 1 else "the node"
    return kind(f"{failed} {what}", detail="\n".join(lines(errors)), hint=hint)


def unreached(errors: Errors, count: int, others: str = "") -> SparkError:
    """The error for those of ``count`` nodes that did not answer, or answered with an error;
    ``others``: what is to say of the others."""
    others = others if len(errors) < count else ""
    if not all(isinstance(error, UnreachableError) for error in errors.values()):
        return failure(errors, count, f"failed{others}")
    nodes = f"any of {count} nodes" if count > 1 else next(iter(errors))
    if len(errors) < count:
        nodes = f"{len(errors)} of {count} nodes{others}"
    return NodeError(f"could not reach {nodes}", detail="\n".join(lines(errors)), hint=FIX)


def lines(errors: Errors) -> list[str]:
    """All errors for the terminal, by node; one that several nodes share is listed once."""
    distinct = dict.fromkeys(
        (error.message, error.detail, error.hint) for _, error in sorted(errors.items())
    )
    shown = []
    for message, detail, hint in distinct:
        shown.append(f"✗ {message}")
        shown += [f"    {line}" for line in detail.splitlines()[-6:]]
        if hint:
            shown.append(f"    → {hint}")
    return shown


class Abandonable(Protocol):
    """What can be given up."""

    def abandon(self) -> None:
        """Kill what runs with it."""


Item = TypeVar("Item", bound=Abandonable)


class Move(Protocol):
    """What one node does in a move."""

    @property
    def session(self) -> NodeSession:
        """The node's."""

    @property
    def name(self) -> str:
        """The node's."""

    @property
    def input(self) -> int:
        """The file descriptor to which ``go`` is to be written, once it is prepared."""

    def prepare(self) -> None:
        """Connect with it, and see whether all is as it was seen. Without ``go`` nothing changes.
        Raises ``NodeError``."""

    def go(self) -> bytes:
        """What lets it move."""

    def confirm(self, answer: bytes) -> None:
        """Until it has moved; ``answer``: all that came where ``input`` is a socket. Raises
        ``NodeError`` when it has not, or no answer came."""

    def undo(self) -> None:
        """Put back what was there. Raises ``NodeError``."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(kw_only=True)
class FleetUpdate:
    """A change of what a name refers to on all nodes, or on none; with ``partial`` on those that
    can."""

    name: str
    sessions: Sequence[NodeSession]
    partial: bool = False
    say: Callable[[str], None] = lambda _line: None
    """Gets a line about each phase as it begins."""
    errors: Errors = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ready(self) -> list[NodeSession]:
        """The nodes that have not failed."""
        return [session for session in self.sessions if session.name not in self.errors]

    def warned(self) -> tuple[str, ...]:
        """All warnings so far, also those about single nodes."""
        of_nodes = (text for one in self.sessions for text in (*one.warnings, *one.repaired))
        return (*self.warnings, *of_nodes)

    def run(self, items: Sequence[Item], act: Callable[[Item], None]) -> Errors:
        """``run_on_all``; the errors are those of the update, too."""
        errors = run_on_all(items, act, stop=lambda item: item.abandon())
        self.errors |= errors
        return errors

    def look(self, look: Callable[[NodeSession], None], outcome: str, hint: str = AGAIN) -> None:
        """Connect to all nodes, with ``look``. Raises as ``check``."""
        self.say(f"looking at {plural(len(self.sessions), 'node')}")
        self.run(self.sessions, look)
        self.check(outcome, hint)

    def check(self, outcome: str, hint: str = AGAIN) -> None:
        """Go on when no node failed, or (``partial``) not all did.

        Raises ``NodeError`` with every error; ``outcome`` says what it means for the fleet.
        """
        count = len(self.sessions)
        if not self.errors or (self.partial and len(self.errors) < count):
            return
        error = failure(self.errors, count, f"failed; {outcome}", hint=hint)
        error.message = f"{self.name}: {error.message}"
        raise error

    def move(self, moves: Sequence[Move]) -> None:
        """Do all of these, or none; with ``partial`` those that can. Failures go to ``errors``.

        Raises ``MixedFleetError`` where what failed could not be undone.
        """
        if not moves:
            return
        stuck: Errors = {}
        with contextlib.ExitStack() as stack:
            self.say(f"asking {plural(len(moves), 'node')} whether {self.name} can be moved")
            for move in moves:
                stack.callback(move.close)
            self.errors |= run_on_all(
                moves, lambda move: move.prepare(), stop=lambda move: move.session.abandon()
            )
            ready = [move for move in moves if move.name not in self.errors]
            if not ready or (len(ready) < len(moves) and not self.partial):
                return
            inputs = [move.input for move in ready]
            helper = start_bytes([sys.executable, "-I", "-S", "-c", HELPER], keep=inputs)
            # Ends the helper, which holds their inputs open.
            stack.callback(helper.communicate)
            # An interrupt waits until every node has answered.
            with interrupts.deferred() as interrupt:
                self.say(f"moving {self.name} on {plural(len(ready), 'node')}")
                answers = _let_go(helper, ready)
                self.errors |= run_on_all(
                    ready, lambda move: move.confirm(answers.get(move.input, b""))
                )
                failed = [move for move in ready if move.name in self.errors]
                if failed:
                    stuck = run_on_all(failed if self.partial else ready, lambda move: move.undo())
                if not failed or self.partial:
                    interrupt.notes.append(f"{self.name} has been moved by then")
        if stuck:
            raise MixedFleetError(
                f"{self.name}: the move could not be undone on {', '.join(sorted(stuck))}: "
                "THE FLEET IS MIXED",
                detail="\n".join(lines(self.errors) + lines(stuck)),
                hint=f"see who has what: {program()} nodes; then {AGAIN}",
            )


HELPER = """
import os, sys
answers, line = {}, sys.stdin.readline()
moves = [word.split(":") for word in line.split()] if line.endswith("\\n") else []
for number, text in moves:
    try:
        os.write(int(number), bytes.fromhex(text))
    except OSError:
        pass
for number, _ in moves:
    answers[number] = b""
    try:
        while piece := os.read(int(number), 65536):
            answers[number] += piece
    except OSError:
        pass
print(*(f"{number}:{answer.hex()}" for number, answer in answers.items()))
"""
"""Writes what lets the nodes move, if it comes completely, and reads what the sockets among their
inputs answer: an engine may give up a request of a connection that ends."""


def _let_go(helper: subprocess.Popen[bytes], moves: Sequence[Move]) -> dict[int, bytes]:
    """Let these go on, with one write; what came of it, by the inputs."""
    words = " ".join(f"{move.input}:{move.go().hex()}" for move in moves)
    # When the helper is dead no node is told to, and each reports it when it is confirmed.
    output, _ = helper.communicate(f"{words}\n".encode())
    answers = (word.split(":") for word in output.decode().split())
    return {int(number): bytes.fromhex(answer) for number, answer in answers}


@dataclass(kw_only=True)
class Retag:
    """Lets ``tag`` refer to the session's ``target`` on its node; the image that has it now becomes
    the previous one. See ``Move``."""

    session: NodeSession
    tag: str

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.session.remote.engine)

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def input(self) -> int:
        return self.exchange.fileno()

    def prepare(self) -> None:
        with self.session.refused(Act.MOVE), self.exchange.step():
            self.exchange.connect()
        if not self._id_of(self.session.target):
            raise NodeError(f"{self.name}: the image was removed there meanwhile", hint=AGAIN)
        now = self._id_of(self.tag)
        if now != self.session.now.id_of(self.tag):
            raise NodeError(
                f"{self.name}: another process moved {self.tag} there meanwhile",
                detail=f"it refers to {now[:19] or 'nothing'} now", hint=AGAIN,
            )  # fmt: skip

    @property
    def names(self) -> Mapping[str, str]:
        """The images that get a name, by it."""
        former, target = self.session.now.id_of(self.tag), self.session.target
        keep = {self.tag + PREVIOUS: former} if former not in ("", target) else {}
        return {**keep, self.tag: target}

    def go(self) -> bytes:
        # Until then the helper reads.
        self.exchange.extend(self.session.remote.patience_s)
        return tag_requests(self.names)

    def confirm(self, answer: bytes) -> None:
        if answer.count(DONE) == len(self.names):
            return
        with self.session.refused(Act.MOVE):
            if (refused := REFUSED.search(answer)) is not None:
                raise RefusedError(str(json.loads(refused[0])["message"]))
            raise self.exchange.ended_early()

    def undo(self) -> None:
        engine, before = self.session.remote.engine, self.session.now.id_of
        for name in (self.tag, self.tag + PREVIOUS):
            with self.session.refused(Act.MOVE):
                if before(name):
                    engine.tag(before(name), name)
                elif self._id_of(name):
                    engine.delete(f"/images/{name}")

    def close(self) -> None:
        self.exchange.close()

    def _id_of(self, image: str) -> str:
        """The id of an image that is there, or nothing. Raises ``NodeError``."""
        try:
            return str(self.session.remote.engine.image(image)["Id"])
        except RefusedError as error:
            if error.is_missing:
                return ""
            raise self.session.refusal(Act.MOVE, str(error)) from None


DONE = b"HTTP/1.1 201 "
"""How an engine's answer begins that has given a name."""
REFUSED = re.compile(rb'\{"message":.*\}')
