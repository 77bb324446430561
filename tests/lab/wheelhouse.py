"""Real wheels from the package index, pinned by hash and kept among the lab's tools."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.lab import standins
from tests.lab.tools import TOOLS, making


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One file of the index."""

    name: str
    version: str
    file: str
    sha256: str


# setuptools_scm's own needs with it.
BUILDING = (
    Wheel(
        name="packaging",
        version="26.3",
        file="packaging-26.3-py3-none-any.whl",
        sha256="d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c",
    ),
    Wheel(
        name="pip",
        version="26.3",
        file="pip-26.3-py3-none-any.whl",
        sha256="f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13",
    ),
    Wheel(
        name="setuptools",
        version="84.2.1",
        file="setuptools-84.2.1-py3-none-any.whl",
        sha256="ca140b45d5325a9478f880e351484f62fef15f336462e449ca0c03c873d589c2",
    ),
    Wheel(
        name="setuptools-scm",
        version="10.3.4",
        file="setuptools_scm-10.3.4-py3-none-any.whl",
        sha256="82f34c3e3084fc2b57d397200637cc13f2338004052d2fee47baa5f0e902464e",
    ),
    Wheel(
        name="vcs-versioning",
        version="2.6.0",
        file="vcs_versioning-2.6.0-py3-none-any.whl",
        sha256="f8bebd1302ebc12e67ceb30fc7dd698ec969414b6fa43b30c3f14ac9b1e72c41",
    ),
)
"""What builds a wheel with the real setuptools_scm, and installs it."""

TORCH = "2.11.0+standin"
"""The version of the stand-in for torch."""


def fetch(wheel: Wheel) -> Path:
    """The wheel's file, downloaded where it is not there yet; its hash is checked each time."""
    folder = TOOLS / "wheels"
    kept = folder / wheel.file
    with making("wheels"):
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix="wheel-", dir=folder) as name:
                _download(wheel, Path(name))
                Path(name, wheel.file).rename(kept)
    with kept.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != wheel.sha256:
        raise RuntimeError(f"{kept} has sha256 {seen}, not {wheel.sha256}: remove it")
    return kept


def _download(wheel: Wheel, folder: Path) -> None:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    platform = wheel.file.removesuffix(".whl").rsplit("-", 1)[1]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary=:all:", "--platform", platform, "--require-hashes",
            "--requirement", str(wanted), "--dest", str(folder),
        ],
        check=True,
    )  # fmt: skip


def fill(folder: Path, *, arch: str) -> None:
    """Into ``folder``, by hard links: what the stand-in of the fork is built and run with."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"torch/__init__.py": standins.TORCH, "torch/version.py": "cuda = '13.0'\n"}
    standins.wheel(folder, "torch", TORCH, files)
    # As torch 2.11 bundles it.
    standins.nccl_wheel(folder, "2.28.9", arch)
    for wheel in BUILDING:
        link = folder / wheel.file
        kept = fetch(wheel)
        link.unlink(missing_ok=True)
        try:
            link.hardlink_to(kept)
        except OSError:
            # Another disk.
            shutil.copyfile(kept, link)
