"""Pins of matrix.yaml: one exact outside input each, by its kind."""

from __future__ import annotations

import posixpath
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field

from sparkimage.config.address import without_login
from sparkimage.config.validation import Name, Strict

Key = tuple[str, str]
"""In the lock: the names of a pin and of its value; ``PATCHES`` and the name of a patch; or
``SERIES`` and the key of a series."""
Platform = Literal["linux/amd64", "linux/arm64"]
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")
KINDS = ("debian", "deb", "image", "git", "wheels", "file")
"""Of pins."""
PYTHON = r"^3\.\d+$"
COMMIT = r"^[0-9a-f]{40}$"
"""A full git commit: servers hand out no abbreviated one."""
REPOSITORY = r"^((https|http|git)://[^/@#\s]+|ssh://([^/:@#\s]+@)?[^/@#\s]+)/[^#\s]+$"
"""Without a password, which the plan and the lock would show."""
SHA256 = r"^[0-9a-f]{64}$"
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._+~-]{0,199}$"
INSIDE = r"^\.?[^./:#\s][^/:#\s]*(/\.?[^./:#\s][^/:#\s]*)*$"
"""A path that stays inside the folder that it is below."""
IMAGE = (
    r"^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
"""https://pkg.go.dev/github.com/distribution/reference"""
REQUIREMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*\])?==[^\s;,*]+$"


DEFAULT_VERSION = "default: the name of the value, if that is a version"


class PinBase(Strict):
    """What the pins of all kinds have in common."""

    REQUESTED: ClassVar[tuple[str, ...]]
    """The keys that decide what `lock` resolves."""
    ORDERED: ClassVar[tuple[str, ...]] = ()
    """More of them, of which a request has those that are given, as they are."""

    def request(self) -> dict[str, Any]:
        """What `lock` has to resolve: the locked pin is stale when this has changed."""
        values = self.model_dump(include={"kind", *self.REQUESTED})
        more = self.model_dump(include={*self.ORDERED}, exclude_defaults=True)
        return {key: sorted(v) if isinstance(v, list) else v for key, v in values.items()} | more


class AptPin(PinBase):
    """What the pins of Debian packages have in common: where they come from."""

    # A login in it would be in the plan and the provenance: it belongs to a mirror of it.
    repository: dict[Platform, Annotated[str, Field(pattern=r"^[a-z]+:[^@\s]+$")]] = Field(
        default={}, description="address by platform, without a login; default: the suite's mirror"
    )
    components: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9/+._-]*$")]] = Field(
        default=[], description="of the suite, such as universe; default: main"
    )
    pockets: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]] = Field(
        default=[],
        description="suites beside it, such as updates and security; the default mirror has them",
    )
    key: str | None = Field(
        default=None,
        pattern=INSIDE,
        description="the key that signs it: a path below the project, or the name of a file pin",
    )
    snapshot: str | None = Field(
        default=None,
        pattern=r"^[0-9]{8}T[0-9]{6}Z$",
        description="YYYYMMDDTHHMMSSZ; `repository` is then the address of a snapshot service",
    )

    def address(self, platform: str) -> str | None:
        """The repository for a platform, at its snapshot; None where it has none."""
        url = next((url for known, url in self.repository.items() if known == platform), None)
        return f"{url.rstrip('/')}/{self.snapshot}" if url and self.snapshot else url


class DebianPin(AptPin):
    """The minimal root of a suite of Debian or Ubuntu, and packages beside it."""

    REQUESTED = ("suite", "packages")
    ORDERED = ("repository", "components", "pockets", "key", "snapshot")
    kind: Literal["debian"]
    suite: str = Field(pattern=r"^[a-z]+$", description="its code name, such as trixie or noble")
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]] = Field(
        default=[], description="packages for the layer that has this pin as `debs`"
    )


class DebPin(AptPin):
    """Packages of an apt repository: of a suite, with what they need and lies not below; or of a
    flat one, each in an exact version and nothing else."""

    REQUESTED = ("repository", "packages")
    ORDERED = ("suite", "components", "pockets", "key", "snapshot")
    kind: Literal["deb"]
    suite: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9./-]*$",
        description="such as noble or stable; without one, `repository` is flat",
    )
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+(=\S+)?$")]] = Field(
        min_length=1, description="NAME=VERSION; of a suite, NAME is its newest version"
    )
    version: str | None = Field(default=None, description=DEFAULT_VERSION)


