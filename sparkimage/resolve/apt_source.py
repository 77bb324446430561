"""Where packages come from, in mmdebstrap's words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.config.address import without_login
from sparkimage.core import suites
from sparkimage.core.debian_tools import HOST_PACKAGES, install_on_host
from sparkimage.core.rights import root_prefix
from sparkimage.resolve.context import ResolveContext


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where packages come from: a ``suite`` of a ``repository`` or of the default mirror, or a flat
    ``repository``."""

    suite: str | None = None
    repository: str | None = None
    components: tuple[str, ...] = ()
    pockets: tuple[str, ...] = ()
    """Suites beside it, of ``repository``: ``updates`` for SUITE-updates."""
    arch: str
    key: bytes | None = None
    """A binary keyring; else this machine's keys are trusted."""
    dated: bool = False
    """Whether it is a snapshot: its Release file has expired."""

    def __str__(self) -> str:
        place = self.repository or self.distribution.title
        return " ".join(filter(None, (place, self.suite, f"({self.arch})")))

    @property
    def distribution(self) -> suites.Distribution:
        """Whose suite it is, or whose it is called."""
        return suites.find(self.suite or "").distribution

    def words(self, context: ResolveContext, keyring: Path, *, locked: bool) -> tuple[str, ...]:
        """Mmdebstrap's options, SUITE, TARGET and MIRRORs; ``keyring`` is the file of ``key``;
        ``locked``: for packages whose sha256 is known, so that neither signatures nor dates
        matter."""
        components = self.components or ("main",)
        options = [f"--components={','.join(components)}"]
        mirror = context.mirrors.client(self.distribution.mirror)
        trust = "trusted=yes" if locked else self._signed_by(keyring)
        if self.repository is not None:
            address = context.mirrors.of(self.repository)
            lines = self._lines(address, components, trust, dated=self.dated or locked)
        elif mirror is not None and locked:
            lines = self._lines(mirror, components, trust, dated=True)
        elif locked:
            lines = self._default_lines(components, trust, context)
        else:
            lines = [mirror] if mirror is not None else []
            if self.key is not None:
                options += [f"--keyring={keyring}", "--skip=check/signed-by"]
        return (*options, self.suite or "flat", os.devnull, *filter(None, lines))

    def in_image(self, context: ResolveContext) -> str:
        """The sources.list of a root that is made of it, the same whatever keys this machine has;
        needs no network."""
        components = self.components or ("main",)
        # The root of a suite has its distribution's keys in the same place.
        trust = f"signed-by={self.distribution.keyring}" * (self.suite in suites.SUITES)
        if self.repository is None:
            lines = self._default_lines(components, trust, context)
        else:
            address = without_login(self.repository)
            lines = self._lines(address, components, trust, dated=self.dated)
        return "".join(f"{line}\n" for line in lines)

    def _signed_by(self, keyring: Path) -> str:
        """The option that names this machine's file of keys; empty where it has none."""
        if self.key is None and self.suite in suites.SUITES:
            keyring = Path(self.distribution.keyring)
        return f"signed-by={keyring}" if keyring.is_file() else ""

    def _default_lines(
        self, components: Sequence[str], trust: str, context: ResolveContext
    ) -> Sequence[str]:
        """Those of the default mirror. Mmdebstrap names this machine's keys where apt does not
        trust them already, as on Ubuntu: ``trust`` goes in their place."""
        options = f"[{trust}] " if trust else ""
        text = default_sources(str(self.suite), self.arch, components, context)
        return re.sub(r"(?m)^deb (\[[^]]*\] )?", f"deb {options}", text).splitlines()

    def _lines(
        self, address: str, components: Sequence[str], trust: str, *, dated: bool
    ) -> Sequence[str]:
        """Lines of sources.list: https://manpages.debian.org/sources.list.5"""
        address = f"{address.rstrip('/')}/"
        if self.suite is None:
            # Unsigned repositories too: each package is checked against the sha256 of the lock.
            return [f"deb [trusted=yes] {address} /"]
        options = ["check-valid-until=no"] * dated + [trust] * bool(trust)
        words = f"[{' '.join(options)}] " if options else ""
        names = (self.suite, *(f"{self.suite}-{pocket}" for pocket in self.pockets))
        return [f"deb {words}{address} {name} {' '.join(components)}" for name in names]


def mmdebstrap(context: ResolveContext, *arguments: str, **environment: str) -> None:
    """Run mmdebstrap as root, in a mode that needs no emulation; install it where it is missing.

    Raises ``CommandError``; errors as ``install_on_host``.
    """
    install_on_host(HOST_PACKAGES, "mmdebstrap", context.runner, context.say)
    variables = [f"{name}={value}" for name, value in environment.items()]
    # From 1.4 on (Debian 13, Ubuntu 24.04) it refuses root this mode, for packages whose scripts
    # expect a chroot. Those of a minimal root do not.
    mode = ["--mode=chrootless", "--skip=check/chrootless"]
    argv = [*root_prefix(context.runner), "env", *variables, "mmdebstrap", *mode]
    context.runner.run([*argv, *arguments])


def default_sources(
    suite: str, arch: str, components: Sequence[str], context: ResolveContext
) -> str:
    """The sources.list that mmdebstrap writes for ``suite``; needs no network."""
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        hook = 'install -m 644 "$1/etc/apt/sources.list" "$SPARKIMAGE_APT/sources"'
        mmdebstrap(
            context, "--quiet", "--variant=custom", "--skip=update", f"--setup-hook={hook}",
            f"--architectures={arch}", f"--components={','.join(components)}", suite, os.devnull,
            SPARKIMAGE_APT=name,
        )  # fmt: skip
        return Path(name, "sources").read_text()
