"""Releases of this project itself, and the issue about what is outdated; no GitHub is asked."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from sparkimage import __version__
from sparkimage.core.errors import SparkError, UsageError
from sparkimage.core.process import Completed
from tools import propose, release

PROJECT = Path(__file__).resolve().parents[2]
CHANGELOG = """# Changelog

## 0.3.0 (unreleased)

- not yet

## 0.2.0 (2026-11-24)

- one
- two

## 0.1.0 (2026-10-01)
"""


def test_the_notes_are_the_versions_section_alone() -> None:
    assert release.section(CHANGELOG, "0.2.0") == "- one\n- two\n"


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("0.3.0", "still calls 0.3.0 unreleased"),
        ("0.1.0", "says nothing of 0.1.0"),
        ("0.2", "no section 0.2"),
        ("9.9.9", "no section 9.9.9"),
    ],
)
def test_notes_of_what_is_not_finished_are_refused(version: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        release.section(CHANGELOG, version)
    assert error.value.hint


def test_a_tag_of_another_version_than_the_packages_is_refused() -> None:
    assert release.number(f"v{__version__}") == release.number(__version__) == __version__
    for wrong in ("v99.0.0", "", "v", f"vv{__version__}"):
        with pytest.raises(UsageError, match="is asked for"):
            release.number(wrong)


def test_the_package_and_the_changelog_are_of_one_version() -> None:
    assert f'version = "{__version__}"' in (PROJECT / "pyproject.toml").read_text()
    assert f"## {__version__}" in (PROJECT / "CHANGELOG.md").read_text()


# The archive.


def git(folder: Path, *words: str, **more: str) -> None:
    env = {
        **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_DATE": "@1700000000 +0000", "GIT_COMMITTER_DATE": "@1700000000 +0000",
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}, **more,
    }  # fmt: skip
    subprocess.run(["git", "-C", str(folder), *words], env=env, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "b").write_text("b\n")
    (folder / "a.sh").write_text("#!/bin/sh\r\n")
    (folder / "a.sh").chmod(0o755)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "v0.2.0")
    return folder


def test_the_archive_holds_the_tags_files_and_nothing_of_the_folder(repository: Path) -> None:
    (repository / "b").write_text("changed since\n")
    (repository / "new").write_text("never added\n")
    packed = release.archive(repository, "0.2.0")
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        members = {one.name: one for one in tar.getmembers() if one.isfile()}
        assert set(members) == {"sparkimage-0.2.0/a.sh", "sparkimage-0.2.0/b"}
        assert {one.mtime for one in members.values()} == {1700000000}
        assert members["sparkimage-0.2.0/a.sh"].mode == 0o755
        assert members["sparkimage-0.2.0/b"].mode == 0o644
        read = tar.extractfile("sparkimage-0.2.0/a.sh")
        assert read is not None
        assert read.read() == b"#!/bin/sh\r\n"


def test_the_archive_is_the_same_bytes_whoever_makes_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = release.archive(repository, "0.2.0")
    assert first[4:8] == bytes(4), "gzip's time"
    assert not first[3] & 8, "gzip's file name"
    # Another clone, another user's configuration, another umask and time zone.
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repository), str(other))
    (tmp_path / "attributes").write_text("b export-ignore\n* text eol=crlf\n")
    (tmp_path / "gitconfig").write_text(
        f"[tar]\n umask = 0077\n[core]\n autocrlf = true\n attributesFile = {tmp_path}/attributes\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    before = os.umask(0o077)
    try:
        assert release.archive(other, "0.2.0") == first
    finally:
        os.umask(before)


def test_an_archive_without_its_tag_is_refused(repository: Path) -> None:
    with pytest.raises(UsageError, match=r"the tag v0\.9\.0 cannot be packed") as error:
        release.archive(repository, "0.9.0")
    assert "git tag" in error.value.hint


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="this is such an archive")
def test_the_projects_own_archive_plans_a_build(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--no-hardlinks", str(PROJECT), str(clone))
    git(clone, "tag", "--force", f"v{__version__}")
    packed = release.archive(clone, __version__)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"sparkimage-{__version__}"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sparkimage", "--only", "vllm*arm64", "--print", "github"],
        cwd=unpacked, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(unpacked), "SPARKIMAGE_MIRRORS": os.devnull},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["include"]


# gh, which is told of: there is no GitHub here.


class Told:
    """Stands for this machine's processes: keeps what it is asked, and answers as it was told."""

    def __init__(self, answers: Mapping[tuple[str, ...], tuple[int, str]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []
        self.given: list[str | None] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float | None = None,
        check: bool = True,
        on_stderr: Callable[[str], None] | None = None,
        on_stdout: Callable[[str], None] | None = None,
    ) -> Completed:
        del env, cwd, timeout_s, check, on_stderr, on_stdout
        self.asked.append(tuple(argv))
        self.given.append(stdin)
        code, said = self.answers.get(tuple(argv[:3]), (0, ""))
        return Completed(argv=tuple(argv), returncode=code, stdout=said, stderr="")


VIEW, LIST = ("gh", "release", "view"), ("gh", "issue", "list")


def test_a_release_is_made_once_and_put_right_after_that() -> None:
    files = (Path("n.md"), Path("s.tar.gz"), Path("s.tar.gz.sha256"))
    new = Told({VIEW: (1, "")})
    release.publish_release(PROJECT, "0.2.0", files, new)
    assert new.asked[1:] == [
        ("gh", "release", "create", "v0.2.0", "--verify-tag", "--title", "v0.2.0",
         "--notes-file", "n.md", "s.tar.gz", "s.tar.gz.sha256"),
    ]  # fmt: skip
    again = Told({VIEW: (0, "")})
    release.publish_release(PROJECT, "0.2.0", files, again)
    assert [one[2] for one in again.asked] == ["view", "edit", "upload"]


NEWS = [{"pin": "vllm 0.32.0", "what": "torch", "locked": "2.13.0", "newest": "2.13.1"}]


def issue(number: int, *, title: str = propose.TITLE, bot: bool = True) -> dict[str, object]:
    return {"number": number, "title": title, "author": {"is_bot": bot}}


@pytest.mark.parametrize(
    ("news", "there", "verbs", "says"),
    [
        (NEWS, [], ["list", "create"], "opened"),
        (NEWS, [issue(7)], ["list", "edit"], "renewed issue 7"),
        ([], [issue(7)], ["list", "close"], "closed issue 7"),
        ([], [], ["list"], "nothing is newer"),
        # Not the workflow's own: a search finds words, and anybody may open an issue.
        (NEWS, [issue(7, title=f"Re: {propose.TITLE}")], ["list", "create"], "opened"),
        (NEWS, [issue(7, bot=False)], ["list", "create"], "opened"),
        ([], [issue(7, bot=False)], ["list"], "nothing is newer"),
    ],
)
def test_one_issue_is_kept(
    news: list[dict[str, str]], there: list[object], verbs: list[str], says: str
) -> None:
    told = Told({LIST: (0, json.dumps(there))})
    assert says in propose.propose(news, told)
    assert [one[2] for one in told.asked] == verbs
    if verbs[-1] in ("create", "edit"):
        assert told.given[-1] == propose.body(news)


def test_the_issue_says_what_is_newer_and_how_to_take_it() -> None:
    text = propose.body(NEWS)
    assert "| `vllm 0.32.0` | `torch` | `2.13.0` | `2.13.1` |" in text
    assert "sparkimage lock --update 'vllm==0.32.0'" in text


def test_nothing_from_outside_leaves_its_cell() -> None:
    evil = {"pin": "a 1", "what": "`@all` |\n# x", "locked": "", "newest": "](http://x)\\|"}
    rows = [line for line in propose.body([evil]).splitlines() if line.startswith("| `")]
    assert rows == ["| `a 1` | `@all    # x` | `-` | `](http://x)` |"]


@pytest.mark.parametrize("text", ["", "{}x", '[{"pin": "a"}]', "[1]", "3"])
def test_what_is_no_news_is_refused(text: str) -> None:
    with pytest.raises(SparkError, match="no news"):
        propose.read(text)
    assert propose.read("[]") == []
