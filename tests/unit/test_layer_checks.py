"""The layers' own checks: each is made to fail somewhere, and runs in the tier that it needs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.config import folders
from sparkimage.config.plan import LayerPlan
from sparkimage.config.tier import Tier
from sparkimage.core.errors import ConfigError
from sparkimage.image.linking import Root
from sparkimage.image.settings import Settings
from sparkimage.verify import layer_checks, static
from tests.unit import good_maker

PROJECT = Path(__file__).resolve().parents[2]


def checks() -> Iterator[str]:
    every = folders.of(PROJECT, folders.EVERY)
    for path in sorted([*(PROJECT / "images").glob("*/test_*.py"), *every.glob("test_*.py")]):
        for one in ast.parse(path.read_text()).body:
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
                yield f"{path.parent.name}/{one.name}"


def test_every_check_is_made_to_fail_somewhere() -> None:
    lab = "".join(path.read_text() for path in (PROJECT / "tests" / "lab").glob("*.py"))
    found = list(checks())
    assert len(found) > 20
    assert [id for id in found if f'"{id}"' not in lab] == []


@pytest.mark.parametrize(
    ("body", "result", "seen"),
    [
        ("def test_a(plan, check): check('t', seen=plan['python'], expected='3.13')", "PASSED",
         "3.13"),
        ("def test_a(env, check): check('t', seen=env, expected={'A': 'b'})", "FAILED", {}),
        ("def test_a(root): assert root.final['etc']", "FAILED", "KeyError: 'etc'"),
        ("def test_a(plan): pass", "FAILED", "the check compared nothing"),
        ("def test_a(check): compile('(', '', 'exec')", "FAILED", "SyntaxError"),
    ],
)  # fmt: skip
def test_a_check_that_needs_no_container(
    tmp_path: Path, body: str, result: str, seen: object
) -> None:
    folder = tmp_path / "images" / "own"
    folder.mkdir(parents=True)
    (folder / "test_own.py").write_text(f"{body}\n\n\ndef test_b(host, check): ...\n")
    plan = replace(good_maker.plan(), layers=(LayerPlan(name="own", dockerfile="", args={}),))
    (found,) = layer_checks.examine(plan, Settings.of({}), Root({}), tmp_path)
    assert (found.id, found.layer, found.tier) == ("own/test_a", "own", Tier.STATIC)
    assert found.result == result
    assert found.seen == seen or str(seen) in str(found.seen)
    # Two are the package's own, of every image.
    assert layer_checks.count(plan, tmp_path, in_container=True) == 3
    assert not list(folder.glob("__pycache__"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("def test_a(root, check)\n    pass\n", 1, "invalid Python: expected ':'"),
        ("import re\nimport nothing_of_this_name\n", 2, "ModuleNotFoundError: No module named"),
        ("\n\nraise ValueError('no')\n", 3, "its checks cannot be loaded: ValueError: no"),
    ],
)
def test_checks_that_cannot_be_loaded_are_told_before_a_build(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    folder = tmp_path / "images" / "up"
    folder.mkdir(parents=True)
    (folder / "test_up.py").write_text(text)
    layer = LayerPlan(name="up", dockerfile="images/up/Dockerfile", args={})
    plan = replace(good_maker.plan(), layers=(layer,))
    with pytest.raises(ConfigError) as error:
        static.ready(plan, tmp_path)
    (problem,) = error.value.problems
    assert (problem.file, problem.line) == ("images/up/test_up.py", line)
    assert what in problem.what
    (folder / "test_up.py").write_text("def test_a(root, check):\n    pass\n")
    static.ready(plan, tmp_path)
    (tmp_path / "static.yaml").write_text("absnt: []\n")
    with pytest.raises(ConfigError, match=r"1 problem in .*static\.yaml"):
        static.ready(plan, tmp_path)
