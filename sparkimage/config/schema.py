"""The shape of matrix.yaml: strict models, which are also its JSON schema."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from sparkimage.config.profiles import Profile
from sparkimage.config.strict import KINDS, Name, Strict
from sparkimage.config.tier import DEFAULT, Tier

Platform = Literal["linux/amd64", "linux/arm64"]
PYTHON = r"^3\.\d+$"
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")


Value = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", max_length=128)]
"""The name of a pin's value, such as a version."""
COMMIT = r"^[0-9a-f]{40}$"
"""A whole git commit: an abbreviated one can be fetched from no server."""


REQUIREMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*\])?==[^\s;,*]+$"


class DebianPin(Strict):
    """A Debian suite's minimal root, and packages beside it."""

    kind: Literal["debian"]
    suite: str = Field(pattern=r"^[a-z]+$", description="Debian's code name, such as trixie")
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]] = Field(
        default=[], description="packages for the layer that has this pin as `debs`"
    )


class DebPin(Strict):
    """Packages of one apt repository, each in an exact version."""

    kind: Literal["deb"]
    repository: dict[Platform, str] = Field(min_length=1, description="address by platform")
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+=\S+$")]] = Field(
        min_length=1, description="exact packages, NAME=VERSION"
    )
    version: str | None = Field(default=None, description="default: the pin's own name")

    def address(self, platform: str) -> str | None:
        """The repository for a platform; None where it has none."""
        return next((url for known, url in self.repository.items() if known == platform), None)


class ImagePin(Strict):
    """An image of a registry, to stand on."""

    kind: Literal["image"]
    image: str = Field(
        pattern=r"^[a-z0-9][a-zA-Z0-9._:/-]*(@sha256:[0-9a-f]{64})?$",
        description="NAME:TAG, and @sha256:… where its digest is known",
    )
    version: str | None = Field(default=None, description="default: the pin's own name")
    python: str | None = Field(default=None, pattern=PYTHON, description="its Python's X.Y")
    commit: str | None = Field(
        default=None, pattern=COMMIT, description="the fork commit that a ready image holds"
    )


class GitPin(Strict):
    """One commit of a git repository."""

    kind: Literal["git"]
    repository: str = Field(pattern=r"^(https|http|git|ssh)://[^#\s]+$")
    commit: str = Field(
        pattern=r"^[0-9a-f]{7,40}$",
        description="all 40 digits; where only fewer are known, `lock` finds the rest",
    )
    version: str = Field(
        pattern=r"^[0-9][A-Za-z0-9.]*(\+[a-z0-9.]+)?$",
        description="what the package built from it calls itself (PEP 440)",
    )
    python: str = Field(pattern=PYTHON, description="Python's X.Y in the image, quoted")
    branch: str | None = Field(default=None, description="where `lock --outdated` looks")


class WheelsPin(Strict):
    """Python wheels, resolved together into hash-pinned requirements."""

    kind: Literal["wheels"]
    require: list[Annotated[str, Field(pattern=REQUIREMENT)]] = Field(
        min_length=1, description="exact requirements, NAME==VERSION or NAME[EXTRA,…]==VERSION"
    )
    exclude: list[str] = Field(default=[], description="projects that another pin provides")
    python: str = Field(pattern=PYTHON, description="Python's X.Y in the image, quoted")
    find_links: str | None = Field(default=None, description="folder with local wheels")
    version: str | None = Field(default=None, description="default: the pin's own name")


Pin = Annotated[DebianPin | DebPin | ImagePin | GitPin | WheelsPin, Field(discriminator="kind")]


PYTHON_ARGUMENT = "PYTHON_VERSION"
"""The build argument that is Python's X.Y."""


def version_argument(pin: str) -> str:
    """The build argument that is a pin's version, in the layers that use the pin."""
    return f"{pin.upper().replace('-', '_')}_VERSION"


class WheelsUse(Strict):
    """Which wheels of a pin a layer takes."""

    pin: Name
    select: list[str] = Field(
        default=[], description="globs on project names; none: what no other layer takes"
    )


class SourceUse(Strict):
    """A layer that a repository's own Dockerfile builds."""

    pin: Name = Field(description="the git pin")
    dockerfile: str
    target: str
    images: dict[str, Name] = Field(
        description="build argument that names an image, then the image pin to give it; "
        "`layer` is the layer below"
    )
    jobs: int = Field(ge=1, description="max_jobs: compilers at once, times `threads`")
    threads: int = Field(ge=1, description="nvcc_threads")
    arch_list: str = Field(description="torch_cuda_arch_list, such as 12.1a")


