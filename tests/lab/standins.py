"""Stand-ins for the gigabytes of vLLM, torch and NCCL: wheels made here, that behave like them
where the checks look, and say in their version that they are none.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.standin_vllm import nccl

TORCH = """\
'''A stand-in for torch: loads the NCCL that lies where torch's lies, as torch does.'''
import ctypes
import pathlib

from torch import version

ctypes.CDLL(
    str(pathlib.Path(__file__).parents[1] / "nvidia" / "nccl" / "lib" / "libnccl.so.2"),
    mode=ctypes.RTLD_GLOBAL,
)
"""
VLLM = """\
'''A stand-in for vLLM: its command says how it was called.'''
import json
import os
import sys


def main():
    if "STANDIN_WITHOUT_GPU" in os.environ:
        raise RuntimeError("Failed to infer device type")
    if sys.argv[1:] == ["serve", "--help"]:
        print("usage: vllm serve [model_tag] [options]  (a stand-in)")
    else:
        print(json.dumps(["stand-in vllm", *sys.argv[1:]]))
"""


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str | bytes],
    *,
    scripts: Mapping[str, str] | None = None,
    platform: str = "any",
    metadata: Sequence[str] = (),
) -> Path:
    """Write a wheel, the same bytes each time; ``scripts`` are console entry points, ``metadata``
    more lines of METADATA."""
    info = f"{name}-{version}.dist-info"
    tag = f"py3-none-{platform}"
    members = {
        **files,
        f"{info}/METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\n"
        f"Root-Is-Purelib: {str(platform == 'any').lower()}\nTag: {tag}\n",
    }
    if scripts:
        lines = "".join(f"{script} = {target}\n" for script, target in scripts.items())
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for path, content in members.items():
        data = content.encode() if isinstance(content, str) else content
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
        rows.writerow([path, f"sha256={digest.decode()}", len(data)])
    members[f"{info}/RECORD"] = f"{record.getvalue()}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, content in members.items():
            archive.writestr(zipfile.ZipInfo(path, (2000, 1, 1, 0, 0, 0)), content)
    return made


def nccl_wheel(folder: Path, version: str, arch: str) -> Path:
    """NVIDIA's wheel of NCCL, 200 MB, with a library that answers ``ncclGetVersion``."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[arch]
    files = {"nvidia/nccl/lib/libnccl.so.2": nccl.library(arch, version)}
    platform = f"manylinux_2_18_{machine}"
    return wheel(folder, "nvidia_nccl_cu13", f"{version}+standin", files, platform=platform)


def make(folder: Path) -> None:
    """All stand-ins of the lab."""
    torch = {"torch/__init__.py": TORCH, "torch/version.py": "cuda = '13.0'\n"}
    wheel(folder, "torch", "2.13.0+standin", torch)
    wheel(
        folder,
        "vllm",
        "0.32.0+standin",
        {"vllm/__init__.py": "", "vllm/cli.py": VLLM},
        scripts={"vllm": "vllm.cli:main"},
    )
    for version in ("2.28.9", "2.30.4"):
        for arch in ("amd64", "arm64"):
            nccl_wheel(folder, version, arch)
