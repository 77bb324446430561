"""Public projects' builds as matrices of our own writing: each is read, planned with a lock that is
made up, and printed in every form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkimage.build import bake, layer_files, preflight
from sparkimage.cli import show
from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Origin, Plan
from sparkimage.resolve.context import Inputs
from tests.projects import made_lock

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
NAMES = sorted(path.parent.name for path in PROJECTS.glob("*/matrix.yaml"))
WIDTH = 140
ORIGIN = Origin(source="https://example.org/project", revision="0" * 40, epoch=1)


def read(name: str) -> Matrix:
    return matrix.load(PROJECTS / name / "matrix.yaml")


def plans(read: Matrix) -> tuple[Plan, ...]:
    return tuple(planning.make_all(read, read.variants, made_lock.of(read), ORIGIN))


def inputs(plan: Plan) -> Inputs:
    """Where the inputs would be, had they been fetched."""
    patched = {la.name: Path("/sources", la.name) for la in plan.layers if la.patches and la.source}
    taken = (la.name for la in plan.layers if la.wheels or la.debs or la.patches)
    return Inputs(
        steps={la.name: Path("/project", la.dockerfile) for la in plan.layers},
        tools=Path("/package/_tools"),
        builder=Path("/package/_builder"),
        uv=Path("/uv"),
        root=None,
        layers={name: Path("/inputs", name) for name in taken if name not in patched},
        files={file.sha256: Path("/files", file.name) for la in plan.layers for file in la.files},
        dockerfiles={},
        overrides=frozenset(),
        sources=patched,
        ca_bundle=None,
    )


def lines(*files: Path) -> int:
    """The lines of files that are neither empty nor a comment alone."""
    texts = [file.read_text() for file in files if file.is_file()]
    return sum(bool(re.match(r"\s*[^\s#]", line)) for text in texts for line in text.splitlines())


def test_there_are_twelve() -> None:
    assert len(NAMES) == 12


@pytest.mark.parametrize("name", NAMES)
def test_a_project_is_planned_without_a_warning(name: str) -> None:
    made = read(name)
    assert made.warnings == ()
    assert lockfile.check(made, made_lock.of(made)) == []
    for plan in plans(made):
        assert plan.unresolved == ()
        layer_files.refuse(plan, made.file)
        preflight.refuse_open_steps(plan, made.root)
        # The plan is what the store keeps, and what every later command reads.
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("name", NAMES)
def test_what_a_build_reads_is_allowed_and_nothing_else(name: str) -> None:
    for plan in plans(read(name)):
        targets = bake.definition([plan], {plan.variant: inputs(plan)})["target"]
        allowed = {rule["selector"]["identifier"] for rule in bake.policy([plan])["rules"]}
        named = {one for target in targets.values() for one in target["contexts"].values()}
        named |= {target["context"] for target in targets.values()}
        remote = {one for one in named if one.startswith(("docker-image:", "https:"))}
        remote -= {"docker-image://scratch"}
        assert {re.sub("^https", "git", one) for one in remote} == allowed - {"*", "local://*"}


def test_the_tables(golden: Callable[[str, str], None]) -> None:
    said: list[str] = []
    for name in NAMES:
        made = read(name)
        files = (made.file, made.root / "patches" / "patches.yaml")
        steps = sorted(made.root.glob("images/*/Dockerfile"))
        counted = f"{lines(*files)} lines of YAML; Dockerfiles: {len(steps)}"
        # The page of the project says as much.
        assert counted in (made.root / "README.md").read_text(), f"{name}: {counted}"
        whole = plans(made)
        shown = [plan for plan in whole if plan.variant in made.groups["default"]]
        said += [f"{name}: {counted}; {len(shown)} of {len(whole)} variants:"]
        said += show.plans_table(shown).text(WIDTH).splitlines()
    golden("projects.txt", "".join(f"{line.rstrip()}\n" for line in said))


def test_one_bake_file(golden: Callable[[str, str], None]) -> None:
    (plan,) = plans(read("anemll-overlay"))
    made = bake.definition([plan], {plan.variant: inputs(plan)})
    golden("projects-bake.json", json.dumps(made, indent=1, sort_keys=True) + "\n")
