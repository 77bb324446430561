"""What a user is told to do after a build is what this machine can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.cli import next_steps
from tests.lab.project import Project
from tests.unit import project_maker as maker

RUN = "docker run --rm --gpus all r:v MODEL   (arguments follow `run`)"
LOAD = "sparkimage save v -o - | docker load   (into the Docker that has the GPU)"
INIT = "sparkimage init   (finds your nodes and writes fleet.yaml)"
SHIP = [
    "sparkimage distribute v",
    "sparkimage model push DIR   (a model's folder of this machine)",
    "sparkimage launch v --model DIR",
]
ENGINE = Engine(
    host="unix:///x", docker=("docker",), version="29.1", buildx="0.20", arch="arm64",
    private=True, containerd_store=True, data_root="/var/lib/docker", bin=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("fleet", "gpu", "private", "arch", "lines"),
    [
        (True, False, True, "arm64", SHIP),
        (False, False, True, "arm64", [INIT, *SHIP]),
        (True, True, True, "arm64", [LOAD, RUN, *SHIP]),
        (False, True, False, "arm64", [RUN, INIT, *SHIP]),
        # No GPU runs programs of another architecture.
        (True, True, False, "amd64", SHIP),
    ],
)
def test_after_a_build(
    tmp_path: Path, *, fleet: bool, gpu: bool, private: bool, arch: str, lines: list[str]
) -> None:
    os_ = {"os": {"trixie": maker.OS}}
    one = maker.include("v", "os", platform="linux/arm64", os="trixie")
    project = Project(folder=tmp_path)
    project.write_matrix(maker.document(os_, {"os": {"base": "os"}}, [one]))
    plan = project.plan("v")
    engine = replace(ENGINE, private=private, arch=arch)
    assert next_steps.after_build(plan, engine, fleet=fleet, gpu=gpu) == lines
