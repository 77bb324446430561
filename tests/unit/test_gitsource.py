"""Commits of git repositories: on real, small, local ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors
from sparkimage.core.errors import LockError, NetworkError
from sparkimage.core.process import Local
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import Repository
from tests.unit.git_maker import SITE, Remote, isolate, resolve_context


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    isolate(monkeypatch)
    return Remote.make(tmp_path / "site", "fork.git")


@pytest.fixture
def repository(tmp_path: Path, remote: Remote) -> Repository:
    return Repository(
        "pin fork 1", remote.address, resolve_context(tmp_path / "site", tmp_path / "home")
    )


def test_a_commit_its_tree_and_its_files(remote: Remote, repository: Repository) -> None:
    first = remote.commit({"a/b.py": "one\n", "link": "a"})
    second = remote.commit({"a/b.py": "two\n"})
    for commit, said in ((first, b"one\n"), (second, b"two\n"), (first, b"one\n")):
        repository.fetch(commit)
        assert repository.tree(commit) == remote.git("rev-parse", f"{commit}^{{tree}}")
        assert repository.read(commit, "a/b.py") == said
        assert repository.read(commit, "a") is None
        assert repository.read(commit, "a/c.py") is None


def test_the_digits_that_are_missing_are_found(remote: Remote, repository: Repository) -> None:
    commits = [remote.commit({"a": f"{i}\n"}) for i in range(3)]
    side = remote.commit({"a": "side\n"}, branch="side")
    remote.git("update-ref", "refs/tags/old", side)
    remote.git("update-ref", "-d", "refs/heads/side")
    for commit in (*commits, side):
        assert repository.full_commit(commit[:8], "main") == commit


def test_a_beginning_that_nothing_has(remote: Remote, repository: Repository) -> None:
    remote.commit({"a": "1\n"})
    with pytest.raises(LockError, match=r"pin fork 1: no branch or tag of \S+ leads to") as error:
        repository.full_commit("0123456789", "topic")
    assert "0123456789" in error.value.message
    assert "all 40 digits" in error.value.hint
    assert "topic" in error.value.hint


def test_a_commit_that_was_pushed_away_is_fetched_while_it_is_there(
    remote: Remote, repository: Repository
) -> None:
    remote.commit({"a": "base\n"})
    gone = remote.commit({"a": "gone\n"})
    remote.git("update-ref", "refs/heads/main", f"{gone}~1")
    repository.fetch(gone)
    assert repository.read(gone, "a") == b"gone\n"
    # No branch leads to it, so that its beginning finds it nowhere else.
    context = repository.context
    other = replace(repository, context=replace(context, home=context.home / "other"))
    with pytest.raises(LockError, match="no branch or tag"):
        other.full_commit(gone[:10], "main")


def test_a_commit_that_vanished_is_named(remote: Remote, repository: Repository) -> None:
    kept = remote.commit({"a": "base\n"})
    gone = remote.commit({"a": "gone\n"})
    remote.git("update-ref", "refs/heads/main", kept)
    remote.git("reflog", "expire", "--expire=now", "--all")
    remote.git("gc", "--quiet", "--prune=now")
    with pytest.raises(LockError, match=r"pin fork 1: .*no longer has the commit") as error:
        repository.fetch(gone)
    assert gone in error.value.message
    assert "name a mirror" in error.value.hint
    # What was fetched before it vanished needs the server no more.
    repository.fetch(kept)
    assert repository.tree(kept)


def test_a_branch_has_a_tip(remote: Remote, repository: Repository) -> None:
    tip = remote.commit({"a": "1\n"})
    repository.fetch(tip)
    assert repository.tip("main") == tip
    assert repository.tip("mai") is None


@pytest.mark.parametrize(
    ("to", "kind", "what"),
    [
        ("{}/nowhere", LockError, "there is no repository https://git.example/fork.git"),
        ("http://127.0.0.1:9", NetworkError, "https://git.example/fork.git cannot be reached"),
    ],
)
def test_no_repository_is_not_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, kind: type[Exception], what: str
) -> None:
    isolate(monkeypatch)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    reached = ResolveContext(
        home=tmp_path / "home",
        runner=Local(),
        mirrors=Mirrors(rules={SITE: to.format(tmp_path)}),
        say=lambda _: None,
    )
    with pytest.raises(kind, match=f"pin fork 1: {what}"):
        Repository("pin fork 1", f"{SITE}/fork.git", reached).fetch("a" * 40)


def test_a_tag_is_no_commit(remote: Remote, repository: Repository) -> None:
    commit = remote.commit({"a": "1\n"})
    text = f"object {commit}\ntype commit\ntag v1\ntagger n <n@example.org> 0 +0000\n\nv1\n"
    tag = remote.git("mktag", stdin=text)
    remote.git("update-ref", "refs/tags/v1", tag)
    repository.fetch(tag)
    with pytest.raises(LockError, match=f"pin fork 1: {tag} is a tag") as error:
        repository.tree(tag)
    assert commit in error.value.hint
    assert repository.full_commit(tag[:8], None) == commit
