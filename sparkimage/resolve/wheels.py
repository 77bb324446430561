"""Resolves wheels: asks uv for the projects, and picks one file for each.

uv resolves for a platform that need not be this machine's, and writes a PEP 751 lock
(https://peps.python.org/pep-0751/) with every file of every project; of those the first in the
order of the platform's tags is what an installer takes, and the only one that is kept.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.lockfile import Wheel
from sparkimage.core.arch import ARCHES, GLIBC
from sparkimage.core.errors import CommandError, LockError, NetworkError

if TYPE_CHECKING:
    from sparkimage.config.schema import WheelsPin
    from sparkimage.core.process import Runner


def resolve(
    title: str,
    platform: str,
    pin: WheelsPin,
    links: Path | None,
    runner: Runner,
    mirrors: Mirrors,
    *,
    keep: Mapping[str, str] | None = None,
) -> tuple[Wheel, ...]:
    """The wheels that the pin comes to on ``platform``; ``links`` is a folder with local ones.

    ``keep`` holds projects at versions, so that one moves and the rest does not. Raises
    ``LockError`` where the pin cannot be satisfied, ``NetworkError`` where the index is silent.
    """
    with TemporaryDirectory(prefix="sparkimage-lock-") as name:
        folder = Path(name)
        wanted, out, held = (folder / f"{one}.txt" for one in ("require", "override", "constraint"))
        wanted.write_text("".join(f"{line}\n" for line in pin.require))
        # A marker that never holds takes a project out of the resolution (uv's overrides).
        out.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in pin.exclude))
        held.write_text("".join(f"{name}=={version}\n" for name, version in (keep or {}).items()))
        pylock = folder / "pylock.toml"
        argv = [
            str(Path(sys.executable).with_name("uv")), "pip", "compile", str(wanted),
            "--override", str(out), "--constraint", str(held),
            "--python-platform", ARCHES[platform.split("/")[1]].uv_platform,
            "--python-version", pin.python, "--only-binary", ":all:", "--no-config", "--quiet",
            # It resolves for another Python than its own; it need not fetch one for that.
            "--no-python-downloads",
            "--no-annotate", "--no-header", "--format", "pylock.toml", "--output-file", str(pylock),
        ]  # fmt: skip
        if links is not None:
            argv += ["--find-links", str(links)]
        try:
            runner.run(argv, env=environment(mirrors))
        except CommandError as error:
            raise _explain(title, platform, error) from None
        packages = tomllib.loads(pylock.read_text())["packages"]
    ranks = _ranks(platform, pin.python)
    return tuple(sorted(_pick(package, ranks, title, platform, links) for package in packages))


def environment(mirrors: Mirrors) -> dict[str, str]:
    """What uv and pip are told of the mirror of their index, and of this machine's CA bundle."""
    bundle, index = ca_bundle(), mirrors.client(WHEELS)
    found = {"SSL_CERT_FILE": bundle} if bundle else {}
    if index is not None:
        # In the environment, not in the arguments: an address may hold a password.
        found |= {"UV_DEFAULT_INDEX": index, "PIP_INDEX_URL": index}
    return found


GONE = re.compile(r"there is no version of ([A-Za-z0-9._-]+?)(?:\[[^\]]*\])?==(\S+?)[\s,]")
"""What uv says of a version that its index does not have (any more)."""
NO_PROJECT = re.compile(r"Because (\S+) was not found in the package registry")
"""And of a project that it does not have at all."""


def altered(said: str) -> bool:
    """Whether uv's or pip's output says that a file has another hash than was asked for."""
    return "Hash mismatch" in said or "DO NOT MATCH THE HASHES" in said


def withdrawn(said: str) -> tuple[str, ...]:
    """The wheels, as NAME==VERSION, that uv's output says are not on the index."""
    flat = " ".join(said.split())
    gone = [f"{name}=={version}" for name, version in GONE.findall(flat + " ")]
    return tuple(dict.fromkeys([*gone, *NO_PROJECT.findall(flat)]))


def _explain(title: str, platform: str, error: CommandError) -> Exception:
    """Tell an index that cannot be reached from a requirement that cannot be satisfied."""
    text = error.output
    if any(sign in text for sign in ("error sending request", "dns error", "Failed to fetch")):
        return NetworkError(
            f"{title} on {platform}: the wheel index cannot be reached",
            hint="run `python build.py lock` where it can",
            detail=text,
        )
    gone = withdrawn(text)
    if gone:
        return LockError(
            f"{title} on {platform}: the wheel index has no {', '.join(gone)} (any more)",
            hint="it was yanked, removed or never there: pin another version in the matrix, or "
            "name a mirror that has it",
            detail=text,
        )
    return LockError(
        f"{title} on {platform} cannot be resolved",
        hint="correct `require` of this pin in the matrix; of an update, it may ask for other "
        "versions of what stays",
        detail=text,
    )


def _ranks(platform: str, python: str) -> dict[Any, int]:
    """Every wheel tag that runs on the platform, best first."""
    from packaging import tags

    arch = ARCHES[platform.split("/")[1]]
    machine, oldest = arch.machine, arch.oldest_glibc
    version = tuple(int(part) for part in python.split("."))
    systems = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC[1], oldest - 1, -1)]
    aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    systems += [f"{alias}_{machine}" for minor, alias in aliases.items() if minor >= oldest]
    systems.append(f"linux_{machine}")
    ordered = [
        *tags.cpython_tags(version, platforms=systems),
        *tags.compatible_tags(version, f"cp{version[0]}{version[1]}", systems),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(ordered)))}


def _pick(
    package: dict[str, Any], ranks: dict[Any, int], title: str, platform: str, links: Path | None
) -> Wheel:
    """The wheel of ``package`` that an installer takes on the platform."""
    from packaging.utils import parse_wheel_filename

    best: tuple[int, str, dict[str, Any]] | None = None
    for wheel in package.get("wheels", ()):
        file = wheel.get("name") or unquote(
            Path(urlsplit(wheel.get("url", "")).path or wheel["path"]).name
        )
        _, _, _, file_tags = parse_wheel_filename(file)
        rank = min((ranks[tag] for tag in file_tags if tag in ranks), default=None)
        if rank is not None and (best is None or (rank, file) < best[:2]):
            best = (rank, file, wheel)
    if best is None:
        raise LockError(
            f"{title}: {package['name']} {package.get('version')} has no wheel for {platform}",
            hint="pin another version, or leave the platform out",
        )
    _, file, wheel = best
    size = wheel.get("size")
    if size is None and links is not None and (links / file).is_file():
        size = (links / file).stat().st_size
    return Wheel(
        name=package["name"],
        version=package["version"],
        file=file,
        size=int(size or 0),
        sha256=wheel["hashes"]["sha256"],
    )


def ca_bundle() -> str | None:
    """The CA bundle that this machine's programs are told to use, or its system's."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if (path := os.environ.get(name)) and Path(path).is_file():
            return path
    for path in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"):
        if Path(path).is_file():
            return path
    return None
