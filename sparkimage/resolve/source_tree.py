"""The build context of a source that is patched, or that BuildKit cannot fetch: the commit's tree
with its .git, patched.

A context is a folder of the home. Its files depend on the commit and the patches alone: .git holds
the commit and, where there are patches, one on top of it that has them, without dates, logs or
deltas of this machine, so that BuildKit's cache finds a tree that it knows, and `git status` has
nothing to say.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from sparkimage.config.plan import GitTree, LayerPlan, PatchSeries, SourceBuild
from sparkimage.core.errors import LockError
from sparkimage.core.files import DATE, new_folder
from sparkimage.resolve import frontends, git, patch_files
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import ENVIRONMENT, Repository
from sparkimage.resolve.patch_trees import File

FORM = 1
"""Raised with every change of how a context is made."""
COMMITTER, ROLES = "sparkimage", ("AUTHOR", "COMMITTER")
PATCHED = "a patched tree", "move the patches to a layer above"
SSH = "a tree that is fetched with ssh", "take what is in them as `inputs`"
"""What has no submodules, and what to do about it."""
IGNORE = "# As of a git context: nothing is left out.\n"


def is_local(layer: LayerPlan, context: ResolveContext) -> bool:
    """Whether the layer's source is such a folder. The private engine has no ssh, and any other one
    not the user's: what is fetched with ssh is fetched here."""
    source = layer.source
    return source is not None and (
        bool(layer.patches) or context.mirrors.over_ssh(source.repository)
    )


def context(layer: LayerPlan, project: Path, context: ResolveContext) -> Path:
    """The folder with the ``tree`` of a patched source, and its ``Dockerfile`` beside it.

    Raises ``LockError`` for what is not as locked or cannot be a context, ``NetworkError``.
    """
    source = layer.source
    assert source is not None
    for one in layer.patches:
        # A file of ours that was edited is no longer the locked one.
        patch_files.texts(one.patches, project, context)
    content = repr(
        (FORM, source.repository, source.commit, source.context, layer.dockerfile,
         layer.syntax is None, layer.patches)
    )  # fmt: skip
    folder = context.home / "sources" / hashlib.sha256(content.encode()).hexdigest()[:24]
    if folder.is_dir():
        return folder
    context.say(f"preparing the files of {source.pin} {source.value}")
    with new_folder(folder) as new:
        tree = new / "tree"
        tree.mkdir()
        repository = git.fetched(source, context)
        what, todo = SSH if not layer.patches else PATCHED
        _refuse_submodules(repository, source, what, todo)
        repository.checkout(source.commit, tree)
        files: dict[str, File | None] = {}
        for one in layer.patches:
            files |= patch_files.after(one, project, context)
            _write(tree, one, files)
        _commit(tree, repository, source, layer.patches, context)
        # Beside the tree: the .dockerignore of a Dockerfile's own folder goes before the tree's,
        # which a git context does not heed.
        dockerfile = tree / (source.context or "") / source.dockerfile
        if not dockerfile.is_file():
            raise LockError(
                f"pin {source.pin} {source.value}: {source.dockerfile} is not there after the "
                "patches",
                hint="correct `dockerfile` of the layer, or the patches",
            )
        text = dockerfile.read_text(errors="replace")
        plain = frontends.without_syntax(text) if layer.syntax is None else None
        (new / "Dockerfile").write_text(text if plain is None else plain)
        (new / "Dockerfile.dockerignore").write_text(IGNORE)
        _settle(new)
    return folder


def checkout(tree: GitTree, context: ResolveContext) -> Path:
    """The folder with the files of a commit that is fetched with ssh, for a named context. Raises
    as ``context``."""
    folder = context.home / "trees" / tree.commit
    if not folder.is_dir():
        repository = git.fetched(tree, context)
        _refuse_submodules(repository, tree, *SSH)
        with new_folder(folder) as new:
            repository.checkout(tree.commit, new)
            _settle(new)
    return folder


def _refuse_submodules(
    repository: Repository, tree: SourceBuild | GitTree, what: str, todo: str
) -> None:
    if ".gitmodules" in repository.paths(tree.commit):
        raise LockError(
            f"pin {tree.pin} {tree.value} has submodules, and {what} has none of them",
            hint=f"{todo}, or pin a commit of a fork that has them",
        )


def _write(tree: Path, one: PatchSeries, files: dict[str, File | None]) -> None:
    """Write the patched files into the tree."""
    for target in one.targets:
        place, file = tree / target.path, files[target.path]
        if file is None:
            place.unlink(missing_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.data)
        if target.mode == "755":
            place.chmod(0o755)
        elif target.mode == "644":
            place.chmod(0o644)


def _commit(
    tree: Path,
    repository: Repository,
    source: SourceBuild,
    patches: Iterable[PatchSeries],
    context: ResolveContext,
) -> None:
    """Make the tree's .git: the source's commit, and one with the patches on top of it."""
    clone = repository.folder

    variables = {
        **ENVIRONMENT,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{role}_NAME": COMMITTER for role in ROLES},
        **{f"GIT_{role}_EMAIL": f"{COMMITTER}@localhost" for role in ROLES},
        **{f"GIT_{role}_DATE": f"{DATE} +0000" for role in ROLES},
    }

    def git(*words: str, stdin: str | None = None) -> str:
        return context.runner.run(["git", *words], stdin=stdin, env=variables).stdout

    def own(*words: str, stdin: str | None = None) -> str:
        return git("-C", str(tree), "-c", "core.autocrlf=false", *words, stdin=stdin)

    git("init", "--quiet", "--template=", "--initial-branch=main", str(tree))
    own("config", "core.logAllRefUpdates", "false")
    listed = git(
        "--git-dir", str(clone), "rev-list", "--objects", "--no-object-names",
        f"{source.commit}^{{tree}}",
    )  # fmt: skip
    # As they are, without deltas: those of the clone depend on when it was fetched.
    git(
        "--git-dir", str(clone), "pack-objects", "--quiet", "--threads=1", "--window=0",
        "--no-reuse-delta", "--no-reuse-object", str(tree / ".git" / "objects" / "pack" / "pack"),
        stdin=f"{source.commit}\n{listed}",
    )  # fmt: skip
    (tree / ".git" / "shallow").write_text(f"{source.commit}\n")
    own("update-ref", "refs/heads/main", source.commit)
    own("read-tree", "HEAD")
    if names := ", ".join(patch.name for one in patches for patch in one.patches):
        own("add", "--all", "--force")
        own("commit", "--quiet", "--no-verify", "--allow-empty", "--message", f"Patches: {names}")
    # An index without the times and inodes of this machine's files.
    own("read-tree", "HEAD")


def _settle(folder: Path) -> None:
    """Give everything the modes and dates that do not depend on this machine."""
    for place in [folder, *folder.rglob("*")]:
        if place.is_symlink():
            os.utime(place, (DATE, DATE), follow_symlinks=False)
            continue
        executable = place.is_dir() or (os.access(place, os.X_OK) and place.stat().st_mode & 0o100)
        place.chmod(0o755 if executable else 0o644)
    for place in [*folder.rglob("*"), folder]:
        if not place.is_symlink():
            os.utime(place, (DATE, DATE))
