"""vLLM's real Dockerfiles, of June to November 2026, against what the product gives them.

BuildKit's own reader (``docker buildx build --call=outline``, here by its older name) says what we
read in them is right.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import dockerfile, matrix, source_checks
from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import LayerPlan, SourceBuild
from sparkimage.config.schema import LayerSpec
from sparkimage.config.source_checks import SourceFile
from tests.lab import sdists
from tests.lab.conftest import Lab
from tests.unit import good_maker

PROJECT = Path(__file__).resolve().parents[2]
TARGET = "vllm-openai"
GIVEN = {"BUILD_BASE_IMAGE": "build_base_image", "FINAL_BASE_IMAGE": "layer"}
MADE_FOR = {"0.28.0": "2.30.7", "0.33.0": "2.31.2"}
"""NCCL_VERSION, where the Dockerfile has that argument."""
VERSIONS = sorted(sdists.DOCKERFILES)


@cache
def read(version: str) -> dockerfile.Dockerfile:
    return dockerfile.parse(sdists.dockerfile(version).read_text())


def asked(lab: Lab, version: str, folder: Path, what: str) -> Any:
    """What BuildKit says of the Dockerfile; the images are not looked up."""
    (folder / "Dockerfile").write_bytes(sdists.dockerfile(version).read_bytes())
    argv = [
        *lab.engine.docker, "buildx", "build", f"--print={what},format=json", "--target", TARGET,
        *(f"--build-arg={arg}=scratch" for arg in GIVEN), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, **lab.engine.environment, "BUILDX_EXPERIMENTAL": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", VERSIONS)
def test_buildkit_reads_the_same_in_it(lab: Lab, version: str, tmp_path: Path) -> None:
    targets = asked(lab, version, tmp_path, "targets")["targets"]
    assert read(version).targets == tuple(one["name"] for one in targets if one.get("name"))
    reach = read(version).reach(TARGET, GIVEN, set(GIVEN.values()))
    ours = {*read(version).args, *(arg for stage in reach.stages for arg in stage.args)}
    outline = asked(lab, version, tmp_path, "outline")["args"]
    theirs = {one["name"]: one["location"]["ranges"][0]["start"]["line"] for one in outline}
    assert theirs.keys() <= ours
    # Theirs has none that BuildKit sets itself, nor what only the default of an image is made of.
    more = {arg for arg in ours - theirs.keys() if not dockerfile.PREDEFINED.fullmatch(arg)}
    assert more == {"UBUNTU_VERSION"}
    # Of several ARG lines BuildKit names another one than the first.
    assert all(read(version).lines[arg] <= line for arg, line in theirs.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_comes_from_outside_but_the_two_images(version: str) -> None:
    reach = read(version).reach(TARGET, GIVEN, set(GIVEN.values()))
    assert {use.name for use in reach.outside} == set(GIVEN.values())
    assert reach.base.name == "layer"
    default = {use.name for use in read(version).reach(TARGET, {}, ()).outside}
    builder = "nvidia/cuda:13.0.2-devel-ubuntu22.04"
    if version in MADE_FOR:
        builder = next(name for name in default if name.startswith("pytorch/manylinux2_28-builder"))
    assert builder in default
    assert len(default) == 2


def problems(version: str, nccl: str, **changes: Any) -> list[str]:
    """What the layer of the product's matrix, with these changes, has against it."""
    project = matrix.load(PROJECT / "matrix.yaml")
    held = project.layers["vllm-source"]
    # Not a copy, which would keep what was computed of the original.
    given = {name: getattr(held, name) for name in held.model_fields_set}
    spec = LayerSpec.model_validate({**given, **changes})
    assert spec.source is not None
    devel = PinnedImage(name="docker.io/x", digest=f"sha256:{'1' * 64}", tagged="")
    source = SourceBuild(
        pin="vllm", value=version, repository="https://git.example/vllm", commit="a" * 40,
        tree="b" * 40, dockerfile=spec.source.dockerfile, target=spec.source.target, version="1",
        images={"BUILD_BASE_IMAGE": devel, "FINAL_BASE_IMAGE": None},
    )  # fmt: skip
    args = {**spec.args, **GIVEN}
    layer = LayerPlan(name="vllm-source", dockerfile=source.dockerfile, args=args, source=source)
    layers = {**project.layers, "vllm-source": spec}
    plan = replace(good_maker.plan(), layers=(layer,), versions={"nccl": nccl, "vllm": "1"})
    file = SourceFile(text=sdists.dockerfile(version).read_text())
    found = source_checks.findings(replace(project, layers=layers), plan, layer, source, file)
    return [f"{what} -> {todo}" for _, what, todo in found]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_products_layer_fits_it(version: str) -> None:
    assert problems(version, MADE_FOR.get(version, "2.30.4")) == []
    assert problems(version, "2.32.3") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_nccl_than_it_is_made_for_is_said(version: str) -> None:
    found = problems(version, "2.30.4")
    assert len(found) == (version in MADE_FOR)
    assert all(f"has NCCL_VERSION={MADE_FOR[version]}; nccl 2.30.4 is older" in f for f in found)
    assert problems(version, "2.30.4", downgrade=True) == []
    # What is not passed would be compiled for another version than the one that runs.
    apart = problems(version, "2.32.3", pins=[])
    assert len(apart) == (version in MADE_FOR)
    assert all("it would be built for another one -> pass the pin's version" in f for f in apart)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_argument_that_it_does_not_have_is_said(version: str) -> None:
    # BUILD_OS is gone since 0.28.
    found = problems(
        version, MADE_FOR.get(version, "2.30.4"), args={"BUILD_OS": "u", "max_job": "1"}
    )
    said = ["max_job", *(["BUILD_OS"] if version in MADE_FOR else [])]
    assert sorted(f.partition(" has no argument ")[2].split(" ")[0] for f in found) == sorted(said)
    assert "did you mean 'max_jobs'?" in "".join(found)
