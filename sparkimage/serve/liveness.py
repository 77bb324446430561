"""Whether a deployment that runs does anything: its ranks' processes, and its tokens.

``/health`` is no proof: vLLM asks there whether the engine has died, and answers 200 for as long
as a rank is only stopped or hangs
(https://github.com/vllm-project/vllm/blob/v0.25.0/vllm/entrypoints/serve/instrumentator/health.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sparkimage.core.errors import ProbeError, SparkError
from sparkimage.core.units import plural
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.session import NodeSession
from sparkimage.serve import readiness
from sparkimage.serve.deployments import Deployment, Member
from sparkimage.serve.explain import failures
from sparkimage.serve.openai_api import RefusalError, Server

LIMIT_S = 30.0
"""Seconds without a step of the engine, while requests run, after which it counts as hung: more
than a step takes, unless kernels are compiled in it."""
POLL_S = 0.5
RECENT_S = 150
"""Seconds of the ranks' logs that are read where no token comes: vLLM says every 60 s that it
waits."""
WAITS = "shm-broadcast"
"""The known failure of an engine that waits for a rank."""
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
STEPS = (
    *BUSY, "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:kv_cache_usage_perc",
    "vllm:request_success_total",
)  # fmt: skip
"""VLLM's metrics of which each step of the engine changes one, that of a long prompt too: they come
with the step's result. https://docs.vllm.ai/en/latest/usage/metrics.html"""
Engines = Mapping[str, Mapping[str, float]]
"""The samples of ``STEPS`` by engine: there are several with data parallelism."""


# Processes


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of a container, as ``ps`` on its node shows it."""

    id: str
    state: str
    """``S``, ``R``, ``T``, …: https://man7.org/linux/man-pages/man1/ps.1.html"""
    command: str
    """Its arguments, or the title that it gave itself: ``VLLM::Worker_TP1``."""

    @property
    def is_stopped(self) -> bool:
        """It was stopped by a signal, or by a debugger."""
        return self.state[:1] in ("T", "t")

    def __str__(self) -> str:
        return f"{self.command[:40].strip()} (process {self.id})"


def processes(listed: str) -> tuple[Process, ...]:
    """The processes in the output of ``docker top ID -eo pid,stat,args``. Pure."""
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return tuple(Process(id=row[0], state=row[1], command=row[2]) for row in rows if len(row) == 3)


def stopped(member: Member, found: Sequence[Process]) -> str:
    """Why a container that runs does nothing, from its processes; empty where it may. Pure."""
    if member.state == "paused":
        return "is paused"
    held = [process for process in found if process.is_stopped]
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        return f"is stopped: {held[0]}{more} is in state {held[0].state[0]}"
    if member.runs_vllm and found and not any("vllm" in one.command.lower() for one in found):
        return f"has no process of vLLM, only {found[0]}"
    return ""


def blocked(found: Sequence[Process]) -> str:
    """The first process in state D. One may be there for a moment, on its way. Pure."""
    return next((str(process) for process in found if process.state.startswith("D")), "")


def with_processes(session: NodeSession, members: Sequence[Member]) -> tuple[Member, ...]:
    """The containers of a node with what their processes show. Raises ``UnreachableError``."""

    def look(member: Member) -> Member:
        if not member.lives:
            return member
        words = [*session.remote.docker.split(), "top", member.id, "-eo", "pid,stat,args"]
        # One that has ended since has none.
        found = processes(session.remote.run(words, check=False).stdout)
        return member.model_copy(
            update={"stopped": stopped(member, found), "blocked": blocked(found)}
        )  # fmt: skip

    return tuple(map(look, members))


# Tokens


def ask(deployment: Deployment, sessions: Mapping[str, NodeSession]) -> Deployment:
    """A deployment with its head's health, and whether it generates tokens.

    Raises ``SparkError`` where its head cannot be asked.
    """
    head = deployment.head
    if head is None or not head.lives:
        return deployment
    server = Server(
        url="http://localhost",
        socket=sessions[head.node].remote.forward_port(head.port),
        answer_s=LIMIT_S,
    )
    health = readiness.health_text(server.health())
    if health != readiness.HEALTHY or deployment.broken:
        return replace(deployment, health=health)
    stall = no_tokens(server)
    if not stall:
        return replace(deployment, health=health)
    said = *blocked_ranks(deployment.members), *waiting_ranks(deployment.members, sessions)
    return replace(deployment, health="no tokens", broken=(stall, *said))


def no_tokens(server: Server) -> str:
    """Why a healthy server counts as hung: no engine takes a step while requests run, or a request
    of one token gets no answer. Empty where it generates, or where that cannot be asked."""
    before = _engines(server)
    busy = {engine for engine, samples in before.items() if _requests(samples)}
    until = time.monotonic() + LIMIT_S
    if not busy:
        return _no_answer(server, before)
    left = busy
    while left and time.monotonic() < until:
        time.sleep(POLL_S)
        now = _engines(server)
        left = {engine for engine in left if now.get(engine) in (None, before[engine])}
    if not left:
        return ""
    requests = plural(sum(_requests(before[engine]) for engine in left), "request")
    return f"no token came for {LIMIT_S:g} s, with {requests} to answer: a rank hangs"


def _no_answer(server: Server, before: Engines) -> str:
    try:
        server.model = server.models()[0]
        server.complete("1", 1)
    except RefusalError as refusal:
        # It wants a key, or has no such API; that says nothing of its engine.
        text = f"it answers a request with HTTP {refusal.status}: {refusal.text[:200]}"
        return text if refusal.status >= 500 else ""
    except ProbeError:
        now = _engines(server)
        # The request waits for others that came at the same time.
        if now != before and now:
            return ""
        return f"a request for one token got no answer in {LIMIT_S:g} s: a rank hangs"
    return ""


def _engines(server: Server) -> Engines:
    engines: dict[str, dict[str, float]] = {}
    for sample in server.metrics():
        if sample.name in STEPS:
            engine = engines.setdefault(sample.labels.get("engine", ""), {})
            engine[sample.name] = engine.get(sample.name, 0.0) + sample.value
    return engines


def _requests(samples: Mapping[str, float]) -> int:
    return int(sum(samples.get(name, 0.0) for name in BUSY))


def blocked_ranks(members: Sequence[Member]) -> list[str]:
    """Which ranks have a process in the kernel, a sentence each. Pure."""
    return [
        f"rank {member.rank} on {member.node} is in the kernel: {member.blocked} is in state D"
        for member in members
        if member.blocked
    ]


def waiting_ranks(members: Sequence[Member], sessions: Mapping[str, NodeSession]) -> list[str]:
    """Which ranks say in their logs that they wait for others, a sentence each."""
    said: dict[int, str] = {}

    def read(member: Member) -> None:
        remote = sessions[member.node].remote
        words = remote.script("logs", member.id, "--since", f"{RECENT_S}s")
        lines = remote.run(words, check=False).stdout.splitlines()
        signs = failures.known().by_id[WAITS].signs
        found = [line for line in lines if any(sign.match(line) is not None for sign in signs)]
        if found:
            said[member.rank] = (
                f"rank {member.rank} on {member.node} waits for the others (shm_broadcast, "
                f"{plural(len(found), 'time')} in the last {RECENT_S} s)"
            )

    lost = run_on_all(
        [member for member in members if member.lives], read, name=lambda member: member.node
    )
    return [said[rank] for rank in sorted(said)] + [_unread(n, e) for n, e in sorted(lost.items())]


def _unread(node: str, error: SparkError) -> str:
    return f"the log on {node} could not be read: {error.message}"
