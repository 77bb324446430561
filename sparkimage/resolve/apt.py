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
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

from sparkimage.config.lock_items import Deb
from sparkimage.config.plan import MORE, ROOT
from sparkimage.core.errors import CommandError, Locked, LockError
from sparkimage.resolve.apt_output import REMOVED, explain
from sparkimage.resolve.apt_source import Source, mmdebstrap
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.deb import repacked

CACHE = "debs"
"""The folder of the home with the packages that were fetched, each called by its sha256."""
MINIMAL = ("?essential", "?priority(required)", "apt")
"""What mmdebstrap's variant minbase installs: https://manpages.debian.org/mmdebstrap."""


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
