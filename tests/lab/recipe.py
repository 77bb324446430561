"""The recipe's variants of the real matrix in the lab: a registry with stand-ins of the CUDA
images, a git server with stand-ins of the fork and of the patch, an apt repository with stand-ins
of NCCL.

The definition is the real one. Only what names a content by its hash is other: the commits of the
stand-ins are theirs. For speed there is an amd64 twin of ``ds4-flash``, on which faults are laid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab import cuda_base, fork, nccl_debs, servers
from tests.lab.fork import Fork, PatchRepository
from tests.lab.servers import Registry, Web

if TYPE_CHECKING:
    from tests.lab.conftest import Lab

PROJECT = Path(__file__).resolve().parents[2]
PATCH = "sm12x-deep-gemm-fallbacks"
NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404"
TWIN = "ds4-flash-amd64"
LATEST = "ds4-flash-latest-amd64"
"""By a Dockerfile in the form of vLLM 0.28, whose builder is a manylinux image."""
STACK = ("cuda-base", "vllm-source", "nccl-apt", "nccl-pip", "sm12x-patch")
PINS = {"cuda": "13.0.3", "cuda-devel": "13.0.3", "vllm": "20260613", "nccl": "2.30.4-cuda13.2"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A layer laid on the twin, with the checks that must refuse the image."""

    name: str
    layer: str
    checks: tuple[str, ...]
    stack: tuple[str, ...] = STACK
    also: tuple[str, ...] = ()
    """Layers whose checks the fault's layer takes over, where it stands in for them."""


