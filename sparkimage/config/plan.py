"""The frozen plan of an image: all that a build does.

Pure: no file is read and no process is started here. ``--print`` shows a plan, the builder
executes it, and the checks take every expected value from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sparkimage.config.lock_items import Deb, PinnedImage, Target, Wheel
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core.arch import ARCHES

ROOT, MORE = "root", "more"
"""The two parts of a Debian suite's packages: the minimal root, and those requested beside it."""


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Debian packages of the lock, and where they come from."""

    pin: str
    value: str
    arch: str
    debs: tuple[Deb, ...]
    suite: str | None
    """None for a flat repository."""
    repository: str | None = None
    """None for the suite's default mirror."""
    components: tuple[str, ...] = ()
    pockets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DebianRoot(Packages):
    """The root that mmdebstrap builds from a suite's minimal set of packages, for ``arch``."""

    suite: str


@dataclass(frozen=True, kw_only=True)
class Debs(Packages):
    """Packages for a layer: every file of the lock, and the requested ones by name."""

    names: tuple[str, ...]
    """Arguments of apt-get: NAME or NAME=VERSION."""
    exact: bool = True
    """Whether each of the files is installed: false where the lock has those for several bases."""


@dataclass(frozen=True, kw_only=True)
class SourceBuild:
    """A build by a repository's own Dockerfile, at one commit."""

    pin: str
    value: str
    repository: str
    commit: str
    tree: str
    dockerfile: str
    """Path below ``context``."""
    target: str | None
    """None for the last stage."""
    version: str | None
    """What the package that is built gets; None where its build decides."""
    images: Mapping[str, PinnedImage | None]
    """By build argument; None for the layer below."""
    context: str | None = None
    """Folder of the repository; None for all of it."""

    def path(self, name: str) -> str:
        """The path in the repository of a file below the context."""
        return "/".join(filter(None, (self.context, name)))


@dataclass(frozen=True, kw_only=True)
class GitTree:
    """A commit of a repository, as a build context."""

    pin: str
    value: str
    repository: str
    commit: str
    tree: str


