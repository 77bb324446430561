"""Patches: patches.yaml, whether a patch applies to a commit, and the patched files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import patch_specs, planning
from sparkimage.config.lockfile import ANY, MISSING, Entry, Lock, PatchText, Target
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES, Patch, State
from sparkimage.core.errors import ConfigError, LockError
from sparkimage.core.process import Local
from sparkimage.resolve import patch_files
from sparkimage.resolve.git import Repository
from tests.unit import project_maker as maker
from tests.unit.git_maker import Remote, isolate, resolve_context

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
    assert one.place == (None, None, "one.py")
    assert two.place == ("https://git.example/x.git", "a" * 40, "two.diff")
    assert patch_specs.in_image(one.root, "a/b.py") == "/opt/site/a/b.py"
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
        ("file: one.py\n    ", "", 3, "either `origin` or `file`"),
        ("kind: diff", "kind: diff\n    file: x", 10, "either `origin` or `file`"),
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
    assert all(p.todo and p.file == "patches.yaml" for p in error.value.problems)


def test_all_problems_are_in_one_report(tmp_path: Path) -> None:
    text = GOOD.replace("purpose: why\n    file: one.py", "file: /one").replace("diff\n", "dif\n")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert [p.line for p in error.value.problems] == [3, 5, 10]
    twice = GOOD.replace("file: one.py", "file: ../one").replace("path: two", "path: ../two")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, twice.replace("kind: diff", "kind: diff\n    file: x/../y"))
    assert [p.line for p in error.value.problems] == [3, 10, 10, 10]


HELD = {"a/b.py": SHA}


@pytest.mark.parametrize(
    ("more", "commit", "applied", "before", "state", "reason"),
    [
        ({}, NEEDS, True, HELD, State.APPLIED, "to aaaaaaaaa"),
        ({}, NEEDS[:8], True, HELD, State.APPLIED, "to aaaaaaaa"),
        ({}, NEEDS, False, None, State.NEEDED, "aaaaaaaaa is in `needed_by`"),
        ({}, NEEDS, True, None, State.UNRESOLVED, "not in the lock"),
        ({}, NEEDS, True, {"a/b.py": None}, State.DOES_NOT_FIT, "a/b.py is not in the fork at aaa"),
        ({"expects": SHA}, NEEDS, True, HELD, State.APPLIED, "to aaaaaaaaa"),
        ({"expects": "2" * 64}, NEEDS, True, HELD, State.DOES_NOT_FIT, "111111111111 at aaaaaaaaa"),
        ({}, NATIVE, False, None, State.NOT_NEEDED, "native since bbbbbbbbb"),
        ({}, NATIVE, True, HELD, State.DOES_NOT_FIT, "native since bbbbbbbbb"),
        ({}, MOVED, False, None, State.DOES_NOT_FIT, "its file moved"),
        ({}, MOVED, True, HELD, State.DOES_NOT_FIT, "its file moved"),
        ({}, OTHER, False, None, State.NOT_NEEDED, "ddddddddd is not in `needed_by`"),
        ({}, OTHER, True, HELD, State.DOES_NOT_FIT, "ddddddddd is not in `needed_by`"),
        ({}, None, False, None, State.NOT_NEEDED, "no fork commit"),
        ({}, None, True, None, State.DOES_NOT_FIT, "no fork commit"),
        ({"expects": SHA}, None, True, None, State.APPLIED, "checked in the image"),
        ({"expects": SHA}, None, False, None, State.NOT_NEEDED, "checked in the image"),
    ],
)  # fmt: skip
def test_whether_a_patch_applies_to_a_commit(
    more: dict[str, Any],
    commit: str | None,
    applied: bool,
    before: Mapping[str, str | None] | None,
    state: State,
    reason: str,
) -> None:
    verdict = patch_specs.judge(patch(**more), commit=commit, applied=applied, before=before)
    assert verdict.state is state
    assert reason in verdict.reason


def test_not_for_matches_an_abbreviated_commit() -> None:
    verdict = patch_specs.judge(patch(), commit=MOVED[:10], applied=False, before=None)
    assert (verdict.state, verdict.reason) == (State.DOES_NOT_FIT, "its file moved")


BEFORE = b"one\ntwo\nthree\n"
DIFF = b"""\
--- a/a/b.py
+++ b/a/b.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    isolate(monkeypatch)
    return Remote.make(tmp_path / "site", "fork.git")


