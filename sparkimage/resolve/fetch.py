"""Fetches what a plan's build needs beside the project's own files: the Debian root, the static
uv, and the requirements of each layer. All of it is cached in the home, addressed by content.
"""

from __future__ import annotations

import hashlib
import posixpath
import shlex
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config import folders
from sparkimage.config.lock_items import KEPT, Wheel
from sparkimage.config.patch_specs import MISSING
from sparkimage.config.plan import (
    DebianRoot,
    Debs,
    GitTree,
    LayerPlan,
    Packages,
    PatchSeries,
    Plan,
    WebFile,
)
from sparkimage.core.arch import ARCHES
from sparkimage.core.debian_tools import WITHOUT_DOCS
from sparkimage.core.errors import Locked, LockError
from sparkimage.core.files import DATE, new_folder
from sparkimage.core.program import program
from sparkimage.resolve import (
    apt,
    frontends,
    git,
    images,
    patch_files,
    source_files,
    source_tree,
    wheel_files,
    wheels,
)
from sparkimage.resolve.apt_source import Source, mmdebstrap
from sparkimage.resolve.context import Inputs, ResolveContext
from sparkimage.resolve.files import Download
from sparkimage.resolve.wheels import ca_bundle

INPUTS, ROOTS, TOOLS = "inputs", "roots", "tools"
"""Folders of the home: what each layer's step sees as /run/inputs, Debian roots, the static uv."""
ROOT_SCRIPT = Path(__file__).parents[1] / "data" / "root.sh"


def ready(plan: Plan, project: Path, context: ResolveContext, builder_arch: str) -> Inputs:
    """Fetch or make all inputs of the build of ``plan``, each checked against the lock.

    ``builder_arch`` is of the machine that builds. Raises ``NetworkError`` for what cannot be
    fetched (naming it), ``LockError`` for what is gone or not as locked, ``PreflightError`` for a
    tool that this machine lacks, ``BuildError`` for a Dockerfile that cannot be built as it is.
    """
    root = plan.layers[0].root
    return Inputs(
        # Resolved: a project may link to the folders of another one.
        steps={
            layer.name: folders.dockerfile(project, layer).resolve()
            for layer in plan.layers
            if layer.source is None
        },
        tools=folders.of(project, folders.TOOLS).resolve(),
        builder=folders.of(project, folders.BUILDER).resolve(),
        layers={
            layer.name: _layer_inputs(layer, project, context)
            for layer in plan.layers
            if layer.source is None and (layer.wheels or layer.debs is not None or layer.patches)
        },
        sources={
            layer.name: source_tree.context(layer, project, context)
            for layer in plan.layers
            if source_tree.is_local(layer, context)
        },
        trees={
            taken.content.commit: source_tree.checkout(taken.content, context)
            for layer in plan.layers
            for taken in layer.inputs
            if isinstance(taken.content, GitTree)
            and context.mirrors.over_ssh(taken.content.repository)
        },
        files={
            file.sha256: _download(file, context).fetch(file.sha256)
            for layer in plan.layers
            for file in layer.files
        },
        dockerfiles={
            layer.name: text
            for layer in plan.layers
            # The Dockerfile of a source that is a folder is a file of its own.
            if not source_tree.is_local(layer, context)
            and (text := frontends.rewritten(layer, project, context)) is not None
        },
        root=None if root is None else _debian_root(root, context),
        uv=static_uv(builder_arch, context) if any(la.wheels for la in plan.layers) else None,
        overrides=frozenset(
            layer.name
            for layer in plan.layers
            if source_files.takes_version(layer, project, context)
        ),
        ca_bundle=ca_bundle(),
    )


def discard(home: Path) -> None:
    """Remove what ``ready`` has made of packages, roots and requirements, and the static uv; it is
    made again when it is needed."""
    for place in (home / apt.CACHE, home / INPUTS, home / ROOTS, *(home / TOOLS).glob("uv-*")):
        shutil.rmtree(place, ignore_errors=True)


