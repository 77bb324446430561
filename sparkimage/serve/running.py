"""What is done with sets that were started, by whomever: see them, end them, start them again."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sparkimage.config.inventory import Fleet
from sparkimage.config.validation import nearest
from sparkimage.core.errors import LaunchError, SparkError, UsageError
from sparkimage.core.progress import View
from sparkimage.nodes.concurrent import WAKE_S, Errors, run_on_all
from sparkimage.nodes.session import NodeSession, sessions
from sparkimage.nodes.ssh import CONTAINERS, IMAGES
from sparkimage.serve import readiness, sets, waiting
from sparkimage.serve.sets import HEAD, Deployment, Member
from sparkimage.serve.waiting import Rank, Ready, ServerSpec


@dataclass(frozen=True, kw_only=True)
class DeploymentStatus:
    """A set, and what its head answers."""

    set: Deployment
    health: str
    """``ok``, ``HTTP 503``, ``no answer``, or nothing where there is no head to ask."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is broken in it; a head that does not answer yet is not."""
        sick = self.health.startswith("HTTP")
        return (*self.set.problems, *([f"the head answers {self.health}"] if sick else []))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.set.name,
            "health": self.health or None,
            "problems": list(self.problems),
            "members": [one.to_dict() for one in self.set.members],
        }


@contextmanager
def _asked(
    fleet: Fleet, patience_s: float
) -> Iterator[tuple[list[NodeSession], list[Member], Errors]]:
    """The nodes that answer, their containers, and the errors of the other ones."""
    found: dict[str, tuple[Member, ...]] = {}

    def one(session: NodeSession) -> None:
        found[session.name] = sets.members(session.open(IMAGES, CONTAINERS))

    with sessions(fleet, patience_s) as all_:
        errors = run_on_all(all_, one, stop=NodeSession.abandon)
        there = [session for session in all_ if session.name not in errors]
        yield there, [member for members in found.values() for member in members], errors


def look(
    fleet: Fleet, *, name: str | None, patience_s: float
) -> tuple[list[DeploymentStatus], Errors]:
    """Every set (or ``name``) with its head's health. Errors stand with their nodes."""
    with _asked(fleet, patience_s) as (there, members, errors):
        judged = [
            one for one in sets.judge(members, sorted(errors)) if name is None or one.name == name
        ]
        by_name = {session.name: session for session in there}
        answers: dict[str, str] = {}

        def ask(one: Deployment) -> None:
            head = one.head
            if head is not None and head.lives:
                path = by_name[head.node].remote.forward_port(head.port)
                answers[one.name] = readiness.health_words(readiness.ask_health(path))

        lost = run_on_all(judged, ask)
        answers |= {name: f"cannot be asked: {error.message}" for name, error in lost.items()}
        return [
            DeploymentStatus(set=one, health=answers.get(one.name, "")) for one in judged
        ], errors


def chosen(judged: Sequence[Deployment], name: str | None) -> Deployment | None:
    """The set that is meant: of this name, or the only one. Raises ``UsageError``."""
    names = [one.name for one in judged]
    if name is not None:
        return next((one for one in judged if one.name == name), None)
    if len(judged) > 1:
        raise UsageError(
            f"there are {len(judged)} sets: {', '.join(names)}", hint="say which: --name NAME"
        )
    return judged[0] if judged else None


@contextmanager
def head(
    fleet: Fleet, *, name: str | None, patience_s: float
) -> Iterator[tuple[NodeSession, Member]]:
    """The node of a deployment's head, connected, and the container there.

    Raises ``LaunchError`` where none runs, ``UsageError``.
    """
    with _asked(fleet, patience_s) as (there, members, errors):
        one = chosen(sets.judge(members, sorted(errors)), name)
        if one is None or one.head is None or not one.head.lives:
            raise LaunchError(
                f"the head of {one.name} does not run" if one else "nothing runs on the nodes",
                hint="what runs: python build.py status",
            )
        found = one.head
        yield next(session for session in there if session.name == found.node), found


def stop(
    fleet: Fleet, *, name: str | None, patience_s: float, grace_s: int = sets.GRACE_S
) -> tuple[Deployment | None, Errors]:
    """End a set on all nodes, its zombies too, and remove its containers.

    Returns what there was; None when there was nothing. Errors stand with their nodes.
    Raises ``UsageError`` where it is not clear which set is meant.
    """
    with _asked(fleet, patience_s) as (there, members, errors):
        one = chosen(sets.judge(members, sorted(errors)), name)
        if one is not None:
            errors.update(sets.end_all(there, one.members, grace_s=grace_s))
        return one, errors