@pytest.mark.parametrize(
    ("kind", "text", "after"),
    [("replace", b"all new\n", b"all new\n"), ("diff", DIFF, b"one\n2\nthree\n")],
)
def test_targets_of_a_patch_at_a_fork_commit(
    tmp_path: Path, remote: Remote, kind: str, text: bytes, after: bytes
) -> None:
    commit = remote.commit({"a/b.py": BEFORE.decode(), "c": "other\n"})
    fork = Repository(
        "fork 1", remote.address, resolve_context(tmp_path / "site", tmp_path / "home")
    )
    fork.fetch(commit)
    given = patch(kind=kind, replaces="a/b.py" if kind == "replace" else None)
    (target,) = patch_files.targets("fix", given, text, commit, fork)
    assert target == Target(
        commit=commit,
        before=maker.sha256(BEFORE.decode()),
        after=maker.sha256(after.decode()),
        size=len(after),
        path="a/b.py",
    )
    assert patch_files.apply("fix", kind, text, {"a/b.py": BEFORE}, Local()) == {"a/b.py": after}


def test_a_file_that_is_not_in_the_fork_is_missing(tmp_path: Path, remote: Remote) -> None:
    commit = remote.commit({"c": "other\n"})
    fork = Repository(
        "fork 1", remote.address, resolve_context(tmp_path / "site", tmp_path / "home")
    )
    fork.fetch(commit)
    (target,) = patch_files.targets("fix", patch(), b"new\n", commit, fork)
    assert (target.before, target.path) == (MISSING, "a/b.py")


def test_a_diff_of_several_files() -> None:
    two = DIFF + DIFF.replace(b"a/b.py", b"with space/c.py")
    given = patch(kind="diff", replaces=None)
    assert patch_files.paths("fix", given, two) == ("a/b.py", "with space/c.py")
    before = {"a/b.py": BEFORE, "with space/c.py": BEFORE}
    after = patch_files.apply("fix", "diff", two, before, Local())
    assert after == dict.fromkeys(before, b"one\n2\nthree\n")


def test_a_diff_that_does_not_apply() -> None:
    with pytest.raises(LockError, match=r"^patch fix does not apply to a/b.py$") as error:
        patch_files.apply("fix", "diff", DIFF, {"a/b.py": b"something else\n"}, Local())
    assert "a/b.py" in error.value.detail
    assert patch_specs.FILE in error.value.hint


def test_a_diff_without_files() -> None:
    with pytest.raises(LockError, match="patch fix is no unified diff"):
        patch_files.paths("fix", patch(kind="diff", replaces=None), b"print('no diff')\n")


def test_where_a_patch_is_read_from(tmp_path: Path, remote: Remote) -> None:
    commit = remote.commit({"p/fix.py": "fixed\n"})
    reached = resolve_context(tmp_path / "site", tmp_path / "home")
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "fix.py").write_text("ours\n")

    def read(address: str | None, commit: str | None, path: str) -> bytes:
        return patch_files.read("patch fix", address, commit, path, tmp_path, reached)

    assert read(None, None, "fix.py") == b"ours\n"
    assert read(remote.address, commit, "p/fix.py") == b"fixed\n"
    with pytest.raises(LockError, match=r"^patch fix: patches/gone.py is missing$"):
        read(None, None, "gone.py")
    with pytest.raises(LockError, match=r"^patch fix: fix.py is not in https://git.example/fork"):
        read(remote.address, commit, "fix.py")


def project(folder: Path, commit: str) -> Matrix:
    pins = {"os": {"trixie": maker.OS}, "fork": {"one": maker.git_pin(commit)}}
    layers = {"low": {"base": "os", "pins": ["fork"]}, "fix": {"patches": ["fix"]}}
    variants = [maker.include("v", *layers, os="trixie", fork="one")]
    return maker.write(folder, maker.document(pins, layers, variants), {"fix": PATCH})