def available(layer: LayerPlan, context: ResolveContext) -> None:
    """Check that a layer's images, commits and files can still be fetched. Errors as ``ready``."""
    for image in layer.images:
        locked = Locked(
            title=f"layer {layer.name}",
            update=f"{program()} lock --update 'PIN==VALUE' (the pin of this layer's image)",
        )
        images.exists(locked, image, context)
    for tree in layer.trees:
        seen = git.fetched(tree, context).tree(tree.commit)
        if seen != tree.tree:
            raise LockError(
                f"pin {tree.pin}: {tree.commit[:12]} has the tree {seen[:12]}, and the "
                f"lock says {tree.tree[:12]}",
                hint=f"a commit cannot change: the lock was edited; run `{program()} lock`",
            )
    for file in layer.files:
        _download(file, context).fetch(file.sha256)


def _download(file: WebFile, context: ResolveContext) -> Download:
    locked = Locked.pin(file.pin, file.value)
    return Download(locked=locked, url=file.url, name=file.name, context=context)


def uv_pins() -> str:
    """The hash-pinned requirement of the static uv."""
    return resources.files("sparkimage").joinpath("data", "uv.txt").read_text()


def static_uv(arch: str, context: ResolveContext) -> Path:
    """The folder with the pinned, statically linked ``uv`` for ``arch``, fetched once.

    A static binary needs nothing of the image: it runs natively in the RUN steps of an image of
    any architecture.
    """
    pins = uv_pins()
    name = f"uv-{arch}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    folder = context.home / TOOLS / name
    if (folder / "uv").is_file():
        return folder
    context.say("fetching the static uv")
    with new_folder(folder) as new:
        wheels_folder = new.with_name("wheels")
        argv = [*wheel_files.PIP, "--platform", ARCHES[arch].uv_wheel, "--dest", str(wheels_folder)]
        subject = f"the build tool uv ({pins.split()[0]})"
        wheel_files.fetch(argv, pins, subject, context)
        with zipfile.ZipFile(next(wheels_folder.glob("*.whl"))) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith("/scripts/uv"))
            (new / "uv").write_bytes(wheel.read(member))
        (new / "uv").chmod(0o755)
    return folder


def probe(wheel: Wheel, layer: LayerPlan, plan: Plan, context: ResolveContext) -> None:
    """Download one small wheel as the build will, and discard it. Raises ``NetworkError``, or
    ``LockError`` when the index no longer has it."""
    with TemporaryDirectory(prefix="sparkimage-probe-") as folder:
        argv = [
            *wheels.UV_PIP, "install", "--no-cache", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--python-platform", layer.args["PYTHON_PLATFORM"],
            "--python-version", layer.args["PYTHON_VERSION"], "--target", folder,
        ]  # fmt: skip
        subject = f"layer {layer.name} of {plan.variant}: the wheel {wheel.name} {wheel.version}"
        pin = f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
        wheel_files.fetch(argv, pin, subject, context, layer.index, UV_HTTP_RETRIES="1")


def local_wheels(layer: LayerPlan, project: Path) -> dict[str, Path]:
    """The layer's wheels that are in the project, by file name."""
    if layer.find_links is None:
        return {}
    files = (project / layer.find_links / wheel.file for wheel in layer.wheels)
    return {path.name: path for path in files if path.is_file()}


def patched(plan: Plan, project: Path, context: ResolveContext) -> Mapping[str, bytes]:
    """Every installed file that the patches of ``plan`` write, by its path in the image. Errors as
    ``ready``."""
    files: dict[str, bytes] = {}
    for layer in plan.layers:
        for one in layer.patches if layer.source is None else ():
            for path, file in patch_files.after(one, project, context).items():
                files.pop(posixpath.join(str(one.root), path), None)
                if file is not None:
                    files[posixpath.join(str(one.root), path)] = file.data
    return files


