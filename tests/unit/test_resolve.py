"""What `lock` resolves, what it leaves alone, and what `--update` means: on real local git."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config import lockfile, planning
from sparkimage.config.address import Mirrors
from sparkimage.config.lock_items import CHANGES, KEPT, Commit, Step, Target
from sparkimage.config.lockfile import ANY, Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import Key
from sparkimage.config.series import SERIES
from sparkimage.core.errors import LockError, NetworkError, UsageError
from sparkimage.core.process import Completed
from sparkimage.resolve import resolver
from sparkimage.resolve.resolver import Update
from tests.unit import project_maker as maker
from tests.unit.git_maker import SITE, Remote, isolate, resolve_context


class NoProcess:
    """Fails the test that starts a process."""

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        raise AssertionError(f"a process was started: {argv}")


FIX = {"kind": "replace", "purpose": "x", "file": "fix.py", "root": "/opt/x", "replaces": "a/b.py"}
ALL: dict[str, Any] = {
    "os": {"trixie": maker.OS},
    "cuda": {"13.0.0": maker.CUDA},
    "nccl": {"2.30.0": maker.NCCL},
    "app": {"1.0.0": maker.APP},
    "fork": {"one": maker.git_pin("a" * 40), "two": maker.git_pin("b" * 40)},
}
LAYERS: dict[str, Any] = {
    "low": {"base": "os"},
    "debs": {"debs": "nccl"},
    "wheels": {"wheels": {"pin": "app"}},
    "rest": {"pins": ["cuda", "fork"]},
    "fix": {"patches": ["fix"]},
}


def everything(folder: Path) -> Matrix:
    values = {pin: next(iter(found)) for pin, found in ALL.items()}
    variants = [
        maker.include("one", *LAYERS, **values),
        maker.include("two", "low", "rest", **{**values, "fork": "two"}),
        maker.include("amd", "low", "debs", platform="linux/amd64", **values),
    ]
    (folder / "patches").mkdir(exist_ok=True)
    (folder / "patches" / "fix.py").write_text("fixed\n")
    patches = {"fix": {**FIX, "needed_by": ["a" * 40]}}
    return maker.write(folder, maker.document(ALL, LAYERS, variants), patches)


def test_what_is_locked_is_left_alone_and_starts_no_process(tmp_path: Path) -> None:
    read = everything(tmp_path)
    held = maker.locked(read)
    assert {key[0] for key in held.entries} == {*ALL, PATCHES, SERIES}
    done = resolver.resolve(read, held, resolve_context(tmp_path, tmp_path, NoProcess()), Update())
    assert done.lock == held
    assert done.failures == {}
    assert not (tmp_path / "git").exists()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_part_that_is_locked_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "idempotent"
    folder.mkdir(exist_ok=True)
    read = everything(folder)
    held = maker.locked(read)
    # Whatever else lies in the lock goes, and is asked of nobody.
    more = data.draw(st.dictionaries(
        st.tuples(st.sampled_from(["old", *ALL, PATCHES]), st.sampled_from(["x", "y"])),
        st.sampled_from(list(held.entries.values())),
    ))  # fmt: skip
    wider = replace(held, request_digest="0" * 64, entries={**held.entries, **more})
    done = resolver.resolve(read, wider, resolve_context(folder, folder, NoProcess()), Update())
    assert lockfile.dump(done.lock) == lockfile.dump(held)


@pytest.mark.parametrize(
    ("word", "pins", "projects"),
    [
        ("fork", [("fork", "one"), ("fork", "two")], {}),
        ("fork==two", [("fork", "two")], {}),
        ("fork==t*", [("fork", "two")], {}),
        ("nc*", [("nccl", "2.30.0")], {}),
        ("f*", [("fork", "one"), ("fork", "two"), (PATCHES, "fix")], {}),
        ("fix", [(PATCHES, "fix")], {}),
        ("patches==fix", [(PATCHES, "fix")], {}),
        # A wheels pin goes before a project of the same name.
        ("app", [("app", "1.0.0")], {}),
        ("lib", [], {"lib": None}),
        ("lib==2.1", [], {"lib": "2.1"}),
    ],
)
def test_what_a_word_of_update_means(
    tmp_path: Path, word: str, pins: list[Key], projects: Mapping[str, str | None]
) -> None:
    read = everything(tmp_path)
    update = resolver.parse_update(read, maker.locked(read), [word, word])
    assert update == Update(pins=tuple(pins), projects=projects)


@pytest.mark.parametrize(
    ("word", "what", "hint"),
    [
        ("fork==three", "pin fork has no value 'three' that a variant uses; it has one, two",
         "add `three` to pins.fork in matrix.yaml"),
        ("patches==other", "pin patches has no value 'other' that a variant uses; it has fix", ""),
        ("frok", "'frok' is no pin of matrix.yaml and no locked project", "did you mean 'fork'?"),
        ("x*", "'x*' is no pin of matrix.yaml and no locked project", "known are app, cuda"),
        ("fix==2", "'fix==2' is no pin of matrix.yaml and no locked project", "known are"),
        ("libs==2.1", "'libs==2.1' is no pin", "known are"),
        ("", "'' is no pin", "known are"),
    ],
)  # fmt: skip
def test_a_word_of_update_that_means_nothing(
    tmp_path: Path, word: str, what: str, hint: str
) -> None:
    read = everything(tmp_path)
    with pytest.raises(UsageError) as error:
        resolver.parse_update(read, maker.locked(read), ["os", word])
    assert what in error.value.message
    assert hint in error.value.hint


def test_a_project_is_known_from_the_lock_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'lib' is no pin"):
        resolver.parse_update(everything(tmp_path), None, ["lib"])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(monkeypatch)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "site"


def forks(
    folder: Path, *pins: Mapping[str, Any], patches: Mapping[str, Any] | None = None
) -> Matrix:
    """A project with a git pin ``fork<number>`` for each of these, one variant for all."""
    layers: dict[str, Any] = {"low": {"base": "os", "pins": []}}
    values = {"os": {"trixie": maker.OS}}
    for number, pin in enumerate(pins):
        layers["low"]["pins"].append(f"fork{number}")
        values[f"fork{number}"] = {"one": dict(pin)}
    if patches is not None:
        layers["fix"] = {"patches": list(patches)}
    chosen = {pin: next(iter(found)) for pin, found in values.items()}
    variants = [maker.include("v", *layers, **chosen)]
    folder.mkdir(exist_ok=True)
    return maker.write(folder, maker.document(values, layers, variants), patches)


def base_only(read: Matrix) -> Lock:
    """A lock of what needs other clients than git."""
    held = maker.locked(read)
    return replace(held, entries={("os", "trixie"): held.entries["os", "trixie"]})


def changed(before: Lock, after: Lock) -> list[str]:
    """The lines of the lock that are new or gone."""
    lines = difflib.ndiff(lockfile.dump(before).splitlines(), lockfile.dump(after).splitlines())
    return [line for line in lines if line[0] in "+-"]


def test_commits_are_resolved_whole_and_abbreviated(tmp_path: Path, site: Path) -> None:
    remotes = [Remote.make(site, f"{name}.git") for name in "ab"]
    commits = [remote.commit({"x": remote.folder.name}) for remote in remotes]
    read = forks(
        tmp_path / "p",
        maker.git_pin(commits[0], remotes[0].address),
        maker.git_pin(commits[1][:9], remotes[1].address),
    )
    said: list[str] = []
    reached = replace(resolve_context(site, tmp_path / "home"), say=said.append)
    done = resolver.resolve(read, base_only(read), reached, Update())
    assert done.failures == {}
    assert lockfile.check(read, done.lock) == []
    for number, (remote, commit) in enumerate(zip(remotes, commits, strict=True)):
        tree = remote.git("rev-parse", f"{commit}^{{tree}}")
        assert done.lock.items(f"fork{number}", "one", ANY) == (Commit(commit=commit, tree=tree),)
    assert said == [f"fork{n} one any: {commit[:12]}" for n, commit in enumerate(commits)]
    again = resolver.resolve(
        read, done.lock, resolve_context(site, tmp_path, NoProcess()), Update()
    )
    assert lockfile.dump(again.lock) == lockfile.dump(done.lock)


def test_many_pins_of_one_repository(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    commits = [remote.commit({"x": str(number)}) for number in range(8)]
    read = forks(tmp_path / "p", *(maker.git_pin(one, remote.address) for one in commits))
    done = resolver.resolve(
        read, base_only(read), resolve_context(site, tmp_path / "home"), Update()
    )
    assert done.failures == {}


def test_an_update_moves_one_entry_and_no_other(tmp_path: Path, site: Path) -> None:
    remotes = [Remote.make(site, f"{name}.git") for name in "ab"]
    pins = [maker.git_pin(remote.commit({"x": "1"}), remote.address) for remote in remotes]
    read = forks(tmp_path / "p", *pins)
    # The trees of both were made up; only the one that is named is looked at.
    held = maker.locked(read)
    update = resolver.parse_update(read, held, ["fork1"])
    done = resolver.resolve(read, held, resolve_context(site, tmp_path / "home"), update)
    commit = pins[1]["commit"]
    old, new = (held.items("fork1", "one", ANY), done.lock.items("fork1", "one", ANY))
    assert old != new
    assert sorted(changed(held, done.lock)) == [
        f"+           - commit {commit} {remotes[1].git('rev-parse', 'main^{tree}')}",
        f"-           - commit {commit} {maker.sha256('fork1 one')[:40]}",
    ]


UNREACHABLE = [
    ("{}/nowhere", LockError, "there is no repository"),
    ("http://127.0.0.1:9", NetworkError, "cannot be reached"),
]


@pytest.mark.parametrize(("to", "kind", "what"), UNREACHABLE)
def test_what_cannot_be_reached_stays_as_it_was(
    tmp_path: Path, site: Path, to: str, kind: type[Exception], what: str
) -> None:
    remote = Remote.make(site, "here.git")
    pins = (
        maker.git_pin(remote.commit({"x": "1"}), "https://here.example/here.git"),
        maker.git_pin("b" * 40, f"{SITE}/gone.git"),
    )
    read = forks(tmp_path / "p", *pins)
    held = maker.locked(read)
    rules = {SITE: to.format(tmp_path), "https://here.example": str(site)}
    reached = replace(resolve_context(site, tmp_path / "home"), mirrors=Mirrors(rules=rules))
    done = resolver.resolve(read, held, reached, resolver.parse_update(read, held, ["fork*"]))
    assert list(done.failures) == [("fork1", "one")]
    failure = done.failures["fork1", "one"]
    assert isinstance(failure, kind)
    assert what in failure.message
    assert done.lock.entries["fork1", "one"] == held.entries["fork1", "one"]
    # The other one has moved all the same.
    assert done.lock.entries["fork0", "one"] != held.entries["fork0", "one"]
    assert lockfile.check(read, done.lock) == []


@pytest.mark.parametrize(("to", "kind", "what"), UNREACHABLE)
@pytest.mark.parametrize("stale", [False, True])
def test_what_was_never_reached_stands_as_not_resolved(
    tmp_path: Path, site: Path, to: str, kind: type[Exception], what: str, stale: bool
) -> None:
    read = forks(tmp_path / "p", maker.git_pin("b" * 40, f"{SITE}/gone.git"))
    held = base_only(read)
    if stale:
        # What it asked for before counts for nothing.
        entry = Entry(requested={"kind": "git"}, platforms={ANY: (Commit(commit="a", tree="a"),)})
        held = replace(held, entries={**held.entries, ("fork0", "one"): entry})
    reached = replace(
        resolve_context(site, tmp_path / "home"), mirrors=Mirrors(rules={SITE: to.format(tmp_path)})
    )
    done = resolver.resolve(read, held, reached, Update())
    (failure,) = done.failures.values()
    assert isinstance(failure, kind)
    reason = done.lock.unresolved("fork0", "one")
    assert reason == failure.message
    assert what in reason
    assert lockfile.check(read, done.lock) == []
    (path := tmp_path / "matrix.lock").write_text(lockfile.dump(done.lock))
    assert lockfile.dump(lockfile.load(path)) == lockfile.dump(done.lock)
    plan = planning.make(read, read.variants[0], done.lock, maker.ORIGIN)
    assert [(one.pin, one.value, one.reason) for one in plan.unresolved] == [
        ("fork0", "one", reason)
    ]


def variants_of(folder: Path, *pins: Mapping[str, Any]) -> Matrix:
    """As ``forks``, with a variant ``v<number>`` for each pin."""
    values = {"os": {"trixie": maker.OS}}
    values |= {f"fork{number}": {"one": dict(pin)} for number, pin in enumerate(pins)}
    layers: dict[str, Any] = {"low": {"base": "os"}}
    layers |= {f"with{number}": {"pins": [f"fork{number}"]} for number in range(len(pins))}
    variants = [
        maker.include(f"v{n}", "low", f"with{n}", os="trixie", **{f"fork{n}": "one"})
        for n in range(len(pins))
    ]
    folder.mkdir(exist_ok=True)
    return maker.write(folder, maker.document(values, layers, variants))


def test_only_some_variants_are_resolved(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    pins = [
        maker.git_pin(remote.commit({"x": "1"}), remote.address),
        maker.git_pin("b" * 40, f"{SITE}/gone.git"),
        maker.git_pin(remote.commit({"x": "2"}), remote.address),
    ]
    read = variants_of(tmp_path / "p", *pins)
    context = resolve_context(site, tmp_path / "home")
    first = resolver.resolve(read, base_only(read), context, Update(), read.variants[:1])
    # What was not asked for is no failure, and spoils no other variant.
    assert first.failures == {}
    assert lockfile.check(read, first.lock) == []
    assert first.lock.unresolved("fork0", "one") is None
    assert first.lock.unresolved("fork1", "one") == (
        "pin fork1 one: no `lock` has been asked for it yet"
    )
    plans = planning.make_all(read, read.variants, first.lock, maker.ORIGIN)
    assert [bool(plan.unresolved) for plan in plans] == [False, True, True]
    # What was asked for and failed is one; what is there stays.
    second = resolver.resolve(read, first.lock, context, Update(), read.variants[1:2])
    assert list(second.failures) == [("fork1", "one")]
    assert second.lock.entries["fork0", "one"] == first.lock.entries["fork0", "one"]
    third = resolver.resolve(read, second.lock, context, Update(), read.variants[2:])
    assert third.failures == {}
    # The reason of a failure is kept when others are asked for.
    assert third.lock.unresolved("fork1", "one") == second.failures["fork1", "one"].message
    assert third.lock.unresolved("fork2", "one") is None


def patched(folder: Path, commit: str, address: str, *needed: str) -> Matrix:
    patches = {"fix": {**FIX, "needed_by": list(needed)}}
    read = forks(folder, maker.git_pin(commit, address), patches=patches)
    (folder / "patches" / "fix.py").write_text("fixed\n")
    return read


def test_a_patch_is_resolved_against_the_forks_commit(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    commit = remote.commit({"a/b.py": "broken\n"})
    read = patched(tmp_path / "p", commit, remote.address, commit[:8])
    reached = resolve_context(site, tmp_path / "home")
    done = resolver.resolve(read, base_only(read), reached, Update())
    assert done.failures == {}
    assert done.lock.items(SERIES, "fork0 one: fix", ANY) == (
        Step(number=1, state=CHANGES, patch="fix"),
        Target(
            before=maker.sha256("broken\n"),
            after=maker.sha256("fixed\n"),
            size=6,
            mode=KEPT,
            path="a/b.py",
        ),
    )
    # Its own file has changed: that moves it when it is asked to, and nothing else.
    (read.root / "patches" / "fix.py").write_text("better\n")
    same = resolver.resolve(read, done.lock, resolve_context(site, tmp_path, NoProcess()), Update())
    assert same.lock == done.lock
    update = resolver.parse_update(read, done.lock, ["fix"])
    updated = resolver.resolve(read, done.lock, reached, update).lock
    assert {line.split()[2] for line in changed(done.lock, updated)} == {"patch", "target"}


def test_a_patch_that_goes_elsewhere_is_applied_anew(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    commit = remote.commit({"a/b.py": "broken\n", "a/c.py": "broken\n"})
    reached = resolve_context(site, tmp_path / "home")
    read = patched(tmp_path / "p", commit, remote.address, commit)
    held = resolver.resolve(read, base_only(read), reached, Update()).lock
    moved = forks(
        tmp_path / "p",
        maker.git_pin(commit, remote.address),
        patches={"fix": {**FIX, "needed_by": [commit], "replaces": "a/c.py"}},
    )
    done = resolver.resolve(moved, held, reached, Update())
    assert (done.failures, lockfile.check(moved, done.lock)) == ({}, [])
    _, target = done.lock.items(SERIES, "fork0 one: fix", ANY)
    assert isinstance(target, Target)
    assert target.path == "a/c.py"
    # Where it does not fit, what the lock had of it does not stay.
    wrong = forks(
        tmp_path / "p",
        maker.git_pin(commit, remote.address),
        patches={"fix": {**FIX, "needed_by": [commit], "replaces": "c.py"}},
    )
    done = resolver.resolve(wrong, held, reached, Update())
    assert "a file of that name is a/c.py" in str(done.lock.unresolved(SERIES, "fork0 one: fix"))


def test_a_series_stays_where_its_pin_does(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    commit = remote.commit({"a/b.py": "broken\n"})
    read = patched(tmp_path / "p", commit, remote.address, commit)
    held = resolver.resolve(
        read, base_only(read), resolve_context(site, tmp_path / "home"), Update()
    ).lock
    away = resolve_context(tmp_path / "none", tmp_path / "home2")
    done = resolver.resolve(read, held, away, resolver.parse_update(read, held, ["fork0"]))
    assert set(done.failures) == {("fork0", "one"), (SERIES, "fork0 one: fix")}
    assert done.lock == held


def test_a_patch_waits_for_its_fork(tmp_path: Path, site: Path) -> None:
    read = patched(tmp_path / "p", "a" * 40, f"{SITE}/gone.git", "a" * 7)
    done = resolver.resolve(
        read, base_only(read), resolve_context(site, tmp_path / "home"), Update()
    )
    assert set(done.failures) == {("fork0", "one"), (SERIES, "fork0 one: fix")}
    said = done.lock.unresolved(SERIES, "fork0 one: fix")
    assert (
        said
        == "patches of fork0 one: fix: pin fork0 one, which it is resolved against, is not resolved"
    )


def test_a_patch_follows_a_fork_that_moves(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    one, two = (remote.commit({"a/b.py": text}) for text in ("broken\n", "still broken\n"))
    reached = resolve_context(site, tmp_path / "home")
    read = patched(tmp_path / "p", one, remote.address, one, two)
    held = resolver.resolve(read, base_only(read), reached, Update()).lock
    moved = patched(tmp_path / "p", two, remote.address, one, two)
    done = resolver.resolve(moved, held, reached, Update())
    assert (done.failures, lockfile.check(moved, done.lock)) == ({}, [])
    targets = [
        [one.before for one in lock.items(SERIES, "fork0 one: fix", ANY) if isinstance(one, Target)]
        for lock in (held, done.lock)
    ]
    assert targets == [[maker.sha256("broken\n")], [maker.sha256("still broken\n")]]


def test_news_of_a_branch(tmp_path: Path, site: Path) -> None:
    remote = Remote.make(site, "fork.git")
    first = remote.commit({"x": "1"})
    pin = maker.git_pin(first, remote.address, branch="main")
    read = forks(tmp_path / "p", pin)
    # Debian is out of reach of this test: taken as a pin of its own it would ask apt.
    held = resolver.resolve(
        read, base_only(read), resolve_context(site, tmp_path / "home"), Update()
    ).lock
    git_only = replace(read, variants=(replace(read.variants[0], pins={"fork0": "one"}),))
    reached = resolve_context(site, tmp_path / "home")
    news, fresh = resolver.outdated(git_only, held, reached)
    assert (news, fresh.failures) == ((), {})
    tip = remote.commit({"x": "2"})
    (one,), _ = resolver.outdated(git_only, held, reached)
    assert (one.pin, one.what) == ("fork0 one", "branch main")
    assert (one.locked, one.newest) == (first[:12], tip[:12])
