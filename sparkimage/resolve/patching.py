"""Applies a series of patches to the files of a tree, and says exactly what does not fit.

``git apply`` does the work, outside of any repository, on a folder with those files that the
patches name: https://git-scm.com/docs/git-apply.
"""

from __future__ import annotations

import email
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.folders import PATCH_FILE
from sparkimage.config.lock_items import CHANGES, KEPT, PRESENT, Step, Target
from sparkimage.config.patch_specs import MISSING
from sparkimage.core.errors import CommandError, LockError
from sparkimage.core.process import Runner
from sparkimage.resolve.patch_trees import File, Tree

HUNK = re.compile(r"^@@ -(?P<old>\d+)(?:,(?P<lines>\d+))? \+\d+(?:,(?P<more>\d+))? @@")
MBOX = re.compile(rb"From [0-9a-f]{40,64} \w{3} \w{3} +\d")
"""The first line of what `git format-patch` writes."""
CRLF = re.compile(rb"^\+\+\+ [^\r\n]*\r$", re.MULTILINE)
"""The path of a diff whose lines end as Windows' do; those of its hunks may, for such a file."""
NO_FIT = re.compile(r"^error: patch failed: (.+):(\d+)$", re.MULTILINE)
ABSENT = re.compile(r"^error: (.+): No such file or directory$", re.MULTILINE)
THERE = re.compile(r"^error: (.+): already exists in working directory$", re.MULTILINE)
SHOWN = 12
"""Lines of git's own words below an error."""
ENVIRONMENT = {"LC_ALL": "C"}


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A patch with its text."""

    name: str
    kind: str
    data: bytes
    replaces: str | None = None
    expects: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The files that a series changes: before its first and after its last patch, None for one
    that is not there; and what each patch was, in their order."""

    before: Mapping[str, File | None]
    after: Mapping[str, File | None]
    steps: tuple[Step, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """As the lock has them."""
        return tuple(_target(path, self.before[path], self.after[path]) for path in self.after)


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def apply(tree: Tree, patches: Sequence[Patch], below: Sequence[Patch], runner: Runner) -> Result:
    """Apply ``below`` and then ``patches`` to the files of ``tree``, each to what the one before
    made. Raises ``LockError`` for one that does not fit, with file, hunk and state of the tree."""
    paths = sorted({path for patch in (*below, *patches) for path in _named_by(patch)})
    found = tree.read(paths)
    with TemporaryDirectory(prefix="sparkimage-patch-") as name:
        folder = _Folder(tree=tree, root=Path(name, "tree"), runner=runner)
        folder.write({path: file for path, file in found.items() if file is not None})
        for patch in below:
            folder.apply(patch, ())
        before = folder.files()
        steps = tuple(
            Step(number=number, state=folder.apply(patch, patches), patch=patch.name)
            for number, patch in enumerate(patches, 1)
        )
        after = folder.files()
    named = {path for patch in patches for path in _named_by(patch)}
    changed = sorted(
        path
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path) or (path in named and path in after)
    )
    return Result(
        before={path: before.get(path) for path in changed},
        after={path: after.get(path) for path in changed},
        steps=steps,
    )


def _target(path: str, before: File | None, after: File | None) -> Target:
    if not path.isprintable() or path != path.strip() or "\\" in path:
        raise LockError(
            f"a patch changes a file with a name that cannot be locked: {path!r}",
            hint="rename it in the patch",
        )
    sums = [MISSING if file is None else sha256(file.data) for file in (before, after)]
    mode = KEPT
    if after is not None and (before is None or before.executable != after.executable):
        mode = "755" if after.executable else "644"
    size = len(after.data) if after is not None else 0
    return Target(before=sums[0], after=sums[1], size=size, mode=mode, path=path)


def _named_by(patch: Patch) -> Iterator[str]:
    if patch.replaces is not None:
        yield patch.replaces
        return
    for header in _headers(patch.data.decode("utf-8", "surrogateescape")):
        for path in header.paths:
            # git-apply's globs match a / as well, and it refuses paths that lead out.
            left_out = any(fnmatch.fnmatchcase(path, glob) for glob in patch.exclude)
            if not left_out and not path.startswith("/") and ".." not in path.split("/"):
                yield path


@dataclass
class _Header:
    """A file's part of a diff: every path that its lines name, and where its hunks begin."""

    paths: set[str] = field(default_factory=set)
    hunks: list[int] = field(default_factory=list)


