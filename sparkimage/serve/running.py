"""Acts on deployments, whoever started them: status, stop, restart, logs."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Fleet
from sparkimage.config.validation import nearest
from sparkimage.core.errors import LaunchError, SparkError, UsageError
from sparkimage.core.program import program
from sparkimage.core.progress import View, waiting
from sparkimage.nodes.concurrent import WAKE_S, Errors, run_on_all
from sparkimage.nodes.retag import failure, unreached
from sparkimage.nodes.session import NodeSession, sessions
from sparkimage.nodes.ssh import CONTAINERS, IMAGES
from sparkimage.serve import deployments
from sparkimage.serve.deployments import HEAD, Deployment, Member
from sparkimage.serve.followers import Followers, Rank

if TYPE_CHECKING:
    from sparkimage.serve.waiting import Ready


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes that answer, connected, and their deployments; ``errors``: of the other nodes."""

    by_name: dict[str, NodeSession]
    deployments: tuple[Deployment, ...]
    errors: Errors

    def pick(self, name: str | None) -> Deployment | None:
        """The deployment of this name, or the only one. Raises ``UsageError`` where there are
        several and no name is given."""
        names = [deployment.name for deployment in self.deployments]
        if name is None and len(names) > 1:
            raise UsageError(
                f"there are {len(names)} deployments: {', '.join(names)}", hint="pass --name NAME"
            )
        return next((one for one in self.deployments if name in (None, one.name)), None)

    def docker(self, members: Sequence[Member], *words: str) -> None:
        """Run this command of docker on each of these. Raises ``NodeError`` with every failure."""

        def act(member: Member) -> None:
            remote = self.by_name[member.node].remote
            argv = [*remote.docker.split(), *words, member.id]
            remote.run(argv, timeout_s=deployments.GRACE_S + remote.patience_s)

        errors = run_on_all(members, act, name=lambda member: member.node)
        if errors:
            raise failure(errors, len(members), f"failed at docker {words[0]}")


@contextmanager
def _connected(fleet: Fleet, patience_s: float, *, processes: bool = False) -> Iterator[Cluster]:
    """``processes``: the members say what their processes show, too."""
    members: dict[str, tuple[Member, ...]] = {}

    def look(session: NodeSession) -> None:
        found = deployments.members(session.open(IMAGES, CONTAINERS))
        if found and processes:
            from sparkimage.serve import liveness

            found = liveness.with_processes(session, found)
        members[session.name] = found

    with sessions(fleet, patience_s) as all_:
        with waiting("looking at the nodes"):
            errors = run_on_all(all_, look, stop=NodeSession.abandon)
        every = [member for found in members.values() for member in found]
        yield Cluster(
            by_name={session.name: session for session in all_ if session.name not in errors},
            deployments=deployments.judge(every, sorted(errors)),
            errors=errors,
        )


def look(fleet: Fleet, *, name: str | None, patience_s: float) -> tuple[list[Deployment], Errors]:
    """Every deployment (or ``name``) with its head's health and whether it generates tokens, and
    errors by node."""
    with _connected(fleet, patience_s, processes=True) as cluster:
        wanted = [one for one in cluster.deployments if name in (None, one.name)]
        asked: dict[str, Deployment] = {}

        def ask(deployment: Deployment) -> None:
            from sparkimage.serve import liveness

            asked[deployment.name] = liveness.ask(deployment, cluster.by_name)

        with waiting("waiting for a token"):
            lost = run_on_all(wanted, ask)
        asked |= {
            one.name: replace(one, health=f"could not be asked: {lost[one.name].message}")
            for one in wanted
            if one.name in lost
        }
        return [asked[one.name] for one in wanted], cluster.errors


@contextmanager
def head(
    fleet: Fleet, *, name: str | None, patience_s: float
) -> Iterator[tuple[NodeSession, Member]]:
    """The node of a deployment's head, connected, and the container there.

    Raises ``LaunchError`` where none runs, ``UsageError``.
    """
    with _connected(fleet, patience_s) as cluster:
        deployment = cluster.pick(name)
        if deployment is None and cluster.errors:
            raise unreached(cluster.errors, len(fleet.nodes), "; nothing runs on the others")
        if deployment is None or deployment.head is None or not deployment.head.lives:
            raise LaunchError(
                f"the head of {deployment.name} does not run"
                if deployment
                else "nothing runs on the nodes",
                hint=f"see what runs: {program()} status",
            )
        yield cluster.by_name[deployment.head.node], deployment.head


def stop(
    fleet: Fleet, *, name: str | None, patience_s: float, view: View
) -> tuple[Deployment | None, Errors]:  # fmt: skip
    """Stop a deployment on all nodes, zombies too, and remove its containers.

    Returns it, or None when there was none, and errors by node. Raises ``UsageError`` where there
    are several and no name is given.
    """
    with _connected(fleet, patience_s) as cluster:
        deployment, errors = cluster.pick(name), cluster.errors
        if deployment is not None:
            nodes = list(cluster.by_name.values())
            with deployments.removal(deployment.name), view.busy(f"stopping {deployment.name}"):
                errors |= deployments.remove_all(nodes, deployment.members)
        return deployment, errors


