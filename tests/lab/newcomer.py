"""A machine of somebody who has just cloned the project: a container of a plain system with git,
make and python3, and the clone, whose default image is a small stand-in for the gigabytes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.core.arch import native_arch
from tests.lab import command, node_image, standins
from tests.lab.tools import making

PROJECT = Path(__file__).resolve().parents[2]
NAME = "sparkimage-lab-newcomer"
# What git recommends: ssh.
PACKAGES = "git,make,python3,openssh-client,ca-certificates"
UBUNTU = """\
mv /etc/os-release /etc/os-release.debian
cat >/etc/os-release <<'END'
PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
END
useradd --create-home --shell /bin/bash ubuntu
chown ubuntu:ubuntu /home/ubuntu
# A Python of this machine may be in root's home.
chmod o+x /root
echo 'ubuntu ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ubuntu
"""
"""Makes Debian 13 look like Ubuntu 24.04's images: a user with sudo."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
VARIANT = "vllm0.32.0-nccl2.30.4-arm64"
"""The default variant, as README names it; the stand-in has that name on any machine."""
STANDIN = Path(__file__).with_name("standin_vllm")
VLLM = """\
import sys

from vllm.standin import server


def main():
    if sys.argv[1:] == ["serve", "--help"]:
        print("usage: vllm serve [model_tag] [options]  (a stand-in)")
    else:
        server.main(sys.argv[1:])
"""
CHANGES = {
    "repository: {{ name }}": "repository: spark-vllm",
    'require: ["vllm==0.32.0"]': (
        'require: ["vllm==0.32.0+standin", "torch==2.13.0+standin", '
        '"nvidia-nccl-cu13==2.30.4+standin", "nvidia-cuda-runtime==13.0.96"], '
        "find_links: wheels, version: 0.32.0+standin"
    ),
    "[debian, python, cuda-math, cuda-sparse, cuda, compilers, cudnn, torch, vllm, serve]": (
        "[debian, python, cuda, torch, vllm, serve]"
    ),
    "platform: [linux/arm64]": f"platform: [linux/{native_arch()}]",
    "name: vllm{vllm}-{arch}": f"name: {VARIANT}",
}
"""Of the matrix that `init project` writes."""
SHARED = {
    "SSL_CERT_FILE": CERTIFICATES, "PIP_CERT": CERTIFICATES, "LC_ALL": "C.UTF-8",
}  # fmt: skip


def blocks(text: str) -> list[list[str]]:
    """The commands of each code block of a page, without comments."""
    found = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        [line.partition("  #")[0].rstrip() for line in block.splitlines() if line.strip()]
        for block in found
    ]


class System(StrEnum):
    """What the container is like."""

    BOOKWORM = "bookworm"
    TRIXIE = "trixie"
    NOBLE = "noble"
    """Debian 13's packages with what this program can tell apart in Ubuntu 24.04, whose own
    packages are not to be had here: its name, Python 3.12 where this machine has one, and a user
    that is not root."""

    @property
    def suite(self) -> str:
        """Of Debian."""
        return System.TRIXIE if self is System.NOBLE else self

    @property
    def user(self) -> str:
        """Who works there."""
        return "ubuntu" if self is System.NOBLE else "root"

    @property
    def home(self) -> str:
        """Of that user."""
        return "/home/ubuntu" if self is System.NOBLE else "/root"

    @property
    def tests(self) -> str:
        """Which `make test` runs there: all that need no engine on one system, one file on the
        others."""
        return r"tests/unit\ tests/golden" if self is System.TRIXIE else "tests/unit/test_deb.py"

    @property
    def packages(self) -> str:
        """With which it begins."""
        return f"{PACKAGES},sudo" if self is System.NOBLE else PACKAGES


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """The container."""

    engine: Engine
    container: str
    system: System

    @property
    def clone(self) -> str:
        """The folder of the clone."""
        return f"{self.system.home}/sparkimage"

    def run(
        self, line: str, *, cwd: str | None = None, root: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """A line as it is typed into a shell."""
        argv = [
            *self.engine.docker, "exec", f"--workdir={cwd or self.clone}",
            f"--user={'root' if root else self.system.user}", self.container, "sh", "-c", line,
        ]  # fmt: skip
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def ok(self, line: str, *, cwd: str | None = None) -> str:
        """What it prints, and it ends well."""
        done = self.run(line, cwd=cwd)
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def clone(folder: Path) -> Path:
    """A clone of this project, with what is being worked on; in a commit more, its default image is
    the stand-in, locked."""
    made = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, made], check=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (PROJECT / name).is_file():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, made / name)
    _commit(made)
    text = (made / "sparkimage" / "data" / "project" / "matrix.yaml").read_text()
    for old, new in CHANGES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (made / "matrix.yaml").write_text(text)
    _wheels(made / "wheels")
    locked = command.call(["lock"], os.environ, cwd=made)
    assert locked.returncode == 0, locked.stderr
    _commit(made)
    return made