class ImagePin(PinBase):
    """An image of a registry, to build on."""

    REQUESTED = ("image",)
    kind: Literal["image"]
    image: str = Field(
        pattern=IMAGE,
        description="NAME:TAG, and @sha256:… where its digest is known",
    )
    version: str | None = Field(default=None, description=DEFAULT_VERSION)
    python: str | None = Field(default=None, pattern=PYTHON, description="its Python's X.Y")
    commit: str | None = Field(
        default=None, pattern=COMMIT, description="the fork commit that a prebuilt image has"
    )
    glibc: str | None = Field(
        default=None,
        pattern=r"^2\.[1-9][0-9]$",
        description='its glibc, quoted: "2.35"; wheels on it need no newer one',
    )


class GitPin(PinBase):
    """One commit of a git repository."""

    REQUESTED = ("repository", "commit")
    kind: Literal["git"]
    repository: str = Field(
        pattern=REPOSITORY,
        description="https://HOST/PATH, or ssh://git@HOST/PATH where it is private",
    )
    commit: str = Field(
        pattern=r"^[0-9a-f]{7,40}$",
        description="all 40 digits, as `git ls-remote REPOSITORY TAG` shows; where only fewer are "
        "known, `lock` finds the rest",
    )
    version: str | None = Field(
        default=None,
        pattern=r"^[0-9][A-Za-z0-9.]*(\+[a-z0-9.]+)?$",
        description="version of the package that is built from it (PEP 440); default: the name of "
        "the value, if that is a version",
    )
    python: str | None = Field(
        default=None, pattern=PYTHON, description="Python's X.Y in the image, quoted"
    )
    branch: str | None = Field(default=None, description="where `lock --outdated` looks")


class WheelsPin(PinBase):
    """Python wheels, resolved together into hash-pinned requirements."""

    REQUESTED = ("require", "exclude", "python")
    ORDERED = ("deps",)
    kind: Literal["wheels"]
    require: list[Annotated[str, Field(pattern=REQUIREMENT)]] = Field(
        min_length=1, description="exact requirements, NAME==VERSION or NAME[EXTRA,…]==VERSION"
    )
    exclude: list[str] = Field(
        default=[],
        description="projects that another pin provides; its dependencies replace one of `require`",
    )
    python: str = Field(pattern=PYTHON, description="Python's X.Y in the image, quoted")
    find_links: str | None = Field(default=None, description="folder with local wheels")
    index: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*[^\s/]$")]] = Field(
        default=[], description="addresses of indexes to search before the default one, in order"
    )
    constraints: list[Name] = Field(
        default=[], description="wheels pins of the same variant, whose versions hold here too"
    )
    deps: bool = Field(default=True, description="false: `require` alone, without its dependencies")
    version: str | None = Field(default=None, description=DEFAULT_VERSION)

    def request(self) -> dict[str, Any]:
        # A new password is no reason to resolve anew, and does not belong into the lock.
        index = [without_login(address) for address in self.index]
        return super().request() | ({"index": index} if index else {})


class FilePin(PinBase):
    """One file of a web server, known by its sha256."""

    REQUESTED = ("url", "sha256")
    kind: Literal["file"]
    url: str = Field(
        # A user and a password in it would be in the plan and the provenance.
        pattern=r"^https?://[^/@#?\s]+/[^#\s]+$",
        description="https://HOST/PATH",
    )
    sha256: str | None = Field(
        default=None, pattern=SHA256, description="64 hex digits; `lock` finds them"
    )
    name: str | None = Field(
        default=None,
        pattern=FILE_NAME,
        description="its name in the build context; default: the last part of `url`",
    )
    version: str | None = Field(default=None, description="default: the name of the value")

    @property
    def file(self) -> str:
        """Its name in the build context."""
        return self.name or unquote(posixpath.basename(urlsplit(self.url).path))

    def request(self) -> dict[str, Any]:
        """What `lock` has to resolve, with the name that it gives the file."""
        return {**super().request(), "name": self.file}


Pin = Annotated[
    DebianPin | DebPin | ImagePin | GitPin | WheelsPin | FilePin, Field(discriminator="kind")
]
PYTHON_ARGUMENT = "PYTHON_VERSION"
"""The build argument for Python's X.Y."""


def version_argument(pin: str) -> str:
    """The build argument for a pin's version, in the layers that use the pin."""
    return f"{pin.upper().replace('-', '_')}_VERSION"


def commit_argument(pin: str) -> str:
    """The build argument for a pin's commit, in the layers that use the pin."""
    return f"{pin.upper().replace('-', '_')}_COMMIT"


def version_of(pin: Pin) -> str | None:
    """The version of what a pin brings; None where it has none."""
    if isinstance(pin, DebianPin):
        return None
    if isinstance(pin, GitPin):
        return pin.version or f"0+g{pin.commit[:9]}"
    return pin.version
