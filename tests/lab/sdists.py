"""The Dockerfiles of vLLM's own releases, out of their sdists on the package index.

They are Apache-2.0 and not part of this repository: they are fetched when they are tested, and kept
among the lab's tools.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tomllib
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.address import Mirrors
from sparkimage.resolve.wheels import UV_PIP, environment
from tests.lab.tools import TOOLS, making

DOCKERFILES = {
    "0.23.0": "88ca20582201f812793eeeec44d713ac219a9d19553931bdb18f819fbf060129",
    "0.26.0": "f2f6fe33fdee937afc4bc3524b76a8f6e72de946fa48745403b057adbbc102a6",
    "0.28.0": "9b45240383bb91a0ea22fe0b49305e65b2877555f9a7c22def4f975166ba79c5",
    "0.33.0": "c5a9c1ed6dad87c8c18abe476172f5767e7c7e397db14c8d5b3821684c27c163",
}
"""sha256 of docker/Dockerfile, by vLLM's version."""


def dockerfile(version: str) -> Path:
    """vLLM's docker/Dockerfile, downloaded where it is not there yet; its hash is checked."""
    kept = TOOLS / "dockerfiles" / f"vllm-{version}"
    with making("dockerfiles"):
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            data = _member(version, "docker/Dockerfile")
            new = kept.with_suffix(".new")
            new.write_bytes(data)
            new.rename(kept)
    seen = hashlib.sha256(kept.read_bytes()).hexdigest()
    if seen != DOCKERFILES[version]:
        raise RuntimeError(f"{kept} has sha256 {seen}, not {DOCKERFILES[version]}: remove it")
    return kept


def _member(version: str, path: str) -> bytes:
    """A file of the sdist, which is read up to there."""
    with TemporaryDirectory(prefix="lab-sdist-") as name:
        wanted, pylock = Path(name, "requirements"), Path(name, "pylock.toml")
        wanted.write_text(f"vllm=={version}\n")
        # uv knows the index; a PEP 751 lock has the sdist's address.
        subprocess.run(
            [
                *UV_PIP, "compile", str(wanted), "--no-deps", "--no-header", "--no-annotate",
                "--python-version", "3.12", "--python-platform", "aarch64-manylinux_2_39",
                "--format", "pylock.toml", "--output-file", str(pylock),
            ],
            check=True,
            env={**os.environ, **environment(Mirrors(rules={}))},
        )  # fmt: skip
        (package,) = tomllib.loads(pylock.read_text())["packages"]
    with (
        urllib.request.urlopen(package["sdist"]["url"]) as response,
        tarfile.open(fileobj=response, mode="r|gz") as archive,
    ):
        for member in archive:
            if member.name.partition("/")[2] == path:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise RuntimeError(f"the sdist of vllm {version} has no {path}")
