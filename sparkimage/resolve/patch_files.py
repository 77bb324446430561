"""The texts of patches, and the trees that their series are applied to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sparkimage.config.folders import PATCH_FILE
from sparkimage.config.lock_items import PatchText
from sparkimage.config.patch_planning import wheels_of
from sparkimage.config.patch_specs import MISSING
from sparkimage.config.plan import PatchPlan, PatchSeries
from sparkimage.core.errors import Locked, LockError
from sparkimage.core.program import program
from sparkimage.resolve import patching
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.files import Download
from sparkimage.resolve.git import Repository
from sparkimage.resolve.patch_trees import File, GitTree, ImageTree, Tree, WheelTree
from sparkimage.resolve.patching import Patch, Result
from sparkimage.resolve.wheel_files import wheel_file

FILE_NAME = "patch"
"""The name of a patch from a web server in the cache of files."""


def read(patch: PatchPlan, project: Path, context: ResolveContext) -> bytes:
    """A patch's own file: from a repository's commit, a web server, or the project's patches/.

    Raises ``LockError`` when it does not exist, ``NetworkError``.
    """
    title = f"patch {patch.name}"
    if patch.url is not None:
        locked = Locked(title=title, update=f"{program()} lock --update '{patch.name}'")
        file = Download(locked=locked, url=patch.url, name=FILE_NAME, context=context)
        sha256 = patch.sha256 or file.resolve(None).sha256
        return (file.fetch(sha256) / FILE_NAME).read_bytes()
    if patch.repository is None or patch.commit is None:
        local = project / "patches" / patch.path
        if not local.is_file():
            raise LockError(
                f"{title}: patches/{patch.path} is missing", hint=f"correct {PATCH_FILE}"
            )
        return local.read_bytes()
    repository = Repository(title, patch.repository, context)
    repository.fetch(patch.commit)
    data = repository.read(patch.commit, patch.path)
    if data is None:
        raise LockError(
            f"{title}: {patch.path} is not in {patch.repository} at {patch.commit[:9]}",
            hint=f"correct {PATCH_FILE}",
        )
    return data


def summary(data: bytes) -> PatchText:
    """The size and sha256 of a patch's file, for the lock."""
    return PatchText(size=len(data), sha256=patching.sha256(data))


def texts(
    patches: Sequence[PatchPlan], project: Path, context: ResolveContext
) -> tuple[Patch, ...]:
    """The patches with their files. Raises ``LockError`` for one that is not as the lock says."""
    made = []
    for patch in patches:
        data = read(patch, project, context)
        sha256 = patching.sha256(data)
        if sha256 != patch.sha256:
            raise LockError(
                f"patch {patch.name}: its file has sha256 {sha256}, and the lock says "
                f"{patch.sha256}",
                hint=f"look at what changed, then: {program()} lock --update '{patch.name}'",
            )
        made.append(
            Patch(
                name=patch.name,
                kind=patch.kind,
                data=data,
                replaces=patch.replaces,
                expects=patch.expects,
                exclude=patch.exclude,
            )
        )
    return tuple(made)


def apply(one: PatchSeries, project: Path, context: ResolveContext) -> Result:
    """The files that a series changes, before and after.

    Raises ``LockError`` for a patch that does not fit and for what is not as locked,
    ``NetworkError``.
    """
    below, patches = (texts(some, project, context) for some in (one.below, one.patches))
    return patching.apply(tree(one, project, context), patches, below, context.runner)


def after(one: PatchSeries, project: Path, context: ResolveContext) -> dict[str, File | None]:
    """Every file that a series changes as it is after the last patch, by its path in the tree; None
    for a removed one. Errors as ``apply``; ``LockError`` also where they are not as locked."""
    files: dict[str, File | None] = {}
    if all(patch.replaces is not None for patch in one.patches):
        # What is replaced as a whole need not be fetched.
        for text in texts(one.patches, project, context):
            files[str(text.replaces)] = File(text.data)
    else:
        files |= apply(one, project, context).after
    for target in one.targets:
        file = files.get(target.path)
        sha256 = patching.sha256(file.data) if file is not None else MISSING
        if sha256 != target.after:
            names = [patch.name for patch in one.patches]
            raise LockError(
                f"patch {', '.join(names)}: {target.path} has sha256 {sha256[:12]} after it, and "
                f"the lock says {target.after[:12]}",
                hint=f"{program()} lock --update '{names[-1]}'",
            )
    return {target.path: files.get(target.path) for target in one.targets}


def tree(one: PatchSeries, project: Path, context: ResolveContext) -> Tree:
    """The files of a pin, as its series finds them. Errors as ``apply``."""
    locked = Locked.pin(str(one.pin), str(one.value))
    if one.repository is not None and one.commit is not None:
        repository = Repository(str(locked), one.repository, context)
        repository.fetch(one.commit)
        return GitTree(title=one.title, repository=repository, commit=one.commit)
    if one.image is not None:
        root = str(one.root)
        return ImageTree(
            title=one.title, locked=locked, image=one.image, root=root, context=context
        )
    links = project / one.find_links if one.find_links is not None else None
    projects = [patch.project for patch in (*one.below, *one.patches)]

    def wheels(paths: Iterable[str]) -> list[Path]:
        found = wheels_of(one.wheels, projects, paths)
        return [wheel_file(str(locked), wheel, one, links, context) for wheel in found]

    return WheelTree(title=one.title, wheels=wheels)
