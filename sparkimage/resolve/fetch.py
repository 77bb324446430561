"""Fetches what a plan's build needs beside the project's own files: the Debian root, the static
uv, and the requirements of each layer. All of it lies under the home, addressed by content, and
is made under a temporary name first.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.address import WHEELS
from sparkimage.config.lockfile import Wheel
from sparkimage.config.patch_specs import in_image
from sparkimage.config.plan import DebianRoot, Debs, LayerPlan, PatchPlan, Plan
from sparkimage.core.arch import ARCHES
from sparkimage.core.errors import CommandError, Locked, LockError, NetworkError
from sparkimage.core.files import take_place
from sparkimage.core.process import Runner
from sparkimage.core.rights import root_prefix
from sparkimage.resolve import apt, images, patch_files, wheels
from sparkimage.resolve.context import Inputs, Outside
from sparkimage.resolve.wheels import ca_bundle

ROOT_EPOCH = 946684800
"""The newest date of a file in a Debian root: 2000-01-01."""


def ready(plan: Plan, *, project: Path, outside: Outside, builder_arch: str) -> Inputs:
    """Make everything ready that the build of ``plan`` takes in, each proven against the lock.

    ``builder_arch`` is of the machine that builds. Raises ``NetworkError`` for what cannot be
    fetched (naming it), ``LockError`` for what is gone or other than was locked,
    ``PreflightError`` for a tool that this machine lacks.
    """
    given = {}
    for layer in plan.layers:
        if layer.wheels or layer.debs is not None or layer.patches:
            given[layer.name] = _given(layer, project, outside)
    root = plan.layers[0].root
    wheels = any(layer.wheels for layer in plan.layers)
    return Inputs(
        project=project,
        uv=static_uv(builder_arch, outside) if wheels else None,
        root=None if root is None else _root(root, outside),
        layers=given,
        ca_bundle=ca_bundle(),
        index=outside.mirrors.client(WHEELS),
    )


def available(layer: LayerPlan, outside: Outside) -> None:
    """See that a layer's images and commit are still to be had. Errors as ``ready``."""
    source = layer.source
    for image in layer.images:
        locked = Locked(
            title=f"layer {layer.name}",
            update="python build.py lock --update 'PIN==VALUE' (the pin of this layer's image)",
        )
        images.exists(locked, image, outside.docker, outside.runner, outside.mirrors)
    if source is not None:
        repository = outside.repository(f"pin {source.pin} {source.value}", source.repository)
        repository.fetch(source.commit)
        tree = repository.tree(source.commit)
        if tree != source.tree:
            raise LockError(
                f"pin {source.pin}: {source.commit[:12]} names the tree {tree[:12]}, and the "
                f"lock says {source.tree[:12]}",
                hint="a commit cannot change: the lock was edited; run `python build.py lock`",
            )


def uv_pins() -> str:
    """The hash-pinned requirement of the static uv."""
    return resources.files("sparkimage").joinpath("data", "uv.txt").read_text()


def static_uv(arch: str, outside: Outside) -> Path:
    """The folder with the pinned, statically linked ``uv`` for ``arch``, fetched once.

    It runs in the RUN steps of an image of any architecture, natively, since a static binary
    needs nothing of the image.
    """
    pins = uv_pins()
    home = outside.home
    folder = home / "tools" / f"uv-{arch}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    if (folder / "uv").is_file():
        return folder
    outside.say("fetching the static uv")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".uv-", dir=folder.parent) as name:
        temporary = Path(name)
        wanted = temporary / "uv.txt"
        wanted.write_text(pins)
        argv = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--platform", ARCHES[arch].uv_wheel, "--dest", str(temporary),
            "--requirement", str(wanted),
        ]  # fmt: skip
        try:
            outside.runner.run(argv, env=wheels.environment(outside.mirrors))
        except CommandError as error:
            if wheels.altered(error.output):
                raise altered("the build tool uv", error.detail) from None
            raise NetworkError(
                f"the build tool uv ({pins.split()[0]}) cannot be fetched from the package index",
                hint="check this machine's network and proxy settings, then run the same command",
                detail=error.detail,
            ) from None
        made = temporary / "made"
        made.mkdir()
        with zipfile.ZipFile(next(temporary.glob("*.whl"))) as wheel:
            member = next(n for n in wheel.namelist() if n.endswith("/scripts/uv"))
            with wheel.open(member) as source, (made / "uv").open("wb") as sink:
                shutil.copyfileobj(source, sink)
        (made / "uv").chmod(0o755)
        take_place(made, folder)
    return folder


