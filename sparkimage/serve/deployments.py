"""The deployments on the nodes, from their containers' labels: this machine keeps no record."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.core.errors import NodeError
from sparkimage.core.interrupts import Interrupted
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve.spec import LABEL, ServerSpec

HEAD = 0
RUNNING = ("running", "restarting", "paused")
"""Docker's states of a container that has a process, or that Docker will start again."""
GRACE_S = 20
"""Seconds between SIGTERM and SIGKILL."""
NEVER = "0001-01-01T00:00:00Z"


class Member(ServerSpec):
    """One container of a deployment, on its node, with what its labels say of the deployment."""

    rank: int
    node: str
    id: str
    image: str
    """The image's id on this node."""
    identity: str = ""
    """What is equal wherever the image is; empty where the image is gone, or was not asked for."""
    state: str
    exit_code: int
    oom: bool
    started: str
    ended: str
    restarts: int
    runs_vllm: bool = False
    """Its command names vLLM."""
    stopped: str = ""
    """Why it does nothing although it runs, where its processes were looked at."""
    blocked: str = ""
    """Its process that was in the kernel and could not be interrupted, if any."""

    @property
    def lives(self) -> bool:
        return self.state in RUNNING

    @property
    def role(self) -> str:
        return "head" if self.rank == HEAD else "worker"

    @property
    def state_text(self) -> str:
        """The state with the exit code."""
        if self.state == "exited" and self.oom:
            return f"killed, out of memory ({self.exit_code})"
        if self.state in ("exited", "dead"):
            return f"exited ({self.exit_code})"
        return f"{self.state}, stopped" if self.stopped and self.state == "running" else self.state


def members(snapshot: NodeSnapshot) -> tuple[Member, ...]:
    """The containers of deployments on a node; those with incomplete labels are left out.

    Raises ``NodeError`` where its Docker did not list them.
    """
    if isinstance(snapshot.containers, str):
        raise NodeError(
            f"{snapshot.name}: Docker did not list its containers", detail=snapshot.containers,
            hint="there: sudo systemctl restart docker; journalctl -u docker",
        )  # fmt: skip
    identities = {image.id: image.identity for image in snapshot.images}
    parsed = []
    for container in snapshot.containers:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            parsed.append(_member(snapshot.name, container, identities))
    return tuple(sorted(parsed, key=lambda member: (member.name, member.rank)))


def member(session: NodeSession, id: str) -> Member | None:
    """A container of a deployment as it is now; None where there is none.

    Raises ``UnreachableError``, ``NodeError``.
    """
    argv = [*session.remote.docker.split(), "container", "inspect", id]
    inspected = session.remote.run(argv, check=False)
    if inspected.returncode != 0:
        return None
    return _member(session.name, json.loads(inspected.stdout)[0], {})


def _member(node: str, container: Mapping[str, Any], identities: Mapping[str, str]) -> Member:
    config, state, image = container["Config"], container["State"], container["Image"]
    labels = config["Labels"]
    command = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    prefix = f"{LABEL}."
    return Member.model_validate(
        {
            **{key.removeprefix(prefix): value for key, value in labels.items()
               if key.startswith(prefix)},
            "name": labels[LABEL],
            "node": node,
            "id": container["Id"],
            "image": image,
            "identity": identities.get(image, ""),
            "state": state["Status"],
            "exit_code": state.get("ExitCode") or 0,
            "oom": bool(state.get("OOMKilled")),
            "started": state.get("StartedAt") or "",
            "ended": (state.get("FinishedAt") or "").replace(NEVER, ""),
            "restarts": container.get("RestartCount") or 0,
            "runs_vllm": any(re.search(r"\bvllm\b", word) for word in command),
        }
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The containers of one server; ``broken``: what is wrong with them, a sentence each."""

    name: str
    members: tuple[Member, ...]
    broken: tuple[str, ...]
    health: str = ""
    """What its head answers: ``ok``, ``HTTP 503``, ``no answer``; ``no tokens``: it says ``ok`` and
    its engine hangs; nothing: it was not asked."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with it; a head that does not answer yet is not."""
        unhealthy = self.health.startswith("HTTP")
        return (*self.broken, *([f"the head answers {self.health}"] if unhealthy else []))

    @property
    def head(self) -> Member | None:
        return next((member for member in self.members if member.rank == HEAD), None)

    @property
    def lives(self) -> bool:
        """At least one of its containers runs."""
        return any(member.lives for member in self.members)

    @property
    def zombies(self) -> tuple[Member, ...]:
        """Workers that run without a head: they hold GPU memory and serve nobody."""
        return () if self.head is not None and self.head.lives else _workers(self.members)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "health": self.health or None,
            "problems": list(self.problems),
            "members": [member.model_dump() for member in self.members],
        }


