"""Whether the machine that compiles has the disk and the memory that its sources need."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.core.errors import PreflightError
from sparkimage.core.files import free_bytes
from sparkimage.core.units import human

if TYPE_CHECKING:
    from sparkimage.build.context import BuildContext

COMPILED = "compiled"
"""The fact of a source that was built: what BuildKit's cache then has is not made again."""
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine that builds says of itself, in bytes; None for what it cannot be asked."""

    name: str
    memory: int | None = None
    disk: int | None = None
    free: bool = False
    """Whether ``memory`` is what is free, and not all that there is."""


def check(plan: Plan, context: BuildContext) -> None:
    """Raises ``PreflightError`` where a machine that builds has less than the plan's sources need.

    What cannot be asked is said. Nothing is asked where all sources were built before.
    """
    sources = [layer for layer in plan.layers if layer.source is not None]
    if all(context.store.get_fact(COMPILED, key(layer)) is not None for layer in sources):
        return
    names = ", ".join(layer.name for layer in sources)
    lacking = []
    for machine in machines(plan.arch, context):
        for what, seen, need in (
            ("memory", machine.memory, plan.memory), ("disk", machine.disk, plan.disk)
        ):  # fmt: skip
            state = "" if what == "memory" and not machine.free else " free"
            if need and seen is None:
                context.say(f"{machine.name} was not asked for its {what}; {names} needs "
                            f"{human(need)} free")  # fmt: skip
            elif seen is not None and seen < need:
                lacking.append(f"{machine.name} has {human(seen)} of {what}{state}; {names} needs "
                               f"{human(need)} free")  # fmt: skip
    if lacking:
        raise PreflightError(
            f"{plan.variant} cannot be compiled here: {'; '.join(lacking)}",
            hint="build it with --builder on a larger machine (docs/builders.md), or let fewer "
            "compilers run (its `args`) and lower `memory` and `disk` of the layer's `source`",
        )


def record(plan: Plan, context: BuildContext) -> None:
    """Remember that the sources of ``plan`` were built."""
    for layer in plan.layers:
        if layer.source is not None:
            context.store.put_fact(COMPILED, key(layer), {"variant": plan.variant})


def key(layer: LayerPlan) -> str:
    """A sha256 over all that decides what a source's build compiles."""
    return hashlib.sha256(f"{layer.source}{layer.args}{layer.patches}".encode()).hexdigest()


def machines(arch: str, context: BuildContext) -> Iterator[Machine]:
    """The machines that may build for an architecture."""
    engine, builder = context.engine, context.builder
    if not builder.remote and engine.host.startswith("unix://"):
        memory = parse_meminfo(MEMINFO.read_text())
        disk = free_bytes(Path(engine.data_root))
        yield Machine(name="this machine", memory=memory, disk=disk, free=True)
        return
    nodes = zip(builder.endpoints, builder.arches, strict=True)
    native = [endpoint for endpoint, node in nodes if node == builder.native(arch)]
    for endpoint in native if builder.remote else [engine.host]:
        option = "--host" if "://" in endpoint else "--context"
        argv = [engine.docker[0], option, endpoint, "info", "--format", "{{json .MemTotal}}"]
        done = context.runner.run(argv, check=False, timeout_s=30)
        total = json.loads(done.stdout) if re.fullmatch(r"\d+\s*", done.stdout) else None
        yield Machine(name=endpoint, memory=total or None)


def parse_meminfo(text: str) -> int | None:
    """The bytes that can be had without swapping, of /proc/meminfo."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else None