def with_targets(read: Matrix, *targets: Target) -> Lock:
    lock = maker.locked(read)
    entry = lock.entries[PATCHES, "fix"]
    text = next(item for item in entry.platforms[ANY] if isinstance(item, PatchText))
    resolved = Entry(requested=entry.requested, platforms={ANY: (text, *targets)})
    return replace(lock, entries={**lock.entries, (PATCHES, "fix"): resolved})


def test_the_plan_of_a_patch_that_fits(tmp_path: Path) -> None:
    read = project(tmp_path, NEEDS)
    lock = maker.locked(read)
    plan = planning.make(read, read.variants[0], lock, maker.ORIGIN)
    (patched,) = plan.layers[1].patches
    text, target = lock.items(PATCHES, "fix", ANY)
    assert isinstance(text, PatchText)
    assert (patched.name, patched.kind, patched.path, patched.sha256) == (
        "fix",
        "replace",
        "fix.py",
        text.sha256,
    )
    assert patched.targets == (target,)
    assert patched.fork == (maker.FORK, NEEDS)
    assert plan.labels["dev.sparkimage.patch.fix"] == f"sha256:{text.sha256}"
    assert planning.judge_patches(read, read.variants[0], lock)["fix"].state is State.APPLIED


def test_a_patch_is_for_the_git_pin_that_it_mentions(tmp_path: Path) -> None:
    pins = {
        "os": {"trixie": maker.OS},
        "app": {"one": maker.git_pin(OTHER, "https://git.example/app.git")},
        "fork": {"one": maker.git_pin(NEEDS)},
    }
    layers = {"low": {"base": "os", "pins": ["app", "fork"]}, "fix": {"patches": ["fix"]}}
    variants = [maker.include("v", *layers, os="trixie", app="one", fork="one")]
    read = maker.write(tmp_path, maker.document(pins, layers, variants), {"fix": PATCH})
    plan = planning.make(read, read.variants[0], maker.locked(read), maker.ORIGIN)
    (patched,) = plan.layers[1].patches
    assert patched.fork == (maker.FORK, NEEDS)


@pytest.mark.parametrize(
    ("commit", "targets", "reason"),
    [
        (NATIVE, (), "native since"),
        (MOVED, (), "its file moved"),
        (OTHER, (), "ddddddddd is not in `needed_by`"),
        (NEEDS, (), "the file that it changes is not in the lock"),
        (NEEDS, (Target(commit=NEEDS, before=MISSING, after=SHA, size=1, path="a/b.py"),),
         "a/b.py is not in the fork at aaaaaaaaa"),
        (NEEDS, (Target(commit=OTHER, before=SHA, after=SHA, size=1, path="a/b.py"),),
         "the file that it changes is not in the lock"),
    ],
)  # fmt: skip
def test_a_plan_with_a_patch_that_does_not_fit_is_refused(
    tmp_path: Path, commit: str, targets: tuple[Target, ...], reason: str
) -> None:
    read = project(tmp_path, commit)
    lock = with_targets(read, *targets)
    with pytest.raises(LockError, match="patch fix does not fit variant v") as error:
        planning.make(read, read.variants[0], lock, maker.ORIGIN)
    assert reason in error.value.message
    assert "python build.py patches" in error.value.hint


@pytest.mark.parametrize("expects", [SHA, None])
def test_a_patch_on_a_ready_image(tmp_path: Path, expects: str | None) -> None:
    pins = {"base": {"1.0.0": {**maker.CUDA, "commit": NEEDS, "python": "3.12"}}}
    layers = {"low": {"base": "base"}, "fix": {"patches": ["fix"]}}
    variants = [maker.include("v", *layers, base="1.0.0")]
    patches = {"fix": {**PATCH, **({"expects": expects} if expects else {})}}
    read = maker.write(tmp_path, maker.document(pins, layers, variants), patches)
    lock = maker.locked(read)
    if expects is None:
        # Nothing says what lies in the image, and there is no source to look into.
        with pytest.raises(LockError, match="the file that it changes is not in the lock"):
            planning.make(read, read.variants[0], lock, maker.ORIGIN)
        return
    (patched,) = planning.make(read, read.variants[0], lock, maker.ORIGIN).layers[1].patches
    (target,) = patched.targets
    assert (target.commit, target.before, target.path) == (NEEDS, SHA, "a/b.py")
    assert target.after == patched.sha256
    assert patched.fork is None
