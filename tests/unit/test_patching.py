"""Patches: patches.yaml, the pins that they are for, their series and their plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import lockfile, patch_specs, planning, series
from sparkimage.config.lock_items import CHANGES, KEPT, PRESENT, Item, Step, Target
from sparkimage.config.lockfile import ANY, Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_planning import PatchPlanner
from sparkimage.config.patch_specs import MISSING, Patch, State
from sparkimage.config.series import SERIES
from sparkimage.core.errors import ConfigError, LockError
from tests.unit import project_maker as maker

NEEDS, NATIVE, MOVED, OTHER = ("a" * 40, "b" * 40, "c" * 40, "d" * 40)
SHA = "1" * 64
PATCH = {
    "kind": "replace",
    "purpose": "what it is for",
    "file": "fix.py",
    "root": "/opt/site",
    "replaces": "a/b.py",
    "needed_by": [NEEDS[:8]],
    "native_from": NATIVE,
    "not_for": {MOVED: "its file moved"},
}


def patch(**more: Any) -> Patch:
    return Patch.model_validate({**PATCH, **more})


def load(folder: Path, text: str) -> Mapping[str, Patch]:
    (folder / "patches.yaml").write_text(text)
    return patch_specs.load(folder / "patches.yaml")


GOOD = """\
version: 1
patches:
  one:
    kind: replace
    purpose: why
    file: one.py
    root: /opt/site
    replaces: a/b.py
    needed_by: [aaaaaaa]
  two:
    kind: diff
    purpose: why
    origin:
      repository: https://git.example/x.git
      commit: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
      path: two.diff
      licence: Apache-2.0
    root: /opt/site
    needed_by: [bbbbbbb]
"""


def test_the_file_is_read(tmp_path: Path) -> None:
    one, two = load(tmp_path, GOOD).values()
    assert (one.place, one.repository, one.path) == ("patches/one.py", None, "one.py")
    assert two.place == f"two.diff of https://git.example/x.git at {'a' * 12}"
    assert (two.repository, two.commit, two.path) == (
        "https://git.example/x.git", "a" * 40, "two.diff",
    )  # fmt: skip
    assert patch_specs.load(tmp_path / "nothing.yaml") == {}


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("version: 1", "version: 2", 1, "version"),
        ("kind: replace", "kind: replaces", 4, "patches.one.kind"),
        ("    purpose: why\n    file", "    file", 3, "patches.one.purpose is missing"),
        ("file: one.py", "fiel: one.py", 6, "unknown key 'fiel' in patches.one"),
        ("file: one.py", "file: /one.py", 6, "patches.one.file"),
        ("file: one.py", "file: ../one.py", 3, "path '../one.py', which leads out of its folder"),
        ("path: two.diff", "path: a/../two.diff", 10, "'a/../two.diff', which leads out"),
        ("replaces: a/b.py", "replaces: a/..", 3, "path 'a/..', which leads out of"),
        ("root: /opt/site\n    r", "root: opt/site\n    r", 7, "patches.one.root"),
        ("root: /opt/site\n    r", "root: /opt/site/\n    r", 7, "patches.one.root"),
        ("[aaaaaaa]", "[aaaaaa]", 9, "patches.one.needed_by.0"),
        ("[aaaaaaa]", "[]", 9, "patches.one.needed_by"),
        ("commit: a", "commit: ", 15, "patches.two.origin.commit"),
        ("https://git", "git@git", 14, "patches.two.origin.repository"),
        ("      licence: Apache-2.0\n", "", 13, "patches.two.origin.licence"),
        ("file: one.py\n    ", "", 3, "one of `origin`, `file` and `url`"),
        ("kind: diff", "kind: diff\n    file: x", 10, "one of `origin`, `file` and `url`"),
        ("kind: diff", "kind: diff\n    url: https://x/1.diff", 10, "one of `origin`, `file`"),
        ("file: one.py", "url: ftp://x/1.diff", 6, "patches.one.url"),
        ("file: one.py", "file: one.py\n    sha256: " + "a" * 64, 7, "has `sha256` without `url`"),
        ("file: one.py", "url: https://x/1\n    sha256: abc", 7, "patches.one.sha256"),
        ("file: one.py", "file: one.py\n    expects: none", 7, "patches.one.expects"),
        ("file: one.py", "file: one.py\n    exclude: [x]", 7, "`exclude`, which goes with kind"),
        ("kind: diff", "kind: diff\n    exclude: [/x]", 12, "patches.two.exclude.0"),
        ("kind: diff", "kind: diff\n    for: Fork", 12, "patches.two.for"),
        ("kind: replace", "kind: diff", 3, "of kind diff, and `replaces` goes with kind replace"),
        (
            "kind: diff",
            "kind: diff\n    expects: " + "a" * 64,
            10,
            "has `expects` without `replaces`",
        ),
        ("file: one.py", 'file: "one\\0.py"', 6, "patches.one.file"),
        ("[aaaaaaa]", "aaaaaaa", 9, "patches.one.needed_by must be a list, but is 'aaaaaaa'"),
        ("kind: diff", "kind: replace", 10, "of kind replace, and `replaces` goes with kind"),
    ],
)
def test_a_problem_has_its_line(tmp_path: Path, old: str, new: str, line: int, what: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    reported = [(p.line, p.what) for p in error.value.problems]
    assert any(at == line and what in seen for at, seen in reported), reported
    assert all(p.todo and p.file == f"{tmp_path}/patches.yaml" for p in error.value.problems)


DEFAULTS = """\
version: 1
defaults:
  kind: replace
  for: fork
  root: /opt/site
  origin: {repository: "https://git.example/x.git", licence: Apache-2.0,
           commit: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}
