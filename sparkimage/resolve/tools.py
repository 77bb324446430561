"""skopeo and cosign, which access registries: skopeo copies images, cosign signs them.

The machine's own where their versions fit, else Debian's, in the home folder and with the libraries
that they need.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparkimage.core.arch import native_arch
from sparkimage.core.errors import CommandError, Locked
from sparkimage.core.files import new_folder
from sparkimage.core.process import Runner
from sparkimage.resolve import apt
from sparkimage.resolve.apt_source import Source
from sparkimage.resolve.context import ResolveContext

SUITE = "trixie"
PACKAGES = (
    "cosign", "skopeo",
    "libassuan9", "libc6", "libgpg-error0", "libgpgme11t64", "libsqlite3-0",
)  # fmt: skip
USABLE: Mapping[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "skopeo": (("--version",), re.compile(r"version 1\.(1[4-9]|[2-9]\d)\.")),
    # cosign 3 keeps signatures in another form: https://github.com/sigstore/cosign/releases.
    "cosign": (("version",), re.compile(r"GitVersion:\s+v2\.")),
}
"""The arguments that print a program's version, and the versions that are used."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Both programs, fetched when first used. Raises as ``apt.resolve`` and ``apt.fetch``."""

    outside: ResolveContext

    @cached_property
    def skopeo(self) -> tuple[str, ...]:
        """The command line of skopeo."""
        return _program("skopeo", self.outside)

    @cached_property
    def cosign(self) -> tuple[str, ...]:
        """The command line of cosign."""
        return _program("cosign", self.outside)

    @property
    def runner(self) -> Runner:
        return self.outside.runner


def _program(name: str, outside: ResolveContext) -> tuple[str, ...]:
    own = shutil.which(name)
    if own is not None and _usable(name, own, outside.runner):
        return (own,)
    tree = outside.home / "tools" / f"registry-{SUITE}-{native_arch()}"
    if not tree.is_dir():
        _install(tree, outside)
    (libraries,) = tree.glob("usr/lib/*-linux-gnu")
    (loader,) = libraries.glob("ld-linux-*")
    return (str(loader), "--library-path", str(libraries), str(tree / "usr" / "bin" / name))


def _usable(name: str, own: str, runner: Runner) -> bool:
    arguments, version = USABLE[name]
    try:
        return version.search(runner.run([own, *arguments]).stdout) is not None
    except CommandError:
        return False


def _install(tree: Path, outside: ResolveContext) -> None:
    outside.say(f"fetching skopeo and cosign from Debian {SUITE}")
    tools, source = Locked.tool("skopeo and cosign"), Source(suite=SUITE, arch=native_arch())
    resolved = apt.resolve(tools, source, ("skopeo", "cosign"), outside)
    debs = [deb for deb in resolved if deb.name in PACKAGES]
    files = apt.fetch(tools, source, debs, outside)
    with new_folder(tree) as new:
        for deb in debs:
            outside.runner.run(["dpkg-deb", "-x", str(files[deb.file]), str(new)])
