"""The node tier: the image in a container with the GPU of the machine that it is to run on.

The node is the machine of the engine that is given. Where no GPU answers, nothing has passed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from sparkimage.engine import Engine
from sparkimage.errors import CommandError
from sparkimage.plan import Plan
from sparkimage.run import Runner
from sparkimage.seal import Check
from sparkimage.tier import Tier

NO_GPU = "not run: no GPU"
BANNER = re.compile(r"NCCL version (\d+\.\d+\.\d+)")
"""What NCCL_DEBUG=VERSION prints when the first communicator is made."""
NO_DEVICE = re.compile(r"select device driver|nvidia-container|CDI device")
"""What engines say of a GPU that they cannot give."""
UNLIMITED = -1

PROGRAM = """
import ctypes, json, os, resource, sys
seen = {"gpus": 0, "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]}
try:
    seen["infiniband"] = sorted(os.listdir("/host/dev/infiniband"))
except OSError:
    seen["infiniband"] = []
try:
    cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
        seen["gpus"] = count.value
except OSError:
    pass
if seen["gpus"]:
    class Id(ctypes.Structure):
        _fields_ = [("internal", ctypes.c_byte * 128)]
    nccl, unique, comm = ctypes.CDLL("libnccl.so.2"), Id(), ctypes.c_void_p()
    nccl.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, Id, ctypes.c_int]
    seen["nccl"] = nccl.ncclGetUniqueId(ctypes.byref(unique)) or nccl.ncclCommInitRank(
        ctypes.byref(comm), 1, unique, 0)
    seen["mapped"] = sorted({l.split()[-1] for l in open("/proc/self/maps") if "libnccl.so" in l})
print("seen " + json.dumps(seen))
"""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What came of the node tier: its checks, or why it did not run."""

    checks: tuple[Check, ...] = ()
    not_run: str = ""


def examine(plan: Plan, engine: Engine, reference: str, runner: Runner) -> Examined:
    """Start ``reference`` with every GPU of the engine's machine, and look around in there."""
    known = runtimes(engine, runner)
    if not known:
        return Examined(not_run=f"{NO_GPU} (the engine knows no nvidia runtime and no CDI device)")
    argv = [
        *engine.docker, "run", "--rm", "--pull", "never", "--platform", plan.platform,
        "--gpus", "all", "--network", "none", "--ipc", "host", "--ulimit", "memlock=-1:-1",
        "--cap-add", "IPC_LOCK", "--mount", "type=bind,src=/dev,dst=/host/dev,readonly",
        "--env", "NCCL_DEBUG=VERSION", "--env", "NCCL_SOCKET_IFNAME=lo",
        "--label", "dev.sparkimage.verify=1",
        "--entrypoint", "python3", reference, "-c", PROGRAM,
    ]  # fmt: skip
    done = runner.run(argv, check=False, timeout_s=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("seen {")]
    if not lines:
        if NO_DEVICE.search(done.stderr):
            return Examined(not_run=f"{NO_GPU} ({done.stderr.strip().splitlines()[-1][:200]})")
        raise CommandError(argv, done.returncode, done.stdout + done.stderr)
    seen: dict[str, Any] = json.loads(lines[-1].removeprefix("seen "))
    if not seen["gpus"]:
        return Examined(not_run=f"{NO_GPU} (CUDA finds none in the container)")
    banner = BANNER.search(done.stdout + done.stderr)
    pinned = plan.versions.get("nccl")
    checks = [
        _check("runtime", "the engine hands out GPUs", bool(known), True),
        _check("infiniband", "/dev/infiniband has devices", bool(seen["infiniband"]), True),
        _check("memlock", "RLIMIT_MEMLOCK, -1 for none", seen["memlock"], UNLIMITED),
        _check("nccl_communicator", "a communicator of one rank (0: made)", seen["nccl"], 0),
        _check("nccl_mapped", "libnccl files that are mapped", len(seen["mapped"]), 1),
    ]
    if pinned is not None:
        said = banner[1] if banner else None
        checks.append(_check("nccl_banner", "NCCL's own banner", said, pinned))
    return Examined(checks=tuple(checks))


def runtimes(engine: Engine, runner: Runner) -> list[str]:
    """How the engine can hand out GPUs: its nvidia runtime, and NVIDIA's CDI devices."""
    done = runner.run([*engine.docker, "info", "--format", "{{json .}}"])
    said = json.loads(done.stdout)
    names = [name for name in said.get("Runtimes") or {} if name == "nvidia"]
    devices = [str(one.get("ID")) for one in said.get("DiscoveredDevices") or ()]
    return names + [one for one in devices if one.startswith("nvidia.com/gpu")]


def _check(name: str, title: str, seen: Any, expected: Any) -> Check:
    return Check(
        id=f"node/{name}", layer="_every", title=title, seen=seen, expected=expected,
        result="PASSED" if seen == expected else "FAILED", tier=Tier.NODE,
    )  # fmt: skip
