"""Commits of git repositories: found, fetched by their 40 digits, and looked into.

Only what is needed comes over the wire: one commit without its history, files when they are
read (https://git-scm.com/docs/partial-clone).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.address import Mirrors
from sparkimage.core import locks
from sparkimage.core.errors import CommandError, LockError, NetworkError
from sparkimage.core.process import Runner

ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
GONE = re.compile(
    r"not our ref|couldn't find remote ref|unadvertised object|no such remote ref|bad object"
)
NO_REPOSITORY = re.compile(r"epository .*not found|does not appear to be a git|not exported")
HISTORY_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One repository, as far as it was fetched into the home."""

    title: str
    """The pin that asks, for messages."""
    address: str
    home: Path
    runner: Runner
    mirrors: Mirrors

    @property
    def folder(self) -> Path:
        return self.home / "git" / hashlib.sha256(self.address.encode()).hexdigest()[:16]

    def fetch(self, commit: str) -> None:
        """Have the commit (40 digits) and its trees. Raises ``LockError``, ``NetworkError``."""
        with self._alone():
            self._prepare()
            # A ref of our own says so: asking for the object would fetch it, history and all.
            held = f"refs/held/{commit}"
            if not self._said("for-each-ref", held):
                self._fetch(
                    "--depth=1", "--filter=blob:none", "--no-tags", "origin", f"{commit}:{held}"
                )

    def tree(self, commit: str) -> str:
        """The tree that a fetched commit names."""
        return self._said("rev-parse", f"{commit}^{{tree}}")

    def whole(self, part: str, branch: str | None) -> str:
        """All 40 digits of an abbreviated commit, from the history of every branch and tag.

        Raises ``LockError`` when none, or more than one, begins so.
        """
        with self._alone():
            return self._whole(part, branch)

    def _whole(self, part: str, branch: str | None) -> str:
        self._prepare()
        refs = [f"+refs/{kind}/*:refs/seen/{kind}/*" for kind in ("heads", "tags")]
        self._fetch("--filter=tree:0", "--no-tags", "origin", *refs)
        try:
            found = self._said("rev-parse", "--verify", "--quiet", f"{part}^{{commit}}")
        except CommandError as error:
            many = "ambiguous" in error.output
            raise LockError(
                f"{self.title}: "
                + (f"more than one commit of {self.address} begins with {part}" if many else
                   f"no branch or tag of {self.address} leads to a commit {part}…"),
                hint="write all 40 digits in the matrix; a commit that was force-pushed away "
                f"({branch or 'its branch'}) can only be had from somebody who still has it: "
                "name a mirror",
            ) from None  # fmt: skip
        return found

    def tip(self, branch: str) -> str | None:
        """The commit that a branch stands for now; None when there is no such branch."""
        said = self._outside("ls-remote", self._url, f"refs/heads/{branch}")
        return said.split()[0] if said else None

    def read(self, commit: str, path: str) -> bytes | None:
        """A file of a fetched commit as a checkout gives it; None when it is not there."""
        if not self._said("ls-tree", commit, "--", path).startswith("100"):
            return None
        with self._alone(), TemporaryDirectory(prefix="sparkimage-git-") as name:
            # A checkout and not cat-file: what a build's context holds has gone through it too.
            self._outside(
                f"--work-tree={name}", "-c", "core.autocrlf=false",
                "checkout", "--force", commit, "--", path,
            )  # fmt: skip
            return Path(name, path).read_bytes()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time, of all threads and programs: git's own locks fail at once."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(self.folder.with_suffix(".lock")):
            yield

    @property
    def _url(self) -> str:
        return self.mirrors.of(self.address)

    def _prepare(self) -> None:
        if not (self.folder / "HEAD").is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.runner.run(["git", "init", "--quiet", "--bare", str(self.folder)])
        for name, value in (
            ("remote.origin.url", self._url),
            ("remote.origin.promisor", "true"),
            ("remote.origin.partialclonefilter", "blob:none"),
        ):
            self._said("config", name, value)

    def _fetch(self, *words: str) -> None:
        self._outside("fetch", "--quiet", "--force", *words)

    def _outside(self, *words: str) -> str:
        """A git command that may ask the server, its failures in a user's words."""
        argv = ["git", "--git-dir", str(self.folder), *words]
        try:
            done = self.runner.run(argv, env=ENVIRONMENT, timeout_s=HISTORY_TIMEOUT_S)
        except CommandError as error:
            said = error.output
            if GONE.search(said):
                raise LockError(
                    f"{self.title}: {self.address} no longer has the commit "
                    f"{words[-1].partition(':')[0]}: its "
                    "branch was force-pushed, or it was removed",
                    hint="pin a commit that is there, or name a mirror that still has this one",
                    detail=said,
                ) from None
            if NO_REPOSITORY.search(said):
                raise LockError(
                    f"{self.title}: there is no repository {self.address}",
                    hint="correct its address in the matrix, or name a mirror",
                    detail=said,
                ) from None
            raise NetworkError(
                f"{self.title}: {self.address} cannot be reached",
                hint="run this where it can be reached, or name a mirror",
                detail=said,
            ) from None
        return done.stdout.strip()

    def _said(self, *words: str) -> str:
        argv = ["git", "--git-dir", str(self.folder), *words]
        return self.runner.run(argv, env=ENVIRONMENT).stdout.strip()
