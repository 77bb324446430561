"""A small image that the static tier has nothing against, and the plan that it fits."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from sparkimage.config.lock_items import KEPT, Deb, Target, Wheel
from sparkimage.config.plan import DebianRoot, Expected, LayerPlan, PatchPlan, PatchSeries, Plan
from sparkimage.image.layerindex import STEP
from sparkimage.image.store import MANIFEST, TAR, Image, Store
from tests.unit import elf_maker

ARCH, TRIPLET = "arm64", "aarch64-linux-gnu"
DIST = "usr/local/lib/python3.13/dist-packages"
SYSTEM = f"usr/lib/{TRIPLET}/libnccl.so.2.30.4"
PATCHED = b"def fallback(): ...\n"
LAYERS = ("cuda-base", "cuda", "prebuilt", "vllm", "vllm-source", "serve")
"""Layers whose checks the image passes beside those of its own."""
CONFIG = "application/vnd.oci.image.config.v1+json"

Content = bytes | str | None | tuple[int, bytes]
Files = Mapping[str, Content]
"""Path to content; a str is a link's target, None a folder, a pair a mode and content."""


def tar(files: Files) -> bytes:
    """A layer's tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes | tuple):
                member.mode, data = content if isinstance(content, tuple) else (0o644, content)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                continue
            member.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            member.linkname, member.mode = content or "", 0o755
            archive.addfile(member)
    return buffer.getvalue()


def put_layer(store: Store, files: Files) -> tuple[dict[str, Any], str]:
    """Store a layer; its descriptor and its diffID."""
    plain = tar(files)
    blob = store.put_bytes(zstandard.ZstdCompressor(level=1).compress(plain), TAR + "+zstd")
    return blob.to_dict(), f"sha256:{hashlib.sha256(plain).hexdigest()}"


def put_image(
    store: Store, config: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
) -> Image:
    """Store the manifest of these layers, whose diffIDs the config holds."""
    kept = store.put_bytes(json.dumps(config).encode(), CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": kept.to_dict(),
        "layers": list(layers),
    }
    return store.resolve(store.put_bytes(json.dumps(manifest).encode(), MANIFEST).digest)


def package(name: str, version: str) -> bytes:
    """What dpkg's status file has of an installed package."""
    return f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n".encode()


def toolkit(arch: str, release: str, headers: int, folder: str = "opt/cuda") -> Files:
    """nvcc of this release, and the headers of CUDART_VERSION ``headers``."""
    said = f"Cuda compilation tools, release {release}, V{release}.88"
    return {
        f"{folder}/bin/nvcc": (0o755, elf_maker.library(arch, text=said.encode())),
        f"{folder}/include/cuda_runtime_api.h": f"#define CUDART_VERSION  {headers}\n".encode(),
    }


def stack() -> list[Files]:
    """The layers, from the lowest up."""
    libc = elf_maker.library(ARCH, soname="libc.so.6", needed=["ld-linux-aarch64.so.1"])
    loader = elf_maker.library(ARCH, soname="ld-linux-aarch64.so.1")
    program = elf_maker.library(
        ARCH, needed=["libc.so.6"], interpreter="/lib/ld-linux-aarch64.so.1"
    )
    library = elf_maker.nccl(ARCH)
    recorded = base64.urlsafe_b64encode(hashlib.sha256(library).digest()).rstrip(b"=").decode()
    certificate = b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
    return [
        {
            "etc/os-release": "../usr/lib/os-release",
            "etc/ld.so.conf": b"include /etc/ld.so.conf.d/*.conf\n",
            f"etc/ld.so.conf.d/{TRIPLET}.conf": f"/usr/lib/{TRIPLET}\n".encode(),
            "etc/ssl/certs/ca-certificates.crt": certificate,
            "lib": "usr/lib",
            "usr/lib/os-release": b"ID=debian\nVERSION_CODENAME=trixie\n",
            f"usr/lib/{TRIPLET}/libc.so.6": libc,
            "usr/lib/ld-linux-aarch64.so.1": f"{TRIPLET}/ld-linux-aarch64.so.1",
            f"usr/lib/{TRIPLET}/ld-linux-aarch64.so.1": loader,
            "usr/bin/su": (0o4755, program),
            "usr/bin/python3": (0o755, program),
            "usr/bin/apt-get": (0o755, program),
            "usr/bin/ldconfig": (0o755, program),
            "usr/share/ca-certificates/mozilla/one.crt": certificate,
            "var/lib/dpkg/status": b"Package: libc6\nStatus: install ok installed\n"
            b"Version: 2.41\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
        },
        {
            "usr/local/cuda": "cuda-13.0",
            "usr/local/cuda-13.0": None,
            "usr/local/cuda-13.0/include/cuda_runtime.h": b"",
            **toolkit(ARCH, "13.0", 13000, "usr/local/cuda-13.0"),
            f"{DIST}/torch/version.py": b"cuda: Optional[str] = '13.0'\n",
            f"{DIST}/torch/lib/libtorch.so": elf_maker.library(ARCH, soname="libtorch.so"),
            f"{DIST}/vllm/__init__.py": PATCHED,
            f"{DIST}/vllm/_C.abi3.so": elf_maker.library(
                ARCH, needed=["libtorch.so", "libc.so.6", "libown.so.1", "libcuda.so.1"],
                runpath="$ORIGIN/../vllm.libs",
            ),
            f"{DIST}/vllm.libs/libown.so.1": elf_maker.library(
                ARCH, soname="libown.so.1", strings_last=True
            ),
            f"{DIST}/vllm-0.32.0+x.dist-info/METADATA": b"Name: vllm\nVersion: 0.32.0+x\n",
            f"{DIST}/bin/vllm": (0o755, b"#!/usr/bin/python3\n"),
            "usr/local/bin/vllm": f"/{DIST}/bin/vllm",
        },
        {
            SYSTEM: library,
            f"{DIST}/nvidia_nccl_cu13-2.30.4.dist-info/METADATA": (
                b"Name: nvidia-nccl-cu13\r\nVersion: 2.30.4\r\n\r\nVersion: none\r\n"
            ),
            f"{DIST}/nvidia_nccl_cu13-2.30.4.dist-info/RECORD": (
                f"nvidia/nccl/lib/libnccl.so.2,sha256={recorded},{len(library)}\n".encode()
            ),
        },
        {
            f"usr/lib/{TRIPLET}/libnccl.so.2": "libnccl.so.2.30.4",
            f"{DIST}/nvidia/nccl/lib/libnccl.so.2": f"/{SYSTEM}",
        },
    ]  # fmt: skip


