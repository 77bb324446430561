"""Patches: what patches/patches.yaml says of each, and whether one fits a variant. Pure, but for
reading that file.

A patch is a file that takes another one's place, or a unified diff. Which fork commits need it
and from which one on it is native is written down, never guessed: a fork that is force-pushed
has no order of commits to go by.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.schema import COMMIT
from sparkimage.config.strict import Name, Strict
from sparkimage.core.errors import ConfigError, Problem

FILE = "patches/patches.yaml"
PATCHES = "patches"
"""Stands in the lock where a pin's name does, for the patches, whose values are their names."""
SHA256 = r"^[0-9a-f]{64}$"
PART = r"^[0-9a-f]{7,40}$"
RELATIVE = r"^[^/\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"


class Origin(Strict):
    """Where a patch's file comes from."""

    repository: str = Field(pattern=r"^(https|http|git|ssh)://[^#\s]+$")
    commit: str = Field(pattern=COMMIT)
    path: str = Field(pattern=RELATIVE)
    licence: str = Field(min_length=1, description="SPDX identifier")


class Patch(Strict):
    """One patch."""

    kind: Literal["replace", "diff"]
    purpose: str = Field(min_length=1)
    origin: Origin | None = Field(default=None, description="fetched by commit, never vendored")
    file: str | None = Field(
        default=None, pattern=RELATIVE, description="or a file below patches/ that we wrote"
    )
    root: str = Field(pattern=r"^/.+[^/]$", description="folder in the image that paths are below")
    replaces: str | None = Field(
        default=None, pattern=RELATIVE, description="kind replace: the path below `root`"
    )
    expects: str | None = Field(
        default=None, pattern=SHA256, description="kind replace: what is replaced must be this"
    )
    needed_by: list[Annotated[str, Field(pattern=PART)]] = Field(
        min_length=1, description="fork commits, or their beginnings"
    )
    native_from: str | None = Field(
        default=None, pattern=COMMIT, description="the fork commit that brings it by itself"
    )
    not_for: dict[Annotated[str, Field(pattern=PART)], str] = Field(
        default={}, description="fork commits that it does not fit, and why"
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
    """What a patch is to a variant."""

    APPLIED = "applied"
    NEEDED = "needed, but no layer applies it"
    NOT_NEEDED = "not needed"
    DOES_NOT_FIT = "does not fit"
    UNRESOLVED = "not resolved"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a patch is to a variant, and why."""

    state: State
    reason: str


def load(path: Path) -> Mapping[str, Patch]:
    """Read the file; none means no patches. Raises ``ConfigError`` with every problem."""
    if not path.is_file():
        return {}
    document = yamlfile.load(path)
    found = validation.parse(document, PatchFile).patches
    problems = [
        Problem(file=document.file, line=document.line(("patches", name)), what=what, todo=todo)
        for name, patch in found.items()
        for what, todo in _check(name, patch)
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _check(name: str, patch: Patch) -> list[tuple[str, str]]:
    wrong = []
    if (patch.origin is None) == (patch.file is None):
        wrong.append((f"patch {name} needs either `origin` or `file`", "give it one of the two"))
    if (patch.kind == "replace") != (patch.replaces is not None):
        wrong.append(
            (
                f"patch {name} is of kind {patch.kind}, and `replaces` goes with kind replace",
                "a diff names its own paths; a replacing file needs `replaces`",
            )
        )
    if patch.expects is not None and patch.replaces is None:
        wrong.append((f"patch {name} has `expects` without `replaces`", "leave `expects` out"))
    paths = (patch.file, patch.replaces, patch.origin.path if patch.origin else None)
    wrong += [
        (f"patch {name}: the path {path!r} leads out of its folder", "write it without `..`")
        for path in paths
        if path is not None and ".." in path.split("/")
    ]
    return wrong


def judge(
    patch: Patch, *, commit: str | None, applied: bool, before: Mapping[str, str | None] | None
) -> Verdict:
    """What ``patch`` is to an image of the fork's ``commit``.

    ``applied`` says whether one of its layers has the patch; ``before`` is what the lock holds of
    the files that it changes: sha256 by path, None for a path that is missing; None when nothing
    is locked.
    """
    if commit is None:
        if patch.expects is None:
            return Verdict(
                state=State.DOES_NOT_FIT if applied else State.NOT_NEEDED,
                reason="the image names no fork commit",
            )
        return Verdict(
            state=State.APPLIED if applied else State.NOT_NEEDED, reason="checked in the image"
        )
    for known, reason in patch.not_for.items():
        if same_commit(commit, known):
            return Verdict(state=State.DOES_NOT_FIT, reason=reason)
    if patch.native_from is not None and same_commit(commit, patch.native_from):
        state = State.DOES_NOT_FIT if applied else State.NOT_NEEDED
        return Verdict(state=state, reason=f"native since {patch.native_from[:9]}")
    if not any(same_commit(commit, known) for known in patch.needed_by):
        return Verdict(
            state=State.DOES_NOT_FIT if applied else State.NOT_NEEDED,
            reason=f"{FILE} does not say that {commit[:9]} needs it",
        )
    if not applied:
        return Verdict(state=State.NEEDED, reason=f"{commit[:9]} is in `needed_by`")
    if before is None:
        return Verdict(state=State.UNRESOLVED, reason="what it replaces is not in the lock")
    for path, seen in before.items():
        if seen is None:
            return Verdict(
                state=State.DOES_NOT_FIT, reason=f"{path} is not in the fork at {commit[:9]}"
            )
        if patch.expects is not None and seen != patch.expects:
            return Verdict(
                state=State.DOES_NOT_FIT,
                reason=f"{path} has sha256 {seen[:12]} at {commit[:9]}, not {patch.expects[:12]}",
            )
    return Verdict(state=State.APPLIED, reason=f"to {commit[:9]}")


def names(patch: Patch, commit: str) -> bool:
    """Whether patches.yaml says anything of this commit: that it needs the patch, has it, or does
    not take it."""
    native = [patch.native_from] if patch.native_from is not None else []
    return any(same_commit(commit, one) for one in (*patch.needed_by, *native, *patch.not_for))


def same_commit(commit: str, known: str) -> bool:
    """Whether two commits, one or both abbreviated, are the same."""
    return commit.startswith(known) or known.startswith(commit)


def in_image(root: str, path: str) -> str:
    """Where a path of the fork lies in the image."""
    return posixpath.join(root, path)
