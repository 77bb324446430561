"""Debian packages: resolved from a suite or repository, and those of the lock fetched by sha256.

mmdebstrap sets up apt for any suite, architecture or repository, and a hook calls that apt; so the
default mirror is mmdebstrap's, and no other package tool is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from sparkimage.config.address import without_login
from sparkimage.config.lockfile import Deb
from sparkimage.config.plan import MORE, ROOT
from sparkimage.core import suites
from sparkimage.core.debian_tools import HOST_PACKAGES, install_on_host
from sparkimage.core.errors import CommandError, Locked, LockError
from sparkimage.core.rights import root_prefix
from sparkimage.resolve.apt_output import REMOVED, explain
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.deb import repacked

CACHE = "debs"
"""The folder of the home with the packages that were fetched, each called by its sha256."""
MINIMAL = ("?essential", "?priority(required)", "apt")
"""What mmdebstrap's variant minbase installs: https://manpages.debian.org/mmdebstrap."""


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


def resolve(
    locked: Locked, source: Source, packages: Sequence[str], context: ResolveContext
) -> tuple[Deb, ...]:
    """The minimal root of a suite, and ``packages`` with their dependencies.

    Raises ``NetworkError``, or ``LockError`` for a package that does not exist.
    """
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        folder = Path(name)
        requests = {"install-root": MINIMAL, "install-more": (*MINIMAL, *packages)}
        _ask_apt(locked, source, requests, folder, context)
        root = _parse_uris(folder / "uris-install-root", ROOT)
        files = {deb.file for deb in root}
        more = _parse_uris(folder / "uris-install-more", MORE)
        return (*root, *(deb for deb in more if deb.file not in files))


def find(
    locked: Locked, source: Source, packages: Sequence[str], context: ResolveContext
) -> tuple[Deb, ...]:
    """Exactly ``packages`` (NAME or NAME=VERSION), without dependencies. Errors as ``resolve``."""
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        _ask_apt(locked, source, {"find": packages}, Path(name), context)
        return _parse_uris(Path(name, "uris-find"), MORE)


def closure(
    locked: Locked, source: Source, packages: Sequence[str], status: str, context: ResolveContext
) -> tuple[Deb, ...]:
    """What an installation of ``packages`` (NAME or NAME=VERSION) adds to or changes in a root with
    the dpkg ``status`` (the text of /var/lib/dpkg/status).

    Raises ``LockError`` for a package that does not exist, needs one that does not, or does not go
    together with what is there; ``NetworkError``.
    """
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        folder = Path(name)
        (folder / "status").write_text(status)
        _ask_apt(locked, source, {"install-on": packages}, folder, context)
        gone = REMOVED.findall((folder / "simulated-install-on").read_text())
        if gone:
            raise LockError(
                f"{locked}: an installation would remove {', '.join(gone)}, which lies below",
                hint="a layer only adds to what lies below: take packages that go together with it",
            )
        return _parse_uris(folder / "uris-install-on", MORE)


def fetch(
    locked: Locked, source: Source, debs: Sequence[Deb], context: ResolveContext
) -> Mapping[str, Path]:
    """The files of ``debs`` by their names; those that are not cached are downloaded and checked.

    Raises ``LockError`` for a package that was withdrawn or whose sha256 is not that of the lock,
    ``NetworkError`` when its repository does not answer.
    """
    cache = context.home / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not (cache / deb.sha256).is_file()]
    if missing:
        with TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
            folder = Path(name)
            packages = [f"{deb.name}={deb.version}" for deb in missing]
            _ask_apt(locked, source, {"fetch": packages}, folder, context, fetch=True)
            for deb in missing:
                _check(locked, deb, folder / deb.file)
                (folder / deb.file).replace(cache / deb.sha256)
    return {deb.file: cache / deb.sha256 for deb in debs}


def write_repository(
    files: Mapping[str, Path],
    folder: Path,
    suite: str | None,
    context: ResolveContext,
    *,
    repack: bool = False,
) -> None:
    """Make ``folder`` a flat repository of these files (hard links where that is possible);
    ``repack`` compresses them anew, see ``repacked``.

    https://wiki.debian.org/DebianRepository/Format
    """
    folder.mkdir(parents=True)

    def stanza(name: str) -> str:
        cached = files[name]
        # Its name in the cache is its sha256, which was checked when it was fetched.
        size, sha256 = cached.stat().st_size, cached.name
        if repack:
            data = repacked(cached.read_bytes())
            size, sha256 = len(data), hashlib.sha256(data).hexdigest()
            (folder / name).write_bytes(data)
        else:
            try:
                os.link(cached, folder / name)
            except OSError:
                shutil.copyfile(cached, folder / name)
        control = context.runner.run(["dpkg-deb", "--field", str(folder / name)]).stdout.strip()
        return f"{control}\nFilename: ./{name}\nSize: {size}\nSHA256: {sha256}\n"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packages = "\n".join(pool.map(stanza, sorted(files))).encode()
    (folder / "Packages").write_bytes(packages)
    digest = hashlib.sha256(packages).hexdigest()
    named = f"Suite: {suite}\nCodename: {suite}\n" if suite is not None else ""
    (folder / "Release").write_text(f"{named}SHA256:\n {digest} {len(packages)} Packages\n")


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


def _ask_apt(
    locked: Locked,
    source: Source,
    requests: Mapping[str, Iterable[str]],
    folder: Path,
    context: ResolveContext,
    *,
    fetch: bool = False,
) -> None:
    """Run the requests of ``data/apt.sh`` by name; apt's answers are files in ``folder`` then."""
    for request, packages in requests.items():
        (folder / request).write_text("".join(f"{package}\n" for package in packages))
    # Apt verifies as another user.
    folder.chmod(0o755)
    keyring = folder / "key.gpg"
    if source.key is not None:
        keyring.write_bytes(source.key)
    hook = folder / "hook"
    hook.write_text(resources.files("sparkimage").joinpath("data", "apt.sh").read_text())
    hook.chmod(0o755)
    try:
        mmdebstrap(
            context, "--variant=custom", f"--architectures={source.arch}",
            f"--customize-hook={hook}", *source.words(context, keyring, locked=fetch),
            SPARKIMAGE_APT=str(folder),
        )  # fmt: skip
    except CommandError as error:
        raise explain(locked, source, error.output) from None


def _parse_uris(output: Path, part: str) -> tuple[Deb, ...]:
    """Parse what ``apt-get --print-uris`` prints: 'ADDRESS' FILE SIZE SHA256:HEX."""
    debs = []
    for line in output.read_text().splitlines():
        match = re.fullmatch(r"'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})", line.strip())
        if match is None:
            raise LockError(
                f"apt has no sha256 for a package: {line!r}",
                hint="its repository must have SHA256 in its Packages",
            )
        file, size, sha256 = match.groups()
        name, version, _ = file.removesuffix(".deb").split("_")
        debs.append(
            Deb(
                name=name,
                version=unquote(version),
                part=part,
                size=int(size),
                sha256=sha256,
                file=file,
            )
        )
    return tuple(sorted(debs))


def _check(locked: Locked, deb: Deb, path: Path) -> None:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        sha256 = "no file"
    if sha256 != deb.sha256:
        raise LockError(
            f"{locked}: {deb.file} has sha256 {sha256}, and the lock says {deb.sha256}",
            hint="the file was changed under the same version; find out by whom before this: "
            + locked.update,
        )
