"""Memory that is free on each node before a start, against what vLLM will take there.

VLLM refuses to start where less is free than its part of all memory, minutes after the start:
https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/v1/worker/utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparkimage.config.profiles import Profile
from sparkimage.core.errors import LaunchError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.core.units import human
from sparkimage.nodes.snapshot import NodeSnapshot, version

UTILIZATION, OLDER = 0.92, 0.9
"""VLLM's own default, and that before ``RAISED``: vllm/config/cache.py of 0.19.0 and 0.20.0."""
RAISED = (0, 20)
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


def utilization(profile: Profile, vllm: str) -> float:
    """The part of all memory that this version of vLLM takes with a profile. Of an unknown version
    the least. Pure."""
    default = UTILIZATION if version(vllm) >= RAISED else OLDER
    return profile.serve.gpu_memory_utilization or default


def pools(now: NodeSnapshot, gpus: int) -> list[Pool]:
    """A node's pools for its first ``gpus`` GPUs; none where they are unknown. Pure.

    VLLM counts the page cache of a unified machine as the kernel does, which keeps a part of it
    back: https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/utils/mem_utils.py
    """
    if now.unified:
        if not now.memory or now.available is None:
            return []
        free = now.available if now.free is None else now.free
        return [Pool(name="", total=now.memory, free=free, available=now.available)]
    return [
        Pool(name=f"GPU {gpu.index}: ", total=gpu.memory, free=gpu.free, available=gpu.free)
        for gpu in sorted(now.gpus, key=lambda gpu: gpu.index)[:gpus]
        if gpu.memory is not None and gpu.free is not None
    ]


def shortages(
    now: NodeSnapshot, found: Sequence[Pool], profile: Profile, part: float
) -> Iterator[str]:
    """What a node lacks for its ranks, and what to do, a text each; ``part``: of all memory that
    vLLM takes. Pure."""
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


def cached(found: Sequence[Pool], part: float) -> str:
    """A warning where vLLM depends on what the page cache gives back; empty where not. Pure."""
    for pool in found:
        if pool.free < part * pool.total <= pool.available:
            return (
                f"{human(pool.available - pool.free)} of {human(pool.total)} are in the page "
                f"cache, which CUDA gets back only in part and slowly: {DROP}"
            )
    return ""


def shares(nodes: Sequence[NodeSnapshot], profile: Profile, vllm: str) -> str:
    """What the model's weights take of each node, and what is left there for the KV cache; empty
    where the model's size or the memory is unknown. Pure."""
    size = max((node.model.size for node in nodes), default=0)
    found = [pool for node in nodes for pool in pools(node, profile.gpus)]
    if not size or not found:
        return ""
    ours = math.ceil(size / (profile.nodes * profile.gpus))
    if any(node.unified for node in nodes):
        ours *= profile.gpus
    least = min(found, key=lambda pool: pool.total)
    wanted = int(utilization(profile, vllm) * least.total)
    on = "node" if any(node.unified for node in nodes) else "GPU"
    text = f"the model is {human(size)}"
    if len(found) > 1:
        text += f", {human(ours)} on each of {len(found)} {on}s"
    return (
        f"{text}; vLLM takes {human(wanted)} of {human(least.total)} there, "
        f"{human(max(0, wanted - ours))} of it for the KV cache and the rest"
    )


def require(nodes: Sequence[NodeSnapshot], profile: Profile, vllm: str, view: View) -> None:
    """Every node has the memory that its ranks take with this version of vLLM. Raises
    ``LaunchError`` with all that have not."""
    part = utilization(profile, vllm)
    failed: dict[str, list[str]] = {}
    for node in nodes:
        found = pools(node, profile.gpus)
        if lacking := list(shortages(node, found, profile, part)):
            failed[node.name] = lacking
        elif text := cached(found, part):
            view.say(f"warning: {node.name}: {text}")
    if failed:
        raise LaunchError(
            f"{len(failed)} of {len(nodes)} nodes lack memory; nothing was started",
            detail="\n".join(
                f"✗ {node}: {text}" for node, texts in failed.items() for text in texts
            ),
            hint=f"see all checks: {program()} doctor",
        )
