"""Moves a name to another image on all nodes of a fleet, or on none.

Each node gets its script first, which waits for a line on its input. Only when all wait, and
everything is as expected, is that line sent, with one write to a helper that passes it on to all of
them; helper and scripts run to their end by themselves, even when this process dies. What failed
is undone everywhere.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkimage.core import interrupts
from sparkimage.core.errors import MixedFleetError, NodeError, SparkError, UnreachableError
from sparkimage.core.process import start_bytes
from sparkimage.core.program import program
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.engine_api import RefusedError
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession

PREVIOUS = "-previous"
"""What is added to a name for the image that had it before."""
AGAIN = "run the same command again"


def count_nodes(nodes: Sequence[object]) -> str:
    """Their number, in words."""
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"


def unreached(errors: Errors, count: int, others: str = "") -> NodeError:
    """The error for those of ``count`` nodes that did not answer, or answered with an error;
    ``others``: what is to say of the others."""
    some = f"{len(errors)} of {count} nodes"
    if not all(isinstance(error, UnreachableError) for error in errors.values()):
        message = f"{some} failed"
    elif len(errors) < count:
        message = f"could not reach {some}"
    elif count == 1:
        message = f"could not reach {next(iter(errors))}"
    else:
        message = f"could not reach any of {count} nodes"
    others = others if len(errors) < count else ""
    return NodeError(f"{message}{others}", detail="\n".join(lines(errors)))


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

    @property
    def ready(self) -> list[NodeSession]:
        """The nodes that have not failed."""
        return [session for session in self.sessions if session.name not in self.errors]

    def look(self, look: Callable[[NodeSession], None], outcome: str, hint: str = AGAIN) -> None:
        """Connect to all nodes, with ``look``. Raises as ``check``."""
        self.say(f"looking at {count_nodes(self.sessions)}")
        self.errors |= run_on_all(self.sessions, look, stop=NodeSession.abandon)
        self.check(outcome, hint)

    def check(self, outcome: str, hint: str = AGAIN) -> None:
        """Go on when no node failed, or (``partial``) not all did.

        Raises ``NodeError`` with every error; ``outcome`` says what it means for the fleet.
        """
        count = len(self.sessions)
        if not self.errors or (self.partial and len(self.errors) < count):
            return
        failed = f"{len(self.errors)} of {count} nodes" if count > 1 else "the node"
        raise NodeError(
            f"{self.name}: {failed} failed; {outcome}",
            detail="\n".join(lines(self.errors)),
            hint=hint,
        )

    def move(self, retags: Sequence[Retag]) -> None:
        """Do all of these, or none; with ``partial`` those that can. Failures go to ``errors``.

        Raises ``MixedFleetError`` where what failed could not be undone.
        """
        if not retags:
            return
        stuck: Errors = {}
        with contextlib.ExitStack() as stack:
            self.say(f"asking {count_nodes(retags)} whether {self.name} can be moved")
            for retag in retags:
                retag.start()
                # Without its line on the input it changes nothing.
                stack.callback(retag.close)
            inputs = [retag.input for retag in retags]
            helper = start_bytes([sys.executable, "-I", "-S", "-c", TRIGGER], keep=inputs)
            # Ends the helper, which holds their inputs open.
            stack.callback(helper.communicate)
            self.errors |= run_on_all(retags, Retag.wait, stop=Retag.stop)
            ready = [retag for retag in retags if retag.name not in self.errors]
            if not ready or (len(ready) < len(retags) and not self.partial):
                return
            # An interrupt waits until every node has answered.
            with interrupts.deferred() as interrupt:
                self.say(f"moving {self.name} on {count_nodes(ready)}")
                _trigger(helper, ready)
                self.errors |= run_on_all(ready, Retag.confirm)
                failed = [retag for retag in ready if retag.name in self.errors]
                if failed:
                    stuck = run_on_all(failed if self.partial else ready, Retag.undo)
                if not failed or self.partial:
                    interrupt.notes.append(f"{self.name} has been moved by then")
        if stuck:
            raise MixedFleetError(
                f"{self.name}: the move could not be undone on {', '.join(sorted(stuck))}: "
                "THE FLEET IS MIXED",
                detail="\n".join(lines(self.errors) + lines(stuck)),
                hint=f"see who has what: {program()} nodes; then {AGAIN}",
            )


TRIGGER = """
import os, sys
for number in sys.stdin.readline().split():
    try:
        os.write(int(number), b"go\\n")
    except OSError:
        pass