def _workers(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(member for member in members if member.rank != HEAD and member.lives)


def judge(members: Iterable[Member], unknown: Sequence[str] = ()) -> tuple[Deployment, ...]:
    """The deployments that these containers make, and what is wrong with each. Pure.

    ``unknown``: nodes that did not answer; what may be on them is not reported as missing.
    """
    by_rank = sorted(members, key=lambda member: (member.name, member.rank, member.node))
    return tuple(
        Deployment(name=name, members=parts, broken=tuple(_problems(parts, unknown)))
        for name, parts in (
            (name, tuple(group))
            for name, group in itertools.groupby(by_rank, key=lambda member: member.name)
        )
    )


def _problems(members: Sequence[Member], unknown: Sequence[str]) -> Iterator[str]:
    ranks = [member.rank for member in members]
    head = next((member for member in members if member.rank == HEAD), None)
    missing = [rank for rank in range(members[0].nodes) if rank not in ranks]
    workers = _workers(members)
    if workers and (head is None or not head.lives) and not (head is None and unknown):
        what = "is gone" if head is None else f"on {head.node} is {head.state_text}"
        yield (
            f"the head {what}: zombie workers on {', '.join(worker.node for worker in workers)} "
            "hold their GPUs"
        )
    for member in members:
        if not member.lives and (member.rank != HEAD or not workers):
            yield f"rank {member.rank} on {member.node} is {member.state_text}"
    if missing and not unknown and not (missing == [HEAD] and workers):
        yield f"no node has rank {', '.join(map(str, missing))}"
    for rank in sorted({rank for rank in ranks if ranks.count(rank) > 1}):
        nodes = ", ".join(member.node for member in members if member.rank == rank)
        yield f"more than one container has rank {rank}: {nodes}"
    identities = {member.identity for member in members if member.identity}
    if len(identities) > 1 or len({member.digest for member in members}) > 1:
        yield "the ranks run different images"
    for member in members:
        if member.stopped:
            yield f"rank {member.rank} on {member.node} {member.stopped}"
        if member.state == "restarting":
            yield f"rank {member.rank} on {member.node} keeps restarting ({member.restarts} times)"


def remove(session: NodeSession, ids: Sequence[str], *, grace_s: int = GRACE_S) -> None:
    """Stop these containers and remove them. Raises ``NodeError`` and its kin."""
    if ids:
        session.call("end", str(grace_s), *ids, timeout_s=grace_s + session.remote.patience_s)


@contextlib.contextmanager
def removal(name: str) -> Iterator[None]:
    """What an interrupt within the block leaves is named with it."""
    try:
        yield
    except Interrupted as interrupt:
        interrupt.add_note(f"{name} may still run on some nodes")
        raise


def remove_all(
    all_: Sequence[NodeSession], members: Sequence[Member], *, grace_s: int = GRACE_S
) -> Errors:
    """Stop and remove these containers on those of the nodes that have them; returns all errors."""
    ids: dict[str, list[str]] = {}
    for member in members:
        ids.setdefault(member.node, []).append(member.id)
    concerned = [session for session in all_ if session.name in ids]
    return run_on_all(
        concerned, lambda session: remove(session, ids[session.name], grace_s=grace_s)
    )


def log(session: NodeSession, id: str, *options: str) -> RemoteScript:
    """A container's log by line, with these options of ``docker logs``, ``--follow`` first."""
    return RemoteScript(session.remote, session.remote.script("logs", id, *options))
