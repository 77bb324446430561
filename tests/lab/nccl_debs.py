"""NCCL as NVIDIA's apt repository offers it: names, versions and paths are those of NVIDIA's debs,
the library is a stand-in that answers ``ncclGetVersion``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.lab.standin_vllm import nccl

EPOCH = 946684800
"""The date in every deb: 2000-01-01."""
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
CUDA = {"2.28.9": "13.0", "2.29.7": "13.2", "2.30.4": "13.2", "2.30.7": "13.3"}
"""The CUDA release that NVIDIA's deb of an NCCL names."""


def deb_version(version: str) -> str:
    """NCCL "2.30.4" as NVIDIA's debs say it: "2.30.4-1+cuda13.2"."""
    return f"{version}-1+cuda{CUDA[version]}"


def make(folder: Path, *, arch: str, versions: Sequence[str] = ("2.28.9", "2.30.4")) -> None:
    """Write a flat apt repository with libnccl2 and libnccl-dev for "amd64" or "arm64"."""
    folder.mkdir(parents=True)
    for version in versions:
        _build(folder, version, arch)
    debs = sorted(folder.glob("*.deb"))
    (folder / "Packages").write_text("\n".join(_entry(deb) for deb in debs))
    (folder / "Release").write_text(_release(folder / "Packages", debs))


_PACKAGES = ("libnccl2", "libnccl-dev")


def _build(folder: Path, version: str, arch: str) -> None:
    triplet = TRIPLETS[arch]
    deb = deb_version(version)
    with TemporaryDirectory(prefix="deb-", dir=folder) as name:
        library, dev = (Path(name, package) for package in _PACKAGES)
        lib = library / "usr" / "lib" / triplet
        _write(lib / f"libnccl.so.{version}", nccl.library(arch, version))
        (lib / "libnccl.so.2").symlink_to(f"libnccl.so.{version}")
        common = {"Version": deb, "Architecture": arch, "Maintainer": "lab", "Section": "libs"}
        _pack(
            library,
            folder / f"libnccl2_{deb}_{arch}.deb",
            {
                "Package": "libnccl2",
                **common,
                "Depends": "libc6",
                "Description": "a stand-in of NVIDIA's collectives library",
            },
            # NVIDIA's debs before 2.29.3 do not run ldconfig.
            triggers="activate-noawait ldconfig\n" if _number(version) >= (2, 29, 3) else "",
        )
        _write(dev / "usr" / "include" / "nccl.h", b"/* a stand-in */\n")
        lib = dev / "usr" / "lib" / triplet
        lib.mkdir(parents=True)
        (lib / "libnccl.so").symlink_to("libnccl.so.2")
        _pack(
            dev,
            folder / f"libnccl-dev_{deb}_{arch}.deb",
            {
                "Package": "libnccl-dev",
                **common,
                "Depends": f"libc6, libnccl2 (= {deb})",
                "Description": "a stand-in of its header",
            },
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _write(to: Path, data: bytes) -> None:
    to.parent.mkdir(parents=True)
    to.write_bytes(data)
    to.chmod(0o644)


def _pack(tree: Path, to: Path, fields: Mapping[str, str], triggers: str = "") -> None:
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir()
    control.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    if triggers:
        (tree / "DEBIAN" / "triggers").write_text(triggers)
    for path in [tree, *tree.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    made = tree.with_suffix(".deb")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made)],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
        stdout=subprocess.DEVNULL,
    )
    made.rename(to)


def _entry(deb: Path) -> str:
    fields = subprocess.run(
        ["dpkg-deb", "-f", str(deb)], check=True, capture_output=True, text=True
    ).stdout
    with deb.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{fields}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"


def _release(packages: Path, debs: Sequence[Path]) -> str:
    data = packages.read_bytes()
    arches = sorted({deb.stem.rsplit("_", 1)[1] for deb in debs})
    return (
        f"Origin: lab\nLabel: lab\nDate: {formatdate(EPOCH, usegmt=True)}\n"
        f"Architectures: {' '.join(arches)}\n"
        f"SHA256:\n {hashlib.sha256(data).hexdigest()} {len(data)} {packages.name}\n"
    )
