"""Recorded outputs of the real matrix: plans, bake definition, CI strategy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkimage import bake, lock, matrix, model, plan, show
from sparkimage.plan import Origin, Plan

PROJECT = Path(__file__).resolve().parents[2]
Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    read = matrix.load(PROJECT / "matrix.yaml")
    held = lock.load(PROJECT / "matrix.lock")
    origin = Origin(source="https://example.org/spark", revision="0" * 40, epoch=1)
    return [plan.make(read, variant, held, origin) for variant in read.variants]


def test_plans(plans: list[Plan], golden: Golden) -> None:
    data = [one.to_dict() for one in plans]
    for one in data:
        for layer in one["layers"]:
            layer["wheels"] = len(layer["wheels"])
    golden("plans.json", json.dumps(data, indent=1, sort_keys=True) + "\n")


def test_bake_definition(plans: list[Plan], golden: Golden) -> None:
    given = bake.Inputs(
        project=Path("/project"),
        uv=Path("/home/tools/uv"),
        root=Path("/home/roots/trixie"),
        requirements={layer.name: Path("/home/inputs", layer.name) for layer in plans[0].layers},
        ca_bundle="/etc/ssl/certs/ca-certificates.crt",
    )
    made = bake.definition(plans, {one.variant: given for one in plans})
    golden("bake.json", json.dumps(made, indent=1, sort_keys=True) + "\n")


def test_github_strategy(plans: list[Plan], golden: Golden) -> None:
    golden("github.json", json.dumps(json.loads(show.as_github(plans)), indent=1) + "\n")


def test_the_schema_is_the_models() -> None:
    recorded = json.loads((PROJECT / "docs" / "matrix.schema.json").read_text())
    assert recorded == model.schema(), "make schema"


def test_the_lock_fits_the_matrix() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    held = lock.load(PROJECT / "matrix.lock")
    assert lock.check(read, held) == []
    assert lock.dump(held) == (PROJECT / "matrix.lock").read_text()


def test_every_layer_has_checks_and_is_in_the_matrix() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    folders = {p.name for p in (PROJECT / "images").iterdir() if not p.name.startswith("_")}
    assert folders == set(read.layers)
    for name in folders:
        assert (PROJECT / "images" / name / f"test_{name}.py").is_file()
        text = (PROJECT / "images" / name / "Dockerfile").read_text()
        assert f"FROM layer AS {name}\n" in text