def probe(wheel: Wheel, layer: LayerPlan, plan: Plan, outside: Outside) -> None:
    """Fetch one small wheel to nowhere, as the build will. Raises ``NetworkError``, or
    ``LockError`` when the index has it no more."""
    with TemporaryDirectory(prefix="sparkimage-probe-") as folder:
        wanted = Path(folder, "probe.txt")
        wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        argv = [
            str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-config",
            "--no-python-downloads", "--no-cache", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--python-platform", layer.args["PYTHON_PLATFORM"],
            "--python-version", layer.args["PYTHON_VERSION"], "--target", f"{folder}/made",
            "--requirements", str(wanted),
        ]  # fmt: skip
        environment = {"UV_HTTP_RETRIES": "1", **wheels.environment(outside.mirrors)}
        try:
            outside.runner.run(argv, env=environment)
        except CommandError as error:
            if gone := wheels.withdrawn(error.output):
                raise withdrawn(plan, gone) from None
            if wheels.altered(error.output):
                raise altered(plan.variant, error.detail) from None
            raise NetworkError(
                f"layer {layer.name} of {plan.variant}: the wheel {wheel.name} {wheel.version} "
                "cannot be fetched from the package index",
                hint="check this machine's network and proxy settings, then run the same command",
                detail="\n".join(error.detail.splitlines()[-5:]),
            ) from None


def local_wheels(layer: LayerPlan, project: Path) -> dict[str, Path]:
    """The layer's wheels that lie in the project, by file name."""
    if layer.find_links is None:
        return {}
    files = (project / layer.find_links / wheel.file for wheel in layer.wheels)
    return {path.name: path for path in files if path.is_file()}


def patched(plan: Plan, project: Path, outside: Outside) -> Mapping[str, bytes]:
    """Every file that the patches of ``plan`` make, by its path there. Errors as ``ready``."""
    found: dict[str, bytes] = {}
    for layer in plan.layers:
        for patch in layer.patches:
            found |= _patched(patch, project, outside)
    return found


def withdrawn(plan: Plan, gone: Sequence[str]) -> LockError:
    """The error for wheels that the index has no more."""
    return LockError(
        f"{plan.variant}: the wheel index has no {', '.join(gone)} any more (yanked or removed)",
        hint=f"python build.py lock --update {gone[0].partition('==')[0]}, or name a mirror that "
        "has it",
    )


def altered(what: str, said: str) -> LockError:
    """The error for a wheel whose bytes are not those of the lock."""
    return LockError(
        f"{what}: a wheel has another hash than the lock says",
        detail="\n".join(said.splitlines()[-8:]),
        hint="somebody changed the file under its version, or the lock was edited; find out who "
        "before you run `python build.py lock --update NAME`",
    )


def _given(layer: LayerPlan, project: Path, outside: Outside) -> Path:
    """The folder that a layer's RUN step sees as /run/inputs."""
    patched = {patch.name: _patched(patch, project, outside) for patch in layer.patches}
    digest = hashlib.sha256(layer.requirements.encode())
    local = local_wheels(layer, project)
    for path in local.values():
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(repr((layer.debs, layer.patches, "zstd" * (layer.debs is not None))).encode())
    folder = outside.home / "inputs" / digest.hexdigest()[:24]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".inputs-", dir=folder.parent) as name:
            made = Path(name, "made")
            made.mkdir()
            if layer.wheels:
                (made / "requirements.txt").write_text(layer.requirements)
            if local:
                (made / "wheels").mkdir()
                for path in local.values():
                    shutil.copyfile(path, made / "wheels" / path.name)
            if layer.debs is not None:
                _write_debs(layer.debs, made, outside)
            if layer.patches:
                _write_patches(layer.patches, patched, made)
            take_place(made, folder)
    return folder


def _write_debs(debs: Debs, made: Path, outside: Outside) -> None:
    """The layer's packages as a repository, and the names to install."""
    apt.ready(outside.runner, outside.say)
    place = apt.Place(suite=debs.suite, repository=debs.repository, arch=debs.arch)
    files = apt.fetch(
        Locked.pin(debs.pin, debs.value), place, debs.debs, outside.home,
        outside.runner, outside.mirrors,
    )  # fmt: skip
    apt.write_repository(files, made / "debs", None, outside.runner, repack=True)
    (made / "packages").write_text("".join(f"{name}\n" for name in debs.names))


