"""Stand-ins of what four of the projects of tests/projects are built of: repositories with toys
under a git server, and images that are a Debian with Python in a registry.

The matrices are the projects' own. Only what names a content by its hash is other, and every
platform is the one at hand.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab import fork, nccl_debs, servers, standins

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
TREES = Path(__file__).with_name("standin_trees")
GITHUB = "https://github.com"
NEPENTH = f"{GITHUB}/nepenth/deepseek-v4-flash-gb10.git"
SERIES = "vllm/series.py"
TOPK = "flashinfer/topk.py"
OUTPUT = "push=true,compression=zstd,force-compression=true,oci-mediatypes=true"
PLAIN = (
    "nvidia/cuda:12.8.1-devel-ubuntu24.04",
    "nvidia/cuda:12.8.1-runtime-ubuntu24.04",
    "nvidia/cuda:13.0.3-devel-ubuntu24.04",
    "nvidia/cuda:13.0.3-runtime-ubuntu24.04",
    "nvidia/cuda:13.0.3-devel-ubuntu22.04",
    "nvidia/cuda:13.0.3-base-ubuntu22.04",
    "library/ubuntu:24.04",
    "mambaorg/micromamba:2.8.1",
)
READY = ("miaai-lab/mia-vllm-gb10-linear-b12x:latest",)
PATCHED = (
    "vllm/config/cache.py",
    "vllm/utils/torch_utils.py",
    "vllm/v1/kv_cache_interface.py",
    "vllm/models/deepseek_v4/attention.py",
    "vllm/models/deepseek_v4/sparse_mla.py",
    "vllm/envs.py",
)
"""The files of the ready image that are patched where they lie."""
OVERLAY = (
    "vllm/v1/spec_decode/dspark_proposer.py",
    "vllm/v1/spec_decode/dspark.py",
    "vllm/models/deepseek_v4/nvidia/dspark_kernels.py",
    "vllm/models/deepseek_v4/nvidia/sm120.py",
    "vllm/v1/attention/backends/mla/b12x_mla_sparse.py",
    "vllm/model_executor/layers/fused_moe/b12x_moe.py",
)
"""The files that it lacks."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The stand-ins, served."""

    lab: Lab
    commits: Mapping[str, str]
    """The newest commit of each repository, by its address."""
    digest: str
    """The plain image's."""
    mirrors: Mapping[str, str]

    def project(self, name: str, folder: Path) -> Lab:
        """The project of that name in ``folder``, locked."""
        from tests.lab.conftest import REPOSITORY, STORE
        from tests.lab.conftest import Lab as Built

        shutil.copytree(PROJECTS / name, folder)
        (folder / "images").mkdir(exist_ok=True)
        data: dict[str, Any] = yaml.safe_load((folder / "matrix.yaml").read_text())
        data["repository"] = REPOSITORY
        for pin in (pin for values in data["pins"].values() for pin in values.values()):
            if pin["kind"] == "git":
                pin["commit"] = self.commits[pin["repository"]]
            elif pin["kind"] == "image" and "@" in pin["image"]:
                pin["image"] = f"{pin['image'].partition('@')[0]}@{self.digest}"
            elif pin["kind"] == "wheels":
                pin["find_links"] = "wheels"
        for layer in data["layers"].values():
            # Toys compile anywhere.
            layer.get("source", {}).pop("disk", None)
        for one in data.get("include", []):
            one.pop("platforms", None)
            one["platform"] = "linux/amd64"
        if "platform" in data.get("axes", {}):
            data["axes"]["platform"] = ["linux/amd64"]
        patches = folder / "patches" / "patches.yaml"
        if patches.is_file():
            said = yaml.safe_load(patches.read_text())
            if "origin" in said["defaults"]:
                said["defaults"]["origin"]["commit"] = self.commits[NEPENTH]
            patches.write_text(json.dumps(said))
        flashinfer(folder / "wheels")
        made = Built(folder, STORE, self.lab.engine, self.mirrors)
        made.write(data)
        made.lock()
        return made


@contextmanager
def serve(lab: Lab, folder: Path) -> Iterator[Served]:
    """Make all of them and start the servers."""
    git = folder / "git"
    commits = {address: _repository(git, address, files) for address, files in _trees().items()}
    with (
        servers.registry(folder / "registry") as registry,
        servers.git_server(git) as address,
    ):
        digest = _push(lab, registry.address, "plain", PLAIN)
        _push(lab, registry.address, "ready", READY)
        mirrors = {"docker.io": registry.address, "ghcr.io": registry.address, GITHUB: address}
        yield Served(lab=lab, commits=commits, digest=digest, mirrors=mirrors)


