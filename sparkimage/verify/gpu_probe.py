"""What ``node`` runs inside of a container of the image, by its text.

It knows nothing but the standard library. The first process looks at the machine, and starts one
of itself for each GPU, as vLLM has one worker for each; those make a communicator together.
"""

import ctypes
import glob
import importlib.util
import json
import os
import resource
import subprocess
import sys
from typing import Any

RANK = "SPARKIMAGE_RANK"
"""Set, it makes the process a worker: its rank, of how many, and NCCL's id in hex."""
WAIT_S = 200


class Id(ctypes.Structure):
    """ncclUniqueId"""

    _fields_ = [("internal", ctypes.c_byte * 128)]


def worker(rank: int, ranks: int, unique: Id) -> dict[str, Any]:
    """Load NCCL as a worker of vLLM does: torch first, which brings its own; then by its name."""
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")
    nccl, comm = ctypes.CDLL("libnccl.so.2"), ctypes.c_void_p()
    nccl.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, Id, ctypes.c_int]
    code = nccl.ncclCommInitRank(ctypes.byref(comm), ranks, unique, rank)
    with open("/proc/self/maps") as maps:
        mapped = sorted({line.split()[-1] for line in maps if "libnccl.so" in line})
    return {"nccl": code, "mapped": mapped}


def workers(count: int) -> list[Any]:
    """What each of ``count`` workers says; its last words where it said nothing."""
    unique = Id()
    ctypes.CDLL("libnccl.so.2").ncclGetUniqueId(ctypes.byref(unique))
    given = f"{count} {bytes(unique).hex()}"
    started = [
        subprocess.Popen(
            sys.orig_argv,
            env={**os.environ, RANK: f"{rank} {given}", "CUDA_VISIBLE_DEVICES": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = []
    for one in started:
        try:
            out = one.communicate(timeout=WAIT_S)[0]
        except subprocess.TimeoutExpired:
            one.kill()
            out = one.communicate()[0]
        print(out, flush=True)
        lines = [line for line in out.splitlines() if line.startswith("worker {")]
        said.append(
            json.loads(lines[-1].removeprefix("worker "))
            if lines
            else {"nccl": out[-300:] or "silent", "mapped": []}
        )
    return said


def gpus() -> int:
    """How many CUDA finds; asked of the driver, so that nothing of the image is needed."""
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    except OSError:
        pass
    return 0


def main() -> None:
    """Say what is seen in one line."""
    if RANK in os.environ:
        rank, ranks, unique = os.environ[RANK].split()
        told = Id.from_buffer_copy(bytes.fromhex(unique))
        print("worker " + json.dumps(worker(int(rank), int(ranks), told)), flush=True)
        return
    found = gpus()
    seen = {
        "gpus": found,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "devices": sorted(
            path.removeprefix("/host") for path in glob.glob("/host/dev/nvidia[0-9]*")
        ),
        "infiniband": sorted(map(os.path.basename, glob.glob("/host/dev/infiniband/*"))),
        "workers": workers(found) if found else [],
    }
    print("seen " + json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
