"""PyTorch: built for CUDA 13, and with one NCCL in its process."""

import json

import pytest

PROGRAM = """
import ctypes, json, re, torch
maps = sorted({line.split()[-1] for line in open("/proc/self/maps") if "libnccl.so" in line})
version = ctypes.c_int()
if maps:
    ctypes.CDLL(maps[0]).ncclGetVersion(ctypes.byref(version))
print(json.dumps({"cuda": torch.version.cuda, "maps": maps, "nccl": version.value}))
"""


@pytest.fixture(scope="module")
def imported(host):
    # One import serves every check: under emulation it takes a minute.
    done = host.run("python3 -c %s", PROGRAM)
    assert done.rc == 0, done.stderr[-1500:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_cuda_build(imported, check):
    seen = (imported["cuda"] or "none: a CPU build").split(".")[0]
    check("torch.version.cuda", seen=seen, expected="13")


def test_maps_exactly_one_nccl(plan, imported, check):
    expected = [f"/usr/lib/{plan['triplet']}/libnccl.so.{plan['versions']['nccl']}"]
    check("libnccl mapped by `import torch`", seen=imported["maps"], expected=expected)


def test_mapped_nccl_answers_the_pin(plan, imported, check):
    major, minor, patch = (int(part) for part in plan["versions"]["nccl"].split("."))
    check(
        "ncclGetVersion() of the mapped library",
        seen=imported["nccl"],
        # https://github.com/NVIDIA/nccl: NCCL_VERSION(X,Y,Z)
        expected=major * 10000 + minor * 100 + patch,
    )