def _layer_inputs(layer: LayerPlan, project: Path, context: ResolveContext) -> Path:
    """The folder that a layer's RUN step sees as /run/inputs."""
    for one in layer.patches:
        # A file of ours that was edited is no longer the locked one.
        patch_files.texts(one.patches, project, context)
    digest = hashlib.sha256(layer.requirements.encode())
    if layer.into is not None:
        digest.update(layer.into.encode())
    local = local_wheels(layer, project)
    for path in local.values():
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(repr((layer.debs, layer.patches, "zstd" * (layer.debs is not None))).encode())
    folder = context.home / INPUTS / digest.hexdigest()[:24]
    if not folder.is_dir():
        with new_folder(folder) as new:
            if layer.wheels:
                (new / "requirements.txt").write_text(layer.requirements)
            if layer.into is not None:
                (new / "into").write_text(layer.into)
            if local:
                (new / "wheels").mkdir()
                for path in local.values():
                    shutil.copyfile(path, new / "wheels" / path.name)
            if layer.debs is not None:
                _write_debs(layer.debs, new, context)
            if layer.patches:
                _write_patches(layer.patches, new, project, context)
    return folder


def _write_debs(debs: Debs, folder: Path, context: ResolveContext) -> None:
    """The layer's packages as a repository, and the names to install."""
    files = apt.fetch(Locked.pin(debs.pin, debs.value), _source(debs), debs.debs, context)
    apt.write_repository(files, folder / "debs", None, context, repack=True)
    (folder / "packages").write_text("".join(f"{name}\n" for name in debs.names))


def _write_patches(
    patches: Sequence[PatchSeries], folder: Path, project: Path, context: ResolveContext
) -> None:
    """What `apply_patches` of step.sh reads: the files after the patches, the paths of those that
    are removed and that must not be there yet, the modes that change, and the checksums."""
    lists: dict[str, list[str]] = {
        name: [] for name in ("before.sha256", "after.sha256", "absent", "removed", "modes")
    }
    for one in patches:
        files = patch_files.after(one, project, context)
        for target in one.targets:
            path, file = posixpath.join(str(one.root), target.path), files[target.path]
            if target.before == MISSING:
                lists["absent"].append(f"{path}\n")
            else:
                lists["before.sha256"].append(f"{target.before}  {path}\n")
            if file is None:
                lists["removed"].append(f"{path}\n")
                continue
            lists["after.sha256"].append(f"{target.after}  {path}\n")
            if target.mode != KEPT:
                lists["modes"].append(f"{target.mode} {path}\n")
            place = folder / "files" / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.data)
    for name, lines in lists.items():
        (folder / name).write_text("".join(lines))


def _source(packages: Packages) -> Source:
    return Source(
        suite=packages.suite,
        repository=packages.repository,
        components=packages.components,
        pockets=packages.pockets,
        arch=packages.arch,
    )


def _debian_root(root: DebianRoot, context: ResolveContext) -> Path:
    """The folder with the Debian root's root.tar, made by mmdebstrap once."""
    recipe = f"{root!r}{ROOT_SCRIPT.read_text()}"
    content = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = context.home / ROOTS / f"{root.suite}-{root.arch}-{content}"
    if folder.is_dir():
        return folder
    context.say(f"making the Debian {root.suite} root for {root.arch}")
    source = _source(root)
    files = apt.fetch(Locked.pin(root.pin, root.value), source, root.debs, context)
    with new_folder(folder) as new:
        debs, sources = new.with_name("debs"), new.with_name("sources.list")
        apt.write_repository(files, debs, root.suite, context)
        sources.write_text(source.in_image(context))
        mmdebstrap(
            context, "--quiet", "--variant=minbase", f"--architectures={root.arch}",
            *WITHOUT_DOCS,
            # Its way to clean apt's folders leaves them to apt's user, or to root where that one
            # cannot read them: https://manpages.debian.org/mmdebstrap (--skip)
            "--skip=cleanup/apt", f'--customize-hook=sh {shlex.quote(str(ROOT_SCRIPT))} "$1"',
            root.suite, str(new / "root.tar"), f"deb [trusted=yes] copy:{debs} ./",
            SOURCE_DATE_EPOCH=str(DATE), ROOT_SOURCES=str(sources),
        )  # fmt: skip
    return folder
