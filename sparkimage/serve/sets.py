"""What was started on the nodes, from their containers' labels alone: nothing is kept here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.core.errors import NodeError, SparkError
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.retag import lines
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve.command import LABEL

HEAD = 0
RUNNING = ("running", "restarting", "paused")
"""Docker's states of a container that has a process, or will have one again by itself."""
GRACE_S = 20
"""Seconds that a server has to end by itself."""
NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One container of a set, on its node."""

    node: str
    id: str
    set: str
    rank: int
    nodes: int
    gpus: int
    variant: str
    profile: str
    digest: str
    head: str
    """The head's address for the other ranks."""
    port: int
    nccl: str
    rdma: bool
    image: str
    """The image's id on this node."""
    identity: str
    """What of the image is the same on all nodes; empty where the image is gone."""
    state: str
    exit_code: int
    oom: bool
    started: str
    ended: str
    restarts: int

    @property
    def lives(self) -> bool:
        return self.state in RUNNING

    @property
    def role(self) -> str:
        return "head" if self.rank == HEAD else "worker"

    def words(self) -> str:
        """Its state, as people say it."""
        if self.state == "exited" and self.oom:
            return f"killed, out of memory ({self.exit_code})"
        return f"exited ({self.exit_code})" if self.state in ("exited", "dead") else self.state

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def members(snapshot: NodeSnapshot) -> tuple[Member, ...]:
    """The containers of sets on a node; one that is not ours as a whole is left out.

    Raises ``NodeError`` where its Docker did not list them.
    """
    if isinstance(snapshot.containers, str):
        raise NodeError(
            f"{snapshot.name}: its Docker does not list its containers",
            detail=snapshot.containers,
        )
    identities = {image.id: image.identity for image in snapshot.images}
    found = []
    for one in snapshot.containers:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(_member(snapshot.name, one, identities))
    return tuple(sorted(found, key=lambda one: (one.set, one.rank)))


