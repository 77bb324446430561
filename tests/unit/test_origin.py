"""What the labels say of git: on real repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.config import origin
from sparkimage.config.plan import Origin
from sparkimage.core.process import Local


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "nobody@example.org")
        monkeypatch.setenv(f"GIT_{who}_DATE", "2026-01-02T03:04:05+0000")
    # Neither the user's configuration nor a repository above counts.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return Local().run(["git", "-C", str(folder), *words]).stdout.strip()


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "--message", name)
    return git(folder, "rev-parse", "HEAD")


def test_only_what_decides_an_image_moves_the_revision(project: Path) -> None:
    git(project, "init", "--quiet")
    first = commit(project, "matrix.yaml", "a")
    git(project, "remote", "add", "origin", "https://user:secret@example.org/a/b.git")
    expected = Origin(source="https://example.org/a/b.git", revision=first, epoch=1767323045)
    assert origin.of(project, None, Local()) == expected
    commit(project, "README.md", "words")
    (project / "README.md").write_text("other words")
    assert origin.of(project, None, Local()) == expected
    assert origin.of(project, "https://set.example", Local()).source == "https://set.example"
    (project / "matrix.yaml").write_text("b")
    assert origin.of(project, None, Local()).revision == f"{first}-dirty"
    second = commit(project, "matrix.yaml", "b")
    assert origin.of(project, None, Local()).revision == second


def test_no_repository_is_unknown(project: Path) -> None:
    unknown = Origin(source="unknown", revision="unknown", epoch=0)
    assert origin.of(project, None, Local()) == unknown
    git(project, "init", "--quiet")
    assert origin.of(project, None, Local()) == unknown


@pytest.mark.parametrize(
    ("remote", "public"),
    [
        ("https://example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://user:secret@example.org/a", "https://example.org/a"),
        ("https://user:s@cr@t@example.org/a", "https://example.org/a"),
        ("https://secret@example.org:8443/a@b", "https://example.org:8443/a@b"),
        ("ssh://git@example.org:22/a", "ssh://example.org:22/a"),
        ("git@example.org:a/b.git", "ssh://example.org/a/b.git"),
        ("example.org:a/b", "ssh://example.org/a/b"),
        ("/srv/git/a.git", ""),
        ("../a", ""),
        ("file:///srv/git/a", ""),
        ("", ""),
    ],
)
def test_no_login_and_no_local_path_reaches_a_label(remote: str, public: str) -> None:
    assert origin._public(remote) == public