@dataclass(frozen=True, kw_only=True)
class WebFile:
    """A file of a web server, alone in a build context."""

    pin: str
    value: str
    url: str
    size: int
    sha256: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a layer takes as a named build context."""

    context: str
    content: PinnedImage | GitTree | WebFile | None
    """None for the layer below."""


@dataclass(frozen=True, kw_only=True)
class PatchPlan:
    """One patch: its file by sha256, and how it is applied."""

    name: str
    kind: str
    repository: str | None
    commit: str | None
    path: str
    """Path in its repository, or below patches/; without either its URL."""
    url: str | None
    sha256: str
    replaces: str | None
    """Kind replace: the path of the file."""
    expects: str | None
    """Kind replace: sha256 of what is replaced, or ``MISSING``."""
    exclude: tuple[str, ...]
    """Kind diff: globs on paths that are left out."""
    project: str | None
    """The wheel with its files, where they are not below a folder of that name."""

    @property
    def uri(self) -> str:
        """Where it is from, for provenance."""
        if self.repository is not None:
            return f"git+{self.repository}@{self.commit}#{self.path}"
        return self.url or f"file:patches#{self.path}"


@dataclass(frozen=True, kw_only=True)
class PatchSeries:
    """The patches of a layer that change the files of one pin, each applied to what the one before
    made; and each file, before the first and after the last."""

    pin: str | None
    value: str | None
    repository: str | None
    commit: str | None
    """A git pin's repository and commit."""
    wheels: tuple[Wheel, ...]
    """The wheels with the files, of a wheels pin."""
    find_links: str | None
    """Folder with local wheels, below the project's root."""
    index: tuple[str, ...]
    """Indexes of wheels to search before the default one."""
    python: str | None
    image: PinnedImage | None
    """An image pin's manifest."""
    root: str | None
    """The folder in the image; None for the tree that a source is built from."""
    installed: str | None
    """Where a source installs files of its tree, if that is known."""
    below: tuple[PatchPlan, ...]
    """Those that layers below have applied to the same files."""
    patches: tuple[PatchPlan, ...]
    targets: tuple[Target, ...]

    @property
    def title(self) -> str:
        """What is patched, for messages."""
        at = f" ({self.commit[:9]})" if self.commit is not None else ""
        return f"{self.pin} {self.value}{at}" if self.pin is not None else "the image"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How the ENTRYPOINT proves that it starts."""

    args: tuple[str, ...]
    """Arguments to start it with."""
    says: str
    """A part of its output then."""
    without_gpu: str | None = None
    """A part of its output on a machine without a GPU, if it needs one."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the matrix holds the image to; None for what it does not expect."""

    nccl: str | None = None
    """The version of every libnccl."""
    cuda: str | None = None
    """The CUDA that torch is built for: X or X.Y."""
    version: str | None = None
    """The version of the image, for its label."""
    project: str | None = None
    """The Python project whose installed version heads the version tag."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer of a variant: a Dockerfile, its arguments and its inputs."""

    name: str
    dockerfile: str
    """Path below the project's root, or in the repository of ``source``."""
    args: Mapping[str, str]
    wheels: tuple[Wheel, ...] = ()
    find_links: str | None = None
    """Folder with local wheels, below the project's root."""
    index: tuple[str, ...] = ()
    """Addresses, without logins, of the indexes to search before the default one."""
    into: str | None = None
    """The prefix of the wheels, such as a venv; None for dist-packages."""
    root: DebianRoot | None = None
    image: PinnedImage | None = None
    """The base of the lowest layer is one of ``root`` and ``image``."""
    debs: Debs | None = None
    source: SourceBuild | None = None
    patches: tuple[PatchSeries, ...] = ()
    inputs: tuple[Input, ...] = ()
    syntax: PinnedImage | None = None
    """The Dockerfile's frontend; None for the builder's own."""
    secrets: tuple[str, ...] = ()
    """Names of build secrets."""
    ssh: bool = False
    """Whether its steps use the user's ssh agent."""
    checks: tuple[str, ...] = ()
    """Other layers whose checks apply to this one too."""
    downgrade: bool = False
    """Whether what it installs may be older than what lies below."""

    @property
    def images(self) -> tuple[PinnedImage, ...]:
        """Every image of a registry that the layer is based on, compiled in or takes."""
        sources = self.source.images.values() if self.source is not None else ()
        inputs = (taken.content for taken in self.inputs)
        named = (self.image, *sources, *inputs, self.syntax)
        return tuple(image for image in named if isinstance(image, PinnedImage))

    @property
    def trees(self) -> tuple[SourceBuild | GitTree, ...]:
        """Every commit that the layer is built from or takes."""
        taken = (taken.content for taken in self.inputs)
        trees = tuple(content for content in taken if isinstance(content, GitTree))
        return trees if self.source is None else (self.source, *trees)

    @property
    def files(self) -> tuple[WebFile, ...]:
        """Every file of a web server that the layer takes."""
        taken = (taken.content for taken in self.inputs)
        return tuple(content for content in taken if isinstance(content, WebFile))

    @property
    def requirements(self) -> str:
        """The layer's wheels as a hash-pinned requirements file."""
        return "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in self.wheels)


