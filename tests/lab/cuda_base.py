"""Stand-ins of nvidia/cuda's base and devel images, built and pushed as NVIDIA's are: one index of
two platforms for each tag.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.build.engine.engine import Engine
from sparkimage.config import folders
from tests.lab import nccl_debs, wheelhouse
from tests.lab.servers import Registry

PROJECT = Path(__file__).resolve().parents[2]
CUDA = "13.0.3"
TAGS = {target: f"{CUDA}-{target}-ubuntu24.04" for target in ("base", "devel")}
MANYLINUX = "pytorch/manylinuxaarch64-builder:cuda13.0"
"""Where vLLM's Dockerfile since 0.28 is built: here the same image as devel."""
NVARCH = {"amd64": "x86_64", "arm64": "sbsa"}
OUTPUT = "push=true,compression=zstd,force-compression=true,oci-mediatypes=true"


@dataclass(frozen=True, kw_only=True)
class Bases:
    """The two images, each as REGISTRY/nvidia/cuda@sha256:… of its index."""

    base: str
    devel: str


def build(engine: Engine, registry: Registry, *, bases: Mapping[str, str | None]) -> Bases:
    """Build and push both for every platform of ``bases``, under their tags.

    ``bases`` says for each platform ("linux/arm64") the name of an image that the engine holds, of
    the project's layers debian and python; None for one that is locked and never built.
    """
    repository = f"{registry.address}/nvidia/cuda"
    pushed: dict[str, list[str]] = {target: [] for target in TAGS}
    for platform, below in bases.items():
        arch = platform.removeprefix("linux/")
        with TemporaryDirectory(prefix="lab-cuda-") as name:
            debs, wheels = Path(name, "debs"), Path(name, "wheels")
            nccl_debs.make(debs, arch=arch, versions=("2.28.9",))
            wheelhouse.fill(wheels, arch=arch)
            contexts = {
                "below": f"docker-image://{below or 'scratch'}",
                "tools": str(folders.of(PROJECT, folders.TOOLS)),
                "debs": str(debs),
                "wheels": str(wheels),
            }
            for target in TAGS:
                stage = target if below is not None else "never-built"
                digest = _build(engine, repository, target, platform, contexts, stage)
                pushed[target].append(f"{repository}@{digest}")
    made = {
        target: _join(engine, f"{repository}:{TAGS[target]}", parts)
        for target, parts in pushed.items()
    }
    _join(engine, f"{registry.address}/{MANYLINUX}", [made["devel"]])
    return Bases(**made)


def _build(
    engine: Engine,
    repository: str,
    target: str,
    platform: str,
    contexts: Mapping[str, str],
    stage: str,
) -> str:
    """Build and push one target for one platform; the digest of its manifest."""
    folder = Path(__file__).with_name("cuda_base")
    nvarch = NVARCH[platform.removeprefix("linux/")]
    # The tag is the index's in the end; BuildKit in an engine cannot push by digest alone.
    image = f"{repository}:{TAGS[target]}"
    with TemporaryDirectory(prefix="lab-cuda-") as name:
        said = Path(name, "metadata.json")
        subprocess.run(
            [
                *engine.docker, "buildx", "build", "--quiet", "--platform", platform,
                "--target", stage, "--provenance=false", "--metadata-file", str(said),
                *(f"--build-context={key}={value}" for key, value in contexts.items()),
                f"--build-arg=CUDA_VERSION={CUDA}", f"--build-arg=NVARCH={nvarch}",
                # The same digest in every run.
                f"--build-arg=SOURCE_DATE_EPOCH={nccl_debs.EPOCH}",
                f"--output=type=image,name={image},{OUTPUT}",
                str(folder),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # The engine keeps what it pushes.
        subprocess.run([*engine.docker, "rmi", image], check=True, stdout=subprocess.DEVNULL)
        digest: str = json.loads(said.read_text())["containerimage.digest"]
        return digest


def _join(engine: Engine, tag: str, parts: list[str]) -> str:
    """One index of the manifests ``parts`` under ``tag``; its name by digest."""
    imagetools = [*engine.docker, "buildx", "imagetools"]
    subprocess.run([*imagetools, "create", "--tag", tag, *parts], check=True, capture_output=True)
    said = subprocess.run(
        [*imagetools, "inspect", "--format", "{{json .Manifest}}", tag],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    digest = json.loads(said)["digest"]
    return f"{tag.rsplit(':', 1)[0]}@{digest}"