def _member(node: str, said: Mapping[str, Any], identities: Mapping[str, str]) -> Member:
    labels, state = said["Config"]["Labels"], said["State"]

    def label(name: str, default: str = "") -> str:
        return str(labels.get(f"{LABEL}.{name}", default))

    ended = str(state.get("FinishedAt") or NEVER)
    return Member(
        node=node,
        id=str(said["Id"]),
        set=str(labels[LABEL]),
        rank=int(label("rank")),
        nodes=int(label("nodes")),
        gpus=int(label("gpus", "1")),
        variant=label("variant"),
        profile=label("profile"),
        digest=label("digest"),
        head=label("head"),
        port=int(label("port")),
        nccl=label("nccl"),
        rdma=label("rdma") == "1",
        image=str(said["Image"]),
        identity=identities.get(str(said["Image"]), ""),
        state=str(state["Status"]),
        exit_code=int(state.get("ExitCode") or 0),
        oom=bool(state.get("OOMKilled")),
        started=str(state.get("StartedAt") or ""),
        ended="" if ended == NEVER else ended,
        restarts=int(said.get("RestartCount") or 0),
    )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A set as a whole: ``problems`` are what is broken, in words."""

    name: str
    members: tuple[Member, ...]
    problems: tuple[str, ...]

    @property
    def head(self) -> Member | None:
        return next((one for one in self.members if one.rank == HEAD), None)

    @property
    def lives(self) -> bool:
        """Something of it runs."""
        return any(one.lives for one in self.members)

    @property
    def zombies(self) -> tuple[Member, ...]:
        """Workers that live without a head: they hold GPU memory and answer nobody."""
        if self.head is not None and self.head.lives:
            return ()
        return tuple(one for one in self.members if one.rank != HEAD and one.lives)


def judge(members: Iterable[Member], unknown: Sequence[str] = ()) -> tuple[Deployment, ...]:
    """The sets that there are, and what is broken in each. Pure.

    ``unknown``: nodes that could not be asked; what may be there is not called missing.
    """
    sets: dict[str, list[Member]] = {}
    for one in members:
        sets.setdefault(one.set, []).append(one)
    return tuple(
        Deployment(
            name=name,
            members=tuple(sorted(ones, key=lambda one: (one.rank, one.node))),
            problems=tuple(_problems(sorted(ones, key=lambda one: one.rank), unknown)),
        )
        for name, ones in sorted(sets.items())
    )


def _problems(members: Sequence[Member], unknown: Sequence[str]) -> Iterable[str]:
    nodes = members[0].nodes
    ranks = [one.rank for one in members]
    head = next((one for one in members if one.rank == HEAD), None)
    lacking = [rank for rank in range(nodes) if rank not in ranks]
    dead = [one for one in members if not one.lives]
    workers = [one for one in members if one.rank != HEAD and one.lives]
    if workers and (head is None or not head.lives) and not (head is None and unknown):
        what = "is gone" if head is None else f"on {head.node} is {head.words()}"
        yield (
            f"the head {what}: zombie workers on {', '.join(one.node for one in workers)} hold "
            "their GPUs"
        )
    for one in dead:
        if one.rank != HEAD or not workers:
            yield f"rank {one.rank} on {one.node} is {one.words()}"
    if lacking and not unknown and not (lacking == [HEAD] and workers):
        yield f"no node has rank {', '.join(map(str, lacking))}"
    for rank in sorted({rank for rank in ranks if ranks.count(rank) > 1}):
        twice = ", ".join(one.node for one in members if one.rank == rank)
        yield f"rank {rank} is there more than once: {twice}"
    identities = {one.identity for one in members if one.identity}
    if len(identities) > 1 or len({one.digest for one in members}) > 1:
        yield "the ranks do not run one and the same image"
    for one in members:
        if one.state == "restarting":
            yield f"rank {one.rank} on {one.node} starts again and again ({one.restarts} times)"


def end(session: NodeSession, ids: Sequence[str], *, grace_s: int = GRACE_S) -> None:
    """Stop these containers and remove them. Raises ``NodeError`` and its kin."""
    if not ids:
        return
    session.call("end", str(grace_s), *ids, timeout_s=grace_s + session.remote.patience_s)


def end_all(all_: Sequence[NodeSession], some: Sequence[Member], *, grace_s: int) -> Errors:
    """Stop and remove these containers, each on its node of these; returns every error."""
    mine: dict[str, list[str]] = {}
    for one in some:
        mine.setdefault(one.node, []).append(one.id)
    concerned = [one for one in all_ if one.name in mine]
    return run_on_all(concerned, lambda one: end(one, mine[one.name], grace_s=grace_s))


def log(session: NodeSession, id: str, *options: str) -> RemoteScript:
    """A container's log, line by line, with these options of ``docker logs``, ``--follow`` first."""
    return RemoteScript(session.remote, session.remote.script("logs", id, *options))


@dataclass(frozen=True, kw_only=True)
class State:
    """A container's state at one moment."""

    status: str
    """As Docker says it; ``gone`` where there is no such container."""
    code: int = 0
    oom: bool = False
    ended: str = ""
    """When it ended last, by its node's clock."""


def state_of(session: NodeSession, id: str) -> State:
    """A container's state now. Raises ``UnreachableError``, ``NodeError``."""
    form = "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{json .State.FinishedAt}}"
    argv = [*session.remote.docker.split(), "container", "inspect", "--format", form, id]
    done = session.remote.run(argv, check=False)
    found = re.fullmatch(r"(\w+) (-?\d+) (true|false) \"(.*)\"", done.stdout.strip())
    if found is None:
        return State(status="gone")
    return State(
        status=found[1], code=int(found[2]), oom=found[3] == "true", ended=found[4]
    )  # fmt: skip


def failure(errors: Mapping[str, SparkError], count: int, what: str) -> NodeError:
    """The error for nodes that could not be asked."""
    return NodeError(
        f"{len(errors)} of {count} nodes {what}", detail="\n".join(lines(dict(errors)))
    )
