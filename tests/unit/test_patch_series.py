"""Series of patches, applied to real trees: what they make of them, and what is said where not."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config.lock_items import CHANGES, KEPT, PRESENT
from sparkimage.config.patch_specs import MISSING
from sparkimage.core.errors import LockError
from sparkimage.core.process import Local
from sparkimage.resolve import patching
from sparkimage.resolve.patch_trees import File, GitTree, WheelTree
from sparkimage.resolve.patching import Patch, Result, sha256
from tests.unit.git_maker import Remote, isolate, resolve_context


@dataclass(frozen=True)
class Plain:
    """A tree of these files."""

    files: dict[str, bytes]
    title: str = "fork one (aaaaaaaaa)"

    def read(self, paths: Iterable[str]) -> dict[str, File | None]:
        return {path: File(self.files[path]) if path in self.files else None for path in paths}

    def named(self, name: str) -> Sequence[str]:
        return [path for path in self.files if path.rpartition("/")[2] == name]


LINES = [f"x{number} = {number}\n" for number in range(1, 41)]
BASE = "".join(LINES).encode()


def diff(name: str, text: str, exclude: tuple[str, ...] = ()) -> Patch:
    return Patch(name=name, kind="diff", data=text.encode(), exclude=exclude)


def change(line: int, old: str, new: str, path: str = "vllm/a.py") -> str:
    """A diff of one line with a line of context on each side."""
    return (
        f"--- a/{path}\n+++ b/{path}\n@@ -{line - 1},3 +{line - 1},3 @@\n"
        f" {LINES[line - 2]}-{old}\n+{new}\n {LINES[line]}"
    )


def apply(files: dict[str, bytes], *patches: Patch, below: Sequence[Patch] = ()) -> Result:
    return patching.apply(Plain(files), patches, below, Local())


def test_each_patch_is_applied_to_what_the_one_before_made() -> None:
    one = diff("one", change(5, "x5 = 5", 'x5 = "one"'))
    two = diff("two", change(5, 'x5 = "one"', 'x5 = "two"'))
    far = diff("far", change(30, "x30 = 30", 'x30 = "three"'))
    result = apply({"vllm/a.py": BASE}, one, far, two)
    after = BASE.replace(b"x5 = 5\n", b'x5 = "two"\n').replace(b"x30 = 30", b'x30 = "three"')
    (target,) = result.targets
    assert (target.path, target.before, target.after, target.size, target.mode) == (
        "vllm/a.py", sha256(BASE), sha256(after), len(after), KEPT,
    )  # fmt: skip
    assert [(step.number, step.state, step.patch) for step in result.steps] == [
        (1, CHANGES, "one"), (2, CHANGES, "far"), (3, CHANGES, "two"),
    ]  # fmt: skip
    # A layer above starts with what the ones below have made.
    (target,) = apply({"vllm/a.py": BASE}, two, below=[one, far]).targets
    before = after.replace(b'"two"', b'"one"')
    assert (target.before, target.after) == (sha256(before), sha256(after))


def test_new_removed_and_renamed_files_and_modes() -> None:
    made = diff(
        "made",
        "diff --git a/new/tool b/new/tool\nnew file mode 100755\n--- /dev/null\n+++ b/new/tool\n"
        "@@ -0,0 +1 @@\n+run\n"
        "diff --git a/empty b/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-bye\n"
        "diff --git a/old name b/new name\nsimilarity index 100%\n"
        "rename from old name\nrename to new name\n"
        "diff --git a/plain b/plain\nold mode 100644\nnew mode 100755\n",
    )
    files = {"gone": b"bye\n", "old name": b"same\n", "plain": b"p\n", "other": b"o\n"}
    targets = apply(files, made).targets
    assert {t.path: (t.before, t.after, t.mode) for t in targets} == {
        "empty": (MISSING, sha256(b""), "644"),
        "gone": (sha256(b"bye\n"), MISSING, KEPT),
        "new name": (MISSING, sha256(b"same\n"), "644"),
        "new/tool": (MISSING, sha256(b"run\n"), "755"),
        "old name": (sha256(b"same\n"), MISSING, KEPT),
        "plain": (sha256(b"p\n"), sha256(b"p\n"), "755"),
    }
    # A file of several patches that is gone again was never there.
    again = diff("again", "diff --git a/empty b/empty\ndeleted file mode 100644\n")
    assert "empty" not in {target.path for target in apply(files, made, again).targets}


def test_what_the_files_have_already() -> None:
    one = diff("one", change(5, "x5 = 5", "x5 = 6"))
    whole = Patch(name="whole", kind="replace", data=b"new\n", replaces="b.py")
    changed = BASE.replace(b"x5 = 5\n", b"x5 = 6\n")
    result = apply({"vllm/a.py": changed, "b.py": b"new\n"}, one, whole)
    assert [step.state for step in result.steps] == [PRESENT, PRESENT]
    assert {(t.path, t.before == t.after) for t in result.targets} == {
        ("vllm/a.py", True), ("b.py", True),
    }  # fmt: skip


def test_whole_files_and_diffs_of_them() -> None:
    whole = Patch(name="whole", kind="replace", data=BASE, replaces="vllm/a.py")
    one = diff("one", change(5, "x5 = 5", "x5 = 6"))
    (target,) = apply({"vllm/a.py": b"x\n"}, whole, one).targets
    assert target.after == sha256(BASE.replace(b"x5 = 5\n", b"x5 = 6\n"))
    new = Patch(name="new", kind="replace", data=b"n\n", replaces="n.py", expects=MISSING)
    (target,) = apply({}, new).targets
    assert (target.before, target.mode) == (MISSING, "644")
    expected = Patch(name="x", kind="replace", data=b"n\n", replaces="n", expects=sha256(b"o"))
    assert apply({"n": b"o"}, expected).steps[0].state == CHANGES


def test_paths_that_are_left_out() -> None:
    both = change(5, "x5 = 5", "x5 = 6") + change(5, "x5 = 5", "x5 = 6", "tests/deep/t.py")
    one = diff("one", both, exclude=("tests/*",))
    (target,) = apply({"vllm/a.py": BASE, "tests/deep/t.py": BASE}, one).targets
    assert target.path == "vllm/a.py"
    assert apply({"vllm/a.py": BASE}, one).targets == (target,)


def mail(number: int, subject: str, text: str) -> str:
    return (
        f"From {'a' * 40} Mon Sep 17 00:00:00 2001\nFrom: A <a@example.org>\n"
        f"Date: Thu, 1 Jan 2026 00:00:00 +0000\nSubject: [PATCH {number}/2] {subject}\n\n"
        f"Why:\n--- a/not/a/file\n\n---\n vllm/a.py | 2 +-\n\n{text}-- \n2.39.5\n\n"
    )


def test_a_mailbox_of_commits() -> None:
    first = mail(1, "one", change(5, "x5 = 5", "x5 = 6"))
    second = mail(2, "two\n words", change(5, "x5 = 6", "x5 = 7"))
    (target,) = apply({"vllm/a.py": BASE}, diff("pull", first + second)).targets
    assert target.after == sha256(BASE.replace(b"x5 = 5\n", b"x5 = 7\n"))
    wrong = mail(2, "two\n words", change(5, "x5 = 1", "x5 = 7"))
    with pytest.raises(LockError) as error:
        apply({"vllm/a.py": BASE}, diff("pull", first + wrong))
    assert error.value.message == (
        "patch pull does not apply to fork one (aaaaaaaaa): its commit 2 of 2 ([PATCH 2/2] two "
        "words): vllm/a.py: hunk 1 of 1 (line 4) does not fit"
    )


def test_a_diff_that_does_not_fit_says_file_hunk_and_state() -> None:
    one = diff("one", change(5, "x5 = 5", "x5 = 6"))
    two = diff("two", change(9, "x9 = 9", "x9 = 8") + change(20, "x20 = 0", "x20 = 1")[32:])
    with pytest.raises(LockError) as error:
        apply({"vllm/a.py": BASE}, one, two)
    assert error.value.message == (
        "patch two (2 of 2) does not apply to fork one (aaaaaaaaa), after one: "
        "vllm/a.py: hunk 2 of 2 (line 19) does not fit"
    )
    assert "x20 = 0" in error.value.detail
    assert "create it again for that state" in error.value.hint
    assert "patches/patches.yaml" in error.value.hint


def test_a_file_that_moved_is_named() -> None:
    files = {"vllm/models/a.py": BASE, "vllm/other/a.py": b""}
    whole = Patch(name="fix", kind="replace", data=b"x", replaces="vllm/a.py")
    for patch in (whole, diff("fix", change(5, "x5 = 5", "x5 = 6"))):
        with pytest.raises(LockError) as error:
            apply(files, patch)
        assert error.value.message == (
            "patch fix does not apply to fork one (aaaaaaaaa): vllm/a.py is not there; a file of "
            "that name is vllm/models/a.py and vllm/other/a.py"
        )
        assert error.value.hint.startswith("correct the path; where it is not needed")


NEW = "diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+n\n"
TWO = change(5, "x5 = 1", "x5 = 6") + change(5, "x5 = 5", "x5 = 6", "gone.py")


@pytest.mark.parametrize(
    ("patch", "files", "what"),
    [
        (diff("p", "print('no diff')\n"), {}, "it is no unified diff: it names no file"),
        (diff("p", change(5, "x5 = 5", "x5 = 6").replace("\n", "\r\n")), {"vllm/a.py": BASE},
         "its lines end as Windows' do (CRLF)"),
        (diff("p", NEW), {"n": b"o"}, "n is there already"),
        (diff("p", TWO), {"vllm/a.py": BASE}, "hunk 1 of 1 (line 4) does not fit\ngone.py is not"),
        (diff("p", NEW.replace("/n ", "/../n ").replace("b/n\n", "b/../n\n")), {}, "invalid path"),
        (diff("p", "--- a/n\n+++ b/n\n@@ -1,2 +1 @@\n-a\n"), {"n": b"a\n"}, "corrupt patch"),
        (diff("p", "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n"
              "@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"), {},
         "patch p makes a symbolic link: l"),
        (diff("p", 'diff --git "a/a\\nb" "b/a\\nb"\nnew file mode 100644\n'), {},
         "cannot be locked: 'a\\nb'"),
        (Patch(name="p", kind="replace", data=b"n", replaces="n", expects=MISSING), {"n": b"o"},
         "n is already there, and is another"),
        (Patch(name="p", kind="replace", data=b"n", replaces="n", expects="1" * 64), {"n": b"o"},
         "n is another (sha256 "),
    ],
)  # fmt: skip
def test_what_does_not_apply(patch: Patch, files: dict[str, bytes], what: str) -> None:
    with pytest.raises(LockError) as error:
        _ = apply(files, patch).targets
    assert what in f"{error.value.message}\n{error.value.detail}"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    isolate(monkeypatch)
    return Remote.make(tmp_path / "site", "fork.git")


def test_the_tree_of_a_commit(tmp_path: Path, remote: Remote) -> None:
    commit = remote.commit({"vllm/a.py": "one\n", "b/a.py": "two\n", "[x]": "three\n"})
    repository = resolve_context(tmp_path / "site", tmp_path / "home")
    tree = GitTree(title="x", repository=remote.there(repository), commit=commit)
    tree.repository.fetch(commit)
    assert tree.read(["vllm/a.py", "[x]", "gone", "b"]) == {
        "vllm/a.py": File(b"one\n"), "[x]": File(b"three\n"), "gone": None, "b": None,
    }  # fmt: skip
    assert tree.named("a.py") == ["b/a.py", "vllm/a.py"]


def test_the_files_of_wheels(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm/a.py", "one\n")
        tool = zipfile.ZipInfo("vllm/tool")
        tool.external_attr = 0o100755 << 16
        archive.writestr(tool, "run\n")
    tree = WheelTree(title="x", wheels=lambda _: [wheel])
    assert tree.read(["vllm/a.py", "vllm/tool", "vllm/gone"]) == {
        "vllm/a.py": File(b"one\n"), "vllm/tool": File(b"run\n", executable=True),
        "vllm/gone": None,
    }  # fmt: skip
    assert tree.named("a.py") == ["vllm/a.py"]


contents = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=12).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)
paths = st.sampled_from(["a", "b c", "d/e", "d/f g", "h\u00e4"])
trees = st.lists(st.dictionaries(paths, contents, max_size=4), min_size=2, max_size=5)


@settings(max_examples=25, deadline=None)
@given(trees, st.booleans())
def test_a_series_makes_what_git_am_makes(states: list[dict[str, str]], mailed: bool) -> None:
    """Each patch is the difference of a generated tree to the next one."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        isolate(monkeypatch)
        remote = Remote.make(Path(name), "fork.git")
        commits = [remote.commit(files) for files in states]
        patches = []
        for number, (old, new) in enumerate(itertools.pairwise(commits)):
            words = ("format-patch", "--stdout", "-1", new) if mailed else ("diff", old, new)
            argv = ["git", "--git-dir", str(remote.folder), *words]
            text = Local().run(argv).stdout
            if "diff --git" in text:
                patches.append(diff(str(number), text))
        base = {path: text.encode() for path, text in states[0].items()}
        result = apply(base, *patches)
        made = {path: File(data) for path, data in base.items()}
        for path, file in result.after.items():
            if file is None:
                made.pop(path, None)
            else:
                made[path] = file
        assert {path: file.data.decode() for path, file in made.items()} == states[-1]