def restart(
    fleet: Fleet, *, name: str | None, timeout_s: float, warm_up_s: float, keep: bool,
    patience_s: float, view: View,
) -> Ready:  # fmt: skip
    """Start a deployment's containers again as they are, in order, and wait as ``launch`` does.

    When that fails they are stopped (unless ``keep``), and stay for `logs` and another try.
    Raises ``LaunchError``, ``NodeError`` and their kin.
    """
    from sparkimage.serve import nccl, waiting

    began = time.monotonic()
    with _connected(fleet, patience_s) as cluster:
        if cluster.errors:
            raise unreached(cluster.errors, len(fleet.nodes), "; restart changed nothing")
        deployment = cluster.pick(name)
        if deployment is None:
            names = [one.name for one in cluster.deployments]
            hint = f"start one: {program()} launch VARIANT"
            raise LaunchError(
                "no such deployment", hint=nearest(name, names) if name and names else hint
            )
        members = deployment.members
        ranks = [member.rank for member in members]
        if ranks != list(range(members[HEAD].nodes)):
            raise LaunchError(
                f"{deployment.name} is incomplete: it has ranks {', '.join(map(str, ranks))} of "
                f"{members[HEAD].nodes}",
                hint=f"launch it again: {program()} launch VARIANT --replace",
            )
        with view.busy(f"stopping {deployment.name}"):
            cluster.docker(members, "stop", "--time", str(deployments.GRACE_S))
        pinned = nccl.Library(version=members[HEAD].nccl, build_id=members[HEAD].nccl_build)
        try:
            nccl.require(
                [(cluster.by_name[member.node], member.id) for member in members],
                image=(),
                pinned=pinned if pinned.build else None,
            )
            view.say(f"starting {deployment.name}")
            cluster.docker(members[:1], "start")
            cluster.docker(members[1:], "start")
            return waiting.until_ready(
                members[HEAD],
                [_restarted(member, cluster.by_name[member.node]) for member in members],
                began=began, timeout_s=timeout_s, warm_up_s=warm_up_s, view=view,
            )  # fmt: skip
        except BaseException as error:
            # Cleaned up and raised again.
            if not keep:
                with contextlib.suppress(SparkError):
                    cluster.docker(members, "stop", "--time", "5")
                waiting.add_note(error, "its containers were stopped and kept")
            raise


def _restarted(member: Member, session: NodeSession) -> Rank:
    """The rank of a container that was started again, with its log from then on."""
    now = deployments.member(session, member.id)
    if now is None:
        raise LaunchError(
            f"{member.node} (rank {member.rank}) was removed",
            hint=f"launch it again: {program()} launch VARIANT --replace",
        )
    since = ("--since", now.started)
    return Rank(rank=member.rank, session=session, container=member.id, log_options=since)


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
    """The names of the nodes whose logs these are, the lines of all of them, and errors by node.

    The lines come in the order of their time, by the nodes' clocks; with ``follow`` as they are
    written. Raises ``LaunchError`` where there is nothing to read, ``UsageError``.
    """
    with _connected(fleet, patience_s) as cluster:
        deployment = cluster.pick(name)
        members = deployment.members if deployment is not None else ()
        wanted = [
            member
            for member in members
            if node in (None, member.node) and rank in (None, member.rank)
        ]
        if not wanted and cluster.errors:
            raise unreached(cluster.errors, len(fleet.nodes), "; the others have no such logs")
        if not members:
            what = f"there is no deployment {name}" if name else "nothing runs on the nodes"
            raise LaunchError(what, hint=f"see what runs: {program()} status")
        if not wanted:
            nodes = ", ".join(f"{member.node} (rank {member.rank})" for member in members)
            raise LaunchError(
                f"no such logs: the deployment is on {nodes}",
                hint=f"see what runs: {program()} status",
            )
        read = _following if follow else _merged
        lines = read(wanted, cluster, "all" if tail is None else str(tail))
        yield [member.node for member in wanted], lines, cluster.errors


def _merged(wanted: Sequence[Member], cluster: Cluster, tail: str) -> Iterator[Line]:
    lines: list[tuple[str, str, str]] = []

    def read(member: Member) -> None:
        remote = cluster.by_name[member.node].remote
        words = remote.script("logs", member.id, "--timestamps", "--tail", tail)
        for line in remote.run(words, timeout_s=600.0).stdout.splitlines():
            stamp, _, text = line.partition(" ")
            lines.append((stamp, member.node, text))

    with waiting("reading the logs"):
        errors = run_on_all(wanted, read, name=lambda member: member.node)
    if errors:
        raise failure(errors, len(wanted), "could not read their logs")
    # Lines with the same time keep their order.
    for _, node, text in sorted(lines, key=lambda line: line[0]):
        yield node, text


def _following(wanted: Sequence[Member], cluster: Cluster, tail: str) -> Iterator[Line]:
    # By place: two containers of a broken deployment may have one rank.
    ranks = [
        Rank(
            rank=at, session=cluster.by_name[member.node], container=member.id,
            log_options=("--tail", tail),
        )
        for at, member in enumerate(wanted)
    ]  # fmt: skip
    followers = Followers(ranks=ranks)
    followers.start()
    try:
        left = len(ranks)
        while left:
            try:
                at, event = followers.events.get(timeout=WAKE_S)
            except queue.Empty:
                continue
            text = event[1] if isinstance(event, tuple) else "(end of the log)"
            left -= not isinstance(event, tuple)
            yield ranks[at].name, text
    finally:
        followers.stop()