def _trees() -> dict[str, dict[str, str]]:
    """The files of each repository, by its address."""
    return {
        f"{GITHUB}/ggml-org/llama.cpp.git": _tree("llama.cpp"),
        f"{GITHUB}/jupyter/docker-stacks.git": _tree("docker-stacks"),
        f"{GITHUB}/vllm-project/vllm.git": {
            **_tree("vllm"),
            SERIES: "STEP = 0\n",
            **{f"dist/{path}": text for path, text in _installed("0.27.1").items()},
        },
        NEPENTH: {
            **{f"recipe/overlay/{path}": f"# {path}\nSparseMLAAttentionImpl\n" for path in OVERLAY},
            **{f"runtime/{name}": "a stand-in\n" for name in
               ("LICENSE", "NOTICE", "CREDITS.md", "LICENSES/Apache-2.0.txt", "upstream.lock")},
            **_diffs(),
        },
    }  # fmt: skip


def _tree(name: str) -> dict[str, str]:
    root = TREES / name
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text() for path in files}


def _diffs() -> dict[str, str]:
    """The series, each of which changes what the one before made; and the diff of FlashInfer."""
    said = yaml.safe_load((PROJECTS / "nepenth-series" / "patches" / "patches.yaml").read_text())
    paths = [one["origin"]["path"] for one in said["patches"].values()]
    series = (path for path in paths if "/vllm/" in path)
    (topk,) = (path for path in paths if "/flashinfer/" in path)
    return {
        **{path: _diff(SERIES, f"STEP = {n}", f"STEP = {n + 1}") for n, path in enumerate(series)},
        topk: _diff(TOPK, "TOPK = (128,)", "TOPK = (128, 192, 256)"),
    }


def _diff(path: str, before: str, after: str) -> str:
    head = f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
    return f"A stand-in.\n{head}@@ -1 +1 @@\n-{before}\n+{after}\n"


def flashinfer(folder: Path) -> Path:
    """The wheel whose file is patched."""
    files = {"flashinfer/__init__.py": "", TOPK: "TOPK = (128,)\n"}
    return standins.wheel(folder, "flashinfer_python", "0.6.16.post3", files)


def _installed(vllm: str) -> dict[str, str]:
    """What lies beside vLLM in dist-packages, and its metadata."""
    made: dict[str, str] = {"flashinfer_jit_cache/jit_cache/sparse_mla_sm120/old.txt": "old\n"}
    with TemporaryDirectory(prefix="lab-projects-") as name:
        folder = Path(name)
        torch = {"torch/__init__.py": "", "torch/version.py": "cuda = '13.0'\n"}
        wheels = (
            standins.wheel(folder, "torch", "2.11.0", torch),
            standins.wheel(folder, "vllm", vllm, {"vllm/__init__.py": "'''A stand-in.'''\n"}),
            flashinfer(folder),
        )
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                made |= {path: archive.read(path).decode() for path in archive.namelist()}
    return made


def _repository(base: Path, address: str, files: Mapping[str, str]) -> str:
    where = base / address.removeprefix(f"{GITHUB}/")
    (commit,) = fork.make_bare(where, "main", {"stand-in": files}, tags=False)
    return commit


def _push(lab: Lab, registry: str, target: str, names: tuple[str, ...]) -> str:
    """Build one of the images and push it under ``names``; its digest."""
    with TemporaryDirectory(prefix="lab-projects-") as name:
        tree, said = Path(name, "tree"), Path(name, "metadata.json")
        files = {path: f"# A stand-in of {path}\n" for path in PATCHED}
        for path, text in {**_installed("0.26.0"), **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        for path in OVERLAY:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
        tags = [f"{registry}/{one}" for one in names]
        docker = lab.engine.docker
        subprocess.run(
            [
                *docker, "buildx", "build", "--quiet", "--platform=linux/amd64",
                f"--target={target}", "--provenance=false", f"--metadata-file={said}",
                f"--build-context=below=docker-image://{lab.plain('amd64')}",
                f"--build-context=tree={tree}",
                # The same digest in every run.
                f"--build-arg=SOURCE_DATE_EPOCH={nccl_debs.EPOCH}",
                f'--output=type=image,"name={",".join(tags)}",{OUTPUT}',
                str(TREES / "bases"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # The engine keeps what it pushes.
        subprocess.run([*docker, "rmi", *tags], check=True, stdout=subprocess.DEVNULL)
        digest: str = json.loads(said.read_text())["containerimage.digest"]
        return digest