@dataclass(frozen=True, kw_only=True)
class Unresolved:
    """A pin that `lock` could not resolve yet: nothing can be built with it."""

    pin: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.pin} {self.value}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of one image: its layers from the lowest up, its labels, and the expected values."""

    variant: str
    image: str
    """Name in the engine and in the store: ``repository:variant``."""
    platform: str
    layers: tuple[LayerPlan, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    versions: Mapping[str, str]
    """Versions by pin, for the pins that have one."""
    python: str | None
    """Python's X.Y, where a pin has it."""
    labels: Mapping[str, str]
    lock_checksum: str
    """sha256 over the locked items of this variant's pins."""
    epoch: int = field(default=0)
    """Seconds since 1970 of the image's creation date."""
    unresolved: tuple[Unresolved, ...] = ()
    """Pins to resolve before the image can be built; its layers are then incomplete."""
    requires: tuple[Tier, ...] = DEFAULT
    """Tiers that the image must pass before it ships."""
    answer: Answer | None = None
    """None where nothing is started, or no answer is known."""
    disk: int = 0
    """Bytes of free disk that its sources need to be built."""
    memory: int = 0
    """Bytes of free memory that its sources need to be built."""
    expect: Expected = Expected()
    user: str = "root"
    """USER of the image's config."""

    @property
    def arch(self) -> str:
        return self.platform.split("/")[1]

    @property
    def triplet(self) -> str:
        return ARCHES[self.arch].triplet

    @property
    def download_bytes(self) -> int:
        """Bytes of wheels, packages and files that a build without a cache fetches."""
        sizes = [
            [item.size for items in (la.wheels, debs(la), la.files) for item in items]
            for la in self.layers
        ]
        return sum(map(sum, sizes))

    @property
    def patched_files(self) -> dict[str, tuple[PatchSeries, Target]]:
        """What the patches make of each file of the image, by its path without a leading /: of
        several series that change it, the last one. A source's files need not be installed."""
        files = {}
        for series in (series for layer in self.layers for series in layer.patches):
            root = series.installed if series.root is None else series.root
            for target in series.targets if root is not None else ():
                files[f"{root}/{target.path}".lstrip("/")] = series, target
        return files

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for ``--print json``, the checks and the fingerprint."""
        return {**asdict(self), "arch": self.arch, "triplet": self.triplet}

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The plan of the data that ``to_dict`` made. Raises ``ValueError`` for anything else."""
        from pydantic import TypeAdapter

        return TypeAdapter(Plan).validate_python(_with_expected(data))

    def of_origin(self, other: Plan) -> Plan:
        """The same, of the commit that ``other`` is of."""
        origin = {name: other.labels[name] for name in ORIGIN_LABELS if name in other.labels}
        return replace(self, labels={**self.labels, **origin}, epoch=other.epoch)

    def checksum(self) -> str:
        """sha256 over all that decides the image and its checks, in canonical JSON.

        Required tiers, disk and memory decide neither: seals stay valid when they change. Nor do
        the commit and its time, which a change of a profile moves, too: an image keeps the commit
        that it was built from.
        """
        other = ("requires", "disk", "memory", "epoch")
        data = {key: value for key, value in self.to_dict().items() if key not in other}
        labels = {key: value for key, value in self.labels.items() if key not in ORIGIN_LABELS}
        return hashlib.sha256(canonical({**data, "labels": labels}).encode()).hexdigest()


def _with_expected(data: Any) -> Any:
    """The data of a plan; one of before ``expect`` expects what these names meant by themselves."""
    if not isinstance(data, dict) or "expect" in data or not isinstance(data.get("versions"), dict):
        return data
    versions = data["versions"]
    expect = {"nccl": versions.get("nccl"), "version": versions.get("vllm")}
    return {**data, "expect": {**expect, "project": "vllm" if "vllm" in versions else None}}


def debs(layer: LayerPlan) -> tuple[Deb, ...]:
    """Every Debian package of a layer."""
    return (*(layer.root.debs if layer.root else ()), *(layer.debs.debs if layer.debs else ()))


def installed(layer: LayerPlan) -> tuple[Deb, ...]:
    """The packages of a layer that are installed for certain, each in this version."""
    if layer.debs is None or layer.debs.exact:
        return debs(layer)
    names = layer.debs.names
    named = (deb for deb in layer.debs.debs if f"{deb.name}={deb.version}" in names)
    return (*(layer.root.debs if layer.root else ()), *named)


SOURCE_LABEL = "org.opencontainers.image.source"
REVISION_LABEL = "org.opencontainers.image.revision"
ORIGIN_LABELS = (SOURCE_LABEL, REVISION_LABEL)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The source repository of the recipe, for the OCI labels.

    ``revision`` is the last commit that touched an input of the images (with ``-dirty`` for
    uncommitted changes). ``epoch`` is its time in seconds since 1970.
    """

    source: str
    revision: str
    epoch: int


def context_name(arg: str, image: PinnedImage | None) -> str:
    """The named context for the image of a source's build argument."""
    return "layer" if image is None else arg.lower()


def canonical(data: object) -> str:
    """Canonical JSON: the same text for the same data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
