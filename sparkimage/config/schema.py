"""The shape of matrix.yaml: strict models, which are also its JSON schema."""

from __future__ import annotations

import posixpath
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Discriminator, Field, Tag

from sparkimage.config.address import without_login
from sparkimage.config.profiles import Profile
from sparkimage.config.template import Template
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.config.validation import Name, Strict

Platform = Literal["linux/amd64", "linux/arm64"]
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")
KINDS = ("debian", "deb", "image", "git", "wheels", "file")
"""Of pins."""
Value = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", max_length=128)]
"""The name of a pin's value, such as a version."""
PYTHON = r"^3\.\d+$"
COMMIT = r"^[0-9a-f]{40}$"
"""A full git commit: servers hand out no abbreviated one."""
REPOSITORY = r"^((https|http|git)://[^/@#\s]+|ssh://([^/:@#\s]+@)?[^/@#\s]+)/[^#\s]+$"
"""Without a password, which the plan and the lock would show."""
SHA256 = r"^[0-9a-f]{64}$"
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._+~-]{0,199}$"
INSIDE = r"^\.?[^./:#\s][^/:#\s]*(/\.?[^./:#\s][^/:#\s]*)*$"
"""A path that stays inside the folder that it is below."""
Size = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(MB|GB|TB)$")]
"""A number of bytes, in powers of 1000: ``107GB``."""
NAME_TEMPLATE = r"([a-z0-9]|\{[a-z0-9_-]+\})+"
USER = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$"
ROOT = "root"
RepositoryName = Annotated[
    str, Field(pattern=rf"^{NAME_TEMPLATE}([._/-]{NAME_TEMPLATE})*$", max_length=255)
]
"""The name of an image without its tag; ``{axis}`` in it is filled in for each variant."""
User = Annotated[str, Field(pattern=USER, description="USER of the image, as its config has it")]
NOT = "!"
Selector = Annotated[
    Annotated[str, Tag("word")] | Annotated[list[str], Tag("list"), Field(min_length=1)],
    Discriminator(lambda value: "list" if isinstance(value, list) else "word"),
]
"""Values of an axis: VALUE, [VALUE, …], or "!VALUE" for all but one."""
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
        pattern=r"^[a-z0-9][a-zA-Z0-9._:/-]*(@sha256:[0-9a-f]{64})?$",
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
        description="all 40 digits; where only fewer are known, `lock` finds the rest",
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
        description="projects that another pin provides; one of `require` stands for what it needs",
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


class WheelsUse(Strict):
    """The wheels of a pin that a layer installs."""

    pin: Name
    select: list[str] = Field(
        default=[], description="globs on project names; default: all that no other layer takes"
    )
    into: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$",
        description="a venv or conda prefix, such as /opt/venv; default: dist-packages",
    )


Context = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*$", max_length=255)]
"""A named build context, or the image of a FROM or a COPY --from, which it then replaces."""
INPUTS = (
    "git, image or file pin by named build context, or by the image in a FROM or COPY --from that "
    "it replaces"
)


class SourceUse(Strict):
    """A layer that is built by the Dockerfile of a git repository."""

    REMOVED: ClassVar[dict[str, str]] = {
        key: f"write it as a build argument of the layer: `args: {{{argument}}}`"
        for key, argument in (
            ("jobs", 'max_jobs: "16"'),
            ("threads", 'nvcc_threads: "2"'),
            ("arch_list", "torch_cuda_arch_list: 12.1a"),
        )
    }
    pin: Name = Field(description="the git pin")
    context: str | None = Field(
        default=None,
        pattern=INSIDE,
        description="folder of the repository that is the build context; default: all of it",
    )
    dockerfile: str = Field(
        default="Dockerfile", pattern=INSIDE, description="its path below the context"
    )
    target: str | None = Field(default=None, description="stage to build; default: the last one")
    images: dict[str, Name] = Field(
        default={}, description="image pin by build argument; `layer` is the layer below"
    )
    inputs: dict[Context, Name] = Field(default={}, description=INPUTS)
    disk: Size | None = Field(default=None, description="free disk that the build needs")
    memory: Size | None = Field(default=None, description="free memory that the build needs")


