"""Stand-ins of two git repositories: the fork of vLLM, and the one with the patch for it.

The packages in them are toys; the histories, the tags that setuptools_scm cannot read, the file
that moves, and the use of the real setuptools_scm are as in the originals.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

BRANCH = "codex/ds4-sm120-min-enable"
RECIPE_PATH = "vllm/v1/attention/ops/deepseek_v4_ops/sm12x_deep_gemm_fallbacks.py"
LATER_PATH = "vllm/models/deepseek_v4/nvidia/ops/sm12x_deep_gemm_fallbacks.py"
TAG = "sm120-pr-41834-stable-preview-"


@dataclass(frozen=True, kw_only=True)
class Fork:
    """The fork's bare repository, and its commits from old to new."""

    repository: Path
    recipe: str
    """The file to patch lies at ``RECIPE_PATH``."""
    between: str
    """It has moved to ``LATER_PATH``, and still needs the patch."""
    ga: str
    """The fix is in the fork."""
    latest: str
    """Its Dockerfile is one of vLLM 0.28, and its setup.py knows VLLM_VERSION_OVERRIDE."""


@dataclass(frozen=True, kw_only=True)
class PatchRepository:
    """The bare repository with the patched file, and with a diff from ``second`` on."""

    repository: Path
    first: str
    second: str


def make_fork(base: Path) -> Fork:
    """Write ``base``/jasl/vllm.git; its commits are the same each time."""
    folder = Path(__file__).with_name("fork")
    common = {**_PACKAGE, "docker/Dockerfile": (folder / "Dockerfile").read_text()}
    later = {
        **common,
        "docker/Dockerfile": (folder / "Dockerfile.dnf").read_text(),
        "setup.py": common["setup.py"].replace(*_OVERRIDE),
    }
    repository = base / "jasl" / "vllm.git"
    recipe, between, ga, latest = make_bare(
        repository,
        BRANCH,
        {
            f"{TAG}20260613": {**common, **_module(RECIPE_PATH, "slow")},
            f"{TAG}20260621a": {**common, **_module(LATER_PATH, "slow")},
            f"{TAG}20260727d": {**common, **_module(LATER_PATH, "native")},
            f"{TAG}20260804": {**later, **_module(LATER_PATH, "native")},
        },
    )
    return Fork(repository=repository, recipe=recipe, between=between, ga=ga, latest=latest)


def make_patches(base: Path) -> PatchRepository:
    """Write ``base``/hazyumps/deepseek-v4-flash-gb10.git; its commits are the same each time."""
    repository = base / "hazyumps" / "deepseek-v4-flash-gb10.git"
    first, second = make_bare(
        repository,
        "main",
        {
            "first": {"patches/sm12x_deep_gemm_fallbacks.py": _fallbacks("fast")},
            "second": {
                "patches/sm12x_deep_gemm_fallbacks.py": _fallbacks("faster"),
                "patches/sm12x.diff": _diff("slow", "faster"),
            },
        },
        tags=False,
    )
    return PatchRepository(repository=repository, first=first, second=second)


def _fallbacks(speed: str) -> str:
    return f'''\
"""A stand-in for the fallbacks of DeepGEMM on sm12x."""

SPEED = "{speed}"


def fallback() -> str:
    """Which version of the kernel this is."""
    return SPEED
'''


def _diff(old: str, new: str) -> str:
    lines = _fallbacks(old).splitlines()
    at = lines.index(f'SPEED = "{old}"')
    before, after = lines[at - 2 : at], lines[at + 1 : at + 4]
    size = len(before) + 1 + len(after)
    return "".join(
        f"{line}\n"
        for line in (
            f"diff --git a/{RECIPE_PATH} b/{RECIPE_PATH}",
            f"--- a/{RECIPE_PATH}",
            f"+++ b/{RECIPE_PATH}",
            f"@@ -{at - 1},{size} +{at - 1},{size} @@",
            *(f" {line}" for line in before),
            f'-SPEED = "{old}"',
            f'+SPEED = "{new}"',
            *(f" {line}" for line in after),
        )
    )


