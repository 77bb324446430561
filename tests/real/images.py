"""Images of the real inventories, in a store: the static tier examines them as any other.

Their layers have no content, only what the store keeps of it. What no inventory has is written here
and says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import Expected, LayerPlan, Plan, SourceBuild
from sparkimage.core.arch import ARCHES
from sparkimage.image.layerindex import FACT, STEP
from sparkimage.image.store import TAR, Image, Store
from tests.real import inventory
from tests.real.inventory import Row
from tests.unit.good_maker import put_image

CUDA = "cuda13.0.2-devel-ubuntu24.04-amd64"
ENV = {
    "PATH": "/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin",
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/local/cuda/lib64",
    "CUDA_VERSION": "13.0.2",
}
PINNED = "2.30.4"
SITE = "usr/local/lib/python3.12/dist-packages"
TO_ARM64 = (
    ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"),
    ("../lib/x86_64-linux-gnu/ld-linux", "aarch64-linux-gnu/ld-linux"),
    ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"),
    ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
    ("x86_64-linux-gnu", "aarch64-linux-gnu"),
    ("targets/x86_64-linux", "targets/sbsa-linux"),
    ('"machine":62', '"machine":-1'),
    ('"machine":183', '"machine":62'),
    ('"machine":-1', '"machine":183'),
)
"""What differs in the same packages for arm64: NVIDIA's image was read on amd64 only."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The entries of a layer, and the command of its step."""

    rows: Sequence[Row]
    step: str = "RUN /bin/sh -c apt-get install"


OURS = f"RUN . {STEP}; tidy"


@cache
def cuda(arch: str) -> tuple[Row, ...]:
    """NVIDIA's CUDA 13.0.2 development image on Ubuntu 24.04."""
    text = inventory.load(CUDA)
    if arch == "arm64":
        for old, new in TO_ARM64:
            text = text.replace(old, new)
    return _rows(text)


@cache
def wheels(name: str) -> tuple[Row, ...]:
    """The wheels of a set."""
    return _rows(inventory.load(name))


def _rows(text: str) -> tuple[Row, ...]:
    return tuple(
        (row[0], row[1], row[2], row[3], row[4], row[5]) for row in json.loads(text)["rows"]
    )


def elf(arch: str, **fields: object) -> dict[str, object]:
    """The facts of an ELF file."""
    return {"elf": {"machine": ARCHES[arch].elf_machine, "type": 3, **fields}}


def file(path: str, facts: Mapping[str, object], mode: int = 0o644) -> Row:
    return (path, "0", 1, mode, "", dict(facts))


def link(path: str, target: str) -> Row:
    return (path, "2", 0, 0o777, target, {})


def sudo(arch: str) -> list[Row]:
    """What `apt-get install sudo software-properties-common` brings, as Ubuntu's packages have it:
    vLLM's Dockerfile installs both. Written here, not read."""
    return [
        file(path, {**elf(arch, needed=["libc.so.6"]), "package": package}, mode)
        for path, package, mode in (
            ("usr/bin/sudo", "sudo", 0o4755),
            ("usr/libexec/sudo/sudoers.so", "sudo", 0o644),
            ("usr/lib/polkit-1/polkit-agent-helper-1", "polkitd", 0o4755),
            ("usr/lib/dbus-1.0/dbus-daemon-launch-helper", "dbus", 0o4754),
        )
    ]


def status(rows: Iterable[Row], **packages: str) -> Row:
    """dpkg's status of ``rows``, with more packages."""
    (known,) = (facts["packages"] for path, *_, facts in rows if path == "var/lib/dpkg/status")
    return file("var/lib/dpkg/status", {"packages": {**known, **packages}})


def deep_ep(arch: str) -> Row:
    """DeepEP's extension, which vLLM's Dockerfile compiles: no index has it. Written here, after
    its setup.py."""
    machine = ARCHES[arch].machine
    needed = [
        "libnvshmem_host.so.3", "libc10.so", "libtorch.so", "libtorch_cpu.so",
        "libtorch_python.so", "libcudart.so.13", "libc10_cuda.so", "libtorch_cuda.so",
        "libstdc++.so.6", "libgcc_s.so.1", "libc.so.6",
    ]  # fmt: skip
    place = "/tmp/ep_kernels_workspace/nvshmem/lib"
    name = f"{SITE}/deep_ep_cpp.cpython-312-{machine}-linux-gnu.so"
    return file(name, elf(arch, needed=needed, runpath=[place]), 0o755)


