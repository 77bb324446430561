"""What the machine of the tests has: its GPUs, the driver's files, and how containers get them.

Every GPU is given by CDI, with a specification that the tests write: no NVIDIA toolkit is needed.
https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DEV = Path("/dev")
LIBRARIES = (
    "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1", "libnvidia-nvvm.so.4",
    "libnvidia-gpucomp.so", "libcudadebugger.so.1",
)  # fmt: skip
"""Of the driver, what CUDA and NVML load; a driver has most of them."""
FOLDERS = (
    "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib",
)  # fmt: skip
"""Where machines have the driver's libraries."""
NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
    "VLLM_FLASHINFER_ALLREDUCE_BACKEND": "trtllm",
}
"""The tests never use NVLink multicast, which a virtual machine may not: in every process, as each
of these libraries is told so."""
IN_NODE = "/driver"
"""The folder of the driver's files in a node."""


def gpus(dev: Path = DEV) -> tuple[int, ...]:
    """The numbers of the machine's NVIDIA GPUs."""
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in dev.glob("nvidia*"))
    return tuple(sorted(int(match[1]) for match in found if match is not None))


def used(numbers: Sequence[int]) -> tuple[int, ...]:
    """Those that the tests use: tensor parallelism splits heads by powers of two."""
    count = 1
    while count * 2 <= min(len(numbers), 8):
        count *= 2
    return tuple(numbers[:count])


def shares(numbers: Sequence[int]) -> tuple[int, ...]:
    """The GPU of each node: one each, on $GPU_NODES nodes, two at least. More nodes than GPUs share
    them: NCCL takes ranks on hosts of different names for different machines, and refuses one GPU
    twice on one machine only.
    https://github.com/NVIDIA/nccl/blob/master/src/init.cc ("Duplicate GPU detected")
    """
    count = int(os.environ.get("GPU_NODES") or max(2, len(numbers)))
    return tuple(numbers[n % len(numbers)] for n in range(count))


def copy_driver(to: Path) -> list[str]:
    """Copy the driver's libraries and nvidia-smi; their names there. A private engine does not see
    the machine's /usr."""
    to.mkdir(parents=True)
    for name in LIBRARIES:
        for path in _found(name):
            shutil.copyfile(path, to / path.name)
            break
    # The one in PATH may be a script that starts the driver's.
    if program := shutil.which("nvidia-smi", path=f"/usr/local/nvidia/bin:{os.environ['PATH']}"):
        shutil.copy(program, to / "nvidia-smi")
    return sorted(path.name for path in to.iterdir())


def _found(name: str) -> Iterator[Path]:
    for folder in FOLDERS:
        pattern = name if name.endswith((".1", ".4")) else f"{name}.*"
        yield from sorted(Path(folder).glob(pattern))


def specification(
    numbers: Sequence[int], libraries: Sequence[str], target: str, dev: Path = DEV
) -> dict[str, Any]:
    """A CDI specification of these GPUs; ``target``: the folder of containers for the driver's
    libraries, where their linker finds them."""

    def nodes(names: Sequence[str]) -> list[dict[str, str]]:
        return [{"path": f"/dev/{name}"} for name in names]

    shared = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
    each = [f"nvidia{number}" for number in numbers]
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": name, "containerEdits": {"deviceNodes": nodes(members)}}
            for name, members in (*((one[len("nvidia"):], [one]) for one in each), ("all", each))
        ],
        "containerEdits": {
            "deviceNodes": nodes([name for name in shared if (dev / name).exists()]),
            # Triton asks ldconfig, whose cache does not know what is mounted.
            "env": [f"{name}={value}" for name, value in
                    {"TRITON_LIBCUDA_PATH": target, **NO_MULTICAST}.items()],
            "mounts": [
                {"hostPath": f"{IN_NODE}/{name}", "containerPath": f"{target}/{name}",
                 "options": ["ro", "nosuid", "nodev", "bind"]}
                for name in libraries if ".so" in name
            ],
        },
    }  # fmt: skip


def other_nccls() -> list[Path]:
    """Other builds of NCCL than the image's: $GPU_OTHER_NCCL (FILE[:FILE]), and that of this
    Python's torch."""
    named = os.environ.get("GPU_OTHER_NCCL", "")
    folders = (Path(folder, "nvidia", "nccl", "lib", "libnccl.so.2") for folder in sys.path)
    return [*map(Path, named.split(os.pathsep) if named else ()),
            *(path for path in folders if path.is_file())]  # fmt: skip


def version(nccl: Path) -> str:
    """The version that a libnccl says in its banner."""
    with nccl.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"NCCL version (\d+\.\d+\.\d+)", content)
        return found[1].decode() if found else nccl.name


def write(file: Path, value: object) -> None:
    """As JSON, complete or not at all."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    new.replace(file)
