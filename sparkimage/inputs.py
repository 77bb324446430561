"""Fetches what a plan's build needs beside the project's own files: the Debian root, the static
uv, and the requirements of each layer. All of it lies under the home, addressed by content, and
is made under a temporary name first.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.bake import Inputs
from sparkimage.engine_tree import install_on_host
from sparkimage.errors import CommandError, NetworkError
from sparkimage.lock import Wheel
from sparkimage.plan import DebianRoot, LayerPlan, Plan
from sparkimage.resolve import ca_bundle
from sparkimage.rights import root_prefix
from sparkimage.run import Runner

ROOT_EPOCH = 946684800
"""The newest date of a file in a Debian root: 2000-01-01."""
UV_WHEELS = {"amd64": "musllinux_1_1_x86_64", "arm64": "musllinux_1_1_aarch64"}


def ready(
    plan: Plan,
    *,
    project: Path,
    home: Path,
    host_arch: str,
    runner: Runner,
    say: Callable[[str], None],
) -> Inputs:
    """Make everything ready that the build of ``plan`` takes in.

    Raises ``NetworkError`` for what cannot be fetched (naming it), ``PreflightError`` for a tool
    that this machine lacks.
    """
    root = plan.layers[0].root
    if root is not None:
        # The engine's own, where it is private; a user's engine does not bring it.
        install_on_host(("mmdebstrap",), "mmdebstrap", runner, say)
    uv = static_uv(home, host_arch, runner, say)
    return Inputs(
        project=project,
        uv=uv,
        root=None if root is None else _root(root, home, runner, say),
        requirements={
            layer.name: _requirements(layer, project, home) for layer in plan.layers if layer.wheels
        },
        ca_bundle=ca_bundle(),
    )


def uv_pins() -> str:
    """The hash-pinned requirement of the static uv."""
    return resources.files("sparkimage").joinpath("data", "uv.txt").read_text()


def static_uv(home: Path, arch: str, runner: Runner, say: Callable[[str], None]) -> Path:
    """The folder with the pinned, statically linked ``uv`` for ``arch``, fetched once.

    It runs in the RUN steps of an image of any architecture, natively, since a static binary
    needs nothing of the image.
    """
    pins = uv_pins()
    folder = home / "tools" / f"uv-{arch}-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    if (folder / "uv").is_file():
        return folder
    say("fetching the static uv")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".uv-", dir=folder.parent) as name:
        temporary = Path(name)
        wanted = temporary / "uv.txt"
        wanted.write_text(pins)
        argv = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--only-binary", ":all:", "--platform", UV_WHEELS[arch], "--dest", str(temporary),
            "--requirement", str(wanted),
        ]  # fmt: skip
        try:
            runner.run(argv)
        except CommandError as error:
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
        _take_place(made, folder)
    return folder


def probe(wheel: Wheel, layer: LayerPlan, plan: Plan, runner: Runner) -> None:
    """Fetch one small wheel to nowhere, as the build will. Raises ``NetworkError``."""
    bundle = ca_bundle()
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
        environment = {"UV_HTTP_RETRIES": "1", **({"SSL_CERT_FILE": bundle} if bundle else {})}
        try:
            runner.run(argv, env=environment)
        except CommandError as error:
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


def _requirements(layer: LayerPlan, project: Path, home: Path) -> Path:
    """The folder that a layer's RUN step sees as /run/inputs."""
    digest = hashlib.sha256(layer.requirements.encode())
    local = local_wheels(layer, project)
    for path in local.values():
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    folder = home / "inputs" / digest.hexdigest()[:24]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".inputs-", dir=folder.parent) as name:
            made = Path(name, "made")
            made.mkdir()
            (made / "requirements.txt").write_text(layer.requirements)
            if local:
                (made / "wheels").mkdir()
                for path in local.values():
                    shutil.copyfile(path, made / "wheels" / path.name)
            _take_place(made, folder)
    return folder


def _take_place(made: Path, folder: Path) -> None:
    """Move a finished folder to its name; another process may have been faster."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _root(root: DebianRoot, home: Path, runner: Runner, say: Callable[[str], None]) -> Path:
    """The folder with the Debian root's root.tar, made by mmdebstrap where it is not there."""
    folder = home / "roots" / f"{root.suite}-{root.arch}"
    if folder.is_dir():
        return folder
    say(f"making the Debian {root.suite} root for {root.arch}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".root-", dir=folder.parent) as name:
        made = Path(name, "made")
        made.mkdir()
        _bootstrap(root, made / "root.tar", runner)
        _take_place(made, folder)
    return folder


def _bootstrap(root: DebianRoot, tar: Path, runner: Runner) -> None:
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
        root.suite, str(tar),
    ]  # fmt: skip
    try:
        runner.run([*root_prefix(runner), "env", f"SOURCE_DATE_EPOCH={ROOT_EPOCH}", *argv])
    except CommandError as error:
        raise NetworkError(
            f"pin debian {root.suite} ({root.arch}): mmdebstrap could not fetch the root",
            hint="check that this machine reaches its Debian mirror, then run the same command",
            detail="\n".join(error.detail.splitlines()[-15:]),
        ) from None