"""
"""The helper: a script that has ended does not keep the line from the others."""


def _trigger(helper: subprocess.Popen[bytes], retags: Sequence[Retag]) -> None:
    """Let these go on, with one write."""
    assert helper.stdin is not None
    # When the helper is dead no script gets its line, and each reports it when it is confirmed.
    with contextlib.suppress(OSError):
        helper.stdin.write(f"{' '.join(str(retag.input) for retag in retags)}\n".encode())
        helper.stdin.flush()
    helper.wait()


@dataclass(kw_only=True)
class Retag:
    """Lets ``tag`` refer to the session's ``target`` on its node; the image that has it now becomes
    the previous one."""

    session: NodeSession
    tag: str
    receipt: Mapping[str, Any] | None = None
    script: RemoteScript = field(init=False)

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def input(self) -> int:
        """The file descriptor of the script's input."""
        return self.script.input.fileno()

    def start(self) -> None:
        """Start its script, which waits before it changes anything."""
        remote, receipt = self.session.remote, self.receipt
        kept = ("", "")
        if receipt is not None:
            kept = f"{receipt['digest'][7:]}.json", json.dumps(receipt, separators=(",", ":"))
        words = remote.script(
            "move", self.tag, self.tag + PREVIOUS, self.session.target,
            self.session.now.id_of(self.tag), *kept,
        )  # fmt: skip
        self.script = RemoteScript(remote, words)

    def wait(self) -> None:
        """Until the script is ready, and all is as it was seen. Raises ``NodeError``."""
        with self.script.limit():
            line = next(self.script.lines(), "")
        if line != "@@ armed":
            raise self._failure(f"{line}\n{self.script.rest()}")
        self.check()

    def check(self) -> None:
        """Whether all is as it was seen, once the script waits. Raises ``NodeError``."""
        if not self._id_of(self.session.target):
            raise NodeError(f"{self.name}: the image was removed there meanwhile", hint=AGAIN)
        now = self._id_of(self.tag)
        if now != self.session.now.id_of(self.tag):
            raise NodeError(
                f"{self.name}: another process moved {self.tag} there meanwhile",
                detail=f"it refers to {now[:19] or 'nothing'} now", hint=AGAIN,
            )  # fmt: skip

    def stop(self) -> None:
        """Kill the script."""
        self.script.process.kill()

    def confirm(self) -> None:
        """Until the name has moved. Raises ``NodeError`` when it has not, or no answer came."""
        output = self.script.rest()
        if "@@ moved" not in output.splitlines():
            raise self._failure(output)
        if "@@ noreceipt" in output:
            self.session.warnings.append(f"{self.name}: could not write its receipt there")

    def undo(self) -> None:
        """Give the names back to the images that had them. Raises ``NodeError``."""
        engine, before = self.session.remote.engine, self.session.now.id_of
        for name in (self.tag, self.tag + PREVIOUS):
            with self.session.refused(Act.MOVE):
                if before(name):
                    engine.tag(before(name), name)
                elif self._id_of(name):
                    engine.delete(f"/images/{name}")

    def close(self) -> None:
        """End the script."""
        if not self.script.ended:
            self.script.rest()
        self.script.kill()

    def _id_of(self, image: str) -> str:
        """The id of an image that is there, or nothing. Raises ``NodeError``."""
        try:
            return str(self.session.remote.engine.image(image)["Id"])
        except RefusedError as error:
            if error.is_missing:
                return ""
            raise self.session.refusal(Act.MOVE, str(error)) from None

    def _failure(self, output: str) -> SparkError:
        return self.script.lost() or self.session.refusal(Act.MOVE, output)
