"""From matrix.yaml to variants: parsing, every problem in one report, and the expansion."""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.config import patch_specs, profiles, validation, yamlfile
from sparkimage.config.patch_specs import Patch
from sparkimage.config.profiles import Profile
from sparkimage.config.schema import (
    LAYER,
    PYTHON_ARGUMENT,
    AnswerSpec,
    DebPin,
    ImagePin,
    LayerSpec,
    MatrixFile,
    Pin,
    Platform,
    WheelsPin,
    version_argument,
)
from sparkimage.config.tier import Tier
from sparkimage.config.yamlfile import Document, Key
from sparkimage.core.errors import ConfigError, Problem, UsageError

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""What a tag may be: https://github.com/opencontainers/distribution-spec/blob/main/spec.md"""
MAX_VARIANTS = 10_000
"""Of the axes' product."""
HUGE = 10**18
MAX_PROBLEMS = 100


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One image to be: its platform, its layers from the lowest up, and a value for each pin."""

    name: str
    platform: str
    layers: tuple[str, ...]
    pins: Mapping[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    answer: AnswerSpec | None = None

    @property
    def arch(self) -> str:
        return self.platform.split("/")[1]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix without problems. ``root`` is its folder, with images/ in it."""

    file: Path
    repository: str
    source: str | None
    pins: Mapping[str, Mapping[str, Pin]]
    layers: Mapping[str, LayerSpec]
    patches: Mapping[str, Patch]
    mirrors: Mapping[str, str]
    cache: str | None
    requires: tuple[Tier, ...]
    variants: tuple[Variant, ...]
    groups: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Moving tags, each with the variants that it may stand for."""
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """How variants are started; no plan knows of them."""
    warnings: tuple[Problem, ...] = ()

    @property
    def root(self) -> Path:
        return self.file.parent


def load(path: Path) -> Matrix:
    """Read and expand a matrix file. Raises ``ConfigError`` with every problem that it has."""
    path = path.absolute()
    document = yamlfile.load(path, if_missing="name another with --matrix-file")
    given = validation.parse(document, MatrixFile)
    patches = patch_specs.load(path.parent / patch_specs.FILE)
    return _Expansion(path, document, given, patches).matrix()


def select(
    matrix: Matrix, *, names: Sequence[str] = (), only: str | None = None, group: str | None = None
) -> tuple[Variant, ...]:
    """The variants of these names, matching this glob, or of this group; all without any.

    Raises ``UsageError`` for what names nothing.
    """
    known = [variant.name for variant in matrix.variants]
    wanted = set(known)
    if names:
        for name in names:
            if name not in known:
                raise UsageError(
                    f"no variant is called {name!r}", hint=validation.nearest(name, known)
                )
        wanted = set(names)
    if group is not None:
        if group not in matrix.groups:
            raise UsageError(
                f"no group is called {group!r}", hint=validation.nearest(group, matrix.groups)
            )
        wanted &= set(matrix.groups[group])
    if only is not None:
        wanted = {name for name in wanted if fnmatch.fnmatchcase(name, only)}
        if not wanted:
            raise UsageError(f"no variant matches {only!r}", hint="there are " + ", ".join(known))
    return tuple(variant for variant in matrix.variants if variant.name in wanted)


def _is_version(text: str) -> bool:
    import semver

    try:
        semver.Version.parse(text)
    except ValueError:
        return False
    return True


@dataclass
class _Expansion:
    """One run of the semantic checks and the expansion over a well-formed file."""

    path: Path
    document: Document
    given: MatrixFile
    patches: Mapping[str, Patch]
    problems: dict[Problem, None] = field(default_factory=dict)
    """Each one once, in their order."""

    def matrix(self) -> Matrix:
        given = self.given
        self._check_pins()
        self._check_layers()
        self._check_axes()
        if self.problems:
            # What follows would only repeat these for every variant.
            raise ConfigError(list(self.problems))
        excluded, warnings = self._exclude()
        variants: dict[str, tuple[Variant, Key]] = {}
        for variant, key in itertools.chain(excluded, self._include()):
            if variant.name in variants:
                other = self.document.line(variants[variant.name][1])
                self._problem(
                    key,
                    f"two variants are called {variant.name!r} (the other: line {other})",
                    "name an axis that tells them apart in defaults.name, or rename one",
                )
            else:
                variants[variant.name] = (variant, key)
                self._check_variant(variant, key)
        self._check_targets(list(variants))
        self._check_profiles(list(variants))
        groups = self._chosen("groups", self.given.groups, list(variants))
        channels = self._chosen("channels", self.given.channels, list(variants))
        if "default" not in groups:
            self._problem(("groups",), "there is no group `default`", "add `default: [VARIANT]`")
        if self.problems:
            raise ConfigError(list(self.problems))
        return Matrix(
            file=self.path,
            repository=given.repository,
            source=given.source,
            pins=given.pins,
            layers=given.layers,
            patches=self.patches,
            mirrors=given.mirrors,
            cache=given.cache,
            requires=tuple(tier for tier in Tier if tier in given.requires),
            variants=tuple(variant for variant, _ in variants.values()),
            groups=groups,
            channels=channels,
            profiles=given.profiles,
            warnings=warnings,
        )

    def _problem(self, key: Key, what: str, todo: str) -> None:
        problem = Problem(
            file=self.document.file, line=self.document.line(key), what=what, todo=todo
        )
        self.problems[problem] = None
        if len(self.problems) >= MAX_PROBLEMS:
            # The rest may be one more for each of thousands of variants.
            raise ConfigError(list(self.problems))

    def _check_pins(self) -> None:
        if patch_specs.PATCHES in self.given.pins:
            self._problem(
                ("pins", patch_specs.PATCHES),
                f"the lock keeps patches under {patch_specs.PATCHES!r}: no pin can have this name",
                "rename the pin",
            )
        taken = {PYTHON_ARGUMENT: "Python's X.Y"}
        for name, values in self.given.pins.items():
            argument = version_argument(name)
            own = f"the version of pin {name}"
            if (other := taken.setdefault(argument, own)) != own:
                self._problem(
                    ("pins", name),
                    f"a pin cannot be called {name!r}: the build argument {argument} is {other}",
                    "rename the pin",
                )
            for value, pin in values.items():
                if isinstance(pin, WheelsPin | DebPin | ImagePin):
                    version = pin.version or value
                    if not _is_version(version):
                        self._problem(
                            ("pins", name, value),
                            f"pin {name}: {version!r} is no version",
                            "name the pin MAJOR.MINOR.PATCH, or give it a `version:`",
                        )
                    values[value] = pin.model_copy(update={"version": version})

    def _check_layers(self) -> None:
        for name, spec in self.given.layers.items():
            folder = self.path.parent / "images" / name
            if spec.source is None and not (folder / "Dockerfile").is_file():
                self._problem(
                    ("layers", name),
                    f"layer {name} has no images/{name}/Dockerfile",
                    "make it (it begins `FROM layer`), or remove the layer",
                )
            for pin in spec.uses:
                if pin not in self.given.pins:
                    self._problem(
                        ("layers", name),
                        f"layer {name} uses pin {pin!r}, which is not in pins",
                        validation.nearest(pin, self.given.pins),
                    )
            self._check_source(name, spec)
            for i, other in enumerate(spec.checks):
                if other not in self.given.layers:
                    self._problem(
                        ("layers", name, "checks", i),
                        f"layer {name} takes the checks of {other!r}, which is no layer",
                        validation.nearest(other, self.given.layers),
                    )
            for i, patch in enumerate(spec.patches):
                if patch not in self.patches:
                    self._problem(
                        ("layers", name, "patches", i),
                        f"layer {name} applies patch {patch!r}, which {patch_specs.FILE} lacks",
                        validation.nearest(patch, self.patches)
                        if self.patches
                        else f"write {patch_specs.FILE}",
                    )

    def _check_source(self, name: str, spec: LayerSpec) -> None:
        """What a layer of a repository's own Dockerfile cannot do as well, or must do."""
        if spec.source is None:
            return
        beside = {
            "base": spec.base, "debs": spec.debs, "wheels": spec.wheels, "patches": spec.patches,
        }  # fmt: skip
        for word in (word for word, given in beside.items() if given):
            self._problem(
                ("layers", name, word),
                f"layer {name} has a `source`, whose Dockerfile would not get its `{word}`",
                f"give `{word}` to a layer of its own: below {name}, or above it for what changes "
                "what the source installs",
            )
        if LAYER not in spec.source.images.values():
            self._problem(
                ("layers", name, "source"),
                f"layer {name} takes no layer below: all that lies there would not be in the image",
                f"let the argument of the Dockerfile's last FROM be the layer below: "
                f"`images: {{FINAL_BASE_IMAGE: {LAYER}}}`",
            )

    def _check_axes(self) -> None:
        for axis, values in self.given.axes.items():
            known: Iterable[str] = self.given.pins.get(axis, {})
            if axis == "platform":
                known = {p for spec in self.given.layers.values() for p in spec.platforms}
            elif axis not in self.given.pins:
                self._problem(
                    ("axes", axis),
                    f"axis {axis!r} is neither `platform` nor a pin",
                    validation.nearest(axis, [*self.given.pins, "platform"]),
                )
                continue
            for i, value in enumerate(values):
                if value not in known:
                    what = (
                        f"platform {value!r} is supported by no layer"
                        if axis == "platform"
                        else f"axis {axis} names {value!r}, but pins.{axis} has no such value"
                    )
                    self._problem(("axes", axis, i), what, validation.nearest(value, known))
        product = math.prod(len(values) for values in self.given.axes.values())
        if product > MAX_VARIANTS:
            number = f"{product:,}" if product < HUGE else f"over {HUGE:,}"
            self._problem(
                ("axes",),
                f"the axes multiply to {number} variants; at most {MAX_VARIANTS:,} can be",
                "leave values out, or write the variants that are wanted under `include`",
            )
        if "platform" not in self.given.axes and (self.given.axes or not self.given.include):
            self._problem(("axes",), "there is no platform axis", "add `platform: [linux/arm64]`")

    def _exclude(self) -> tuple[Iterator[tuple[Variant, Key]], tuple[Problem, ...]]:
        """The product of the axes without what is excluded; warnings for idle excludes."""
        axes = self.given.axes
        rows = [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]
        rows = rows if axes else []
        having: dict[tuple[str, str], set[int]] = {}
        for n, row in enumerate(rows):
            for item in row.items():
                having.setdefault(item, set()).add(n)
        warnings = []
        every, gone = set(range(len(rows))), set[int]()
        for i, entry in enumerate(self.given.exclude):
            hit = every.intersection(*(having.get(item, set()) for item in entry.items()))
            gone |= hit
            if not hit:
                warnings.append(
                    Problem(
                        file=self.document.file,
                        line=self.document.line(("exclude", i)),
                        what="this exclude matches no variant",
                        todo="correct its values, or remove it",
                    )
                )
        template = self._template() if axes else []
        made: Iterator[tuple[Variant, Key]] = (
            (self._from_axes(template, row), ("defaults", "name"))
            for n, row in enumerate(rows)
            if n not in gone
        )
        return made, tuple(warnings)

    def _template(self) -> list[tuple[str, str | None]]:
        """``defaults.name`` in pieces: text, and the axis (or None) whose value comes after it."""
        template, known = self.given.defaults.name, (*self.given.axes, "arch")
        wrong = ""
        try:
            pieces = [*string.Formatter().parse(template)]
        except ValueError as error:
            pieces, wrong = [], str(error)
        for _, axis, form, conversion in pieces:
            # Names only: a format such as {axis:>3000000000} would be filled in, too.
            if axis is not None and (axis not in known or form or conversion):
                wrong = f"{axis!r} is no axis" if axis not in known else f"{axis!r} takes no format"
        if wrong:
            self._problem(
                ("defaults", "name"),
                f"the name template {template!r} cannot be filled in: {wrong}",
                "known are " + ", ".join(f"{{{axis}}}" for axis in known),
            )
            raise ConfigError(list(self.problems))
        return [(text, axis) for text, axis, _, _ in pieces]

    def _from_axes(
        self, template: Sequence[tuple[str, str | None]], row: Mapping[str, str]
    ) -> Variant:
        defaults = self.given.defaults
        platform = row["platform"]
        words = {**row, "arch": platform.split("/")[1]}
        name = "".join(text + (words[axis] if axis else "") for text, axis in template)
        return self._variant(name, platform, defaults.layers, row)

    def _include(self) -> list[tuple[Variant, Key]]:
        made: list[tuple[Variant, Key]] = []
        for i, entry in enumerate(self.given.include):
            for pin, value in entry.pins.items():
                if value not in self.given.pins.get(pin, {}):
                    self._problem(
                        ("include", i, "pins", pin),
                        f"variant {entry.name} names {pin} {value!r}, which is not in pins",
                        validation.nearest(value, self.given.pins[pin])
                        if pin in self.given.pins
                        else validation.nearest(pin, self.given.pins),
                    )
            variant = self._variant(
                entry.name,
                entry.platform,
                entry.layers or self.given.defaults.layers,
                entry.pins,
                entry.entrypoint,
                entry.cmd,
                entry.answer,
            )
            made.append((variant, ("include", i, "name")))
        return made

    def _variant(
        self,
        name: str,
        platform: Platform | str,
        layers: Sequence[str],
        values: Mapping[str, str],
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        answer: AnswerSpec | None = None,
    ) -> Variant:
        defaults = self.given.defaults
        same = entrypoint is None or entrypoint == defaults.entrypoint
        used = {p for la in layers if la in self.given.layers for p in self.given.layers[la].uses}
        return Variant(
            name=name,
            platform=platform,
            layers=tuple(layers),
            pins={pin: values[pin] for pin in sorted(used) if pin in values},
            entrypoint=tuple(defaults.entrypoint if entrypoint is None else entrypoint),
            cmd=tuple(defaults.cmd if cmd is None else cmd),
            # Another program answers otherwise.
            answer=answer or (defaults.answer if same else None),
        )

    def _check_roles(self, variant: Variant, key: Key, name: str, spec: LayerSpec) -> None:
        """Whether the values of the variant's pins are of the kinds that the layer can use."""
        for role, pin, kinds in spec.roles:
            value = variant.pins.get(pin)
            # A value that is not there is a problem of its own.
            found = self.given.pins[pin].get(value) if value is not None else None
            if found is not None and (kind := found.kind) not in kinds:
                self._problem(
                    key,
                    f"variant {variant.name}: layer {name} has {pin} as `{role}`, but {pin} "
                    f"{value} is a {kind} pin",
                    f"`{role}` takes a pin of kind {' or '.join(kinds)}",
                )
        if (spec.base is not None) != (name == variant.layers[0]):
            self._problem(
                key,
                f"variant {variant.name}: layer {name} "
                + ("has a `base` but lies on another" if spec.base else "is lowest, on nothing"),
                "the lowest layer, and no other, has a `base`",
            )

    def _check_variant(self, variant: Variant, key: Key) -> None:
        if not TAG.fullmatch(variant.name):
            self._problem(
                key, f"{variant.name!r} cannot be an image's tag", "use letters, digits, `.-_`"
            )
        layers_key: Key = (*key[:-1], "layers")
        for name in sorted(name for name, n in Counter(variant.layers).items() if n > 1):
            self._problem(
                layers_key,
                f"variant {variant.name} has the layer {name} more than once",
                "keep one of them",
            )
        pythons = {
            f"{pin} {value} ({python})": python
            for pin, value in variant.pins.items()
            if (python := getattr(self.given.pins[pin].get(value), "python", None)) is not None
        }
        if len(set(pythons.values())) > 1:
            self._problem(
                key,
                f"variant {variant.name}: its pins are for different Pythons: "
                + ", ".join(sorted(pythons)),
                "take pins of one `python`",
            )
        rest: dict[str, str] = {}
        for name in variant.layers:
            spec = self.given.layers.get(name)
            if spec is None:
                self._problem(
                    layers_key,
                    f"unknown layer {name!r}",
                    validation.nearest(name, self.given.layers),
                )
                continue
            if variant.platform not in spec.platforms:
                self._problem(
                    key,
                    f"variant {variant.name}: layer {name} does not support {variant.platform}",
                    f"layers.{name}.platforms has {', '.join(spec.platforms)}",
                )
            for pin in spec.uses:
                if pin not in variant.pins and pin in self.given.pins:
                    self._problem(
                        key,
                        f"variant {variant.name}: layer {name} needs a value for pin {pin}",
                        f"add an axis {pin}, or `pins: {{{pin}: ...}}` to the include",
                    )
            if all(pin in self.given.pins for pin in spec.uses):
                self._check_roles(variant, key, name, spec)
            if spec.wheels is not None and not spec.wheels.select:
                if spec.wheels.pin in rest:
                    self._problem(
                        layers_key,
                        f"layers {rest[spec.wheels.pin]} and {name} both take the rest of "
                        f"pin {spec.wheels.pin}",
                        "give one of them a `select`",
                    )
                rest[spec.wheels.pin] = name

    def _check_targets(self, names: Sequence[str]) -> None:
        """Names that differ, but not as names of bake's targets, which know fewer letters."""
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(re.sub(r"[^a-zA-Z0-9_-]", "_", name), name)
            if other != name:
                self._problem(
                    ("defaults", "name"),
                    f"the variants {other!r} and {name!r} cannot be told apart by bake",
                    "let them differ in more than `.` and `_`",
                )

    def _check_profiles(self, names: Sequence[str]) -> None:
        for name, one in self.given.profiles.items():
            for key, what, todo in profiles.problems(one, names):
                self._problem(("profiles", name, *key), f"profile {name}: {what}", todo)

    def _chosen(
        self, kind: str, given: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> dict[str, tuple[str, ...]]:
        """The variants of each group, or of each channel."""
        chosen: dict[str, tuple[str, ...]] = {}
        for one, entries in given.items():
            found: dict[str, None] = {}
            for i, entry in enumerate(entries):
                hit = [name for name in names if fnmatch.fnmatchcase(name, entry)]
                if not hit:
                    self._problem(
                        (kind, one, i),
                        f"{kind.removesuffix('s')} {one}: {entry!r} is no variant",
                        validation.nearest(entry, names),
                    )
                found |= dict.fromkeys(hit)
            chosen[one] = tuple(found)
        return chosen