def _patched(patch: PatchPlan, project: Path, outside: Outside) -> Mapping[str, bytes]:
    """What the patch makes of each of its files, as the lock says. Raises ``LockError``."""
    data = patch_files.read(
        f"patch {patch.name}", patch.repository, patch.commit, patch.path, project,
        outside.repository,
    )  # fmt: skip
    seen = patch_files.summary(data).sha256
    if seen != patch.sha256:
        raise LockError(
            f"patch {patch.name}: its file has sha256 {seen}, and the lock says {patch.sha256}",
            hint=f"look at what changed, then: python build.py lock --update '{patch.name}'",
        )
    before = {target.path: b"" for target in patch.targets}
    if patch.kind == "diff":
        if patch.fork is None:
            raise LockError(
                f"patch {patch.name} is a diff, and a ready image has no source to apply it to",
                hint="use a patch of kind `replace`",
            )
        address, commit = patch.fork
        fork = outside.repository(f"patch {patch.name}", address)
        fork.fetch(commit)
        before = {path: fork.read(commit, path) or b"" for path in before}
    after = patch_files.apply(patch.name, patch.kind, data, before, outside.runner)
    for target in patch.targets:
        made = patch_files.summary(after[target.path]).sha256
        if made != target.after:
            raise LockError(
                f"patch {patch.name} makes {made[:12]} of {target.path}, and the lock says "
                f"{target.after[:12]}",
                hint=f"python build.py lock --update '{patch.name}'",
            )
    return {in_image(patch.root, path): content for path, content in after.items()}


def _write_patches(
    patches: Sequence[PatchPlan], patched: Mapping[str, Mapping[str, bytes]], made: Path
) -> None:
    """The files after the patches, and the checksums of those before and after."""
    sums: dict[str, list[str]] = {"before": [], "after": []}
    for patch in patches:
        for target in patch.targets:
            path = in_image(patch.root, target.path)
            (made / "files" / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (made / "files" / path.lstrip("/")).write_bytes(patched[patch.name][path])
            sums["before"].append(f"{target.before}  {path}\n")
            sums["after"].append(f"{target.after}  {path}\n")
    for name, lines in sums.items():
        (made / f"{name}.sha256").write_text("".join(lines))


def _root(root: DebianRoot, outside: Outside) -> Path:
    """The folder with the Debian root's root.tar, made by mmdebstrap where it is not there."""
    content = hashlib.sha256(repr(root).encode()).hexdigest()[:12]
    folder = outside.home / "roots" / f"{root.suite}-{root.arch}-{content}"
    if folder.is_dir():
        return folder
    # The engine's own, where it is private; a user's engine does not bring it.
    apt.ready(outside.runner, outside.say)
    outside.say(f"making the Debian {root.suite} root for {root.arch}")
    place = apt.Place(suite=root.suite, repository=None, arch=root.arch)
    files = apt.fetch(
        Locked.pin(root.pin, root.value),
        place,
        root.debs,
        outside.home,
        outside.runner,
        outside.mirrors,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".root-", dir=folder.parent) as name:
        made = Path(name, "made")
        made.mkdir()
        apt.write_repository(files, Path(name, "debs"), root.suite, outside.runner)
        sources = Path(name, "sources.list")
        sources.write_text(apt.default_sources(root.suite, outside.runner))
        _bootstrap(root, Path(name, "debs"), sources, made / "root.tar", outside.runner)
        take_place(made, folder)
    return folder


def _bootstrap(root: DebianRoot, debs: Path, sources: Path, tar: Path, runner: Runner) -> None:
    # chrootless needs no emulation for a foreign architecture, and minbase no more than it has.
    argv = [
        "mmdebstrap", "--quiet", "--mode=chrootless", "--variant=minbase",
        f"--architectures={root.arch}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        # It copies this machine's own: https://manpages.debian.org/mmdebstrap
        '--customize-hook=cd "$1" && rm -rf etc/resolv.conf etc/hostname var/log/* var/cache/*',
        f"--customize-hook=copy-in {shlex.quote(str(sources))} /etc/apt",
        root.suite, str(tar), f"deb [trusted=yes] copy:{debs} ./",
    ]  # fmt: skip
    runner.run([*root_prefix(runner), "env", f"SOURCE_DATE_EPOCH={ROOT_EPOCH}", *argv])
