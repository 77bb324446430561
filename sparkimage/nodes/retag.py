"""Moves a name to another image on many nodes as one act, or on none.

Each node gets its script first, which looks whether all is as expected and then waits for one
word. Only when all wait is the word given, with one write to a helper that passes it on to all of
them; helper and scripts go on by themselves from there, whatever becomes of this process. What
failed is undone everywhere.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.core import interrupts
from sparkimage.core.errors import MixedFleetError, NodeError, SparkError
from sparkimage.core.process import start_bytes
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession

PREVIOUS = "-previous"
"""What is added to a name for the image that had it before."""


@dataclass(frozen=True, kw_only=True)
class Retag:
    """What a node is to do: ids of its own; an empty one stands for none."""

    session: NodeSession
    name: str
    previous: str
    """The name that the former image is to have."""
    target: str
    former: str
    """The image that has ``name`` now."""
    before: str
    """The image that has ``previous`` now."""
    staging: str = ""
    """A name of the target to give up."""
    receipt: Mapping[str, Any] | None = None


def nodes(some: Sequence[object]) -> str:
    """How many they are, in words."""
    return f"{len(some)} node{'s' if len(some) != 1 else ''}"


def move(
    moves: Sequence[Retag],
    errors: Errors,
    *,
    partial: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> None:
    """Do all of these, or none. With ``partial`` those that can, whatever the others do.

    What fails comes to ``errors``; ``say`` takes a line about what begins now.
    Raises ``MixedFleetError`` where what failed could not be undone.
    """
    if not moves:
        return
    name = moves[0].name
    armed: list[PreparedRetag] = []
    stuck: Errors = {}
    with contextlib.ExitStack() as stack:
        say(f"asking {nodes(moves)} whether {name} can be moved")
        for one in moves:
            armed.append(PreparedRetag(one))
            # Without the word it changes nothing.
            stack.callback(armed[-1].close)
        word = _Word(armed)
        stack.callback(word.close)
        errors |= run_on_all(armed, PreparedRetag.wait, stop=PreparedRetag.stop)
        ready = [one for one in armed if one.name not in errors]
        if not ready or (len(ready) < len(armed) and not partial):
            return
        # An interrupt waits until every node has answered.
        with interrupts.deferred() as interrupt:
            say(f"moving {name} on {nodes(ready)}")
            word.give(ready)
            errors |= run_on_all(ready, PreparedRetag.moved)
            failed = [one for one in ready if one.name in errors]
            if failed:
                stuck = run_on_all(failed if partial else ready, PreparedRetag.undo)
            if not failed or partial:
                interrupt.notes.append(f"{name} has been moved by then")
    if stuck:
        raise _mixed(name, stuck, errors)


def decide(name: str, count: int, errors: Errors, what: str, *, partial: bool, again: str) -> None:
    """Go on where no node failed, or (``partial``) not all of ``count``.

    Raises ``NodeError`` with what became of every node that failed; ``what`` says what that means
    for the fleet.
    """
    if not errors or (partial and len(errors) < count):
        return
    who = f"{len(errors)} of {count} nodes" if count > 1 else "the node"
    raise NodeError(f"{name}: {who} failed; {what}", detail="\n".join(lines(errors)), hint=again)


def _mixed(name: str, stuck: Errors, errors: Errors) -> MixedFleetError:
    """The error for nodes that could not be brought back to what the others have."""
    return MixedFleetError(
        f"{name}: {', '.join(sorted(stuck))} could not be brought back to what the other nodes "
        "have: THE FLEET IS MIXED",
        detail="\n".join(lines(errors) + lines(stuck)),
        hint="see who has what: python build.py nodes; then run the same command again",
    )


def lines(errors: Errors) -> list[str]:
    """What went wrong, node by node, as people read it; what all of them say, once."""
    found: dict[tuple[str, str, str], None] = {}
    for _, error in sorted(errors.items()):
        found[(error.message, error.detail, error.hint)] = None
    said = []
    for message, detail, hint in found:
        said.append(f"✗ {message}")
        said += [f"    {line}" for line in detail.splitlines()[-6:]]
        if hint:
            said.append(f"    → {hint}")
    return said


GIVE = """
import os, sys
for one in sys.stdin.readline().split():
    try:
        os.write(int(one), b"go\\n")
    except OSError:
        pass
"""
"""What the helper does: one that is gone by then does not keep the word from the others."""


class _Word:
    """The word for all of these: it is given with one write, or it is not."""

    def __init__(self, armed: Sequence[PreparedRetag]) -> None:
        keep = [one.input for one in armed]
        self.process = start_bytes([sys.executable, "-I", "-S", "-c", GIVE], keep=keep)

    def give(self, ready: Sequence[PreparedRetag]) -> None:
        """To these of them."""
        assert self.process.stdin is not None
        # Without a helper nobody gets it, and each says so when it is asked what came of it.
        with contextlib.suppress(OSError):
            self.process.stdin.write(f"{' '.join(str(one.input) for one in ready)}\n".encode())
            self.process.stdin.flush()
        self.process.wait()

    def close(self) -> None:
        """End the helper, and with it its hold of their inputs."""
        self.process.communicate()


class PreparedRetag:
    """A node's script, and the way to give it the word."""

    def __init__(self, move: Retag) -> None:
        self.move = move
        receipt = move.receipt
        words = move.session.remote.script(
            "move", move.name, move.previous, move.target,
            move.former, move.staging,
            f"{receipt['digest'][7:]}.json" if receipt is not None else "",
            json.dumps(receipt, separators=(",", ":")) if receipt is not None else "",
        )  # fmt: skip
        self.script = RemoteScript(move.session.remote, words)

    @property
    def name(self) -> str:
        return self.move.session.name

    @property
    def input(self) -> int:
        """The number of the file that the word goes to."""
        return self.script.input.fileno()

    def wait(self) -> None:
        """Until it waits for the word. Raises ``NodeError`` when it does not."""
        session = self.move.session
        with self.script.limit():
            line = next(self.script.lines(), "")
        if line == "@@ armed":
            return
        if line.startswith("@@ changed"):
            raise NodeError(
                f"{session.name}: {self.move.name} was moved there by somebody else meanwhile",
                detail=f"it stands for {line[11:30] or 'nothing'} now",
                hint="run the same command again",
            )
        if line.startswith("@@ gone"):
            raise NodeError(
                f"{session.name}: the image was removed there meanwhile",
                hint="run the same command again",
            )
        raise self._failure(f"{line}\n{self.script.rest()}")

    def stop(self) -> None:
        """End it at once."""
        self.script.process.kill()

    def moved(self) -> None:
        """Until it has moved the name. Raises ``NodeError`` when it has not, or is unheard of."""
        said = self.script.rest()
        if "@@ moved" not in said.splitlines():
            raise self._failure(said)
        if "@@ noreceipt" in said:
            session = self.move.session
            session.warnings.append(f"{session.name}: its receipt could not be written there")

    def undo(self) -> None:
        """Give the names back to what had them."""
        one = self.move
        kept = (one.staging, one.target) if one.staging else ()
        words = one.session.remote.script(
            "undo", *kept, one.name, one.former, one.previous,
            one.before,
        )  # fmt: skip
        one.session.remote.run(words)

    def close(self) -> None:
        """End it."""
        if not self.script.ended:
            self.script.rest()
        self.script.kill()

    def _failure(self, said: str) -> SparkError:
        return self.script.lost() or self.move.session.refusal(self.script.code, said)