patches:
  one: {purpose: why, replaces: a/b.py, origin: {path: one.py}}
  two: {purpose: why, kind: diff, for: other, file: two.diff}
"""


def test_patches_have_the_defaults_that_they_do_not_overrule(tmp_path: Path) -> None:
    one, two = load(tmp_path, DEFAULTS).values()
    assert (one.kind, one.pin, one.root) == ("replace", "fork", "/opt/site")
    assert (one.repository, one.commit, one.path) == (
        "https://git.example/x.git", "a" * 40, "one.py",
    )  # fmt: skip
    assert (two.kind, two.pin, two.origin, two.path) == ("diff", "other", None, "two.diff")


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("  for: fork", "  for: Fork", 4, "defaults.for: 'Fork'"),
        ("  root: /opt", "  rot: /opt", 5, "unknown key 'rot' in defaults"),
        ("{repository", "{path: x, repository", 6, "unknown key 'path' in defaults.origin"),
        ("origin: {path: one.py}", "origin: {pat: one.py}", 9, "unknown key 'pat' in patches.one"),
        ("origin: {path: one.py}", "url: ftp://x", 9, "patches.one.url"),
        ("defaults:\n", "defaults: []\nx:\n", 2, "defaults must be a mapping"),
    ],
)
def test_a_problem_with_defaults_has_its_line(
    tmp_path: Path, old: str, new: str, line: int, what: str
) -> None:
    assert old in DEFAULTS
    with pytest.raises(ConfigError) as error:
        load(tmp_path, DEFAULTS.replace(old, new, 1))
    reported = [(p.line, p.what) for p in error.value.problems]
    assert any(at == line and what in seen for at, seen in reported), reported


def test_all_problems_are_in_one_report(tmp_path: Path) -> None:
    text = GOOD.replace("purpose: why\n    file: one.py", "file: /one").replace("diff\n", "dif\n")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert [p.line for p in error.value.problems] == [3, 5, 10]
    twice = GOOD.replace("file: one.py", "file: ../one").replace("path: two", "path: ../two")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, twice.replace("kind: diff", "kind: diff\n    file: x/../y"))
    assert [p.line for p in error.value.problems] == [3, 10, 10, 10]


@pytest.mark.parametrize(
    ("more", "commit", "applied", "state", "reason"),
    [
        ({}, NEEDS, True, State.APPLIED, "to aaaaaaaaa"),
        ({}, NEEDS[:8], True, State.APPLIED, "to aaaaaaaa"),
        ({}, NEEDS, False, State.NEEDED, "aaaaaaaaa is in `needed_by`"),
        ({}, NATIVE, False, State.NOT_NEEDED, "native since bbbbbbbbb"),
        ({}, NATIVE, True, State.DOES_NOT_FIT, "native since bbbbbbbbb"),
        ({}, MOVED, False, State.DOES_NOT_FIT, "its file moved"),
        ({}, MOVED, True, State.DOES_NOT_FIT, "its file moved"),
        ({}, MOVED[:10], False, State.DOES_NOT_FIT, "its file moved"),
        ({}, OTHER, False, State.NOT_NEEDED, "ddddddddd is not in `needed_by`"),
        ({}, OTHER, True, State.DOES_NOT_FIT, "ddddddddd is not in `needed_by`"),
        ({"needed_by": None}, OTHER, True, State.APPLIED, "to ddddddddd"),
        ({"needed_by": None}, OTHER, False, State.NOT_NEEDED, "no layer applies it"),
        ({"needed_by": None}, MOVED, True, State.DOES_NOT_FIT, "its file moved"),
        ({"needed_by": None}, NATIVE, True, State.DOES_NOT_FIT, "native since bbbbbbbbb"),
        ({}, None, False, State.NOT_NEEDED, "no fork commit"),
        ({}, None, True, State.DOES_NOT_FIT, "no fork commit"),
        ({"expects": SHA}, None, True, State.APPLIED, "for every value"),
        ({"expects": SHA}, None, False, State.NOT_NEEDED, "for every value"),
        ({"needed_by": None}, None, True, State.APPLIED, "for every value"),
    ],
)  # fmt: skip
def test_what_patches_yaml_says_of_a_commit(
    more: dict[str, Any], commit: str | None, applied: bool, state: State, reason: str
) -> None:
    verdict = patch_specs.judge(patch(**more), commit=commit, applied=applied)
    assert verdict.state is state
    assert reason in verdict.reason


BASE = {"kind": "image", "image": "x:1", "python": "3.12"}
PINS: dict[str, Any] = {
    "os": {"trixie": maker.OS},
    "base": {"1.0.0": BASE, "2.0.0": {**BASE, "commit": NEEDS}},
    "fork": {"one": maker.git_pin(NEEDS), "two": maker.git_pin(OTHER)},
    "other": {"one": maker.git_pin(MOVED, "https://git.example/other.git")},
    "app": {"1.0.0": maker.APP},
}
SOURCE = {
    "pin": "fork",
    "dockerfile": "D",
    "target": "t",
    "images": {"BASE": "layer"},
}
FREE = {
    key: value for key, value in PATCH.items() if key not in ("needed_by", "not_for", "native_from")
}


def project(
    folder: Path,
    values: Mapping[str, str],
    patches: Mapping[str, Any],
    *,
    fix: Mapping[str, Any] | None = None,
    low: str = "os",
) -> Matrix:
    """A variant with a layer that applies all the patches, on a layer that uses these pins."""
    layers: dict[str, Any] = {
        "low": {"base": low, "pins": [pin for pin in values if pin != low]},
        "fix": {"patches": list(patches), **(fix or {})},
    }
    data = maker.document(PINS, layers, [maker.include("v", *layers, **values)])
    return maker.write(folder, data, patches)


@pytest.mark.parametrize(
    ("values", "more", "pin"),
    [
        ({"os": "trixie", "fork": "two"}, {}, "fork"),
        # Of several the one whose commit patches.yaml has in one of its lists.
        ({"os": "trixie", "fork": "one", "other": "one"}, {"needed_by": [NEEDS]}, "fork"),
        ({"os": "trixie", "fork": "one", "other": "one"}, {"needed_by": [MOVED]}, "other"),
        ({"os": "trixie", "fork": "two", "other": "one"}, {"for": "other"}, "other"),
        ({"os": "trixie", "fork": "two", "app": "1.0.0"}, {"for": "app"}, "app"),
        ({"base": "2.0.0", "os": "trixie"}, {}, "base"),
        ({"base": "1.0.0", "app": "1.0.0"}, {}, "base"),
        ({"os": "trixie", "app": "1.0.0"}, {"expects": SHA}, None),
    ],
)  # fmt: skip
def test_the_pin_that_a_patch_is_for(
    tmp_path: Path, values: dict[str, str], more: dict[str, Any], pin: str | None
) -> None:
    low = "base" if "base" in values else "os"
    read = project(tmp_path, values, {"fix": {**FREE, **more}}, low=low)
    (one,) = series.of(read, read.variants[0])
    assert (one.pin, one.names, one.root) == (pin, ("fix",), "/opt/site")
    plan = planning.make(read, read.variants[0], maker.locked(read), maker.ORIGIN)
    (planned,) = plan.layers[1].patches
    assert planned.pin == pin


@pytest.mark.parametrize(
    ("values", "patches", "fix", "what", "todo"),
    [
        ({"fork": "one", "other": "one"}, {"fix": FREE}, {}, "may be for fork or other",
         "`for: fork`"),
        ({"app": "1.0.0"}, {"fix": FREE}, {}, "is for no pin of the variant", "`for: PIN`"),
        ({"fork": "one"}, {"fix": {**FREE, "for": "forc"}}, {}, "for forc, which is not in pins",
         "did you mean 'fork'?"),
        ({"fork": "one"}, {"fix": {**FREE, "for": "app"}}, {}, "for pin app, which the variant has",
         "correct `for`"),
        ({"fork": "one"}, {"fix": {**FREE, "for": "os"}}, {}, "for os, which is of kind debian",
         "git, image, wheels can be patched"),
        ({"fork": "one"}, {"fix": {**FREE, "root": None}}, {}, "has no `root`", "`root: /…`"),
        ({"fork": "one"}, {"fix": {**FREE, "project": "x"}}, {}, "has a `project`", "remove it"),
        ({"fork": "one"}, {"fix": FREE}, {"patches": ["fix", "fix"]}, "is applied twice",
         "keep one"),
        ({"fork": "one", "other": "one"}, {"fix": {**FREE, "for": "other"}}, {"source": SOURCE},
         "is for other, and the source is built from fork", "a layer above"),
    ],
)  # fmt: skip
def test_a_patch_that_is_for_no_pin_is_refused(
    tmp_path: Path,
    values: dict[str, str],
    patches: dict[str, Any],
    fix: dict[str, Any],
    what: str,
    todo: str,
) -> None:
    with pytest.raises(ConfigError) as error:
        project(tmp_path, {"os": "trixie", **values}, patches, fix=fix)
    (problem, *_) = error.value.problems
    assert "layer fix: patch fix " in problem.what
    assert what in problem.what
    assert todo in problem.todo


def test_a_source_takes_patches_of_its_own_pin(tmp_path: Path) -> None:
    patches = {"a": {**FREE, "root": None}, "b": FREE}
    values = {"os": "trixie", "fork": "two", "other": "one"}
    read = project(tmp_path, values, patches, fix={"source": SOURCE})
    (one,) = series.of(read, read.variants[0])
    assert (one.pin, one.names, one.root) == ("fork", ("a", "b"), None)


def test_a_series_is_what_a_layer_applies_to_one_pin(tmp_path: Path) -> None:
    patches = dict.fromkeys(("a", "b", "c", "d"), FREE)
    patches["b"] = {**FREE, "for": "other"}
    layers: dict[str, Any] = {
        "low": {"base": "os", "pins": ["other"]},
        "made": {"source": SOURCE, "patches": ["a"]},
        "fix": {"patches": ["b", "c", "d"]},
    }
    for name in ("c", "d"):
        patches[name] = {**FREE, "for": "fork"}
    values = {"os": "trixie", "fork": "one", "other": "one"}
    data = maker.document(PINS, layers, [maker.include("v", *layers, **values)])
    read = maker.write(tmp_path, data, patches)
    made = [(s.layer, s.pin, s.below, s.names, s.key) for s in series.of(read, read.variants[0])]
    assert made == [
        ("made", "fork", (), ("a",), "fork one: a"),
        ("fix", "other", (), ("b",), "other one: b"),
        ("fix", "fork", ("a",), ("c", "d"), "fork one with a: c d"),
    ]
    keys = [key for key in lockfile.requests(read) if key[0] == SERIES]
    assert keys == sorted((SERIES, key) for *_, key in made)


def with_items(read: Matrix, *items: Item) -> Lock:
    lock = maker.locked(read)
    (key,) = (key for key in lock.entries if key[0] == SERIES)
    entry = Entry(requested=lock.entries[key].requested, platforms={ANY: items})
    return replace(lock, entries={**lock.entries, key: entry})


def states(read: Matrix, lock: Lock) -> list[tuple[str, str | None, int | None, State]]:
    planner = PatchPlanner(matrix=read, variant=read.variants[0], lock=lock)
    return [(one.patch, one.layer, one.number, one.verdict.state) for one in planner.states()]


def test_the_plan_of_a_series(tmp_path: Path) -> None:
    patches = {"one": PATCH, "two": {**FREE, "kind": "diff", "replaces": None, "exclude": ["t/*"]}}
    read = project(tmp_path, {"os": "trixie", "fork": "one"}, patches)
    target = Target(before=SHA, after=MISSING, size=0, mode=KEPT, path="a/b.py")
    steps = [Step(number=n, state=s, patch=p) for n, s, p in
             ((1, PRESENT, "one"), (2, CHANGES, "two"))]  # fmt: skip
    lock = with_items(read, *steps, target)
    plan = planning.make(read, read.variants[0], lock, maker.ORIGIN)
    (planned,) = plan.layers[1].patches
    assert (planned.repository, planned.commit, planned.root) == (maker.FORK, NEEDS, "/opt/site")
    assert planned.targets == (target,)
    assert [(p.name, p.kind, p.path, p.exclude) for p in planned.patches] == [
        ("one", "replace", "fix.py", ()), ("two", "diff", "fix.py", ("t/*",)),
    ]  # fmt: skip
    assert plan.labels["dev.sparkimage.patch.two"] == f"sha256:{planned.patches[1].sha256}"
    assert plan.patched_files == {"opt/site/a/b.py": (planned, target)}
    assert states(read, lock) == [
        ("one", "fix", 1, State.PRESENT), ("two", "fix", 2, State.APPLIED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "more", "reason"),
    [
        ("one", {"native_from": NEEDS}, "native since"),
        ("one", {"not_for": {NEEDS: "its file moved"}}, "its file moved"),
        ("two", {}, "ddddddddd is not in `needed_by`"),
        ("one", {}, "the files that it changes are not in the lock"),
    ],
)
def test_a_plan_with_a_patch_that_does_not_fit_is_refused(
    tmp_path: Path, value: str, more: dict[str, Any], reason: str
) -> None:
    read = project(tmp_path, {"os": "trixie", "fork": value}, {"fix": {**PATCH, **more}})
    lock = maker.locked(read)
    lock = replace(lock, entries={k: v for k, v in lock.entries.items() if k[0] != SERIES})
    with pytest.raises(LockError, match="patch fix does not fit variant v") as error:
        planning.make(read, read.variants[0], lock, maker.ORIGIN)
    assert reason in error.value.message
    assert "sparkimage patches" in error.value.hint


def test_a_variant_waits_for_its_series(tmp_path: Path) -> None:
    read = project(tmp_path, {"os": "trixie", "fork": "one"}, {"fix": PATCH})
    lock = maker.locked(read)
    (key,) = (key for key in lock.entries if key[0] == SERIES)
    entry = Entry(requested=lock.entries[key].requested, unresolved="it does not apply")
    lock = replace(lock, entries={**lock.entries, key: entry})
    plan = planning.make(read, read.variants[0], lock, maker.ORIGIN)
    assert [(one.pin, one.value, one.reason) for one in plan.unresolved] == [
        (SERIES, "fork one: fix", "it does not apply")
    ]
    assert states(read, lock) == [("fix", "fix", 1, State.UNRESOLVED)]


def test_what_no_layer_applies(tmp_path: Path) -> None:
    patches = {"fix": FREE, "more": PATCH, "none": {**FREE, "not_for": {NEEDS: "it moved"}}}
    values = {"os": "trixie", "fork": "one"}
    read = project(tmp_path, values, patches, fix={"patches": ["fix"]})
    assert states(read, maker.locked(read)) == [
        ("fix", "fix", 1, State.APPLIED),
        ("more", None, None, State.NEEDED),
        ("none", None, None, State.DOES_NOT_FIT),
    ]


def test_a_file_of_no_pin(tmp_path: Path) -> None:
    patches = {
        "one": {**FREE, "expects": SHA},
        "two": {**FREE, "replaces": "new.py", "expects": MISSING},
    }
    read = project(tmp_path, {"os": "trixie", "app": "1.0.0"}, patches)
    assert not [key for key in lockfile.requests(read) if key[0] == SERIES]
    plan = planning.make(read, read.variants[0], maker.locked(read), maker.ORIGIN)
    (planned,) = plan.layers[1].patches
    assert [(t.path, t.before, t.mode) for t in planned.targets] == [
        ("a/b.py", SHA, KEPT), ("new.py", MISSING, "644"),
    ]  # fmt: skip
    assert [t.after for t in planned.targets] == [p.sha256 for p in planned.patches]