def _module(path: str, speed: str) -> dict[str, str]:
    """The file at ``path``, and what makes its folders packages."""
    parents = [parent for parent in Path(path).parents if parent.parts[1:]]
    return {path: _fallbacks(speed), **{f"{parent}/__init__.py": "" for parent in parents}}


_PACKAGE = {
    ".gitignore": "/build/\n/dist/\n*.egg-info/\n/vllm/_version.py\n",
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77", "setuptools-scm>=8"]
build-backend = "setuptools.build_meta"
""",
    "setup.py": """\
import json
import os
import pathlib

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools_scm import get_version


NAMES = ("TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "NVCC_THREADS", "BUILT_FOR_NCCL",
         "SETUPTOOLS_SCM_PRETEND_VERSION")
GIVEN = {name: os.environ.get(name) for name in NAMES}


class BuildPy(build_py):
    '''Writes down what the Dockerfile's arguments came to; vLLM compiles its kernels by them.'''

    def run(self):
        super().run()
        pathlib.Path(self.build_lib, "vllm", "_build.json").write_text(json.dumps(GIVEN))


setup(
    name="vllm",
    version=get_version(write_to="vllm/_version.py"),
    packages=find_packages(include=["vllm", "vllm.*"]),
    entry_points={"console_scripts": ["vllm = vllm.cli:main"]},
    cmdclass={"build_py": BuildPy},
)
""",
    "vllm/__init__.py": "'''A stand-in for vLLM.'''\nfrom vllm._version import __version__\n",
    "vllm/cli.py": """\
'''A stand-in for vLLM: its command says how it was called.'''
import json
import sys


def main():
    if sys.argv[1:] == ["serve", "--help"]:
        print("usage: vllm serve [model_tag] [options]  (a stand-in)")
    else:
        print(json.dumps(["stand-in vllm", *sys.argv[1:]]))
""",
}


_OVERRIDE = (
    "\nsetup(\n",
    """
if version := os.environ.get("VLLM_VERSION_OVERRIDE"):
    os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"] = version

setup(
""",
)
"""What vLLM's own setup.py has had since June 2026, in short."""


def make_bare(
    repository: Path, branch: str, commits: Mapping[str, Mapping[str, str]], *, tags: bool = True
) -> list[str]:
    """A bare repository with one commit for each item, whose key is its message and its tag."""
    repository.mkdir(parents=True)
    made: list[str] = []
    with TemporaryDirectory(prefix="lab-fork-") as name:
        tree = Path(name)
        _git(tree, "init", "--initial-branch", branch)
        for number, (message, files) in enumerate(commits.items()):
            _git(tree, "rm", "-r", "-q", "--ignore-unmatch", ".")
            for path, text in files.items():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_text(text)
            _git(tree, "add", "--all")
            _git(tree, "commit", "-m", message, number=number)
            if tags:
                _git(tree, "tag", message)
            made.append(_git(tree, "rev-parse", "HEAD"))
        _git(repository, "init", "--bare", "--initial-branch", branch)
        _git(tree, "push", "--quiet", str(repository.resolve()), "--all")
        _git(tree, "push", "--quiet", str(repository.resolve()), "--tags")
    for key in ("uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"):
        _git(repository, "config", key, "true")
    return made


def _git(folder: Path, *words: str, number: int = 0) -> str:
    """Run git where neither the user's settings nor the time of the day are seen."""
    date = f"{1767225600 + number} +0000"
    person = {"NAME": "lab", "EMAIL": "lab@localhost", "DATE": date}
    said = subprocess.run(
        ["git", "-C", str(folder), *words],
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            **{f"GIT_AUTHOR_{key}": value for key, value in person.items()},
            **{f"GIT_COMMITTER_{key}": value for key, value in person.items()},
        },
        check=True,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip()
