"""Patches: the entries of patches/patches.yaml, and whether one fits a variant.

A patch replaces a file, or is a unified diff. The file lists the fork commits that need it, and
the first one that includes it: the history of a fork that is force-pushed does not tell.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.schema import COMMIT, REPOSITORY, SHA256
from sparkimage.config.validation import Finding, Name, Report, Strict

FILE = "patches/patches.yaml"
PATCHES = "patches"
"""The lock has the patches under this name, as values of a pin."""
Abbreviated = Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]
RELATIVE = r"^[^/\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"


class Origin(Strict):
    """The repository that has a patch's file."""

    repository: str = Field(pattern=REPOSITORY)
    commit: str = Field(pattern=COMMIT)
    path: str = Field(pattern=RELATIVE)
    licence: str = Field(min_length=1, description="SPDX identifier")


class Patch(Strict):
    """One patch."""

    kind: Literal["replace", "diff"]
    purpose: str = Field(min_length=1)
    origin: Origin | None = Field(default=None, description="fetched by commit")
    file: str | None = Field(default=None, pattern=RELATIVE, description="or a file below patches/")
    root: str = Field(pattern=r"^/.+[^/]$", description="folder in the image that has the paths")
    replaces: str | None = Field(
        default=None, pattern=RELATIVE, description="kind replace: the path below `root`"
    )
    expects: str | None = Field(
        default=None, pattern=SHA256, description="kind replace: sha256 of what is replaced"
    )
    needed_by: list[Abbreviated] = Field(
        min_length=1, description="fork commits, in full or abbreviated"
    )
    native_from: str | None = Field(
        default=None, pattern=COMMIT, description="the first fork commit that includes it"
    )
    not_for: dict[Abbreviated, str] = Field(
        default={}, description="fork commits that it does not fit, with the reason"
    )

    @property
    def place(self) -> tuple[str | None, str | None, str]:
        """Where its file is: repository and commit (or neither), and path."""
        if self.origin is not None:
            return self.origin.repository, self.origin.commit, self.origin.path
        return None, None, str(self.file)


class PatchFile(Strict):
    """patches/patches.yaml"""

    version: Literal[1]
    patches: dict[Name, Patch]


class State(StrEnum):
    """Whether a patch applies to a variant."""

    APPLIED = "applied"
    NEEDED = "needed, but no layer applies it"
    NOT_NEEDED = "not needed"
    DOES_NOT_FIT = "does not fit"
    UNRESOLVED = "not resolved"


@dataclass(frozen=True)
class Verdict:
    """Whether a patch applies to a variant, and why."""

    state: State
    reason: str


def load(path: Path) -> Mapping[str, Patch]:
    """Read the file; none means no patches. Raises ``ConfigError`` with every problem."""
    if not path.is_file():
        return {}
    document = yamlfile.load(path)
    patches = validation.parse(document, PatchFile).patches
    report = Report(document)
    for name, patch in patches.items():
        report.extend(("patches", name), _check(patch), f"patch {name} ")
    report.close()
    return patches


def _check(patch: Patch) -> Iterator[Finding]:
    if (patch.origin is None) == (patch.file is None):
        yield (), "needs either `origin` or `file`", "give it one of the two"
    if (patch.kind == "replace") != (patch.replaces is not None):
        what = f"is of kind {patch.kind}, and `replaces` goes with kind replace"
        yield (), what, "a diff names its own paths; a replacing file needs `replaces`"
    if patch.expects is not None and patch.replaces is None:
        yield (), "has `expects` without `replaces`", "remove `expects`"
    for path in (patch.file, patch.replaces, patch.origin.path if patch.origin else None):
        if path is not None and ".." in path.split("/"):
            what = f"has the path {path!r}, which leads out of its folder"
            yield (), what, "write it without `..`"


def judge(
    patch: Patch, *, commit: str | None, applied: bool, before: Mapping[str, str | None] | None
) -> Verdict:
    """Whether ``patch`` applies to an image of the fork's ``commit``.

    ``applied`` says whether one of its layers has the patch; ``before`` are the locked files that
    it changes: sha256 by path, None for a missing one; None when nothing is locked.
    """
    unneeded = State.DOES_NOT_FIT if applied else State.NOT_NEEDED
    if commit is None and patch.expects is None:
        return Verdict(unneeded, "the image has no fork commit")
    if commit is None:
        return Verdict(State.APPLIED if applied else State.NOT_NEEDED, "checked in the image")
    for known, reason in patch.not_for.items():
        if same_commit(commit, known):
            return Verdict(State.DOES_NOT_FIT, reason)
    short = commit[:9]
    if patch.native_from is not None and same_commit(commit, patch.native_from):
        return Verdict(unneeded, f"native since {patch.native_from[:9]}")
    if not any(same_commit(commit, known) for known in patch.needed_by):
        return Verdict(unneeded, f"{short} is not in `needed_by` of {FILE}")
    if not applied:
        return Verdict(State.NEEDED, f"{short} is in `needed_by`")
    if before is None:
        return Verdict(State.UNRESOLVED, "the file that it changes is not in the lock")
    for path, sha256 in before.items():
        if sha256 is None:
            return Verdict(State.DOES_NOT_FIT, f"{path} is not in the fork at {short}")
        if patch.expects is not None and patch.expects != sha256:
            reason = f"{path} has sha256 {sha256[:12]} at {short}, not {patch.expects[:12]}"
            return Verdict(State.DOES_NOT_FIT, reason)
    return Verdict(State.APPLIED, f"to {short}")


def mentions(patch: Patch, commit: str) -> bool:
    """Whether patches.yaml has this commit in any list of the patch."""
    native = [patch.native_from] if patch.native_from is not None else []
    return any(same_commit(commit, known) for known in (*patch.needed_by, *native, *patch.not_for))


def same_commit(commit: str, known: str) -> bool:
    """Whether two commits, one or both abbreviated, are the same."""
    return commit.startswith(known) or known.startswith(commit)


def in_image(root: str, path: str) -> str:
    """The path in the image of a file of the fork."""
    return posixpath.join(root, path)