class Expect(Strict):
    """What an image with a layer is held to, beside the checks in the layer's folder."""

    PINS: ClassVar = ("nccl", "version")
    """The keys that name a pin, whose version is expected."""

    nccl: Name | None = Field(
        default=None, description="pin with the version that every libnccl of the image must have"
    )
    cuda: str | None = Field(
        default=None,
        pattern=r"^(\d{1,9}(\.\d{1,9})*|\{[a-z0-9_-]+\})$",
        description="CUDA that torch is built for, such as 13 or 13.0, quoted",
    )
    version: Name | None = Field(
        default=None, description="pin with the version of the image (its OCI label)"
    )
    project: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        description="Python project whose installed version heads the image's version tag",
    )

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes and pins whose values it has as ``{NAME}``."""
        return Template.parse(self.cuda or "").names

    @property
    def pins(self) -> tuple[str, ...]:
        """The pins whose versions are expected."""
        return tuple(pin for key in self.PINS if (pin := getattr(self, key)) is not None)


MAX_LAYERS = 125
"""The most that Docker stacks: https://github.com/moby/moby/blob/master/layer/layer.go"""
LAYER = "layer"
"""The layer below, among the images of a source."""


class LayerSpec(Strict):
    """What the folder images/<layer>/ needs."""

    base: Name | None = Field(
        default=None, description="the base of the lowest layer: a debian or image pin"
    )
    debs: Name | None = Field(default=None, description="a deb or debian pin: its packages")
    wheels: WheelsUse | None = None
    source: SourceUse | None = None
    patches: list[Name] = Field(default=[], description="names in patches/patches.yaml")
    checks: list[Name] = Field(default=[], description="layers whose checks apply here too")
    pins: list[Name] = Field(default=[], description="pins whose version alone is needed")
    inputs: dict[Context, Name] = Field(default={}, description=INPUTS)
    syntax: Name | None = Field(
        default=None,
        description="image pin of the Dockerfile's frontend; without one its `# syntax=` line is "
        "dropped",
    )
    secrets: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        default=[], description="build secrets, each an environment variable or `--secret`"
    )
    ssh: bool = Field(default=False, description="RUN --mount=type=ssh: the user's own ssh agent")
    platforms: list[Platform] = Field(default=list(PLATFORMS), min_length=1)
    args: dict[str, str] = Field(
        default={}, description="build arguments; {axis} is the variant's value of an axis or pin"
    )
    when: dict[Name, Selector] = Field(
        default={}, description="the layer is left out where the variant's values do not fit"
    )
    expect: Expect = Expect()
    downgrade: bool = Field(
        default=False, description="what the layer installs may be older than what lies below"
    )

    @cached_property
    def roles(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Every pin that the layer needs: its key in the layer, its name, the kinds that fit."""
        source = self.source
        images = sorted({*source.images.values()} - {LAYER}) if source is not None else []
        inputs = dict.fromkeys(self.named_inputs.values())
        roles = [
            ("base", self.base, ("debian", "image")),
            ("debs", self.debs, ("deb", "debian")),
            ("wheels", self.wheels.pin if self.wheels is not None else None, ("wheels",)),
            ("source", source.pin if source is not None else None, ("git",)),
            *(("source", name, ("image",)) for name in images),
            *(("inputs", name, ("git", "image", "file")) for name in inputs),
            ("syntax", self.syntax, ("image",)),
            *(("pins", name, KINDS) for name in dict.fromkeys(self.pins)),
            *(("expect", name, KINDS) for name in self.expect.pins),
        ]
        return tuple((key, name, kinds) for key, name, kinds in roles if name is not None)

    @property
    def named_inputs(self) -> dict[str, str]:
        """The pins that are named build contexts, by context."""
        return self.inputs if self.source is None else self.source.inputs

    @property
    def only_installs(self) -> bool:
        """Whether all that it does is to install what is locked: it needs no Dockerfile then."""
        installed = [name for name in ("base", "debs", "wheels", "patches") if getattr(self, name)]
        return len(installed) == 1 and not (self.inputs or self.secrets or self.ssh or self.syntax)

    @cached_property
    def templates(self) -> dict[str, Template]:
        """The build arguments as templates. Raises ``ValueError`` for one that is none."""
        return {name: Template.parse(value) for name, value in self.args.items()}

    @cached_property
    def filled(self) -> frozenset[str]:
        """The axes and pins whose values its arguments have as ``{NAME}``."""
        return frozenset(name for text in self.templates.values() for name in text.names)

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """The names of all pins that the layer needs."""
        return tuple(dict.fromkeys(name for _, name, _ in self.roles))


class AnswerSpec(Strict):
    """How the ENTRYPOINT shows that it starts."""

    args: list[str] = Field(description="arguments to start it with")
    says: str = Field(min_length=1, description="a part of its output then")
    without_gpu: str | None = Field(
        default=None,
        min_length=1,
        description="a part of its output on a machine without a GPU, if it needs one",
    )


class Defaults(Strict):
    """What variants have by default."""

    name: str = Field(max_length=1000, description="template over the axes and {arch}")
    layers: list[Name] = Field(
        min_length=1, max_length=MAX_LAYERS, description="from the lowest up"
    )
    entrypoint: list[str] = Field(default=[])
    cmd: list[str] = Field(default=[])
    user: User = ROOT
    answer: AnswerSpec | None = None


class Include(Strict):
    """One variant, or one for each of several platforms, beside the product of the axes."""

    name: str = Field(max_length=128, description="with several platforms -{arch} is added to it")
    extends: str | None = Field(
        default=None, max_length=128, description="another include: what is not said here is its"
    )
    platform: Platform | None = None
    platforms: list[Platform] | None = Field(default=None, min_length=1)
    repository: RepositoryName | None = Field(default=None, description="default: the matrix's")
    user: User | None = None
    layers: list[Name] | None = Field(default=None, min_length=1, max_length=MAX_LAYERS)
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    answer: AnswerSpec | None = None
    pins: dict[Name, str] = Field(default={})
    axes: dict[Name, Value] = Field(default={}, description="its values of axes without pins")


class MatrixFile(Strict):
    """matrix.yaml"""

    version: Literal[1]
    cache: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9._:/-]*$",
        description="REGISTRY/REPOSITORY for the build cache",
    )
    mirrors: dict[str, str] = Field(
        default={},
        description="mirror by the beginning of the address that it replaces; `wheels`, `debian` "
        "and `ubuntu` replace the clients' defaults",
    )
    requires: list[Annotated[Tier, Field(strict=False)]] = Field(
        default=list(DEFAULT),
        min_length=1,
        description="tiers that an image must have passed before it ships",
    )
    repository: RepositoryName = Field(description="images are <repository>:<variant>")
    source: str | None = Field(default=None, description="address for the OCI source label")
    pins: dict[Name, dict[Value, Pin]] = Field(description="pin name, then value, then what it is")
    layers: dict[Name, LayerSpec]
    defaults: Defaults
    axes: dict[Name, Annotated[list[Value], Field(min_length=1)]] = Field(
        default={}, description="`platform`, pins, and names of your own; they multiply"
    )
    exclude: list[Annotated[dict[Name, Selector], Field(min_length=1)]] = Field(default=[])
    include: list[Include] = Field(default=[])
    groups: dict[Name, Annotated[list[str], Field(min_length=1)]]
    channels: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,127}$")],
        Annotated[list[str], Field(min_length=1)],
    ] = Field(
        default={},
        description="moving tags of a registry, each with globs on the variants that it may name",
    )
    profiles: dict[Name, Profile] = Field(
        default={}, description="how variants are started on nodes: `launch`"
    )


class MirrorsFile(Strict):
    """The user's own mirrors.yaml"""

    mirrors: dict[str, Annotated[str, Field(min_length=1)]]
