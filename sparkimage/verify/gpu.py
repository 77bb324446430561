"""The node tier: the image in a container with the GPUs of the machine that it is to run on.

The node is the machine of the engine that is given. It is looked at without its GPUs first: where
it has none, nothing has passed; where it has one that the engine cannot hand out, that has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparkimage.build.engine.engine import OWNER, Engine
from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.core.errors import CommandError
from sparkimage.core.locks import owner
from sparkimage.core.process import Completed, Runner
from sparkimage.verify import run_entrypoint
from sparkimage.verify.seal import Check
from sparkimage.verify.static_nccl import system_path

NO_GPU = "not run: no GPU"
BANNER = re.compile(r"NCCL version (\d+\.\d+\.\d+)")
"""What NCCL_DEBUG=VERSION prints when the first communicator is made."""
NO_DEVICE = re.compile(r"select device driver|nvidia-container|CDI device|nvidia\.com/gpu")
"""What engines say of a GPU that they cannot give."""
UNLIMITED = -1
LIMIT_S = 300.0
GPUS = ("--gpus", "all")
PROBE = Path(__file__).with_name("gpu_probe.py")
VARIABLE = "SPARKIMAGE_PROBE"
"""In the container: the text of ``PROBE``, so that no command line is made of it."""
START = f'import os; exec(os.environ["{VARIABLE}"])'
MEMLOCK = ("--ulimit", "memlock=-1:-1")
HANDED = "the engine hands out the machine's GPUs"


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What came of the node tier: its checks, and what did not run (the tier, or a check's id)."""

    checks: tuple[Check, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)


def examine(plan: Plan, engine: Engine, reference: str, runner: Runner) -> Examined:
    """Start ``reference`` on the engine's machine, with every GPU of it, and look around."""
    bare, _ = _look(plan, engine, reference, runner)
    assert bare is not None
    seen, done = _look(plan, engine, reference, runner, *GPUS)
    if seen is None or not seen["gpus"]:
        refusal = done.stderr.strip().splitlines()[-1:]
        said = refusal[0][:200] if seen is None and refusal else "CUDA finds none in the container"
        if not bare["devices"]:
            return Examined(not_run={Tier.NODE: f"{NO_GPU} ({said})"})
        ways = ", ".join(runtimes(engine, runner)) or "no nvidia runtime, no CDI device"
        why = f"{', '.join(bare['devices'])} cannot be handed out ({ways}): {said}"
        return Examined(checks=(_check("runtime", HANDED, why, True), *_machine(bare)))
    workers = seen["workers"]
    checks = [
        _check("runtime", HANDED, True, True),
        *_machine(seen),
        _check(
            "nccl-communicator", "a communicator of one process a GPU (0: made)",
            [one["nccl"] for one in workers], [0] * seen["gpus"],
        ),
    ]  # fmt: skip
    mapped = [one["mapped"] for one in workers]
    pinned = plan.versions.get("nccl")
    if pinned is not None:
        found = BANNER.search(done.stdout + done.stderr)
        path = [f"/{system_path(plan)}"]
        checks += [
            _check("nccl-mapped", "libnccl that each worker maps", mapped, [path] * seen["gpus"]),
            _check("nccl-banner", "NCCL's own banner", found[1] if found else None, pinned),
        ]
    not_run: dict[str, str] = {}
    with run_entrypoint.begun(
        plan, engine, reference, runner, tier=Tier.NODE, options=GPUS
    ) as entrypoint:
        if entrypoint is not None:
            entrypoint.add(checks, not_run)
    return Examined(checks=tuple(checks), not_run=not_run)


def _look(
    plan: Plan, engine: Engine, reference: str, runner: Runner, *options: str
) -> tuple[dict[str, Any] | None, Completed]:
    """What a container of the image sees; None where the engine has no GPU to give."""

    def run(*more: str) -> Completed:
        argv = [
            *engine.docker, "run", "--rm", "--pull", "never", "--platform", plan.platform,
            *options, *more, "--network", "none", "--ipc", "host",
            "--cap-add", "IPC_LOCK", "--mount", "type=bind,src=/dev,dst=/host/dev,readonly",
            "--env", "NCCL_DEBUG=VERSION", "--env", "NCCL_SOCKET_IFNAME=lo", "--env", VARIABLE,
            "--label", f"{OWNER}={owner()}",
            "--entrypoint", "python3", reference, "-c", START,
        ]  # fmt: skip
        given = {VARIABLE: PROBE.read_text()}
        return runner.run(argv, check=False, timeout_s=LIMIT_S, env=given)

    done = run(*MEMLOCK)
    if done.returncode and "rlimit" in done.stderr:
        # An engine that may not lift the limit; the check sees what it then is.
        done = run()
    lines = [line for line in done.stdout.splitlines() if line.startswith("seen {")]
    if lines:
        seen: dict[str, Any] = json.loads(lines[-1].removeprefix("seen "))
        return seen, done
    if options and NO_DEVICE.search(done.stderr):
        return None, done
    raise CommandError(done.argv, done.returncode, done.stdout + done.stderr)


def _machine(seen: dict[str, Any]) -> tuple[Check, ...]:
    return (
        _check("infiniband", "/dev/infiniband has devices", bool(seen["infiniband"]), True),
        _check("memlock", "RLIMIT_MEMLOCK, -1 for none", seen["memlock"], UNLIMITED),
    )


def runtimes(engine: Engine, runner: Runner) -> list[str]:
    """How the engine can hand out GPUs: its nvidia runtime, and NVIDIA's CDI devices."""
    done = runner.run([*engine.docker, "info", "--format", "{{json .}}"])
    said = json.loads(done.stdout)
    names = [name for name in said.get("Runtimes") or {} if name == "nvidia"]
    devices = [str(one.get("ID")) for one in said.get("DiscoveredDevices") or ()]
    return names + [one for one in devices if one.startswith("nvidia.com/gpu")]


def _check(name: str, title: str, seen: Any, expected: Any) -> Check:
    check = Check.compare(f"node/{name}", title, seen, expected, tier=Tier.NODE)
    return replace(check, layer="_every")
