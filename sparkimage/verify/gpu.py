"""The node tier: the image in a container with the GPUs of the engine's machine.

The machine is examined without its GPUs first. If it has none, the tier is not run; if it has one
that the engine cannot hand out, the tier has failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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
NO_PYTHON = "not run: the image has no python3, with which its GPUs are looked at"
NOT_FOUND = 127
"""The exit code of `docker run` where the image lacks the program:
https://docs.docker.com/engine/containers/run/#exit-status"""
BANNER = re.compile(r"NCCL version (\d+\.\d+\.\d+)")
"""NCCL_DEBUG=VERSION prints it when the first communicator is created."""
NO_DEVICE = re.compile(r"select device driver|nvidia-container|CDI device|nvidia\.com/gpu")
"""Errors of engines that have no GPU to give."""
UNLIMITED = -1
LIMIT_S = 300.0
GPUS = ("--gpus", "all")
CDI = ("--device", "nvidia.com/gpu=all")
"""For engines with CDI devices and without NVIDIA's runtime:
https://docs.docker.com/reference/cli/docker/container/run/#cdi-devices"""
PROBE = Path(__file__).with_name("gpu_probe.py")
VARIABLE = "SPARKIMAGE_PROBE"
"""Holds the text of ``PROBE`` in the container, so that it is in no command line."""
START = f'import os; exec(os.environ["{VARIABLE}"])'
MEMLOCK = ("--ulimit", "memlock=-1:-1")
GPUS_TITLE = "the engine gives the GPUs to a container"


@dataclass(frozen=True, kw_only=True)
class NodeOutcome:
    """The results of the node tier, and what did not run (the tier, or a check's id) and why."""

    checks: tuple[Check, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)


def examine(plan: Plan, engine: Engine, reference: str, runner: Runner) -> NodeOutcome:
    """Run the checks of the node tier with every GPU of the engine's machine.

    Raises ``CommandError`` where the probe cannot run in the image.
    """
    try:
        bare, _ = _probe(plan, engine, reference, runner)
    except CommandError as error:
        if plan.expect.nccl is None and error.returncode == NOT_FOUND:
            return NodeOutcome(not_run={Tier.NODE: NO_PYTHON})
        raise
    assert bare is not None
    options, info = GPUS, {}
    seen, process = _probe(plan, engine, reference, runner, *options)
    if bare["devices"] and (seen is None or not seen["gpus"]):
        argv = [*engine.docker, "info", "--format", "{{json .}}"]
        info = json.loads(runner.run(argv).stdout)
        if seen is None and info.get("CDISpecDirs"):
            options = CDI
            seen, process = _probe(plan, engine, reference, runner, *options)
    if seen is None or not seen["gpus"]:
        last = process.stderr.strip().splitlines()[-1:]
        why = last[0][:200] if seen is None and last else "CUDA finds none in the container"
        if not bare["devices"]:
            return NodeOutcome(not_run={Tier.NODE: f"{NO_GPU} ({why})"})
        ways = ", ".join(_ways(info)) or "no nvidia runtime, no CDI device"
        failure = f"{', '.join(bare['devices'])} cannot be handed out ({ways}): {why}"
        return NodeOutcome(checks=(_check("runtime", GPUS_TITLE, failure, True), *_machine(bare)))
    workers = seen["workers"]
    checks = [
        _check("runtime", GPUS_TITLE, True, True),
        *_machine(seen),
    ]
    version = plan.expect.nccl
    if version is not None:
        banner = BANNER.search(process.stdout + process.stderr)
        mapped, path = [worker["mapped"] for worker in workers], [f"/{system_path(plan)}"]
        checks += [
            _check(
                "nccl-communicator", "ncclCommInitRank succeeds (0) in one process per GPU",
                [worker["nccl"] for worker in workers], [0] * seen["gpus"],
            ),
            _check(
                "nccl-mapped", "each worker maps the pinned libnccl", mapped,
                [path] * seen["gpus"],
            ),
            _check(
                "nccl-banner", "NCCL's own banner says the pinned version",
                banner[1] if banner else None, version,
            ),
        ]  # fmt: skip
    not_run: dict[str, str] = {}
    with run_entrypoint.started(
        plan, engine, reference, runner, tier=Tier.NODE, options=options
    ) as answer:
        if answer is not None:
            answer.add(checks, not_run)
    return NodeOutcome(checks=tuple(checks), not_run=not_run)


def _probe(
    plan: Plan, engine: Engine, reference: str, runner: Runner, *options: str
) -> tuple[dict[str, Any] | None, Completed]:
    """The output of ``gpu_probe.py`` in a container; None where the engine has no GPU to give."""

    def run(*more: str) -> Completed:
        argv = [
            *engine.docker, "run", "--rm", "--pull", "never", "--platform", plan.platform,
            *options, *more, "--network", "none", "--ipc", "host",
            "--cap-add", "IPC_LOCK", "--mount", "type=bind,src=/dev,dst=/host/dev,readonly",
            "--env", "NCCL_DEBUG=VERSION", "--env", "NCCL_SOCKET_IFNAME=lo", "--env", VARIABLE,
            "--label", f"{OWNER}={owner()}",
            "--entrypoint", "python3", reference, "-c", START,
        ]  # fmt: skip
        environment = {VARIABLE: PROBE.read_text()}
        return runner.run(argv, check=False, timeout_s=LIMIT_S, env=environment)

    process = run(*MEMLOCK)
    if process.returncode and "rlimit" in process.stderr:
        # An engine that may not raise the limit; the check reports the limit that it has.
        process = run()
    lines = [line for line in process.stdout.splitlines() if line.startswith("seen {")]
    if lines:
        seen: dict[str, Any] = json.loads(lines[-1].removeprefix("seen "))
        return seen, process
    if options and NO_DEVICE.search(process.stderr):
        return None, process
    raise CommandError(process.argv, process.returncode, process.stdout + process.stderr)


def _machine(seen: dict[str, Any]) -> tuple[Check, ...]:
    return (
        _check("infiniband", "/dev/infiniband has devices", bool(seen["infiniband"]), True),
        _check("memlock", "RLIMIT_MEMLOCK is unlimited (-1)", seen["memlock"], UNLIMITED),
    )


def _ways(info: dict[str, Any]) -> list[str]:
    """How the engine can hand out GPUs: its nvidia runtime, and NVIDIA's CDI devices."""
    names = [name for name in info.get("Runtimes") or {} if name == "nvidia"]
    devices = [str(device.get("ID")) for device in info.get("DiscoveredDevices") or ()]
    return names + [device for device in devices if device.startswith("nvidia.com/gpu")]


def _check(name: str, title: str, seen: Any, expected: Any) -> Check:
    return Check.compare(f"node/{name}", title, seen, expected, tier=Tier.NODE, layer="_every")