def _headers(text: str) -> list[_Header]:
    """The parts of a diff, with or without git's own header lines."""
    parts: list[_Header] = []
    old = new = 0
    for line in text.split("\n"):
        if old > 0 or new > 0:
            # In a hunk every line counts for one of the sides, or for both.
            old -= line[:1] in ("-", " ", "")
            new -= line[:1] in ("+", " ", "")
            continue
        if (hunk := HUNK.match(line)) is not None and parts:
            old, new = (int(hunk[side] or 1) for side in ("lines", "more"))
            parts[-1].hunks.append(int(hunk["old"]))
        elif line.startswith("diff --git ") or (
            line.startswith("--- ") and (not parts or parts[-1].hunks)
        ):
            parts.append(_Header())
        if parts:
            parts[-1].paths.update(_paths(line))
    return parts


def _paths(line: str) -> Iterator[str]:
    """The paths that a header line names."""
    for start in ("rename from ", "rename to ", "copy from ", "copy to "):
        if line.startswith(start):
            yield _unquoted(line.removeprefix(start))
    if line.startswith(("--- ", "+++ ")):
        yield from _below(_unquoted(line[4:].partition("\t")[0]))
    elif line.startswith("diff --git "):
        # Of a file without hunks the two names are the same: git-apply's git_header_name().
        rest = line.removeprefix("diff --git ")
        first, second = rest[: len(rest) // 2], rest[len(rest) // 2 + 1 :]
        if _unquoted(first).partition("/")[2] == _unquoted(second).partition("/")[2]:
            yield from _below(_unquoted(first))


def _below(path: str) -> Iterator[str]:
    """A path without its first part, ``a/`` or ``b/``."""
    if path != "/dev/null" and "/" in path:
        yield path.partition("/")[2]


def _unquoted(path: str) -> str:
    """A path as git quotes it: https://git-scm.com/docs/git-config#Documentation/git-config.txt-corequotePath"""
    if not (path.startswith('"') and path.endswith('"') and path[1:]):
        return path
    plain = path[1:-1].encode("utf-8", "surrogateescape").decode("unicode_escape")
    return plain.encode("latin-1").decode("utf-8", "surrogateescape")


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """The files of a tree that patches name, while they are patched."""

    tree: Tree
    root: Path
    runner: Runner
    applied: list[str] = field(default_factory=list)

    def write(self, files: Mapping[str, File]) -> None:
        self.root.mkdir(exist_ok=True)
        for path, file in files.items():
            place = self.root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.data)
            place.chmod(0o755 if file.executable else 0o644)

    def files(self) -> dict[str, File]:
        found = {}
        for place in sorted(self.root.rglob("*")):
            path = str(place.relative_to(self.root))
            if place.is_symlink():
                raise LockError(
                    f"patch {self.applied[-1]} makes a symbolic link: {path}",
                    hint="make it in the Dockerfile of a layer; a patch can only change files",
                )
            if place.is_file():
                found[path] = File(place.read_bytes(), os.access(place, os.X_OK))
        return found

    def apply(self, patch: Patch, series: Sequence[Patch]) -> str:
        """Apply a patch of a series: ``CHANGES``, or ``PRESENT`` where nothing was to be done."""
        if patch.replaces is not None:
            state = self._replace(patch, patch.replaces, series)
        else:
            state = self._apply_diffs(patch, series)
        self.applied.append(patch.name)
        return state

    def _replace(self, patch: Patch, path: str, series: Sequence[Patch]) -> str:
        place = self.root / path
        there = place.read_bytes() if place.is_file() else None
        if there == patch.data:
            return PRESENT
        if there is None and patch.expects != MISSING:
            raise self._error(patch, series, [self._absent(path)], todo="correct the path")
        if there is not None and patch.expects is not None and patch.expects != sha256(there):
            what = "already there, and is another" if patch.expects == MISSING else "another"
            seen = f"{path} is {what} (sha256 {sha256(there)}, expected {patch.expects})"
            raise self._error(patch, series, [seen])
        executable = there is not None and os.access(place, os.X_OK)
        self.write({path: File(patch.data, executable)})
        return CHANGES

    def _apply_diffs(self, patch: Patch, series: Sequence[Patch]) -> str:
        states = {
            self._apply_diff(patch, series, text, of) for text, of in self._split(patch, series)
        }
        return CHANGES if CHANGES in states else PRESENT

    def _split(self, patch: Patch, series: Sequence[Patch]) -> list[tuple[bytes, str]]:
        """The diffs of a patch, each with what it is: of a mailbox one for each commit."""
        if not _headers(patch.data.decode("utf-8", "surrogateescape")):
            what = "it is no unified diff: it names no file"
            todo = "put the text of `git diff` there, or of a pull request's .diff"
            raise self._error(patch, series, [what], todo=todo)
        if CRLF.search(patch.data):
            what = "its lines end as Windows' do (CRLF), and with them its paths"
            todo = "save it with LF, and tell git: `patches/** -text` in .gitattributes"
            raise self._error(patch, series, [what], todo=todo)
        if not MBOX.match(patch.data):
            return [(patch.data, "")]
        with TemporaryDirectory(prefix="sparkimage-mbox-") as name:
            folder = Path(name)
            (folder / "mbox").write_bytes(patch.data)
            count = int(self._git("mailsplit", "--keep-cr", f"-o{folder}", str(folder / "mbox")))
            diffs = []
            for number in range(1, count + 1):
                mail = email.message_from_bytes((folder / f"{number:04}").read_bytes())
                text = mail.get_payload(decode=True)
                assert isinstance(text, bytes)
                subject = re.sub(r"\s+", " ", str(mail["Subject"]))
                if _headers(text.decode("utf-8", "surrogateescape")):
                    diffs.append((text, f"its commit {number} of {count} ({subject}): "))
        return diffs

    def _apply_diff(self, patch: Patch, series: Sequence[Patch], text: bytes, of: str) -> str:
        diff = self.root.with_name("patch.diff")
        diff.write_bytes(text)
        words = [*(f"--exclude={glob}" for glob in patch.exclude), str(diff)]
        try:
            self._git("apply", "--whitespace=nowarn", "--verbose", *words)
        except CommandError as error:
            try:
                self._git("apply", "--whitespace=nowarn", "--reverse", "--check", *words)
            except CommandError:
                raise self._explain(patch, series, text, of, error.output) from None
            return PRESENT
        return CHANGES

    def _explain(
        self, patch: Patch, series: Sequence[Patch], text: bytes, of: str, output: str
    ) -> LockError:
        """The error for a diff, from git's own words: every file, and the first hunk of each."""
        headers = _headers(text.decode("utf-8", "surrogateescape"))
        wrong = []
        for path, line in NO_FIT.findall(output):
            hunks = next((part.hunks for part in headers if path in part.paths), [])
            at = f"line {line}"
            if int(line) in hunks:
                at = f"hunk {hunks.index(int(line)) + 1} of {len(hunks)} (line {line})"
            wrong.append(f"{of}{path}: {at} does not fit")
        absent = ABSENT.findall(output)
        wrong += [of + self._absent(path) for path in absent]
        wrong += [f"{of}{path} is there already" for path in THERE.findall(output)]
        lines = [line for line in output.splitlines() if line and not line.startswith("Checking ")]
        wrong = wrong or [of + lines[-1].removeprefix("error: ") if lines else "git apply fails"]
        if not absent:
            return self._error(patch, series, wrong, lines[:SHOWN])
        return self._error(patch, series, wrong, lines[:SHOWN], todo="correct the path")

    def _absent(self, path: str) -> str:
        places = [p for p in self.tree.named(path.rpartition("/")[2]) if p != path]
        now = f"; a file of that name is {' and '.join(places[:3])}" if places else ""
        return f"{path} is not there{now}"

    def _error(
        self, patch: Patch, series: Sequence[Patch], wrong: Sequence[str],
        lines: Sequence[str] = (), *,
        todo: str = "create it again for that state, or correct the order of `patches`",
    ) -> LockError:  # fmt: skip
        number = next((n for n, one in enumerate(series, 1) if one is patch), 0)
        place = f" ({number} of {len(series)})" if len(series) > 1 else ""
        after = f", after {', '.join(self.applied)}" if self.applied else ""
        return LockError(
            f"patch {patch.name}{place} does not apply to {self.tree.title}{after}: {wrong[0]}",
            hint=f"{todo}; where it is not needed, say so in {PATCH_FILE} (`needed_by`, `not_for`)",
            detail="\n".join([*wrong[1:], *lines]),
        )

    def _git(self, *words: str) -> str:
        # Not in a repository: outside of one `git apply` works on plain files.
        environment = {**ENVIRONMENT, "GIT_CEILING_DIRECTORIES": str(self.root.parent)}
        return self.runner.run(["git", *words], cwd=self.root, env=environment).stdout
