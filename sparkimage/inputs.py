"""Fetches what a plan's build needs beside the project's own files: the Debian root, the static
uv, and the requirements of each layer. All of it lies under the home, addressed by content, and
is made under a temporary name first.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.bake import Inputs
from sparkimage.errors import CommandError, NetworkError, PreflightError
from sparkimage.plan import DebianRoot, LayerPlan, Plan
from sparkimage.resolve import ca_bundle
from sparkimage.run import Runner
from sparkimage.store import Store

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
UV_WHEELS = {"amd64": "musllinux_1_1_x86_64", "arm64": "musllinux_1_1_aarch64"}


def ready(
    plan: Plan,
    *,
    project: Path,
    home: Path,
    store: Store,
    host_arch: str,
    runner: Runner,
    say: Callable[[str], None],
) -> Inputs:
    """Make everything ready that the build of ``plan`` takes in.

    Raises ``NetworkError`` for what cannot be fetched (naming it), ``PreflightError`` for a tool
    that this machine lacks.
    """
    root = plan.layers[0].root
    base = "docker-image://scratch" if root is None else _root(root, store, runner, say)
    uv = static_uv(home, host_arch, runner, say)
    return Inputs(
        project=project,
        uv=uv,
        base=base,
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


def _requirements(layer: LayerPlan, project: Path, home: Path) -> Path:
    """The folder that a layer's RUN step sees as /run/inputs."""
    digest = hashlib.sha256(layer.requirements.encode())
    local = []
    if layer.find_links is not None:
        names = {wheel.file for wheel in layer.wheels}
        local = [p for p in sorted((project / layer.find_links).glob("*.whl")) if p.name in names]
        for path in local:
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
                for path in local:
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


def _root(root: DebianRoot, store: Store, runner: Runner, say: Callable[[str], None]) -> str:
    """The Debian root as a one-layer image in the store, made by mmdebstrap where it is not."""
    name = f"debian:{root.suite}-{root.arch}"
    digest = store.names().get(name)
    if digest is None or not store.holds(digest):
        say(f"making the Debian {root.suite} root for {root.arch}")
        with TemporaryDirectory(prefix=".root-", dir=store.root) as folder:
            digest = _bootstrap(root, name, Path(folder), store, runner)
    return f"oci-layout://{store.root}@{digest}"


def _bootstrap(root: DebianRoot, name: str, folder: Path, store: Store, runner: Runner) -> str:
    tar = folder / "root.tar"
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    # chrootless needs no emulation for a foreign architecture, and minbase no more than it has.
    argv = [
        *sudo, "mmdebstrap", "--quiet", "--mode=chrootless", "--variant=minbase",
        f"--architectures={root.arch}",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        # It copies this machine's own: https://manpages.debian.org/mmdebstrap
        '--customize-hook=rm -rf "$1/etc/resolv.conf" "$1/etc/hostname" "$1"/var/log/* "$1"/var/cache/*',
        root.suite, str(tar),
    ]  # fmt: skip
    try:
        runner.run(argv, env={"SOURCE_DATE_EPOCH": "946684800"})
    except CommandError as error:
        raise NetworkError(
            f"pin debian {root.suite} ({root.arch}): mmdebstrap could not fetch the root",
            hint="check that this machine reaches its Debian mirror, then run the same command",
            detail="\n".join(error.detail.splitlines()[-15:]),
        ) from None
    except PreflightError as error:
        raise PreflightError(
            error.message, hint="run `python build.py engine up`, which installs it"
        ) from None
    layer = store.put_file(tar, OCI_TAR)
    config = {
        "architecture": root.arch,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": f"mmdebstrap --variant=minbase {root.suite}"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": store.put_bytes(json.dumps(config).encode(), OCI_CONFIG).to_dict(),
        "layers": [layer.to_dict()],
    }
    made = store.put_bytes(json.dumps(manifest).encode(), OCI_MANIFEST)
    store.name(name, made)
    return made.digest
