"""What this user can do next, on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.core.program import program

if TYPE_CHECKING:
    from sparkimage.build.engine.engine import Engine
    from sparkimage.config.plan import Plan


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def after_build(plan: Plan, engine: Engine, *, fleet: bool, gpu: bool) -> list[str]:
    """The commands after a build: run it here, where it can run; bring it to the nodes; without
    either, find the nodes. Pure."""
    lines = []
    if gpu and plan.platform == f"linux/{engine.arch}":
        if engine.private:
            # Its own /usr has no NVIDIA runtime.
            lines.append(
                f"{program()} save {plan.variant} -o - | docker load   "
                "(into the Docker that has the GPU)"
            )
        serve = " ".join(plan.entrypoint)
        follows = f"   (arguments follow `{serve}`)" if serve else ""
        lines.append(f"docker run --rm --gpus all {plan.image} MODEL{follows}")
    if not fleet:
        lines.append(f"{program()} init   (finds your nodes and writes fleet.yaml)")
    return [
        *lines,
        f"{program()} distribute {plan.variant}",
        f"{program()} model push DIR   (a model's folder of this machine)",
        f"{program()} launch {plan.variant} --model DIR",
    ]
