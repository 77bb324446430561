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

from sparkimage.config.address import DEBIAN, Mirrors
from sparkimage.config.lockfile import Deb
from sparkimage.config.plan import MORE, ROOT
from sparkimage.core.debian_tools import HOST_PACKAGES, install_on_host
from sparkimage.core.errors import CommandError, Locked, LockError, SparkError
from sparkimage.core.rights import root_prefix
from sparkimage.resolve.context import ResolveContext, unreachable
from sparkimage.resolve.deb import repacked

MINIMAL = ("?essential", "?priority(required)", "apt")
"""What mmdebstrap's variant minbase installs: https://manpages.debian.org/mmdebstrap."""
UNREACHABLE = re.compile(
    r"Could not resolve|Temporary failure|Could not connect|Connection (refused|timed out|failed)"
    r"|Unable to connect|Network is unreachable|Failed to fetch|Could not handshake"
)
GONE = re.compile(
    r"Version '([^']+)' for '([^']+)' was not found|Unable to locate package (\S+)"
    r"|Package '?([^\s']+)'? has no installation candidate|Can't find a source to download version"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where packages come from: a Debian ``suite``, or else a flat ``repository``."""

    suite: str | None = None
    repository: str | None = None
    arch: str

    def __str__(self) -> str:
        return f"{self.repository or f'Debian {self.suite}'} ({self.arch})"

    def words(self, mirrors: Mirrors) -> tuple[str, ...]:
        """Mmdebstrap's SUITE, TARGET and MIRROR."""
        if self.repository is None:
            mirror = mirrors.client(DEBIAN)
            return (str(self.suite), os.devnull, *((mirror,) if mirror else ()))
        # Unsigned repositories too: each package is checked against the sha256 of the lock.
        address = mirrors.of(self.repository).rstrip("/")
        return ("flat", os.devnull, f"deb [trusted=yes] {address}/ /")


def mmdebstrap(context: ResolveContext, *arguments: str, **environment: str) -> None:
    """Run mmdebstrap as root, in a mode that needs no emulation; install it where it is missing.

    Raises ``CommandError``; errors as ``install_on_host``.
    """
    install_on_host(HOST_PACKAGES, "mmdebstrap", context.runner, context.say)
    variables = [f"{name}={value}" for name, value in environment.items()]
    argv = [*root_prefix(context.runner), "env", *variables, "mmdebstrap", "--mode=chrootless"]
    context.runner.run([*argv, *arguments])


def resolve(
    locked: Locked, source: Source, packages: Sequence[str], context: ResolveContext
) -> tuple[Deb, ...]:
    """Of a suite, the minimal root and ``packages`` with their dependencies; of a flat repository
    exactly ``packages`` (NAME=VERSION).

    Raises ``NetworkError``, or ``LockError`` for a package that does not exist.
    """
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        folder = Path(name)
        if source.repository is not None:
            _ask_apt(locked, source, {"find": packages}, folder, context)
            return _parse_uris(folder / "uris-find", MORE)
        requests = {"install-root": MINIMAL, "install-more": (*MINIMAL, *packages)}
        _ask_apt(locked, source, requests, folder, context)
        root = _parse_uris(folder / "uris-install-root", ROOT)
        files = {deb.file for deb in root}
        more = _parse_uris(folder / "uris-install-more", MORE)
        return (*root, *(deb for deb in more if deb.file not in files))


def fetch(
    locked: Locked, source: Source, debs: Sequence[Deb], context: ResolveContext
) -> Mapping[str, Path]:
    """The files of ``debs`` by their names; those that are not cached are downloaded and checked.

    Raises ``LockError`` for a package that was withdrawn or whose sha256 is not that of the lock,
    ``NetworkError`` when its repository does not answer.
    """
    cache = context.home / "debs"
    cache.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not (cache / deb.sha256).is_file()]
    if missing:
        with TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
            folder = Path(name)
            packages = [f"{deb.name}={deb.version}" for deb in missing]
            _ask_apt(locked, source, {"fetch": packages}, folder, context)
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


def default_sources(suite: str, context: ResolveContext) -> str:
    """The sources.list that mmdebstrap writes for ``suite``; needs no network."""
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        hook = 'install -m 644 "$1/etc/apt/sources.list" "$SPARKIMAGE_APT/sources"'
        mmdebstrap(
            context, "--quiet", "--variant=custom", "--skip=update", f"--setup-hook={hook}",
            suite, os.devnull, SPARKIMAGE_APT=name,
        )  # fmt: skip
        return Path(name, "sources").read_text()


def _ask_apt(
    locked: Locked,
    source: Source,
    requests: Mapping[str, Iterable[str]],
    folder: Path,
    context: ResolveContext,
) -> None:
    """Run the requests of ``data/apt.sh`` by name; apt's answers are files in ``folder`` then."""
    for request, packages in requests.items():
        (folder / request).write_text("".join(f"{package}\n" for package in packages))
    hook = folder / "hook"
    hook.write_text(resources.files("sparkimage").joinpath("data", "apt.sh").read_text())
    hook.chmod(0o755)
    try:
        mmdebstrap(
            context, "--variant=custom", f"--architectures={source.arch}",
            f"--customize-hook={hook}", *source.words(context.mirrors), SPARKIMAGE_APT=str(folder),
        )  # fmt: skip
    except CommandError as error:
        raise _explain(locked, source, error.output) from None


def _explain(locked: Locked, source: Source, output: str) -> SparkError:
    tail = "\n".join(output.splitlines()[-12:])
    if gone := GONE.findall(output):
        names = [" ".join(filter(None, match[1::-1])) or match[2] or match[3] for match in gone]
        packages = ", ".join(name for name in names if name) or "a package"
        return LockError(
            f"{locked}: {source} no longer has {packages}: withdrawn, or superseded",
            hint=f"take what it has now: {locked.update}; or name a mirror that keeps old versions",
            detail=tail,
        )
    if UNREACHABLE.search(output):
        return unreachable(locked, source, tail)
    return LockError(
        f"{locked}: apt failed for {source}", hint="correct this pin in the matrix", detail=tail
    )


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
