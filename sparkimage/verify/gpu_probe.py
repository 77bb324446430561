"""The probe that the node tier runs in a container of the image.

It uses the standard library only. The first process examines the machine and starts one worker per
GPU, as vLLM does; the workers create an NCCL communicator.
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
"""Makes the process a worker: its rank, the number of ranks, and the ncclUniqueId in hex."""
WAIT_S = 200


class Id(ctypes.Structure):
    """ncclUniqueId"""

    _fields_ = [("internal", ctypes.c_byte * 128)]


def worker(rank: int, ranks: int, unique: Id) -> dict[str, Any]:
    """Load NCCL as a worker of vLLM does: torch first, which loads its own copy; then by name."""
    if importlib.util.find_spec("torch"):
        importlib.import_module("torch")
    nccl, comm = ctypes.CDLL("libnccl.so.2"), ctypes.c_void_p()
    nccl.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, Id, ctypes.c_int]
    code = nccl.ncclCommInitRank(ctypes.byref(comm), ranks, unique, rank)
    with open("/proc/self/maps") as maps:
        mapped = sorted({line.split()[-1] for line in maps if "libnccl.so" in line})
    return {"nccl": code, "mapped": mapped}


def workers(count: int) -> list[Any]:
    """The result of each of ``count`` workers; the end of its output where it has none."""
    unique = Id()
    ctypes.CDLL("libnccl.so.2").ncclGetUniqueId(ctypes.byref(unique))
    ranks_and_id = f"{count} {bytes(unique).hex()}"
    processes = [
        subprocess.Popen(
            sys.orig_argv,
            env={**os.environ, RANK: f"{rank} {ranks_and_id}", "CUDA_VISIBLE_DEVICES": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    results = []
    for process in processes:
        try:
            out = process.communicate(timeout=WAIT_S)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            out = process.communicate()[0]
        print(out, flush=True)
        lines = [line for line in out.splitlines() if line.startswith("worker {")]
        results.append(
            json.loads(lines[-1].removeprefix("worker "))
            if lines
            else {"nccl": out[-300:] or "silent", "mapped": []}
        )
    return results


def gpus() -> int:
    """How many GPUs CUDA finds, by the driver's library: the image need not have any."""
    count = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0:
            return count.value
    except OSError:
        pass
    return 0


def main() -> None:
    """Print the result as one line."""
    if RANK in os.environ:
        rank, ranks, unique = os.environ[RANK].split()
        id = Id.from_buffer_copy(bytes.fromhex(unique))
        print("worker " + json.dumps(worker(int(rank), int(ranks), id)), flush=True)
        return
    count = gpus()
    seen = {
        "gpus": count,
        "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        "devices": sorted(
            path.removeprefix("/host") for path in glob.glob("/host/dev/nvidia[0-9]*")
        ),
        "infiniband": sorted(map(os.path.basename, glob.glob("/host/dev/infiniband/*"))),
        "workers": workers(count) if count else [],
    }
    print("seen " + json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
