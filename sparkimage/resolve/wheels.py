"""Resolves wheels: uv resolves the projects, and one file is picked for each.

uv resolves for a platform that need not be this machine's, and writes a PEP 751 lock
(https://peps.python.org/pep-0751/) with every file of every project; of those only the first in
the order of the platform's tags is locked, which is the one that an installer takes.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sparkimage.config.address import WHEELS, Mirrors, without_login
from sparkimage.config.lock_items import Wheel
from sparkimage.core.arch import ARCHES, newest_tag
from sparkimage.core.errors import CommandError, LockError, SparkError
from sparkimage.resolve import outputs
from sparkimage.resolve.context import ResolveContext, unreachable

if TYPE_CHECKING:
    from packaging.tags import Tag

    from sparkimage.config.pins import WheelsPin


def resolve(
    title: str,
    platform: str,
    pin: WheelsPin,
    glibc: str,
    links: Path | None,
    context: ResolveContext,
    keep: Mapping[str, str],
) -> tuple[Wheel, ...]:
    """The wheels of the pin for ``platform`` with ``glibc`` ("2.39"); ``links`` is a folder with
    local ones.

    ``keep`` constrains projects to versions: those of other pins, and those that an update does not
    move. Raises ``LockError`` when the pin cannot be satisfied, ``NetworkError`` when an index does
    not answer.
    """
    with TemporaryDirectory(prefix="sparkimage-lock-") as temporary:
        folder = Path(temporary)
        # A project that is required and excluded stands for its requirements: those of what a layer
        # compiles itself.
        required = {project_name(requirement) for requirement in pin.require}
        gone = {project_name(project) for project in pin.exclude}
        files = {
            "requirements": pin.require,
            # A marker that is never true removes a project from the resolution (uv's overrides).
            "override": [f"{name}; sys_platform == 'never'" for name in sorted(gone - required)],
            "constraint": [f"{project}=={version}" for project, version in keep.items()],
        }
        for file, lines in files.items():
            (folder / file).write_text("".join(f"{line}\n" for line in lines))
        pylock = folder / "pylock.toml"
        argv = [
            *UV_PIP, "compile", f"{folder}/requirements",
            "--override", f"{folder}/override", "--constraint", f"{folder}/constraint",
            "--python-platform", ARCHES[platform.split("/")[1]].uv_platform(glibc),
            "--python-version", pin.python, "--only-binary", ":all:",
            "--no-annotate", "--no-header", "--format", "pylock.toml", "--output-file", str(pylock),
        ]  # fmt: skip
        if links is not None:
            argv += ["--find-links", str(links)]
        if not pin.deps:
            argv.append("--no-deps")
        index = tuple(without_login(address) for address in pin.index)
        try:
            context.runner.run(argv, env=environment(context.mirrors, index))
        except CommandError as error:
            raise _explain(f"{title} on {platform}", error.output, index) from None
        packages = tomllib.loads(pylock.read_text())
    found = packages.get("packages", [])
    packages["packages"] = [one for one in found if one["name"] not in gone]
    return pick(packages, title, platform, pin.python, glibc, links)


def project_name(requirement: str) -> str:
    """The project of NAME, NAME==VERSION or NAME[EXTRA]==VERSION, as a lock writes it."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(re.split(r"[\[=]", requirement, maxsplit=1)[0])


def environment(mirrors: Mirrors, index: Sequence[str] = ()) -> dict[str, str]:
    """Environment variables for uv and pip: the indexes to search before the default one (uv only),
    the mirror of that one, this machine's CA bundle."""
    # In the environment, not in the arguments: an address may contain a password.
    variables = {
        "SSL_CERT_FILE": ca_bundle(),
        "UV_INDEX": " ".join(map(mirrors.of, index)),
        "UV_DEFAULT_INDEX": mirrors.client(WHEELS),
        "PIP_INDEX_URL": mirrors.client(WHEELS),
    }
    return {name: value for name, value in variables.items() if value}


UV_PIP = (
    str(Path(sys.executable).with_name("uv")), "pip",
    # It resolves for another Python than its own, and need not download one for that.
    "--no-config", "--quiet", "--no-python-downloads",
)  # fmt: skip
GONE = re.compile(r"there is no version of ([A-Za-z0-9._-]+?)(?:\[[^\]]*\])?==(\S+?)[\s,]")
"""Uv's words for a version that its index does not have (any more)."""
NO_PROJECT = re.compile(r"Because (\S+) was not found in the package registry")
"""And for a project that the index does not have at all."""
NO_WHEEL = re.compile(r"(\S+?)(?:\[\S+\])?==(\S+) has no (?:usable wheels|wheels with a matching)")
"""And for one that has none for the platform."""


def withdrawn(output: str) -> tuple[str, ...]:
    """The wheels, as NAME==VERSION, that the index does not have according to uv's output."""
    flat = " ".join(output.split())
    gone = [f"{name}=={version}" for name, version in GONE.findall(flat + " ")]
    return tuple(dict.fromkeys([*gone, *NO_PROJECT.findall(flat)]))


def refused(subject: str, output: str) -> SparkError | None:
    """The error for a wheel that the index does not have (any more), or with another hash than the
    lock's, by uv's or pip's output; None for any other failure."""
    gone = withdrawn(output)
    return outputs.explain(
        "wheel", output, detail="\n".join(output.splitlines()[-8:]), title=subject,
        gone=", ".join(gone), project="".join(gone[:1]).partition("==")[0],
    )  # fmt: skip


def _explain(title: str, output: str, index: Sequence[str]) -> SparkError:
    """The error for a pin that uv did not resolve; ``index`` is of addresses without logins."""
    text = without_login(output)
    flat = " ".join(text.split())
    if any(sign in text for sign in ("error sending request", "dns error", "Failed to fetch")):
        place = next((f"the wheel index {one}" for one in index if one in flat), "the wheel index")
        return unreachable(title, place, text)
    none = (f"{name} {version}" for name, version in NO_WHEEL.findall(flat))
    known = outputs.explain(
        "uv", flat, detail=text, title=title, projects=", ".join(dict.fromkeys(none)),
        from_source=FROM_SOURCE,
    )  # fmt: skip
    if (error := known or refused(title, text)) is not None:
        return error
    return LockError(
        f"{title} cannot be resolved",
        hint="correct `require` of this pin in the matrix (or its `constraints`); an update may "
        "need other versions of projects that were not to move",
        detail=text,
    )


FROM_SOURCE = (
    "pin a version with a wheel, leave the platform out, or `exclude` the project here and build "
    "it in a layer of its own, from a `file` pin of its sdist under `inputs` (docs/images.md)"
)


def pick(
    pylock: Mapping[str, Any],
    title: str,
    platform: str,
    python: str,
    glibc: str,
    links: Path | None,
) -> tuple[Wheel, ...]:
    """The wheel of each package of a pylock.toml that an installer takes on the platform.

    Raises ``LockError`` for a package without one.
    """
    from packaging.pylock import Pylock
    from packaging.tags import create_compatible_tags_selector
    from packaging.utils import parse_wheel_filename

    select = create_compatible_tags_selector(_tags(platform, python, glibc))
    picked = []
    for package in Pylock.from_dict(pylock).packages:
        wheels = sorted(package.wheels or (), key=lambda wheel: wheel.filename)
        tagged = [(wheel, parse_wheel_filename(wheel.filename)[-1]) for wheel in wheels]
        wheel = next(select(tagged), None)
        if wheel is None:
            raise LockError(
                f"{title}: {package.name} {package.version} has no wheel for {platform}",
                hint=FROM_SOURCE,
            )
        size = wheel.size
        if size is None and links is not None and (links / wheel.filename).is_file():
            size = (links / wheel.filename).stat().st_size
        picked.append(
            Wheel(
                name=package.name,
                version=str(package.version),
                file=wheel.filename,
                size=size or 0,
                sha256=wheel.hashes["sha256"],
            )
        )
    return tuple(sorted(picked))


def _tags(platform: str, python: str, glibc: str) -> Iterator[Tag]:
    """Every wheel tag that runs on the platform with ``glibc``, best first."""
    from packaging import tags

    arch = ARCHES[platform.split("/")[1]]
    machine, oldest, newest = arch.machine, arch.oldest_glibc, newest_tag(glibc)
    version = tuple(int(part) for part in python.split("."))
    systems = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, oldest - 1, -1)]
    aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    systems += [
        f"{alias}_{machine}" for minor, alias in aliases.items() if newest >= minor >= oldest
    ]
    systems.append(f"linux_{machine}")
    yield from tags.cpython_tags(version, platforms=systems)
    yield from tags.compatible_tags(version, f"cp{version[0]}{version[1]}", systems)


def ca_bundle() -> str | None:
    """The CA bundle that the environment names, or else the system's."""
    variables = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    paths = [
        *(os.environ.get(name, "") for name in variables),
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ]
    return next((path for path in paths if path and Path(path).is_file()), None)
