"""Patches: the entries of patches/patches.yaml, and whether one fits a variant.

A patch replaces a file, or is a unified diff. The file may list the fork commits that need it, and
the first one that includes it: the history of a fork that is force-pushed does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.folders import PATCH_FILE
from sparkimage.config.pins import COMMIT, REPOSITORY, SHA256
from sparkimage.config.validation import Finding, Name, Report, Strict

PATCHES = "patches"
"""The lock has the patches under this name, as values of a pin."""
MISSING = "missing"
"""In place of the sha256 of a file that does not exist."""
ROOT = r"^/.+[^/]$"
Abbreviated = Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]
RELATIVE = r"^[^/\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"


class Origin(Strict):
    """The repository that has a patch's file."""

    repository: str = Field(pattern=REPOSITORY, description="https://HOST/PATH")
    commit: str = Field(pattern=COMMIT, description="all 40 digits")
    path: str = Field(pattern=RELATIVE, description="of the patch, in the repository")
    licence: str = Field(min_length=1, description="SPDX identifier")


class Patch(Strict):
    """One patch."""

    kind: Literal["replace", "diff"] = Field(
        description="a whole file, or a diff as of `git diff` or `git format-patch`"
    )
    purpose: str = Field(min_length=1, description="what it is for")
    pin: Name | None = Field(
        default=None,
        alias="for",
        description="the pin that it changes; default: that of the layer's `source`, else the one "
        "with an entry's commit, else the only git pin, else the image below",
    )
    origin: Origin | None = Field(default=None, description="its text: a file of a repository")
    file: str | None = Field(default=None, pattern=RELATIVE, description="or a file below patches/")
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s#]+$",
        description="or a file of a web server, such as a pull request's .diff",
    )
    sha256: str | None = Field(
        default=None, pattern=SHA256, description="of the file at `url`; default: what `lock` finds"
    )
    root: str | None = Field(
        default=None,
        pattern=ROOT,
        description="folder in the image that has the paths; a layer with a `source` needs none",
    )
    replaces: str | None = Field(
        default=None, pattern=RELATIVE, description="kind replace: the path below `root`"
    )
    expects: str | None = Field(
        default=None,
        pattern=rf"{SHA256}|^{MISSING}$",
        description=f"kind replace: sha256 of what is replaced, or `{MISSING}` for a new file",
    )
    exclude: list[Annotated[str, Field(pattern=RELATIVE)]] = Field(
        default=[], description="kind diff: globs on paths that are left out, such as tests/*"
    )
    project: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the wheel with its files; default: the one that is called as their folder",
    )
    needed_by: list[Abbreviated] | None = Field(
        default=None, min_length=1, description="fork commits, in full or abbreviated; default: all"
    )
    native_from: str | None = Field(
        default=None, pattern=COMMIT, description="the first fork commit that includes it"
    )
    not_for: dict[Abbreviated, str] = Field(
        default={}, description="fork commits that it does not fit, with the reason"
    )

    def request(self) -> dict[str, Any]:
        """What `lock` has to resolve: its text, and how that changes files."""
        elsewhere = {"purpose", "pin", "root", "needed_by", "native_from", "not_for"}
        return self.model_dump(exclude=elsewhere, exclude_defaults=True)

    @property
    def repository(self) -> str | None:
        return self.origin.repository if self.origin is not None else None

    @property
    def commit(self) -> str | None:
        return self.origin.commit if self.origin is not None else None

    @property
    def path(self) -> str:
        """The path of its file: in its repository, below patches/, or its URL."""
        return self.origin.path if self.origin is not None else str(self.file or self.url)

    @property
    def place(self) -> str:
        """Where its file is, for messages."""
        if self.origin is not None:
            return f"{self.path} of {self.origin.repository} at {self.origin.commit[:12]}"
        return self.url or f"patches/{self.file}"


class OriginDefaults(Strict):
    """What origins have that do not say otherwise."""

    repository: str | None = Field(
        default=None, pattern=REPOSITORY, description="https://HOST/PATH"
    )
    commit: str | None = Field(default=None, pattern=COMMIT, description="all 40 digits")
    licence: str | None = Field(default=None, min_length=1, description="SPDX identifier")


class PatchDefaults(Strict):
    """What patches have that do not say otherwise."""

    kind: Literal["replace", "diff"] | None = Field(default=None, description="of a patch")
    pin: Name | None = Field(
        default=None, alias="for", description="the pin that the patches change"
    )
    origin: OriginDefaults | None = Field(
        default=None, description="of the patches that have no `file` and no `url`"
    )
    root: str | None = Field(
        default=None, pattern=ROOT, description="folder in the image that has the paths"
    )
    needed_by: list[Abbreviated] | None = Field(
        default=None, min_length=1, description="fork commits that need the patches"
    )
    native_from: str | None = Field(
        default=None, pattern=COMMIT, description="the first fork commit that includes them"
    )


