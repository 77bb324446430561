"""From a variant and the lock to a frozen plan: everything that a build will do, decided.

Pure: no file is read and no process is started here. ``--print`` shows a plan, the builder
executes it, and the checks take every expected value from it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparkimage.errors import LockError
from sparkimage.lock import Lock, Wheel
from sparkimage.matrix import Matrix, Variant
from sparkimage.model import WheelsPin

TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
"""Debian's multiarch folder names (https://wiki.debian.org/Multiarch/Tuples)."""

UV_PLATFORMS = {"amd64": "x86_64-manylinux_2_39", "arm64": "aarch64-manylinux_2_39"}
"""uv's names for what may run on glibc 2.39 and later (Debian 13 has 2.41)."""

LABEL = "dev.sparkimage."
"""Prefix of the labels that the OCI image spec has no name for."""


@dataclass(frozen=True, kw_only=True)
class DebianRoot:
    """The root that mmdebstrap makes: the suite's minimal set of packages for ``arch``."""

    suite: str
    arch: str


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One layer of a variant: a Dockerfile, its arguments, and what it is given."""

    name: str
    dockerfile: str
    """Path below the project's root."""
    args: Mapping[str, str]
    wheels: tuple[Wheel, ...] = ()
    find_links: str | None = None
    """Folder with local wheels, below the project's root."""
    root: DebianRoot | None = None
    """Set on a lowest layer that stands on a Debian root."""

    @property
    def requirements(self) -> str:
        """The layer's wheels as a hash-pinned requirements file."""
        return "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in self.wheels)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One image, decided: its layers from the lowest up, its labels, and what must be true."""

    variant: str
    image: str
    """Name in the engine and in the store: ``repository:variant``."""
    platform: str
    layers: tuple[LayerPlan, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    versions: Mapping[str, str]
    """Pin name to version, for the pins that have one."""
    python: str | None
    """Python's X.Y, where the variant holds wheels."""
    labels: Mapping[str, str]
    lock_checksum: str
    """sha256 over what the lock holds for this variant's pins."""
    epoch: int = field(default=0)
    """Seconds since 1970 of the image's creation date."""

    @property
    def arch(self) -> str:
        return self.platform.split("/")[1]

    @property
    def triplet(self) -> str:
        return TRIPLETS[self.arch]

    @property
    def download_bytes(self) -> int:
        """Bytes of the wheels that a build from nothing fetches."""
        return sum(wheel.size for layer in self.layers for wheel in layer.wheels)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for ``--print json``, the checks and the fingerprint."""
        return {**asdict(self), "arch": self.arch, "triplet": self.triplet}

    def checksum(self) -> str:
        """sha256 over the whole plan in canonical JSON."""
        return _sha256(self.to_dict())


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the recipe comes from: what goes into the OCI labels.

    ``revision`` is the last commit that touched an input of the images (with ``-dirty`` behind
    it where there are changes on top), so that a commit to the docs changes no image.
    """

    source: str
    revision: str
    epoch: int


def make(matrix: Matrix, variant: Variant, lock: Lock, origin: Origin) -> Plan:
    """Decide everything about ``variant``.

    Raises ``LockError`` when the lock lacks one of its pins or fits it no longer.
    """
    return make_all(matrix, [variant], lock, origin)[0]


def make_all(
    matrix: Matrix, variants: Sequence[Variant], lock: Lock, origin: Origin
) -> tuple[Plan, ...]:
    """Decide everything about each of ``variants``, in their order; raises as ``make`` does."""
    shared = _Shared(matrix=matrix, lock=lock)
    return tuple(_make(matrix, variant, shared, origin) for variant in variants)


def _make(matrix: Matrix, variant: Variant, shared: _Shared, origin: Origin) -> Plan:
    wheels = shared.partition(variant)
    pins = {pin: matrix.pins[pin][value] for pin, value in variant.pins.items()}
    versions = {name: str(pin.version) for name, pin in pins.items() if isinstance(pin, WheelsPin)}
    layers = tuple(_layer(matrix, variant, name, wheels.get(name, ())) for name in variant.layers)
    checksum = shared.lock_checksum(variant)
    pythons = {layer.args["PYTHON_VERSION"] for layer in layers if "PYTHON_VERSION" in layer.args}
    labels = {
        "org.opencontainers.image.title": variant.name,
        "org.opencontainers.image.source": origin.source,
        "org.opencontainers.image.revision": origin.revision,
        f"{LABEL}variant": variant.name,
        f"{LABEL}lock": f"sha256:{checksum}",
        **{f"{LABEL}pin.{pin}": value for pin, value in variant.pins.items()},
        **{f"{LABEL}version.{pin}": version for pin, version in versions.items()},
    }
    if "vllm" in versions:
        labels["org.opencontainers.image.version"] = versions["vllm"]
    return Plan(
        variant=variant.name,
        image=f"{matrix.repository}:{variant.name}",
        platform=variant.platform,
        layers=layers,
        entrypoint=variant.entrypoint,
        cmd=variant.cmd,
        versions=versions,
        python=min(pythons) if pythons else None,
        labels=dict(sorted(labels.items())),
        lock_checksum=checksum,
        epoch=origin.epoch,
    )


def _layer(matrix: Matrix, variant: Variant, name: str, wheels: tuple[Wheel, ...]) -> LayerPlan:
    spec = matrix.layers[name]
    args = dict(spec.args)
    find_links = None
    if spec.wheels is not None:
        value = variant.pins[spec.wheels.pin]
        pin = matrix.pins[spec.wheels.pin][value]
        assert pin.kind == "wheels"
        find_links = pin.find_links
        args |= {
            "PYTHON_PLATFORM": UV_PLATFORMS[variant.arch],
            "PYTHON_VERSION": pin.python,
            "TRIPLET": TRIPLETS[variant.arch],
            f"{spec.wheels.pin.upper().replace('-', '_')}_VERSION": str(pin.version),
        }
    root = None
    for pin_name in spec.pins:
        pin = matrix.pins[pin_name][variant.pins[pin_name]]
        if pin.kind == "debian":
            root = DebianRoot(suite=pin.suite, arch=variant.arch)
    return LayerPlan(
        name=name,
        dockerfile=f"images/{name}/Dockerfile",
        args=dict(sorted(args.items())),
        wheels=wheels,
        find_links=find_links,
        root=root,
    )


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What is worked out once for all variants: a thousand of them hold few pins."""

    matrix: Matrix
    lock: Lock
    split: dict[tuple[str, ...], dict[str, tuple[Wheel, ...]]] = field(default_factory=dict)
    slices: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def partition(self, variant: Variant) -> dict[str, tuple[Wheel, ...]]:
        """Give every wheel of every wheels pin to exactly one layer of the variant."""
        by_pin: dict[str, list[str]] = {}
        for name in variant.layers:
            use = self.matrix.layers[name].wheels
            if use is not None:
                by_pin.setdefault(use.pin, []).append(name)
        given: dict[str, tuple[Wheel, ...]] = {}
        for pin, names in by_pin.items():
            key = (pin, variant.pins[pin], variant.platform, *names)
            if key not in self.split:
                self.split[key] = _split(self.matrix, variant, self.lock, pin, names)
            given |= self.split[key]
        return given

    def lock_checksum(self, variant: Variant) -> str:
        """sha256 over ``lock.slice`` of the variant's pins in canonical JSON."""
        parts = {}
        for pin, value in variant.pins.items():
            key = (pin, value, variant.platform)
            if key not in self.slices:
                one = _canonical(self.lock.slice({pin: value}, variant.platform))
                self.slices[key] = one.removeprefix("{").removesuffix("}")
            parts[f"{pin}/{value}"] = self.slices[key]
        text = ",".join(parts[name] for name in sorted(parts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def _split(
    matrix: Matrix, variant: Variant, lock: Lock, pin: str, names: Sequence[str]
) -> dict[str, tuple[Wheel, ...]]:
    """Divide one pin's wheels among the layers ``names``; the one without ``select`` comes last."""
    given: dict[str, tuple[Wheel, ...]] = {}
    rest = lock.wheels(pin, variant.pins[pin], variant.platform)
    selects = {name: use.select for name in names if (use := matrix.layers[name].wheels)}
    for name in sorted(names, key=lambda n: not selects[n]):
        select = selects[name]
        taken = tuple(w for w in rest if not select or _matches(w.name, select))
        if not taken:
            raise LockError(
                f"layer {name} of variant {variant.name} gets no wheel: "
                f"nothing in pin {pin} {variant.pins[pin]} matches {list(select)}",
                hint=f"correct `select` of layers.{name} in {matrix.file.name}",
            )
        rest = tuple(w for w in rest if select and not _matches(w.name, select))
        given[name] = taken
    if rest:
        raise LockError(
            f"variant {variant.name}: no layer takes {', '.join(w.name for w in rest[:5])}"
            f"{' and more' if len(rest) > 5 else ''} of pin {pin} {variant.pins[pin]}",
            hint="add a layer with this pin and no `select`: it takes what the others leave",
        )
    return given


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _sha256(data: object) -> str:
    return hashlib.sha256(_canonical(data).encode()).hexdigest()
