"""The node tier's own program in a real container, on machines that are real but for the GPU.

The driver and NCCL's communicator are stand-ins, compiled by the image's own compiler; a `docker`
that knows `--gpus` mounts them. The machine without a GPU is the lab's own.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.config.plan import Expected, Plan
from sparkimage.verify import gpu
from tests.lab.conftest import Lab

CUDA = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""
NCCL = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct { char internal[128]; } Id;
int ncclGetUniqueId(Id *id) { memset(id, 7, sizeof *id); return 0; }
int ncclCommInitRank(void **comm, int ranks, Id id, int rank) {
    printf("NCCL version %s+cuda13.2\\n", VERSION);
    fflush(stdout);
    return ranks == 2 && rank < 2 && id.internal[127] == 7 ? CODE : 4;
}
"""
COPIES = {
    "good": ("2.30.4", "0"),
    "refuses": ("2.30.4", "2"),
    "old": ("2.28.9", "0"),
    "dies": ("2.30.4", "(abort(), 0)"),
}
"""The version that each says, and what comes of its communicator."""
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4"

DOCKER = """
import os, sys
argv = sys.argv[1:]
if "--gpus" in argv:
    at = argv.index("--gpus")
    argv[at : at + 2] = {options!r}
argv = [{swaps!r}.get(word, word) for word in argv]
os.execv(argv[0], argv)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """An engine that hands out two GPUs that are none, and the folder with what they need."""

    lab: Lab
    folder: Path
    reference: str

    def engine(
        self, nccl: str = "good", path: str = LIBRARY, swaps: dict[str, str] | None = None
    ) -> Engine:
        """With one of the copies of NCCL at ``path``, where the linker finds it by its name."""
        folder = path.rpartition("/")[0]
        options = [
            "-v", f"{self.folder}/libcuda.so.1:/usr/lib/libcuda.so.1:ro",
            "-v", f"{self.folder}/{nccl}.so:{path}:ro",
            "-v", f"{self.folder}/{nccl}.so:{folder}/libnccl.so.2:ro",
            "-e", f"LD_LIBRARY_PATH={folder}", "-e", f"LD_PRELOAD={path}",
        ]  # fmt: skip
        script = self.folder / "docker.py"
        script.write_text(DOCKER.format(options=options, swaps=swaps or {}))
        docker = (sys.executable, str(script), *self.lab.engine.docker)
        return dataclasses.replace(self.lab.engine, docker=docker)

    def failed(self, engine: Engine, plan: Plan) -> dict[str, object]:
        came = gpu.examine(plan, engine, self.reference, self.lab.runner)
        assert came.not_run == {}
        assert len(came.checks) == 6
        return {one.id: one.seen for one in came.checks if not one.passed}


@pytest.fixture(scope="module")
def machine(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder, reference = tmp_path_factory.mktemp("machine"), lab.plain("amd64")
    (folder / "cuda.c").write_text(CUDA)
    (folder / "nccl.c").write_text(NCCL)
    gcc = "gcc -shared -fPIC -o"
    commands = [f"{gcc} /s/libcuda.so.1 /s/cuda.c"] + [
        f"{gcc} /s/{name}.so -DVERSION='\"{version}\"' -DCODE='{code}' "
        "-Wl,-soname,libnccl.so.2 /s/nccl.c"
        for name, (version, code) in COPIES.items()
    ]
    subprocess.run(
        [*lab.engine.docker, "run", "--rm", "--network=none", "-v", f"{folder}:/s",
         "--entrypoint", "sh", reference, "-c", " && ".join(commands)], check=True,
    )  # fmt: skip
    return Machine(lab=lab, folder=folder, reference=reference)


@pytest.fixture
def plan(lab: Lab) -> Plan:
    return dataclasses.replace(lab.plan("plain-amd64"), expect=Expected(nccl="2.30.4"))


def test_this_machine_has_no_gpu(lab: Lab, plan: Plan) -> None:
    came = gpu.examine(plan, lab.engine, lab.plain("amd64"), lab.runner)
    assert came.checks == ()
    assert came.not_run["node"].startswith("not run: no GPU (")
    assert "could not select device driver" in came.not_run["node"]


def test_each_worker_says_what_it_maps(machine: Machine, plan: Plan) -> None:
    # What this machine itself lacks, it says; a machine in a container may not lift the limit.
    failed = machine.failed(machine.engine(), plan)
    assert failed["node/infiniband"] is False
    assert set(failed) <= {"node/infiniband", "node/memlock"}


def test_a_communicator_that_is_not_made(machine: Machine, plan: Plan) -> None:
    failed = machine.failed(machine.engine("refuses"), plan)
    assert failed["node/nccl-communicator"] == [2, 2]


def test_another_nccl_than_the_pinned_one(machine: Machine, plan: Plan) -> None:
    other = "/opt/nccl/libnccl.so.2.28.9"
    failed = machine.failed(machine.engine("old", path=other), plan)
    assert failed["node/nccl-banner"] == "2.28.9"
    assert failed["node/nccl-mapped"] == [[other], [other]]


def test_limited_memory(machine: Machine, plan: Plan) -> None:
    failed = machine.failed(machine.engine(swaps={"memlock=-1:-1": "memlock=65536:65536"}), plan)
    assert failed["node/memlock"] == 65536


def test_a_worker_that_dies(machine: Machine, plan: Plan) -> None:
    failed = machine.failed(machine.engine("dies"), plan)
    assert failed["node/nccl-mapped"] == [[], []]
    assert "node/nccl-communicator" in failed
