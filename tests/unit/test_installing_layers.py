"""Layers without a Dockerfile: those that only install what is locked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparkimage.build import builder, preflight
from sparkimage.config import folders, matrix, planning
from sparkimage.config.plan import Plan
from sparkimage.core.errors import ConfigError
from tests.unit import project_maker as maker

PINS: dict[str, Any] = {
    "os": {"trixie": maker.OS},
    "cuda": {"13": maker.CUDA},
    "app": {"1.0": maker.APP},
    "nccl": {"2.30.4": {**maker.NCCL, "version": "2.30.4"}},
}
LAYERS: dict[str, Any] = {
    "root": {"base": "os"},
    "image": {"base": "cuda"},
    "debs": {"debs": "nccl"},
    "wheels": {"wheels": {"pin": "app"}},
}


def write(folder: Path, layers: dict[str, Any]) -> matrix.Matrix:
    variants = [
        maker.include("of-root", "root", *list(layers)[2:]),
        maker.include("of-image", "image", *list(layers)[2:]),
    ]
    maker.write(folder, maker.document(PINS, layers, variants))
    for file in folder.glob("images/*/Dockerfile"):
        file.unlink()
    return matrix.load(folder / "matrix.yaml")


def plans(folder: Path) -> list[Plan]:
    read = write(folder, LAYERS)
    return list(planning.make_all(read, read.variants, maker.locked(read), maker.ORIGIN))


def test_the_package_has_a_dockerfile_for_each(tmp_path: Path) -> None:
    for plan, base in zip(plans(tmp_path), ("_root", "_image"), strict=True):
        found = [folders.dockerfile(tmp_path, layer) for layer in plan.layers]
        assert [path.parent.name for path in found] == [base, "_debs", "_wheels"]
        assert all(path.read_text().startswith("# ") for path in found)
        preflight.refuse_open_steps(plan, tmp_path)


def test_an_own_one_goes_before_and_is_another_build(tmp_path: Path) -> None:
    plan = plans(tmp_path)[0]
    before = builder.fingerprint(plan, tmp_path)
    assert builder.fingerprint(plan, tmp_path) == before
    own = tmp_path / "images" / "debs" / "Dockerfile"
    own.write_text("FROM layer AS debs\n")
    assert folders.dockerfile(tmp_path, plan.layers[1]) == own
    mine = builder.fingerprint(plan, tmp_path)
    own.unlink()
    # A project may have one for all of its layers, too.
    every = tmp_path / "images" / "_debs" / "Dockerfile"
    every.parent.mkdir()
    every.write_text("FROM layer\n")
    assert folders.dockerfile(tmp_path, plan.layers[1]) == every
    assert len({before, mine, builder.fingerprint(plan, tmp_path)}) == 3


@pytest.mark.parametrize(
    "more",
    [
        {"debs": "nccl", "wheels": {"pin": "app", "select": ["lib"]}},
        {"debs": "nccl", "inputs": {"devel": "cuda"}},
        {"debs": "nccl", "secrets": ["TOKEN"]},
        {"inputs": {"devel": "cuda"}},
        {},
    ],
)
def test_what_does_more_needs_one(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        write(tmp_path, {**LAYERS, "more": more})
    (problem,) = error.value.problems
    assert problem.what == "layer more has no images/more/Dockerfile"
    either = "give `debs` and `wheels` a layer each" if "wheels" in more else "remove the layer"
    assert problem.todo == f"write it (it begins `FROM layer`), or {either}"
