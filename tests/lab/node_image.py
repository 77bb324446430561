"""The images that the lab's nodes run: Debian with one of two versions of Docker Engine.

They are made once and stay in the engine, named by what they are made of. ``LAB_ENGINES=DIR[,DIR]``
takes the versions from folders instead, with ``PROGRAMS``: the first for the nodes with Debian's
release, the last for those with testing's; an empty DIR leaves those as they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.build.engine.engine import Engine
from sparkimage.core.debian_tools import HOST_PACKAGES, install_on_host
from sparkimage.core.process import Local
from sparkimage.core.rights import root_prefix
from tests.lab.tools import TOOLS, making

NAME = "sparkimage-lab-node"
FILES = Path(__file__).with_name("node")
PACKAGES = (
    "docker.io", "docker-cli", "containerd", "runc", "iptables", "iproute2",
    "openssh-server", "openssh-client", "sudo",
    "e2fsprogs", "procps", "socat", "busybox-static",
)  # fmt: skip
LATER = ("docker.io", "docker-cli", "containerd", "runc", "tini-static")
"""What is another one in testing; its binaries run on Debian 13's libraries."""

PROGRAMS = ("dockerd", "docker", "containerd", "containerd-shim-runc-v2", "ctr", "runc")
"""Of an engine from a folder; what else is in it, docker-proxy say, is taken, too."""


class Release(StrEnum):
    """The release of Debian that a node's Docker Engine comes from."""

    TRIXIE = "trixie"
    TESTING = "testing"


def given(release: Release) -> Path | None:
    """The folder that LAB_ENGINES names for nodes of this release. Raises ``ValueError`` where it
    lacks a program."""
    folders = os.environ.get("LAB_ENGINES", "").split(",")
    folder = folders[0 if release is Release.TRIXIE else -1]
    if not folder:
        return None
    lacking = [name for name in PROGRAMS if not os.access(Path(folder, name), os.X_OK)]
    if lacking:
        raise ValueError(f"LAB_ENGINES: {folder} lacks {', '.join(lacking)}")
    return Path(folder).resolve()


def ensure(engine: Engine, release: Release) -> str:
    """The name of the image, which the engine holds. Makes it where it is not there."""
    with making(NAME):
        return _ensure(engine, release)


def _ensure(engine: Engine, release: Release) -> str:
    root, debs, programs = _root(engine.arch), _debs(engine.arch), given(release)
    made_of = hashlib.sha256(f"{root.name} {release}".encode())
    made_of.update(" ".join(sorted(deb.name for deb in debs.iterdir())).encode())
    for file in sorted([*FILES.iterdir(), *(programs.iterdir() if programs else ())]):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        made_of.update(f"{file.name} {content}".encode())
    kind = f"{release}-given" if programs else release
    name = f"{NAME}:{kind}-{made_of.hexdigest()[:12]}"
    held = run([*engine.docker, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", NAME])
    if name in held.split():
        return name
    output = f"type=image,name={name},compression=uncompressed,oci-mediatypes=true"
    run([
        *engine.docker, "buildx", "build", "--quiet", "--provenance=false", f"--output={output}",
        f"--file={FILES / 'Dockerfile'}", f"--build-arg=ENGINE={'given' if programs else release}",
        f"--build-context=files={FILES}", f"--build-context=debs={debs}",
        *([f"--build-context=programs={programs}"] if programs else []), str(root),
    ])  # fmt: skip
    for old in held.split():
        if re.fullmatch(rf"{NAME}:{kind}-[0-9a-f]{{12}}", old):
            # One that runs somewhere stays.
            subprocess.run([*engine.docker, "rmi", old], check=False, capture_output=True)
    return name


def busybox(arch: str) -> bytes:
    """A statically linked busybox."""
    root = _root(arch)
    program = root / "busybox"
    if not program.exists():
        with tarfile.open(root / "root.tar") as archive:
            member = archive.extractfile("./usr/bin/busybox")
            assert member is not None
            content = member.read()
        temporary = root / f".busybox-{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(program)
    return program.read_bytes()


def run(argv: Sequence[str], given: bytes = b"") -> str:
    """The output of ``argv``; what it says of an error is the exception's message."""
    return output(subprocess.run(argv, check=False, capture_output=True, input=given), argv)


def output(done: subprocess.CompletedProcess[bytes], argv: Sequence[str]) -> str:
    """As of ``run``."""
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise RuntimeError(f"{shlex.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout.decode().strip()


def _root(arch: str) -> Path:
    """The folder with the root.tar of a Debian 13 with ``PACKAGES``."""
    words = [
        "--variant=minbase", f"--include={','.join(PACKAGES)}", f"--architectures={arch}",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        ('--customize-hook=cd "$1" && rm -rf etc/resolv.conf etc/hostname etc/ssh/ssh_host_* '
         "var/log/* var/cache/* var/lib/apt/lists/*"),
    ]  # fmt: skip
    return made("node-root", words, Release.TRIXIE, "root.tar")


def _debs(arch: str) -> Path:
    """The folder with the packages ``LATER``, as testing had them when it was made."""
    words = [
        "--mode=chrootless", "--variant=custom", f"--architectures={arch}",
        # A mirror's copy of testing may be some weeks old.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        ('--customize-hook=cd "$LAB_FOLDER" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" '
         f"apt-get -qq -o APT::Sandbox::User=root download {' '.join(LATER)}"),
    ]  # fmt: skip
    return made("node-debs", words, Release.TESTING, None)


def made(name: str, words: Sequence[str], release: str, target: str | None) -> Path:
    """A folder of the lab's tools that mmdebstrap filled, once for the same words."""
    folder = TOOLS / f"{name}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}"
    with making(name):
        if not folder.is_dir():
            _make(folder, words, release, target)
    return folder


def _make(folder: Path, words: Sequence[str], release: str, target: str | None) -> None:
    runner = Local()
    install_on_host(HOST_PACKAGES, "mmdebstrap", runner, print)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new = Path(temporary, "new")
        new.mkdir()
        run([
            *root_prefix(runner), "env", f"LAB_FOLDER={new}", "mmdebstrap", "--quiet",
            "--skip=check/chrootless", *words,
            release, str(new / target) if target is not None else "/dev/null",
        ])  # fmt: skip
        new.rename(folder)