def _commit(folder: Path) -> None:
    author = ["-c", "user.name=lab", "-c", "user.email=lab"]
    commit = [*author, "commit", "--quiet", "--allow-empty", "--message=lab"]
    for words in (["add", "--all"], commit):
        subprocess.run(["git", *words], cwd=folder, check=True)


def _wheels(folder: Path) -> None:
    standins.make(folder)
    parts = ("__init__", "api", "bench", "server")
    standins.wheel(
        folder,
        "vllm",
        "0.32.0+standin",
        {
            "vllm/__init__.py": "",
            "vllm/cli.py": VLLM,
            **{f"vllm/standin/{name}.py": (STANDIN / f"{name}.py").read_bytes() for name in parts},
        },
        scripts={"vllm": "vllm.cli:main"},
    )


@contextmanager
def newcomer(
    engine: Engine, system: System, origin: Path, hosts: Mapping[str, str] | None = None
) -> Iterator[Newcomer]:
    """A container of a plain system with a clone of ``origin``, which knows these hosts."""
    image, made = _image(engine, system), f"{NAME}-{system}-{os.getpid()}"
    docker = engine.docker
    names = [f"--add-host={name}:{address}" for name, address in (hosts or {}).items()]
    # README's commands are literal: which tests are run is said beside them.
    own = {**SHARED, "MAKEFLAGS": f" -- TESTS={system.tests}"}
    shared = [f"--env={name}={value}" for name, value in own.items()]
    index = _pip("global.index-url")
    python = _python() if system is System.NOBLE else ""
    if python:
        shared += [f"--volume={python}:{python}:ro", f"--env=PATH={python}/bin:{PATH}"]
    node_image.run([
        *docker, "run", "--detach", f"--name={made}", "--privileged", "--cgroupns=private",
        # A private engine keeps its data in it, which overlayfs cannot.
        f"--volume={system.home}", f"--volume={origin}:/origin:ro",
        f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", *shared, *names,
        *([f"--env=PIP_INDEX_URL={index}"] if index else []), image, "sleep", "infinity",
    ])  # fmt: skip
    try:
        here = Newcomer(engine=engine, container=made, system=system)
        if system is System.NOBLE:
            dressed = here.run(UBUNTU, cwd="/", root=True)
            assert dressed.returncode == 0, dressed.stderr
        here.ok("git config --global safe.directory '*' && "
                f"git clone --quiet /origin {here.clone}", cwd=system.home)  # fmt: skip
        yield here
        here.run("./build.py engine down")
    finally:
        subprocess.run([*docker, "rm", "--force", "--volumes", made], check=False,
                       capture_output=True)  # fmt: skip


def _pip(setting: str) -> str:
    """What pip is told on this machine; empty where it has its own default."""
    done = subprocess.run(
        ["python3", "-m", "pip", "config", "get", setting], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip()


def _python() -> str:
    """The folder of a Python 3.12 of this machine, with its modules; empty where there is none."""
    for argv in (
        ["pyenv", "prefix", "3.12"],
        ["python3.12", "-c", "import sys; print(sys.prefix)"],
    ):
        if shutil.which(argv[0]) is None:
            continue
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        folder = done.stdout.strip()
        if done.returncode == 0 and Path(folder, "bin", "python3").exists() and folder != "/usr":
            return folder
    return ""


def _image(engine: Engine, system: System) -> str:
    """The image of a plain system, made once."""
    words = ["--variant=minbase", f"--include={system.packages}"]
    root = node_image.made(f"newcomer-{system}", words, system.suite, "root.tar")
    name = f"{NAME}:{root.name.rpartition('-')[2]}-{system}"
    with making(NAME):
        held = node_image.run([*engine.docker, "image", "ls", "--quiet", name])
        if not held:
            node_image.run([*engine.docker, "import", str(root / "root.tar"), name])
    return name