def nccl(arch: str, *, build_id: str = "45" * 20, folder: str = "") -> Row:
    """The pinned NCCL as apt installs it. Written here."""
    path = f"{folder or f'usr/lib/{ARCHES[arch].triplet}'}/libnccl.so.{PINNED}"
    sha256 = hashlib.sha256(build_id.encode()).hexdigest()
    head = elf(arch, soname="libnccl.so.2", needed=["libc.so.6"], build_id=build_id)
    return file(path, {**head, "nccl": PINNED, "sha256": sha256})


def without_nccl(rows: Iterable[Row]) -> list[Row]:
    """The rows without NCCL's library."""
    return [row for row in rows if not re.search(r"/libnccl\.so[^/]*$", row[0])]


def overlay(arch: str) -> list[Layer]:
    """What the layers nccl-apt and nccl-pip write."""
    lib = f"usr/lib/{ARCHES[arch].triplet}"
    target = f"libnccl.so.{PINNED}"
    gone = f"{lib}/.wh.libnccl.so.2.28.3"
    return [
        Layer(
            step=OURS,
            rows=[
                nccl(arch), link(f"{lib}/libnccl.so.2", target), link(f"{lib}/libnccl.so", target),
                file(gone, {}),
            ],
        ),
        Layer(step=OURS, rows=[link(f"{SITE}/nvidia/nccl/lib/libnccl.so.2", f"/{lib}/{target}")]),
    ]  # fmt: skip


def put(store: Store, arch: str, layers: Sequence[Layer], plan: Plan, **env: str) -> Image:
    """An image of these layers that fits the plan."""
    descriptors, diff_ids, history = [], [], []
    for number, layer in enumerate(layers):
        blob = store.put_bytes(f"layer {number}".encode(), TAR)
        diff_id = f"sha256:{hashlib.sha256(repr(layer.rows).encode()).hexdigest()}"
        store.put_fact(FACT, diff_id, list(layer.rows))
        descriptors.append(blob.to_dict())
        diff_ids.append(diff_id)
        history.append({"created_by": layer.step})
    config = {
        "os": "linux",
        "architecture": arch,
        "config": {
            "Env": [f"{name}={value}" for name, value in {**ENV, **env}.items()],
            "Entrypoint": list(plan.entrypoint),
            "Cmd": list(plan.cmd),
            "Labels": dict(plan.labels),
        },
        "history": history,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return put_image(store, config, descriptors)


def plan(arch: str, *, source: bool = False, pinned: bool = True) -> Plan:
    """A plan on NVIDIA's base, whose vLLM a source's Dockerfile built or wheels brought."""
    digest = "sha256:" + "0" * 64
    base = PinnedImage(name="nvidia/cuda", digest=digest, tagged=digest)
    built = SourceBuild(
        pin="vllm", value="1", repository="https://example.org/vllm.git", commit="0" * 40,
        tree="0" * 40, dockerfile="docker/Dockerfile", target="vllm-openai", version="1",
        images={"FINAL_BASE_IMAGE": None},
    )  # fmt: skip
    return Plan(
        variant="real",
        image="lab:real",
        platform=f"linux/{arch}",
        layers=(
            LayerPlan(name="cuda-base", dockerfile="", args={}, image=base),
            LayerPlan(name="vllm", dockerfile="", args={}, source=built if source else None),
            LayerPlan(name="nccl-apt", dockerfile="", args={}),
        ),
        entrypoint=("vllm", "serve"),
        cmd=(),
        versions={"cuda": "13.0.2"},
        expect=Expected(nccl=PINNED if pinned else None),
        python="3.12",
        labels={"dev.sparkimage.variant": "real"},
        lock_checksum="2" * 64,
    )