DIST = "/usr/local/lib/python3.12/dist-packages"
SYSTEM = "/usr/lib/x86_64-linux-gnu"
TARGET = f"{DIST}/{fork.RECIPE_PATH}"
FAULTS = (
    Fault(
        name="overlay-left-out",
        stack=("cuda-base", "vllm-source"),
        layer="RUN true",
        also=("nccl-pip", "nccl-apt"),
        checks=(
            "static/nccl-places",
            "static/nccl-version",
            "nccl-pip/test_preload_names_the_library",
            "nccl-pip/test_version_of_every_copy",
            "nccl-pip/test_mapped_nccl_answers_the_pin",
        ),
    ),
    Fault(
        name="pip-copy-wins",
        stack=("cuda-base", "vllm-source", "nccl-apt"),
        layer="RUN true",
        also=("nccl-pip",),
        checks=(
            "static/nccl-root",
            "nccl-pip/test_torch_maps_exactly_one_nccl",
            "nccl-pip/test_mapped_nccl_answers_the_pin",
        ),
    ),
    Fault(
        name="base-package-back",
        layer="RUN sed -i 's/^Version: 2.30.4-1.*/Version: 2.28.9-1+cuda13.0/' "
        "/var/lib/dpkg/status",
        checks=("static/packages",),
    ),
    Fault(
        name="package-half-installed",
        layer="RUN sed -i '/^Package: libnccl-dev$/,/^$/s/ok installed/ok half-configured/' "
        "/var/lib/dpkg/status",
        checks=("static/packages", "_every/test_package_database"),
    ),
    Fault(
        name="torch-swapped-for-cpu",
        layer=f"RUN echo 'cuda = None' >{DIST}/torch/version.py",
        checks=("static/torch-cuda",),
    ),
    Fault(
        name="entrypoint-doubled",
        # In a stage below: that of the last stage is compared before the build.
        layer='ENTRYPOINT ["vllm", "serve", "vllm", "serve"]\nFROM fault-entrypoint-doubled',
        checks=("static/entrypoint", "run/entrypoint-answers"),
    ),
    Fault(
        name="apt-lists-left",
        layer="RUN echo list >/var/lib/apt/lists/left_Packages",
        checks=("static/apt-lists",),
    ),
    Fault(
        name="patch-undone",
        layer=f"RUN echo '(' >>{TARGET}",
        checks=("static/patches", "static/patches-parse"),
    ),
    Fault(
        name="vllm-elsewhere-and-other-cuda",
        layer=f"ENV CUDA_VERSION=12.9.1\nRUN rm /usr/local/cuda; mv {DIST}/vllm /usr/lib/python3/ "
        "&& echo /usr/lib/python3 >/usr/local/lib/python3.13/dist-packages/other.pth",
        checks=(
            "cuda-base/test_version",
            "cuda-base/test_toolkit_folder",
            "vllm-source/test_place",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The project with the recipe's variants, and what it is served from."""

    lab: Lab
    fork: Fork
    patches: PatchRepository
    registry: Registry
    apt: Web
    data: dict[str, Any]
    """matrix.yaml"""

    def later_patch(self) -> dict[str, str]:
        """The origin of the patch as it was changed."""
        return {
            "repository": "https://github.com/hazyumps/deepseek-v4-flash-gb10.git",
            "commit": self.patches.second,
            "path": "patches/sm12x_deep_gemm_fallbacks.py",
            "licence": "Apache-2.0",
        }

    def write_patches(self, **changes: Any) -> None:
        """Write patches.yaml: the real one, with the stand-ins' commits, and ``changes``."""
        text = (PROJECT / "patches" / "patches.yaml").read_text()
        data = yaml.safe_load(text)
        one = data["patches"][PATCH]
        one["origin"]["commit"] = self.patches.first
        one["needed_by"] = [self.fork.recipe[:10]]
        one["native_from"] = self.fork.ga
        one["not_for"] = {self.fork.between: next(iter(one["not_for"].values()))}
        one |= changes
        folder = self.lab.project / "patches"
        folder.mkdir(exist_ok=True)
        (folder / "patches.yaml").write_text(json.dumps(data, indent=1))


def matrix_data(made: Fork, repository: str) -> dict[str, Any]:
    """The real matrix without the variants from wheels, with the stand-in fork's commits."""
    data: dict[str, Any] = yaml.safe_load((PROJECT / "matrix.yaml").read_text())
    data |= {
        "repository": repository,
        "axes": {},
        "exclude": [],
        "groups": {"default": [TWIN]},
    }
    pins = data["pins"]["vllm"]
    pins["20260613"]["commit"] = made.recipe[:10]
    pins["20260621"]["commit"] = made.between
    pins["20260727"]["commit"] = made.ga
    pins["20260804"] = {**pins["20260727"], "commit": made.latest, "version": "20260804.1"}
    data["pins"]["cuda-devel"]["manylinux"] = {
        "kind": "image", "image": cuda_base.MANYLINUX, "version": "13.0.0",
    }  # fmt: skip
    # The stand-in compiles nothing.
    data["layers"]["vllm-source"]["source"] |= {"disk": "1GB", "memory": "1GB"}
    for layer in ("cuda-base", "vllm-source", "prebuilt"):
        data["layers"][layer]["platforms"] = ["linux/arm64", "linux/amd64"]
    # The ready image is made in its test.
    data["include"] = [one for one in data["include"] if one["name"] != "ds4-flash-ga-ready"]
    # They name variants that are not here; nothing is launched.
    del data["profiles"]
    for name, commit, devel, stack in (
        (TWIN, "20260613", "13.0.3", STACK),
        ("ds4-flash-ga-amd64", "20260727", "13.0.3", STACK[:-1]),
        (LATEST, "20260804", "manylinux", STACK[:-1]),
    ):
        data["include"].append(
            {
                "name": name,
                "platform": "linux/amd64",
                "layers": list(stack),
                "pins": {**PINS, "vllm": commit, "cuda-devel": devel},
            }
        )
    return data


@contextmanager
def serve(lab: Lab, folder: Path, *, arm64: bool = False) -> Iterator[Recipe]:
    """Make all parts, start the servers, write and lock the project.

    ``arm64``: with bases for that platform that can be built on; else they can only be locked.
    """
    from tests.lab.conftest import REPOSITORY, STORE
    from tests.lab.conftest import Lab as Built

    served = folder / "git"
    made, patches = fork.make_fork(served), fork.make_patches(served)
    debs = folder / "nvidia"
    for name, arch in (("sbsa", "arm64"), ("x86_64", "amd64")):
        nccl_debs.make(debs / name, arch=arch)
    with ExitStack() as stack:
        registry = stack.enter_context(servers.registry(folder / "registry"))
        git = stack.enter_context(servers.git_server(served))
        web = stack.enter_context(servers.http_folder(debs))
        bases = {
            "linux/amd64": lab.plain("amd64"),
            "linux/arm64": lab.plain("arm64") if arm64 else None,
        }
        cuda_base.build(lab.engine, registry, bases=bases)
        project = folder / "project"
        (project / "images").mkdir(parents=True)
        for one in (PROJECT / "images").iterdir():
            (project / "images" / one.name).symlink_to(one)
        mirrors: Mapping[str, str] = {
            "docker.io": registry.address,
            "https://github.com": git,
            NVIDIA: web.url,
        }
        data = matrix_data(made, REPOSITORY)
        recipe = Recipe(
            lab=Built(project, STORE, lab.engine, mirrors),
            fork=made,
            patches=patches,
            registry=registry,
            apt=web,
            data=data,
        )
        for fault in FAULTS:
            _add(recipe, fault)
        recipe.write_patches()
        recipe.lab.write(data)
        recipe.lab.lock()
        yield recipe
        recipe.lab.said.close()


def _add(recipe: Recipe, fault: Fault) -> None:
    """Add the fault's variant to the matrix, and its layer to the folders."""
    name = f"fault-{fault.name}"
    recipe.lab.add_layer(name, f"FROM layer AS {name}\n{fault.layer}\n")
    recipe.data["layers"][name] = {"checks": list(fault.also)}
    recipe.data["include"].append(
        {
            "name": name,
            "platform": "linux/amd64",
            "layers": [*fault.stack, name],
            "pins": PINS,
        }
    )