def config(diff_ids: Sequence[str]) -> dict[str, Any]:
    """The image's config."""
    step = {"created_by": f"RUN /bin/sh -c . {STEP}; tidy # buildkit"}
    return {
        "os": "linux",
        "architecture": ARCH,
        "config": {
            "Env": [
                "PATH=/usr/local/bin:/usr/bin",
                f"LD_PRELOAD=/{SYSTEM}",
                "CUDA_VERSION=13.0.3",
                "CUDA_HOME=/usr/local/cuda",
                "NVIDIA_VISIBLE_DEVICES=all",
                "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            ],
            "Entrypoint": ["vllm", "serve"],
            "Labels": plan().labels,
        },
        "history": [step, {"created_by": "ENV A=b", "empty_layer": True}, *[step] * 3],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def make(store: Store) -> Image:
    """Store the image."""
    layers = [put_layer(store, files) for files in stack()]
    return put_image(store, config([one for _, one in layers]), [one for one, _ in layers])


def plan() -> Plan:
    """What was planned, with the checks of every layer that there is."""
    deb = Deb(name="libc6", version="2.41", part="root", size=1, sha256="0" * 64, file="c.deb")
    root = DebianRoot(pin="debian", value="trixie", suite="trixie", arch=ARCH, debs=(deb,))
    wheel = Wheel(name="nvidia-nccl-cu13", version="2.30.4", size=1, sha256="1" * 64, file="n.whl")
    return Plan(
        variant="small",
        image="lab:small",
        platform=f"linux/{ARCH}",
        layers=(
            LayerPlan(name="debian", dockerfile="", args={}, root=root),
            LayerPlan(name="torch", dockerfile="", args={}, checks=LAYERS),
            LayerPlan(name="nccl", dockerfile="", args={}, wheels=(wheel,)),
            LayerPlan(name="nccl-pip", dockerfile="", args={}),
        ),
        entrypoint=("vllm", "serve"),
        cmd=(),
        versions={"cuda": "13.0.3", "nccl": "2.30.4", "vllm": "0.32.0+x"},
        python="3.13",
        labels={"dev.sparkimage.pin.nccl": "2.30.4", "dev.sparkimage.variant": "small"},
        lock_checksum="2" * 64,
        expect=Expected(nccl="2.30.4", cuda="13", version="0.32.0+x", project="vllm"),
    )


def patch(path: str, sha256: str) -> PatchSeries:
    """The series of the one patch that made the file ``path`` of the image what it is."""
    one = PatchPlan(
        name="p", kind="replace", repository=None, commit=None, path="p.py", url=None,
        sha256=sha256, replaces=path, expects=None, exclude=(), project=None,
    )  # fmt: skip
    target = Target(before="3" * 64, after=sha256, size=1, mode=KEPT, path=path)
    return PatchSeries(
        pin=None, value=None, repository=None, commit=None, wheels=(), find_links=None,
        index=(), python=None, image=None, root="", installed=None, below=(), patches=(one,),
        targets=(target,),
    )  # fmt: skip
