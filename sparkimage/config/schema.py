"""The shape of matrix.yaml: strict models, which are also its JSON schema."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from sparkimage.config.pins import INSIDE, KINDS, PLATFORMS, Pin, Platform
from sparkimage.config.profiles import Profile
from sparkimage.config.template import Template
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.config.validation import Name, Strict

Value = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", max_length=128)]
"""The name of a pin's value, such as a version."""
Size = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(MB|GB|TB)$")]
"""A number of bytes, in powers of 1000: ``107GB``."""
AXIS = r"\{[a-z0-9_-]+\}"
NAME_TEMPLATE = rf"([a-z0-9]|{AXIS})+"
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


class WheelsUse(Strict):
    """The wheels of a pin that a layer installs."""

    pin: Name = Field(description="a wheels pin")
    select: list[str] = Field(
        default=[],
        description="globs on project names; a wheel is in the lowest layer that selects it; "
        "default: all that no other layer selects",
    )
    into: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$",
        description="a venv or conda prefix, such as /opt/venv; default: dist-packages",
    )


Context = Annotated[
    str, Field(pattern=rf"^{NAME_TEMPLATE}([A-Za-z0-9._/:@-]|{AXIS})*$", max_length=255)
]
"""A named build context, or the image of a FROM or a COPY --from, which it then replaces;
``{axis}`` in it is filled in for each variant."""
INPUTS = (
    "git, image or file pin by named build context, or by the image in a FROM or COPY --from that "
    "it replaces; {axis} is filled in"
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
    inputs: dict[Context, Name] = Field(
        default={}, description=f"{INPUTS}; `layer` is the layer below"
    )
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
    wheels: WheelsUse | None = Field(default=None, description="the wheels that it installs")
    source: SourceUse | None = Field(
        default=None, description="built by the Dockerfile of a git pin"
    )
    patches: list[Name] = Field(
        default=[],
        description="a series of patches/patches.yaml: of a source before it is compiled, else of "
        "installed files",
    )
    checks: list[Name] = Field(default=[], description="layers whose checks apply here too")
    pins: list[Name] = Field(default=[], description="pins whose version alone is needed")
    inputs: dict[Context, Name] = Field(default={}, description=INPUTS)
    syntax: Name | None = Field(
        default=None,
        description="image pin of the Dockerfile's frontend; without one its `# syntax=` line is "
        "dropped",
    )
    secrets: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]] = Field(
        default=[], description="ids of build secrets, each an environment variable or `--secret`"
    )
    ssh: bool = Field(default=False, description="RUN --mount=type=ssh: the user's own ssh agent")
    platforms: list[Platform] = Field(
        default=list(PLATFORMS),
        min_length=1,
        description="those that it supports",
    )
    args: dict[str, str] = Field(
        default={}, description="build arguments; {axis} is the variant's value of an axis or pin"
    )
    when: dict[Name, Selector] = Field(
        default={}, description="the layer is left out where the variant's values do not fit"
    )
    expect: Expect = Field(default=Expect(), description="what an image with this layer is held to")
    downgrade: bool = Field(
        default=False, description="what the layer installs may be older than what lies below"
    )

    @cached_property
    def roles(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Every pin that the layer needs: its key in the layer, its name, the kinds that fit."""
        source = self.source
        images = sorted({*source.images.values()} - {LAYER}) if source is not None else []
        inputs = dict.fromkeys(self.named_inputs.values())
        if source is not None:
            inputs.pop(LAYER, None)
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
    def takes_below(self) -> bool:
        """Whether its `source` takes the layer below."""
        source = self.source
        return source is not None and LAYER in (*source.images.values(), *source.inputs.values())

    @property
    def installed(self) -> tuple[str, ...]:
        """The keys of what it installs."""
        return tuple(key for key in ("base", "debs", "wheels", "patches") if getattr(self, key))

    @property
    def only_installs(self) -> bool:
        """Whether all that it does is to install what is locked: it needs no Dockerfile then."""
        return len(self.installed) == 1 and not (
            self.inputs or self.secrets or self.ssh or self.syntax
        )

    @cached_property
    def templates(self) -> dict[str, Template]:
        """The build arguments as templates. Raises ``ValueError`` for one that is none."""
        return {name: Template.parse(value) for name, value in self.args.items()}

    @cached_property
    def filled(self) -> frozenset[str]:
        """The axes and pins whose values its arguments and inputs have as ``{NAME}``."""
        texts = [*self.templates.values(), *map(Template.parse, self.named_inputs)]
        return frozenset(name for text in texts for name in text.names)

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

    name: str = Field(
        max_length=1000, description="the tag; {axis}, {pin} and {arch} are filled in"
    )
    layers: list[Name] = Field(
        min_length=1, max_length=MAX_LAYERS, description="from the lowest up"
    )
    entrypoint: list[str] = Field(default=[], description="what the image's must be")
    cmd: list[str] = Field(default=[], description="what the image's must be")
    user: User = ROOT
    answer: AnswerSpec | None = Field(
        default=None, description="how the ENTRYPOINT shows that it starts"
    )


OF_DEFAULTS = "default: that of `defaults`"


class Include(Strict):
    """One variant, or one for each of several platforms, beside the product of the axes."""

    name: str = Field(max_length=128, description="with several platforms -{arch} is added to it")
    extends: str | None = Field(
        default=None, max_length=128, description="another include: what is not said here is its"
    )
    platform: Platform | None = Field(default=None, description="of one variant")
    platforms: list[Platform] | None = Field(
        default=None, min_length=1, description="a variant for each"
    )
    repository: RepositoryName | None = Field(default=None, description="default: the matrix's")
    user: User | None = Field(default=None, description=OF_DEFAULTS)
    layers: list[Name] | None = Field(
        default=None, min_length=1, max_length=MAX_LAYERS, description=OF_DEFAULTS
    )
    entrypoint: list[str] | None = Field(default=None, description=OF_DEFAULTS)
    cmd: list[str] | None = Field(default=None, description=OF_DEFAULTS)
    answer: AnswerSpec | None = Field(default=None, description=OF_DEFAULTS)
    pins: dict[Name, str] = Field(
        default={}, description="a value for each pin of its layers that has several"
    )
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
    layers: dict[Name, LayerSpec] = Field(description="what each layer needs")
    defaults: Defaults = Field(description="what a variant has unless it says otherwise")
    axes: dict[Name, Annotated[list[Value], Field(min_length=1)]] = Field(
        default={}, description="`platform`, pins, and names of your own; they multiply"
    )
    exclude: list[Annotated[dict[Name, Selector], Field(min_length=1)]] = Field(
        default=[], description="combinations to leave out: VALUE, [VALUE, …] or !VALUE of axes"
    )
    include: list[Include] = Field(default=[], description="single variants beside the axes")
    groups: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(
        description="globs on variants, by a name for them; `image` builds `default`"
    )
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
