"""Recorded outputs of the real matrix: plans, bake definitions, source policies, CI strategy.

What the real lock has no answer for yet stands in the plans as not resolved. What such variants
come to once they are resolved is recorded from a lock that is made here, of small made-up items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.build import bake
from sparkimage.cli import show
from sparkimage.config import lockfile, matrix, planning, series
from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.folders import INSTALLS, dockerfile, of
from sparkimage.config.lockfile import Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.plan import Origin, Plan
from sparkimage.config.series import SERIES
from sparkimage.resolve.context import Inputs
from tests.projects import made_lock

PROJECT = Path(__file__).resolve().parents[2]
ORIGIN = Origin(source="https://example.org/spark", revision="0" * 40, epoch=1)
RESOLVED = ("ds4-flash", "ds4-flash-ga", "ds4-flash-ga-ready")
INDEX = "https://index.example/simple"
MIRRORS = Mirrors(
    rules={
        "docker.io": "registry.example:5000/hub",
        "https://github.com": "https://git.example/github",
        WHEELS: INDEX,
    }
)
Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def read() -> Matrix:
    return matrix.load(PROJECT / "matrix.yaml")


@pytest.fixture(scope="module")
def plans(read: Matrix) -> list[Plan]:
    held = lockfile.load(PROJECT / "matrix.lock")
    return [planning.make(read, variant, held, ORIGIN) for variant in read.variants]


@pytest.fixture(scope="module")
def resolved(read: Matrix) -> tuple[Plan, ...]:
    held = made_up(read, lockfile.load(PROJECT / "matrix.lock"))
    return planning.make_all(read, matrix.select(read, names=RESOLVED), held, ORIGIN)


def made_up(read: Matrix, held: Lock) -> Lock:
    """The lock with small made-up items for all that ``RESOLVED`` needs, and nothing else new."""
    entries = dict(held.entries)
    for variant in matrix.select(read, names=RESOLVED):
        names = {patch for layer in variant.layers for patch in read.layers[layer].patches}
        made = [(SERIES, one.key) for one in series.to_lock(read, variant)]
        for key in (*variant.pins.items(), *((PATCHES, name) for name in names), *made):
            ask, platforms = lockfile.requests(read)[key]
            found = {one: made_lock.items(read, key, one) for one in platforms}
            entries[key] = Entry(requested=ask, platforms=found)
    return replace(held, entries=entries)


def given(plan: Plan) -> Inputs:
    """Where a build of ``plan`` would find what it takes in."""
    fed = [one for one in plan.layers if one.wheels or one.debs or one.patches]
    return Inputs(
        steps={
            one.name: Path("/project", file.relative_to(PROJECT))
            if (file := dockerfile(PROJECT, one)).is_relative_to(PROJECT / "images")
            else Path("/package", file.parent.name, file.name)
            for one in plan.layers
        },
        uv=Path("/home/tools/uv") if any(one.wheels for one in plan.layers) else None,
        root=Path("/home/roots/trixie") if plan.layers[0].root else None,
        layers={one.name: Path("/home/inputs", one.name) for one in fed},
        tools=Path("/package/_tools"),
        builder=Path("/package/_builder"),
        trees={},
        files={},
        dockerfiles={},
        overrides=frozenset(),
        sources={},
        ca_bundle="/etc/ssl/certs/ca-certificates.crt",
    )


def text(data: object) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def described(plans: Sequence[Plan]) -> str:
    """The plans, with counts where lists of wheels and packages are long."""
    data = [one.to_dict() for one in plans]
    for one in data:
        for layer in one["layers"]:
            layer["wheels"] = len(layer["wheels"])
            for part in ("root", "debs"):
                if layer[part] is not None and len(layer[part]["debs"]) > 5:
                    layer[part]["debs"] = len(layer[part]["debs"])
    return text(data)


def test_plans(plans: list[Plan], golden: Golden) -> None:
    golden("plans.json", described(plans))


def test_bake_definition(plans: list[Plan], golden: Golden) -> None:
    whole = [one for one in plans if not one.unresolved]
    golden("bake.json", text(bake.definition(whole, {one.variant: given(one) for one in whole})))


def test_policy(plans: list[Plan], golden: Golden) -> None:
    golden("policy.json", text(bake.policy([one for one in plans if not one.unresolved])))


def test_plans_once_resolved(resolved: tuple[Plan, ...], golden: Golden) -> None:
    assert [one.variant for one in resolved] == list(RESOLVED)
    assert not any(one.unresolved for one in resolved)
    golden("resolved-plans.json", described(resolved))


@pytest.mark.parametrize("kind", ["plain", "mirrored"])
def test_bake_definition_and_policy_once_resolved(
    read: Matrix, plans: list[Plan], golden: Golden, kind: str
) -> None:
    held = made_up(read, lockfile.load(PROJECT / "matrix.lock"))
    # One variant of wheels beside them: its mirror is a secret and its policy allows nothing.
    chosen = (plans[0].variant, *RESOLVED)
    made = planning.make_all(read, matrix.select(read, names=chosen), held, ORIGIN)
    mirrors = MIRRORS if kind == "mirrored" else Mirrors()
    inputs = {one.variant: given(one) for one in made}
    golden(f"resolved-bake-{kind}.json", text(bake.definition(made, inputs, mirrors)))
    golden(f"resolved-policy-{kind}.json", text(bake.policy(made, mirrors)))


def test_github_strategy(read: Matrix, plans: list[Plan], golden: Golden) -> None:
    golden("github.json", json.dumps(json.loads(show.as_github(plans, read)), indent=1) + "\n")


def test_the_lock_fits_the_matrix(read: Matrix) -> None:
    held = lockfile.load(PROJECT / "matrix.lock")
    assert lockfile.check(read, held) == []
    assert lockfile.dump(held) == (PROJECT / "matrix.lock").read_text()


def steps(path: Path) -> list[str]:
    """The lines of a Dockerfile without comments and the name of the stage."""
    lines = path.read_text().splitlines()
    return [line for line in lines if not line.startswith(("#", "FROM layer"))]


def test_every_layer_has_checks_and_is_in_the_matrix(read: Matrix) -> None:
    folders = {p.name for p in (PROJECT / "images").iterdir() if not p.name.startswith("_")}
    assert folders <= set(read.layers)
    installing = [steps(of(PROJECT, name) / "Dockerfile") for name in INSTALLS.values()]
    for name, spec in read.layers.items():
        folder = PROJECT / "images" / name
        # What the lock says it is made of, the static tier compares with it.
        locked = spec.base or spec.debs or spec.wheels or spec.patches
        assert locked or (folder / f"test_{name.replace('-', '_')}.py").is_file()
        own = folder / "Dockerfile"
        if spec.source is not None:
            # The repository's own Dockerfile builds it; one beside it would never be read.
            assert not own.exists()
        elif own.exists():
            assert f"FROM layer AS {name}\n" in own.read_text()
            # One that repeats a Dockerfile of the package goes.
            assert steps(own) not in installing
