"""The files of patches: fetched by commit, and what they make of a fork's files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.lockfile import MISSING, PatchText, Target
from sparkimage.config.patch_specs import FILE, Patch
from sparkimage.core.errors import CommandError, LockError
from sparkimage.core.process import Runner
from sparkimage.resolve.git import Repository

CHANGED = re.compile(r"^\+\+\+ b/(.+?)\t?$", re.MULTILINE)
"""A file that a unified diff writes, as git names it."""


def read(
    title: str,
    address: str | None,
    commit: str | None,
    path: str,
    project: Path,
    repository: Callable[[str, str], Repository],
) -> bytes:
    """A patch's own file: of a repository's commit, or else below the project's patches/.

    Raises ``LockError`` when it is not there, ``NetworkError``.
    """
    if address is None or commit is None:
        local = project / "patches" / path
        if not local.is_file():
            raise LockError(f"{title}: patches/{path} is missing", hint=f"correct {FILE}")
        return local.read_bytes()
    origin = repository(title, address)
    origin.fetch(commit)
    found = origin.read(commit, path)
    if found is None:
        raise LockError(
            f"{title}: {path} is not in {address} at {commit[:9]}", hint=f"correct {FILE}"
        )
    return found


def summary(data: bytes) -> PatchText:
    """What the lock keeps of a patch's file."""
    return PatchText(size=len(data), sha256=_sha256(data))


def targets(
    name: str, patch: Patch, data: bytes, commit: str, fork: Repository
) -> tuple[Target, ...]:
    """Every file that the patch changes at the fork's commit, before and after."""
    before = {path: fork.read(commit, path) for path in paths(name, patch, data)}
    if any(found is None for found in before.values()):
        after: Mapping[str, bytes] = dict.fromkeys(before, b"")
    else:
        after = apply(
            name, patch.kind, data, {path: found or b"" for path, found in before.items()},
            fork.runner,
        )  # fmt: skip
    return tuple(
        sorted(
            Target(
                commit=commit,
                before=MISSING if found is None else _sha256(found),
                after=_sha256(after[path]),
                size=len(after[path]),
                path=path,
            )
            for path, found in before.items()
        )
    )


def paths(name: str, patch: Patch, data: bytes) -> tuple[str, ...]:
    """The paths, below the patch's root, that it changes."""
    if patch.replaces is not None:
        return (patch.replaces,)
    found = tuple(CHANGED.findall(data.decode("utf-8", "replace")))
    if not found:
        raise LockError(
            f"patch {name} is no unified diff: no line begins with `+++ b/`",
            hint="make it with `git diff`, or give it `kind: replace`",
        )
    return found


def apply(
    name: str, kind: str, data: bytes, before: Mapping[str, bytes], runner: Runner
) -> Mapping[str, bytes]:
    """What the patch makes of these files. Raises ``LockError`` when a diff does not apply."""
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


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