MAX_LAYERS = 125
"""Of an image: the engine stacks no more. https://github.com/moby/moby/blob/master/layer/layer.go"""
LAYER = "layer"
"""Stands for the layer below among the images of a source."""


class LayerSpec(Strict):
    """What the folder images/<layer>/ needs."""

    base: Name | None = Field(
        default=None, description="what the lowest layer stands on: a debian or image pin"
    )
    debs: Name | None = Field(default=None, description="a deb or debian pin: its packages")
    wheels: WheelsUse | None = None
    source: SourceUse | None = None
    patches: list[Name] = Field(default=[], description="names in patches/patches.yaml")
    checks: list[Name] = Field(default=[], description="layers whose checks hold here too")
    pins: list[Name] = Field(default=[], description="pins of which only the version is needed")
    platforms: list[Platform] = Field(default=list(PLATFORMS), min_length=1)
    args: dict[str, str] = Field(default={}, description="build arguments")

    @cached_property
    def roles(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Every pin that the layer needs a value of: its role, name, and the kinds that do."""
        found: list[tuple[str, str, tuple[str, ...]]] = []
        if self.base is not None:
            found.append(("base", self.base, ("debian", "image")))
        if self.debs is not None:
            found.append(("debs", self.debs, ("deb", "debian")))
        if self.wheels is not None:
            found.append(("wheels", self.wheels.pin, ("wheels",)))
        if self.source is not None:
            images = sorted({name for name in self.source.images.values() if name != LAYER})
            found.append(("source", self.source.pin, ("git",)))
            found += [("source", name, ("image",)) for name in images]
        return (*found, *(("pins", name, KINDS) for name in dict.fromkeys(self.pins)))

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """Every pin that the layer needs a value of."""
        return tuple(dict.fromkeys(name for _, name, _ in self.roles))


class AnswerSpec(Strict):
    """How the ENTRYPOINT shows that it starts."""

    args: list[str] = Field(description="what it is started with")
    says: str = Field(min_length=1, description="what its output then holds")
    without_gpu: str | None = Field(
        default=None,
        min_length=1,
        description="what the output holds instead where it can answer with a GPU only",
    )


class Defaults(Strict):
    """What every variant has that does not say otherwise."""

    name: str = Field(max_length=1000, description="template over the axes and {arch}")
    layers: list[Name] = Field(
        min_length=1, max_length=MAX_LAYERS, description="from the lowest up"
    )
    entrypoint: list[str] = Field(default=[])
    cmd: list[str] = Field(default=[])
    answer: AnswerSpec | None = None


class Include(Strict):
    """A variant of its own, beside the product of the axes."""

    name: str = Field(max_length=128)
    platform: Platform
    layers: list[Name] | None = Field(default=None, min_length=1, max_length=MAX_LAYERS)
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    answer: AnswerSpec | None = None
    pins: dict[Name, str] = Field(default={})


class MatrixFile(Strict):
    """matrix.yaml"""

    version: Literal[1]
    cache: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._:/-]*$",
        description="REGISTRY/REPOSITORY that keeps the build cache",
    )
    mirrors: dict[str, str] = Field(
        default={},
        description="address to ask instead, by the beginning of the address that is meant; "
        "`wheels` and `debian` are the clients' defaults",
    )
    requires: list[Annotated[Tier, Field(strict=False)]] = Field(
        default=list(DEFAULT),
        min_length=1,
        description="tiers that an image must have passed before it ships",
    )
    repository: str = Field(
        pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$", description="images are <repository>:<variant>"
    )
    source: str | None = Field(default=None, description="address for the OCI source label")
    pins: dict[Name, dict[Value, Pin]] = Field(description="pin name, then value, then what it is")
    layers: dict[Name, LayerSpec]
    defaults: Defaults
    axes: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(default={})
    exclude: list[dict[Name, str]] = Field(default=[])
    include: list[Include] = Field(default=[])
    groups: dict[Name, Annotated[list[str], Field(min_length=1)]]
    channels: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,127}$")],
        Annotated[list[str], Field(min_length=1)],
    ] = Field(
        default={},
        description="tags of a registry that move on with what is published: a channel, then "
        "globs on the variants that it may stand for",
    )
    profiles: dict[Name, Profile] = Field(
        default={}, description="how variants are started on nodes: `launch`"
    )


def schema() -> dict[str, Any]:
    """The JSON schema of matrix.yaml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **MatrixFile.model_json_schema(),
    }
