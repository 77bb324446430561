"""Debian packages: which ones a suite or repository has, and those of the lock fetched by hash.

mmdebstrap sets apt up for any suite, architecture or repository, and a hook of ours asks it; so
Debian's own mirror is whatever mmdebstrap knows, and no other package tool is needed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from sparkimage.core.errors import CommandError, Locked, LockError, NetworkError, SparkError
from sparkimage.core.process import Runner
from sparkimage.core.rights import root_prefix
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
class Place:
    """Where packages come from: a Debian ``suite``, or another ``repository`` (a flat one)."""

    suite: str | None
    repository: str | None
    arch: str

    def words(self, mirrors: Mirrors) -> tuple[str, ...]:
        """Mmdebstrap's SUITE, TARGET and MIRROR."""
        if self.repository is None:
            mirror = mirrors.client(DEBIAN)
            return (str(self.suite), os.devnull, *((mirror,) if mirror else ()))
        # Signed or not, what is built is proven by the lock's hash; TLS guards its making.
        address = mirrors.of(self.repository).rstrip("/")
        return ("flat", os.devnull, f"deb [trusted=yes] {address}/ /")


def ready(runner: Runner, say: Callable[[str], None]) -> None:
    """See that mmdebstrap is on this machine; errors as ``install_on_host``."""
    install_on_host(HOST_PACKAGES, "mmdebstrap", runner, say)


def resolve(
    locked: Locked, place: Place, packages: Sequence[str], runner: Runner, mirrors: Mirrors
) -> tuple[Deb, ...]:
    """The minimal root and ``packages`` of a suite with all that they need; or of another
    repository exactly ``packages`` (NAME=VERSION).

    Raises ``NetworkError``, or ``LockError`` for a package that is not there.
    """
    asks: dict[str, Iterable[str]] = {"find": packages}
    if place.repository is None:
        asks = {"install-root": MINIMAL, "install-more": (*MINIMAL, *packages)}
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        folder = Path(name)
        _ask(locked, place, asks, folder, runner, mirrors)
        if place.repository is not None:
            return _read((folder / "uris-find").read_text(), MORE)
        root = _read((folder / "uris-install-root").read_text(), ROOT)
        every = _read((folder / "uris-install-more").read_text(), MORE)
    held = {deb.file for deb in root}
    return (*root, *(deb for deb in every if deb.file not in held))


def fetch(
    locked: Locked, place: Place, debs: Sequence[Deb], home: Path, runner: Runner, mirrors: Mirrors
) -> Mapping[str, Path]:
    """The files of ``debs`` by their names; what is not in the home yet is fetched and proven.

    Raises ``LockError`` for a package that was withdrawn or holds other bytes than the lock says,
    ``NetworkError`` when its repository does not answer.
    """
    cache = home / "debs"
    cache.mkdir(parents=True, exist_ok=True)
    missing = [deb for deb in debs if not (cache / deb.sha256).is_file()]
    if missing:
        with TemporaryDirectory(prefix=".fetch-", dir=cache) as name:
            folder = Path(name)
            wanted = [f"{deb.name}={deb.version}" for deb in missing]
            _ask(locked, place, {"fetch": wanted}, folder, runner, mirrors)
            for deb in missing:
                _prove(locked, deb, folder / deb.file)
                (folder / deb.file).replace(cache / deb.sha256)
    return {deb.file: cache / deb.sha256 for deb in debs}


def write_repository(
    files: Mapping[str, Path],
    folder: Path,
    suite: str | None,
    runner: Runner,
    *,
    repack: bool = False,
) -> None:
    """Make ``folder`` a flat repository of these files (by links where that is possible), or of
    what ``repacked`` makes of them.

    https://wiki.debian.org/DebianRepository/Format
    """
    folder.mkdir(parents=True)

    def stanza(name: str) -> str:
        held = files[name]
        # Its name in the home is its sha256, which was proven when it was fetched.
        size, sha256 = held.stat().st_size, held.name
        if repack:
            data = repacked(held.read_bytes())
            size, sha256 = len(data), hashlib.sha256(data).hexdigest()
            (folder / name).write_bytes(data)
        else:
            try:
                os.link(held, folder / name)
            except OSError:
                shutil.copyfile(held, folder / name)
        control = runner.run(["dpkg-deb", "--field", str(folder / name)]).stdout.strip()
        return f"{control}\nFilename: ./{name}\nSize: {size}\nSHA256: {sha256}\n"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packages = "\n".join(pool.map(stanza, sorted(files))).encode()
    (folder / "Packages").write_bytes(packages)
    digest = hashlib.sha256(packages).hexdigest()
    named = f"Suite: {suite}\nCodename: {suite}\n" if suite is not None else ""
    (folder / "Release").write_text(f"{named}SHA256:\n {digest} {len(packages)} Packages\n")