class PatchFile(Strict):
    """patches/patches.yaml"""

    version: Literal[1]
    defaults: PatchDefaults = Field(default=PatchDefaults(), description="what patches share")
    patches: dict[Name, Patch] = Field(description="patches by name, each below `defaults`")


class _Defaults(Strict):
    """The part of the file that all its patches are completed with."""

    defaults: PatchDefaults = PatchDefaults()


class State(StrEnum):
    """What a patch is to a variant."""

    APPLIED = "applied"
    PRESENT = "already there"
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
    if isinstance(document.data, dict) and "defaults" in document.data:
        own = {"defaults": document.data["defaults"]}
        # What is wrong there would only be repeated by every patch.
        validation.parse(replace(document, data=own), _Defaults)
        document = replace(document, data=_completed(document.data))
    patches = validation.parse(document, PatchFile).patches
    report = Report(document)
    for name, patch in patches.items():
        report.extend(("patches", name), _check(patch), f"patch {name} ")
    report.close()
    return patches


def _completed(data: dict[str, Any]) -> dict[str, Any]:
    """The data of the file, in which every patch has the defaults."""
    defaults, patches = data["defaults"], data.get("patches")
    if not isinstance(patches, dict):
        return data
    made = {}
    for name, patch in patches.items():
        whole = patch
        if isinstance(patch, dict):
            whole = {**defaults, **patch}
            if "file" in patch or "url" in patch:
                whole = {**defaults, "origin": None, **patch}
            elif isinstance(patch.get("origin"), dict):
                whole["origin"] = {**defaults.get("origin", {}), **patch["origin"]}
        made[name] = whole
    return {**data, "patches": made}


def _check(patch: Patch) -> Iterator[Finding]:
    if [patch.origin, patch.file, patch.url].count(None) != 2:
        yield (), "needs one of `origin`, `file` and `url`", "give it exactly one"
    if patch.sha256 is not None and patch.url is None:
        yield ("sha256",), "has `sha256` without `url`", "remove it: the lock has the patch's hash"
    if (patch.kind == "replace") != (patch.replaces is not None):
        what = f"is of kind {patch.kind}, and `replaces` goes with kind replace"
        yield (), what, "a diff names its own paths; a replacing file needs `replaces`"
    if patch.expects is not None and patch.replaces is None:
        yield (), "has `expects` without `replaces`", "remove `expects`"
    if patch.exclude and patch.kind == "replace":
        yield ("exclude",), "has `exclude`, which goes with kind diff", "remove `exclude`"
    for path in (patch.file, patch.replaces, patch.origin.path if patch.origin else None):
        if path is not None and ".." in path.split("/"):
            what = f"has the path {path!r}, which leads out of its folder"
            yield (), what, "write it without `..`"


def judge(patch: Patch, *, commit: str | None, applied: bool) -> Verdict:
    """Whether ``patch`` applies to a pin's ``commit``, by what patches.yaml says.

    ``commit`` is None where its pin has none; ``applied`` says whether a layer has the patch.
    """
    unneeded = State.DOES_NOT_FIT if applied else State.NOT_NEEDED
    if commit is None:
        if patch.needed_by is not None and patch.expects is None:
            return Verdict(unneeded, "the image has no fork commit, and `needed_by` lists some")
        return Verdict(State.APPLIED if applied else State.NOT_NEEDED, "for every value")
    for known, reason in patch.not_for.items():
        if same_commit(commit, known):
            return Verdict(State.DOES_NOT_FIT, reason)
    short = commit[:9]
    if patch.native_from is not None and same_commit(commit, patch.native_from):
        return Verdict(unneeded, f"native since {patch.native_from[:9]}")
    if patch.needed_by is None:
        if applied:
            return Verdict(State.APPLIED, f"to {short}")
        return Verdict(State.NOT_NEEDED, "no layer applies it")
    if not any(same_commit(commit, known) for known in patch.needed_by):
        return Verdict(unneeded, f"{short} is not in `needed_by` of {PATCH_FILE}")
    if not applied:
        return Verdict(State.NEEDED, f"{short} is in `needed_by`")
    return Verdict(State.APPLIED, f"to {short}")


def mentions(patch: Patch, commit: str) -> bool:
    """Whether patches.yaml has this commit in any list of the patch."""
    native = [patch.native_from] if patch.native_from is not None else []
    listed = (*(patch.needed_by or ()), *native, *patch.not_for)
    return any(same_commit(commit, known) for known in listed)


def same_commit(commit: str, known: str) -> bool:
    """Whether two commits, one or both abbreviated, are the same."""
    return commit.startswith(known) or known.startswith(commit)
