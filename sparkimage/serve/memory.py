"""Memory that is free on each node before a start, against what vLLM will take there.

VLLM refuses to start where less is free than its part of all memory, minutes after the start:
https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/v1/worker/utils.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparkimage.config.profiles import Profile
from sparkimage.core.errors import LaunchError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.core.units import human
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.session import NodeSession
from sparkimage.nodes.snapshot import NodeSnapshot

UTILIZATION = 0.9
"""VLLM's own default; that of the newest releases is 0.92."""
QUERY = (
    "nvidia-smi", "--query-gpu=index,memory.total,memory.free", "--format=csv,noheader,nounits",
)  # fmt: skip
ROW = re.compile(r"(?m)^\s*(\d+), *(\d+), *(\d+)\s*$")
MIB = 1024**2
DROP = "there: sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Memory that vLLM takes its part of: of one GPU, or of a unified machine. In bytes."""

    name: str
    total: int
    free: int
    """Without the page cache."""
    available: int
    """With the part of the page cache that the kernel would give back."""


def pools(now: NodeSnapshot, listed: str, gpus: int) -> list[Pool]:
    """A node's pools for its first ``gpus`` GPUs; ``listed``: what ``QUERY`` prints. None where
    they are unknown. Pure.

    VLLM counts the page cache of a unified machine as the kernel does, which keeps a part of it
    back: https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/utils/mem_utils.py
    """
    if now.unified:
        if not now.memory or now.available is None:
            return []
        free = now.available if now.free is None else now.free
        return [Pool(name="", total=now.memory, free=free, available=now.available)]
    rows = [tuple(map(int, row)) for row in ROW.findall(listed)]
    return [
        Pool(name=f"GPU {index}: ", total=total * MIB, free=free * MIB, available=free * MIB)
        for index, total, free in sorted(rows)[:gpus]
    ]


def shortages(now: NodeSnapshot, found: Sequence[Pool], profile: Profile) -> Iterator[str]:
    """What a node lacks for its ranks, and what to do, a text each. Pure."""
    part = profile.serve.gpu_memory_utilization or UTILIZATION
    share = math.ceil(now.model.size / (profile.nodes * profile.gpus))
    ours = share * (profile.gpus if now.unified else 1)
    for pool in found:
        wanted = int(part * pool.total)
        if ours > wanted:
            yield (
                f"{pool.name}its part of the model is {human(ours)}, and vLLM may take "
                f"{human(wanted)} of {human(pool.total)} (gpu_memory_utilization {part:g})\n"
                "    → a profile for more nodes, or a model with smaller weights"
            )
        elif pool.available < wanted:
            most = math.floor(100 * pool.available / pool.total) / 100
            users = f"; on its GPUs: {', '.join(now.processes[:3])}" if now.processes else ""
            lower = f", or gpu_memory_utilization {most:g} in the profile" * (
                most * pool.total > ours and most > 0
            )
            yield (
                f"{pool.name}{human(pool.available)} of {human(pool.total)} are free, and vLLM "
                f"takes {human(wanted)} (gpu_memory_utilization {part:g}){users}\n"
                f"    → there: docker ps, nvidia-smi, ps aux --sort=-rss | head: end what is not "
                f"needed{lower}"
            )


def cached(found: Sequence[Pool], profile: Profile) -> str:
    """A warning where vLLM depends on what the page cache gives back; empty where not. Pure."""
    part = profile.serve.gpu_memory_utilization or UTILIZATION
    for pool in found:
        if pool.free < part * pool.total <= pool.available:
            return (
                f"{human(pool.available - pool.free)} of {human(pool.total)} are in the page "
                f"cache, which CUDA gets back only in part and slowly: {DROP}"
            )
    return ""


def require(all_: Sequence[NodeSession], profile: Profile, view: View) -> None:
    """Every node has the memory that its ranks take. Raises ``LaunchError`` with all that have
    not."""
    listed: dict[str, str] = {}

    def look(session: NodeSession) -> None:
        if not session.now.unified:
            listed[session.name] = session.remote.run(QUERY, check=False).stdout

    # A node that does not answer is known by what follows.
    run_on_all(all_, look)
    failed: dict[str, list[str]] = {}
    for session in all_:
        found = pools(session.now, listed.get(session.name, ""), profile.gpus)
        if lacking := list(shortages(session.now, found, profile)):
            failed[session.name] = lacking
        elif text := cached(found, profile):
            view.say(f"warning: {session.name}: {text}")
    if failed:
        raise LaunchError(
            f"{len(failed)} of {len(all_)} nodes lack memory; nothing was started",
            detail="\n".join(
                f"✗ {node}: {text}" for node, texts in failed.items() for text in texts
            ),
            hint=f"see all checks: {program()} doctor",
        )