def default_sources(suite: str, runner: Runner) -> str:
    """The sources.list that mmdebstrap gives a root of ``suite``; asks no network."""
    with TemporaryDirectory(prefix="sparkimage-apt-") as name:
        argv = [
            *root_prefix(runner), "env", f"SPARKIMAGE_APT={name}",
            "mmdebstrap", "--quiet", "--mode=chrootless", "--variant=custom", "--skip=update",
            '--setup-hook=install -m 644 "$1/etc/apt/sources.list" "$SPARKIMAGE_APT/sources"',
            suite, os.devnull,
        ]  # fmt: skip
        runner.run(argv)
        return Path(name, "sources").read_text()


def _ask(
    locked: Locked,
    place: Place,
    asks: Mapping[str, Iterable[str]],
    folder: Path,
    runner: Runner,
    mirrors: Mirrors,
) -> None:
    """Let the hook put apt's answers into ``folder``."""
    for verb, words in asks.items():
        (folder / verb).write_text("".join(f"{word}\n" for word in words))
    with resources.as_file(resources.files("sparkimage").joinpath("data", "apt.sh")) as script:
        hook = folder / "hook"
        shutil.copyfile(script, hook)
        hook.chmod(0o755)
    argv = [
        *root_prefix(runner), "env", f"SPARKIMAGE_APT={folder}",
        "mmdebstrap", "--mode=chrootless", "--variant=custom",
        f"--architectures={place.arch}", f"--customize-hook={hook}", *place.words(mirrors),
    ]  # fmt: skip
    try:
        runner.run(argv)
    except CommandError as error:
        raise _explain(locked, place, error.output) from None


def _explain(locked: Locked, place: Place, said: str) -> SparkError:
    where = place.repository or f"Debian {place.suite}"
    tail = "\n".join(said.splitlines()[-12:])
    gone = [next(filter(None, match[::-1]), "") for match in GONE.findall(said)]
    if gone:
        versions = [f"{name} {version}".strip() for version, name, *_ in GONE.findall(said)]
        named = ", ".join(v for v in versions if v) or ", ".join(gone)
        return LockError(
            f"{locked}: {where} ({place.arch}) no longer has {named}: withdrawn, or superseded",
            hint=f"take what it has now: {locked.update}; or name a mirror that keeps old versions",
            detail=tail,
        )
    if UNREACHABLE.search(said):
        return NetworkError(
            f"{locked}: {where} ({place.arch}) cannot be reached",
            hint="check this machine's network and proxy settings, or name a mirror",
            detail=tail,
        )
    return LockError(
        f"{locked}: apt gives no answer for {where} ({place.arch})",
        hint="correct this pin in the matrix",
        detail=tail,
    )


def _read(said: str, part: str) -> tuple[Deb, ...]:
    """What ``apt-get --print-uris`` prints: 'ADDRESS' FILE SIZE SHA256:HEX."""
    found = []
    for line in said.splitlines():
        match = re.fullmatch(r"'[^']+' (\S+) (\d+) SHA256:([0-9a-f]{64})", line.strip())
        if match is None:
            raise LockError(
                f"apt gives no sha256 for a package: {line!r}",
                hint="its repository must have SHA256 in its Packages",
            )
        name, version, _ = match[1].removesuffix(".deb").split("_")
        found.append(
            Deb(
                name=name,
                version=unquote(version),
                part=part,
                size=int(match[2]),
                sha256=match[3],
                file=match[1],
            )
        )
    return tuple(sorted(found))


def _prove(locked: Locked, deb: Deb, path: Path) -> None:
    try:
        with path.open("rb") as source:
            seen = hashlib.file_digest(source, "sha256").hexdigest()
    except FileNotFoundError:
        seen = "no file"
    if seen != deb.sha256:
        raise LockError(
            f"{locked}: {deb.file} has sha256 {seen}, and the lock says {deb.sha256}",
            hint="somebody changed the file under its version; find out who before this: "
            + locked.update,
        )
