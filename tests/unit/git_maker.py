"""Makes small real git repositories, and reaches them as a mirror of an address is reached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors
from sparkimage.core.process import Local, Runner
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import Repository

SITE = "https://git.example"
"""Stands for a forge; a mirror leads to a folder of bare repositories."""


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's configuration of git nor the time of the day counts."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "nobody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "nobody@example.org")
        monkeypatch.setenv(f"GIT_{who}_DATE", "2026-01-02T03:04:05+0000")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """One bare repository below a site's folder."""

    folder: Path

    @classmethod
    def make(cls, site: Path, name: str) -> Remote:
        remote = cls(folder=site / name)
        git("init", "--quiet", "--bare", "--initial-branch=main", str(remote.folder))
        for key in ("uploadpack.allowAnySHA1InWant", "uploadpack.allowFilter"):
            remote.git("config", key, "true")
        return remote

    @property
    def address(self) -> str:
        return f"{SITE}/{self.folder.name}"

    def there(self, context: ResolveContext) -> Repository:
        """It, as a pin reaches it."""
        return Repository("pin fork one", self.address, context)

    def git(self, *words: str, stdin: str | None = None) -> str:
        return git("--git-dir", str(self.folder), *words, stdin=stdin)

    def commit(self, files: dict[str, str], message: str = "x", *, branch: str = "main") -> str:
        """A commit of these files and no others, on top of what the branch has."""
        parent = self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
        tree = self._tree(files)
        ours = self.git("commit-tree", tree, "-m", message, *(("-p", parent) if parent else ()))
        self.git("update-ref", f"refs/heads/{branch}", ours)
        return ours

    def _tree(self, files: dict[str, str]) -> str:
        here: list[str] = []
        below: dict[str, dict[str, str]] = {}
        for path, text in files.items():
            first, slash, rest = path.partition("/")
            if slash:
                below.setdefault(first, {})[rest] = text
            else:
                blob = self.git("hash-object", "-w", "--stdin", stdin=text)
                here.append(f"100644 blob {blob}\t{first}\n")
        here += [f"040000 tree {self._tree(part)}\t{name}\n" for name, part in below.items()]
        return self.git("mktree", stdin="".join(here))


def git(*words: str, stdin: str | None = None) -> str:
    return Local().run(["git", *words], stdin=stdin).stdout.strip()


def resolve_context(site: Path, home: Path, runner: Runner | None = None) -> ResolveContext:
    """What reaches ``SITE`` as the folder ``site``, and nothing else."""
    mirrors = Mirrors(rules={SITE: str(site)})
    return ResolveContext(home=home, runner=runner or Local(), mirrors=mirrors, say=lambda _: None)
