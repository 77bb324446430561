"""Commits of git repositories: resolved, fetched by their 40 digits, and read.

Only what is needed is transferred: one commit without its history, files when they are read
(https://git-scm.com/docs/partial-clone).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from sparkimage.config.plan import GitTree, SourceBuild
from sparkimage.core import locks
from sparkimage.core.errors import CommandError, Locked, LockError
from sparkimage.resolve import outputs
from sparkimage.resolve.context import ResolveContext, unreachable

ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
    # ssh asks nothing either, whichever ssh the user has git call: what it asks, a program that
    # fails answers (https://man.openbsd.org/ssh#SSH_ASKPASS_REQUIRE).
    "SSH_ASKPASS": "false",
    "SSH_ASKPASS_REQUIRE": "force",
}
FETCH = ("fetch", "--quiet", "--force", "--no-tags")
HISTORY_TIMEOUT_S = 900.0


def fetched(commit: SourceBuild | GitTree, context: ResolveContext) -> Repository:
    """The repository of a plan's commit, which is fetched. Errors as ``Repository.fetch``."""
    title = str(Locked.pin(commit.pin, commit.value))
    repository = Repository(title, commit.repository, context)
    repository.fetch(commit.commit)
    return repository


@dataclass(frozen=True)
class Repository:
    """A git repository, and the bare clone of it in the home."""

    title: str
    """The pin that needs it, for messages."""
    address: str
    context: ResolveContext

    @property
    def folder(self) -> Path:
        """The bare clone."""
        name = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return self.context.home / "git" / name

    def fetch(self, commit: str) -> None:
        """Fetch the commit (40 digits) and its trees. Raises ``LockError``, ``NetworkError``."""
        with self._lock():
            self._init()
            # The ref tells that it was fetched: asking for the object would fetch its history.
            ref = f"refs/held/{commit}"
            if not self._git("for-each-ref", ref):
                self._remote(*FETCH, "--depth=1", "--filter=blob:none", "origin", f"{commit}:{ref}")

    def tree(self, commit: str) -> str:
        """The tree of a fetched commit. Raises ``LockError`` for the id of a tag."""
        if (real := self._git("rev-parse", f"{commit}^{{commit}}")) != commit:
            raise LockError(
                f"{self.title}: {commit} is a tag, and no commit",
                hint=f"write its commit in the matrix: {real}",
            )
        return self._git("rev-parse", f"{commit}^{{tree}}")

    def paths(self, commit: str) -> tuple[str, ...]:
        """The paths of all files of a fetched commit."""
        names = self._git("ls-tree", "-r", "-z", "--name-only", commit)
        return tuple(filter(None, names.split("\0")))

    def full_commit(self, start: str, branch: str | None) -> str:
        """All 40 digits of an abbreviated commit, from the history of every branch and tag.

        Raises ``LockError`` when none, or more than one, begins with ``start``.
        """
        with self._lock():
            self._init()
            refs = [f"+refs/{kind}/*:refs/seen/{kind}/*" for kind in ("heads", "tags")]
            self._remote(*FETCH, "--filter=tree:0", "origin", *refs)
            try:
                return self._git("rev-parse", "--verify", "--quiet", f"{start}^{{commit}}")
            except CommandError as error:
                problem = f"no branch or tag of {self.address} leads to a commit {start}…"
                if "ambiguous" in error.output:
                    problem = f"more than one commit of {self.address} begins with {start}"
                raise LockError(
                    f"{self.title}: {problem}",
                    hint="write all 40 digits in the matrix; a commit that was force-pushed away "
                    f"({branch or 'its branch'}) is only in clones that still have it: name one "
                    "as a mirror",
                ) from None

    def tip(self, branch: str) -> str | None:
        """The newest commit of a branch; None when there is no such branch."""
        line = self._remote("ls-remote", self._url, f"refs/heads/{branch}")
        return line.split()[0] if line else None

    def read(self, commit: str, path: str) -> bytes | None:
        """A file of a fetched commit as a checkout writes it; None when the commit has none."""
        file = self.read_files(commit, [path])[path]
        return file[0] if file is not None else None

    def read_files(self, commit: str, paths: Iterable[str]) -> dict[str, tuple[bytes, bool] | None]:
        """Files of a fetched commit as a checkout writes them, and whether they are executable;
        None for what is no regular file of it."""
        wanted = list(paths)
        listed = self._git("--literal-pathspecs", "ls-tree", "-z", commit, "--", *wanted)
        entries = (entry.partition("\t") for entry in listed.split("\0") if entry)
        modes = {path: head.split()[0] for head, _, path in entries if head.startswith("100")}
        files: dict[str, tuple[bytes, bool] | None] = dict.fromkeys(wanted)
        if modes:
            with TemporaryDirectory(prefix="sparkimage-git-") as name:
                self.checkout(commit, Path(name), sorted(modes))
                for path, mode in modes.items():
                    files[path] = Path(name, path).read_bytes(), mode == "100755"
        return files

    def checkout(self, commit: str, folder: Path, paths: Iterable[str] = (".",)) -> None:
        """Write files of a fetched commit into ``folder``, as for a build's context: with the
        attributes, which cat-file does not apply."""
        with self._lock():
            self._remote(
                f"--work-tree={folder}", "-c", "core.autocrlf=false", "--literal-pathspecs",
                "checkout", "--force", commit, "--", *paths,
            )  # fmt: skip

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One thread or program at a time: git's own locks fail at once."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(self.folder.with_suffix(".lock")):
            yield

    @property
    def _url(self) -> str:
        return self.context.mirrors.of(self.address)

    def _init(self) -> None:
        if not (self.folder / "HEAD").is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.context.runner.run(["git", "init", "--quiet", "--bare", str(self.folder)])
        for name, value in (
            ("url", self._url), ("promisor", "true"), ("partialclonefilter", "blob:none")
        ):  # fmt: skip
            self._git("config", f"remote.origin.{name}", value)

    def _remote(self, *words: str) -> str:
        """A git command that may ask the server. Raises ``LockError``, ``NetworkError``."""
        try:
            return self._git(*words)
        except CommandError as error:
            known = outputs.explain(
                "git", error.output, detail=error.output, title=self.title, address=self.address,
                commit=words[-1].partition(":")[0], login=urlsplit(self._url).netloc,
            )  # fmt: skip
            raise known or unreachable(self.title, self.address, error.output) from None

    def _git(self, *words: str) -> str:
        argv = ["git", "--git-dir", str(self.folder), *words]
        done = self.context.runner.run(argv, env=ENVIRONMENT, timeout_s=HISTORY_TIMEOUT_S)
        return done.stdout.strip()