def restart(
    fleet: Fleet, *, name: str | None, timeout_s: float, keep: bool, patience_s: float, view: View
) -> Ready:
    """Start a set's containers again as they are, in order, and wait as ``launch`` does.

    When that fails they are stopped (unless ``keep``), and stay for `logs` and another try.
    Raises ``LaunchError``, ``NodeError`` and their kin.
    """
    began = time.monotonic()
    with _asked(fleet, patience_s) as (there, members, errors):
        if errors:
            raise sets.failure(errors, len(fleet.nodes), "cannot be asked; nothing was changed")
        judged = sets.judge(members)
        one = chosen(judged, name)
        if one is None:
            hint = "start one: python build.py launch VARIANT"
            known = nearest(name, [j.name for j in judged]) if name and judged else hint
            raise LaunchError("there is no such set", hint=known)
        ranks = [member.rank for member in one.members]
        head = one.members[HEAD]
        if ranks != list(range(head.nodes)):
            raise LaunchError(
                f"{one.name} is not whole: it has the ranks {', '.join(map(str, ranks))} of "
                f"{head.nodes}",
                hint="start it anew: python build.py launch VARIANT --replace",
            )
        by_name = {session.name: session for session in there}
        view.say(f"stopping {one.name}")
        _all(one.members, by_name, "stop", "--time", str(sets.GRACE_S))
        try:
            view.say(f"starting {one.name}")
            _all(one.members[:1], by_name, "start")
            _all(one.members[1:], by_name, "start")
            return waiting.until_ready(
                ServerSpec(
                    name=one.name, variant=head.variant, profile=head.profile, digest=head.digest,
                    head=head.head, port=head.port, nccl=head.nccl, rdma=head.rdma, gpus=head.gpus,
                ),
                [
                    Rank(
                        rank=member.rank, session=by_name[member.node], container=member.id,
                        since=_started(by_name[member.node], member.id),
                    )
                    for member in one.members
                ],
                began=began, timeout_s=timeout_s, view=view,
            )  # fmt: skip
        except BaseException as error:
            # Not handled, only ended.
            if not keep:
                with contextlib.suppress(SparkError):
                    _all(one.members, by_name, "stop", "--time", "5")
                waiting.note(error, "the set was stopped, its containers stay")
            raise


def _all(members: Sequence[Member], by_name: dict[str, NodeSession], *words: str) -> None:
    """The same command of docker for each of these. Raises ``NodeError`` with all that failed."""

    def act(one: Member) -> None:
        _docker(by_name[one.node], *words, one.id)

    errors = run_on_all(members, act, name=lambda one: one.node)
    if errors:
        raise sets.failure(errors, len(members), f"failed at docker {words[0]}")


def _docker(session: NodeSession, *words: str) -> str:
    argv = [*session.remote.docker.split(), *words]
    limit = sets.GRACE_S + session.remote.patience_s
    return session.remote.run(argv, timeout_s=limit).stdout.strip()


def _started(session: NodeSession, id: str) -> str:
    return _docker(session, "container", "inspect", "--format", "{{.State.StartedAt}}", id)


# Logs

Line = tuple[str, str]
"""A node's name, and one line of its container."""


@contextmanager
def logs(
    fleet: Fleet,
    *,
    name: str | None,
    node: str | None,
    rank: int | None,
    tail: int | None,
    follow: bool,
    patience_s: float,
) -> Iterator[tuple[Sequence[str], Iterator[Line], Errors]]:
    """The names of the nodes whose logs these are, and the lines of all of them as one.

    Without ``follow`` in the order of their time, by the nodes' clocks; else as they come.
    Raises ``LaunchError`` where there is nothing to read, ``UsageError``.
    """
    with _asked(fleet, patience_s) as (there, members, errors):
        one = chosen(sets.judge(members, sorted(errors)), name)
        wanted = [
            member
            for member in (one.members if one is not None else ())
            if node in (None, member.node) and rank in (None, member.rank)
        ]
        if not wanted:
            known = ", ".join(f"{m.node} (rank {m.rank})" for m in (one.members if one else ()))
            raise LaunchError(
                "there are no such logs: " + (f"the set is on {known}" if known else "no set"),
                hint="what runs: python build.py status",
            )
        by_name = {session.name: session for session in there}
        options = ["--tail", "all" if tail is None else str(tail)]
        read = _following if follow else _merged
        yield (
            [member.node for member in wanted],
            read(wanted, by_name, options),
            errors,
        )


def _merged(
    wanted: Sequence[Member], by_name: dict[str, NodeSession], options: Sequence[str]
) -> Iterator[Line]:
    said: list[tuple[str, str, str]] = []

    def one(member: Member) -> None:
        session = by_name[member.node]
        words = session.remote.script("logs", member.id, "--timestamps", *options)
        for line in session.remote.run(words, timeout_s=600.0).stdout.splitlines():
            stamp, _, text = line.partition(" ")
            said.append((stamp, member.node, text))

    errors = run_on_all(wanted, one, name=lambda member: member.node)
    if errors:
        raise sets.failure(errors, len(wanted), "did not give their logs")
    # Lines of one moment keep their order.
    for _, node, text in sorted(said, key=lambda entry: entry[0]):
        yield node, text


def _following(
    wanted: Sequence[Member], by_name: dict[str, NodeSession], options: Sequence[str]
) -> Iterator[Line]:
    lines: queue.Queue[Line | None] = queue.Queue()
    started = []

    def one(member: Member) -> None:
        script = sets.log(by_name[member.node], member.id, "--follow", *options)
        started.append(script)
        for line in script.lines():
            lines.put((member.node, line))
        lines.put((member.node, "(its log ends here)"))
        lines.put(None)

    threads = [threading.Thread(target=one, args=(member,), daemon=True) for member in wanted]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            try:
                found = lines.get(timeout=WAKE_S)
            except queue.Empty:
                continue
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for script in started:
            script.kill()
