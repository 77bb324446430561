"""The files of patches: fetched by commit, and applied to a fork's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.lockfile import MISSING, PatchText, Target
from sparkimage.config.patch_specs import FILE, Patch
from sparkimage.core.errors import CommandError, LockError
from sparkimage.core.process import Runner
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import Repository

CHANGED = re.compile(r"^\+\+\+ b/(.+?)\t?$", re.MULTILINE)
"""A file that a unified diff writes, as git names it."""


def read(
    title: str,
    address: str | None,
    commit: str | None,
    path: str,
    project: Path,
    context: ResolveContext,
) -> bytes:
    """A patch's own file: from a repository's commit, or else from the project's patches/.

    Raises ``LockError`` when it does not exist, ``NetworkError``.
    """
    if address is None or commit is None:
        local = project / "patches" / path
        if not local.is_file():
            raise LockError(f"{title}: patches/{path} is missing", hint=f"correct {FILE}")
        return local.read_bytes()
    repository = Repository(title, address, context)
    repository.fetch(commit)
    data = repository.read(commit, path)
    if data is None:
        raise LockError(
            f"{title}: {path} is not in {address} at {commit[:9]}", hint=f"correct {FILE}"
        )
    return data


def summary(data: bytes) -> PatchText:
    """The size and sha256 of a patch's file, for the lock."""
    return PatchText(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def targets(
    name: str, patch: Patch, data: bytes, commit: str, fork: Repository
) -> tuple[Target, ...]:
    """Every file that the patch changes at the fork's commit, before and after."""
    before = {path: fork.read(commit, path) for path in paths(name, patch, data)}
    existing = {path: content for path, content in before.items() if content is not None}
    after: Mapping[str, bytes] = dict.fromkeys(before, b"")
    if len(existing) == len(before):
        after = apply(name, patch.kind, data, existing, fork.context.runner)
    return tuple(
        sorted(
            Target(
                commit=commit,
                before=MISSING if content is None else summary(content).sha256,
                after=summary(after[path]).sha256,
                size=len(after[path]),
                path=path,
            )
            for path, content in before.items()
        )
    )


def paths(name: str, patch: Patch, data: bytes) -> tuple[str, ...]:
    """The paths, below the patch's root, that it changes."""
    if patch.replaces is not None:
        return (patch.replaces,)
    changed = tuple(CHANGED.findall(data.decode("utf-8", "replace")))
    if not changed:
        raise LockError(
            f"patch {name} is no unified diff: no line begins with `+++ b/`",
            hint="make it with `git diff`, or give it `kind: replace`",
        )
    return changed


def apply(
    name: str, kind: str, data: bytes, before: Mapping[str, bytes], runner: Runner
) -> Mapping[str, bytes]:
    """These files, patched. Raises ``LockError`` when a diff does not apply."""
    if kind == "replace":
        return dict.fromkeys(before, data)
    with TemporaryDirectory(prefix="sparkimage-patch-") as folder:
        root = Path(folder, "tree")
        for path, content in before.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        diff = Path(folder, "patch.diff")
        diff.write_bytes(data)
        try:
            # Not in a repository: outside of one `git apply` works on plain files.
            runner.run(
                ["git", "apply", "--whitespace=nowarn", str(diff)], cwd=root,
                env={"GIT_CEILING_DIRECTORIES": folder},
            )  # fmt: skip
        except CommandError as error:
            raise LockError(
                f"patch {name} does not apply to {', '.join(before)}",
                hint="it was made for another version of these files: correct `needed_by` or "
                f"`origin` in {FILE}",
                detail=error.detail,
            ) from None
        return {path: (root / path).read_bytes() for path in before}
