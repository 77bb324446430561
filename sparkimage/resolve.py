"""Resolves the matrix's pins: asks uv for the wheels, and picks one file for each project.

uv resolves for a platform that need not be this machine's, and writes a PEP 751 lock
(https://peps.python.org/pep-0751/) with every file of every project; of those the first in the
order of the platform's tags is what an installer takes, and the only one that is kept.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from sparkimage.errors import CommandError, LockError, NetworkError
from sparkimage.lock import Lock, Wheel, WheelsEntry, _wanted, asked
from sparkimage.plan import UV_PLATFORMS

if TYPE_CHECKING:
    from sparkimage.matrix import Matrix
    from sparkimage.run import Runner

GLIBC = (2, 39)
"""Newest glibc that a wheel may ask for; matches ``plan.UV_PLATFORMS``."""

MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}


def resolve(matrix: Matrix, runner: Runner, say: Callable[[str], None]) -> Lock:
    """Resolve every pin that some variant uses.

    ``say`` gets a line per pin and platform. Raises ``LockError`` where a pin cannot be satisfied,
    ``NetworkError`` where the index does not answer.
    """
    wanted = [
        (name, value, platform)
        for (name, value), platforms in _wanted(matrix).items()
        for platform in platforms
    ]

    def one(key: tuple[str, str, str]) -> tuple[Wheel, ...]:
        name, value, platform = key
        pin = matrix.pins[name][value]
        assert pin.kind == "wheels"
        links = matrix.root / pin.find_links if pin.find_links else None
        return _wheels(
            f"{name} {value}", platform, pin.require, pin.exclude, pin.python, links, runner
        )

    found: dict[tuple[str, str], dict[str, tuple[Wheel, ...]]] = {}
    # uv waits for the index nearly all of the time.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for (name, value, platform), wheels in zip(wanted, pool.map(one, wanted), strict=True):
            found.setdefault((name, value), {})[platform] = wheels
            total = sum(wheel.size for wheel in wheels)
            say(f"{name} {value} {platform}: {len(wheels)} wheels, {total / 1e6:.0f} MB")
    entries = {
        (name, value): WheelsEntry(asked=asked(matrix.pins[name][value]), platforms=platforms)
        for (name, value), platforms in found.items()
    }
    return Lock(file="matrix.lock", entries=entries)


def _wheels(
    title: str,
    platform: str,
    require: Iterable[str],
    exclude: Iterable[str],
    python: str,
    links: Path | None,
    runner: Runner,
) -> tuple[Wheel, ...]:
    with TemporaryDirectory(prefix="sparkimage-lock-") as folder:
        wanted = Path(folder, "require.txt")
        wanted.write_text("".join(f"{line}\n" for line in require))
        # A marker that never holds takes a project out of the resolution (uv's overrides).
        out = Path(folder, "override.txt")
        out.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in exclude))
        pylock = Path(folder, "pylock.toml")
        argv = [
            str(Path(sys.executable).with_name("uv")), "pip", "compile", str(wanted),
            "--override", str(out), "--python-platform", UV_PLATFORMS[platform.split("/")[1]],
            "--python-version", python, "--only-binary", ":all:", "--no-config", "--quiet",
            # It resolves for another Python than its own; it need not fetch one for that.
            "--no-python-downloads",
            "--no-annotate", "--no-header", "--format", "pylock.toml", "--output-file", str(pylock),
        ]  # fmt: skip
        if links is not None:
            argv += ["--find-links", str(links)]
        try:
            runner.run(argv, env={"SSL_CERT_FILE": bundle} if (bundle := ca_bundle()) else None)
        except CommandError as error:
            raise _explain(title, platform, error) from None
        packages = tomllib.loads(pylock.read_text())["packages"]
    ranks = _ranks(platform, python)
    return tuple(sorted(_pick(package, ranks, title, platform, links) for package in packages))


def _explain(title: str, platform: str, error: CommandError) -> Exception:
    """Tell an index that cannot be reached from a requirement that cannot be satisfied."""
    text = error.output
    if any(sign in text for sign in ("error sending request", "dns error", "Failed to fetch")):
        return NetworkError(
            f"pin {title} on {platform}: the wheel index cannot be reached",
            hint="run `python build.py lock` where it can",
            detail=text,
        )
    return LockError(
        f"pin {title} on {platform} cannot be resolved",
        hint="correct `require` of this pin in the matrix",
        detail=text,
    )


def _ranks(platform: str, python: str) -> dict[Any, int]:
    """Every wheel tag that runs on the platform, best first."""
    from packaging import tags

    machine = MACHINES[platform]
    version = tuple(int(part) for part in python.split("."))
    oldest = 5 if machine == "x86_64" else 17
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
            f"pin {title}: {package['name']} {package.get('version')} has no wheel for {platform}",
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
