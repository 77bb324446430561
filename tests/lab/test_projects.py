"""Four public projects' matrices, as they are, built and proven with stand-ins of what they build
of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.verify import pipeline
from tests.lab import standin_projects
from tests.lab.conftest import Lab
from tests.lab.standin_projects import OVERLAY, PATCHED, SERIES, TOPK, Served

DIST = "/usr/local/lib/python3.12/dist-packages"


@pytest.fixture(scope="module")
def served(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with standin_projects.serve(lab, tmp_path_factory.mktemp("projects")) as made:
        yield made


def build(served: Served, name: str, folder: Path, variant: str) -> pipeline.Result:
    lab = served.project(name, folder / name)
    try:
        return lab.build(variant)
    finally:
        lab.said.close()


def read(served: Served, made: pipeline.Result, *paths: str) -> str:
    """The text of files of the image."""
    return str(served.lab.docker.run(made.plan.image, list(paths), entrypoint="cat", remove=True))


def test_llama_cpp(served: Served, tmp_path: Path) -> None:
    """A project's own Dockerfile below everything, on two images."""
    made = build(served, "llama-cpp", tmp_path, "server-spark")
    said = str(served.lab.docker.run(made.plan.image, remove=True))
    assert said.strip() == "version: 1 (a stand-in for 121)"


@pytest.mark.thorough
def test_jupyter_docker_stacks(served: Served, tmp_path: Path) -> None:
    """Four Dockerfiles of one repository, each on the one before, with a user and a Python."""
    made = build(served, "jupyter-docker-stacks", tmp_path, "scipy-python3.12-amd64")
    assert [la.name for la in made.plan.layers] == ["foundation", "base", "minimal", "scipy"]
    said = str(served.lab.docker.run(made.plan.image, ["jupyter"], remove=True))
    assert "Python 3.12" in said
    assert read(served, made, "/home/jovyan/stacks").split() == ["minimal", "scipy"]


@pytest.mark.thorough
def test_a_ready_image_with_seven_files(served: Served, tmp_path: Path) -> None:
    """Diffs of a base image's files, and new files beside them."""
    made = build(served, "ready-image-seven-files", tmp_path, "dspark")
    said = read(served, made, *(f"{DIST}/{path}" for path in PATCHED))
    assert said.count("NVFP4_DS_MLA = True") == len(PATCHED)
    new = read(served, made, *(f"{DIST}/{path}" for path in OVERLAY))
    assert new.count("SparseMLAAttentionImpl") == len(OVERLAY) - 1


@pytest.mark.thorough
def test_nepenth_series(served: Served, tmp_path: Path) -> None:
    """28 diffs before the compile, and one of what the compile installs."""
    made = build(served, "nepenth-series", tmp_path, "v0.27.1-gb10")
    said = read(served, made, f"{DIST}/{SERIES}", f"{DIST}/{TOPK}").split("\n")
    assert said[:3] == ["STEP = 28", "ARGUMENTS = '12.1a 16 8'", "TOPK = (128, 192, 256)"]
