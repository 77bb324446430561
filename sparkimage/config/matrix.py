"""From matrix.yaml to variants: parsing, every problem in one report, and the expansion."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.config import mirrors, patch_specs, pin_checks, profiles, validation, yamlfile
from sparkimage.config.address import without_login
from sparkimage.config.folders import PATCH_FILE
from sparkimage.config.matrix_checks import MatrixChecks
from sparkimage.config.patch_specs import Patch
from sparkimage.config.pins import Pin, WheelsPin
from sparkimage.config.profiles import Profile
from sparkimage.config.schema import LayerSpec, MatrixFile
from sparkimage.config.template import Template
from sparkimage.config.tier import Tier
from sparkimage.config.validation import Report
from sparkimage.config.variants import Variant, expand, expectations
from sparkimage.config.yamlfile import Document, Key
from sparkimage.core.errors import Problem, UsageError
from sparkimage.core.program import program

ROOT_USERS = ("root", "0")
"""The names of the user who may write everything."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix without problems. ``root`` is its folder, with images/ in it."""

    file: Path
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
    """Moving tags, each with the variants that it may name."""
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """How variants are started; no plan depends on them."""
    warnings: tuple[Problem, ...] = ()

    @property
    def root(self) -> Path:
        return self.file.parent

    def pins_of(self, variant: Variant) -> dict[str, Pin]:
        """What the pins of a variant are, by name."""
        return {name: self.pins[name][value] for name, value in variant.pins.items()}

    @property
    def logins(self) -> dict[str, str]:
        """The addresses of indexes with a user or a password, by the same without them."""
        pins = [pin for values in self.pins.values() for pin in values.values()]
        indexes = [one for pin in pins if isinstance(pin, WheelsPin) for one in pin.index]
        return {bare: one for one in indexes if (bare := without_login(one)) != one}

    @property
    def cuda(self) -> str:
        """The newest CUDA that a variant expects torch to be built for, or nothing."""
        found = {
            Template.parse(text).fill(variant.words)
            for variant in self.variants
            if (text := expectations(self.layers, variant.layers).get("cuda")) is not None
        }
        return max(found, key=lambda text: [int(part) for part in text.split(".")], default="")

    @property
    def repositories(self) -> tuple[str, ...]:
        """Those that the images of some variant go to."""
        return tuple(dict.fromkeys(variant.repository for variant in self.variants))


def load(path: Path) -> Matrix:
    """Read and expand a matrix file. Raises ``ConfigError`` with every problem that it has."""
    path = path.absolute()
    document = yamlfile.load(
        path,
        if_missing=f"go to a project's folder (or pass -C DIR, or --matrix-file FILE), or begin "
        f"one: {program()} init project",
    )
    spec = validation.parse(document, MatrixFile)
    patches = patch_specs.load(path.parent / PATCH_FILE)
    report = Report(document)
    checks = MatrixChecks(report=report, spec=spec, patches=patches, images=path.parent / "images")
    checks.check_pins()
    checks.check_layers()
    checks.check_axes()
    checks.check_selectors()
    pin_checks.check_apt(spec, path.parent, report)
    mirrors.check(spec.mirrors, report)
    # What follows would only repeat these problems for every variant.
    report.close()
    expanded, warnings = expand(spec, report)
    variants: dict[str, tuple[Variant, Key]] = {}
    for variant, key in expanded:
        if variant.name in variants:
            other, place = variants[variant.name]
            what = f"two variants are called {variant.name!r} (the other: line "
            words, others = variant.words, other.words
            axes = [f"{{{name}}}" for name in words if words[name] != others.get(name)]
            todo = "rename one of them"
            if place == key and axes:
                todo = f"add {' or '.join(axes)}, in which they differ, to defaults.name"
            report.add(key, f"{what}{document.line(place)})", todo)
        else:
            variants[variant.name] = (variant, key)
            checks.check_variant(variant, key)
            checks.check_patches(variant)
    names, made = list(variants), [variant for variant, _ in variants.values()]
    checks.check_bake_targets(names)
    pin_checks.check_constraints(spec, made, report)
    for name, profile in spec.profiles.items():
        report.extend(("profiles", name), profiles.problems(profile, names), f"profile {name}: ")
    groups = _members("groups", spec.groups, names, report)
    channels = _members("channels", spec.channels, names, report)
    if "default" not in groups:
        report.add(("groups",), "there is no group `default`", "add `default: [VARIANT]`")
    warnings += tuple(_cache_warnings(spec.profiles, made, document))
    report.close(warnings)
    return Matrix(
        file=path,
        source=spec.source,
        pins=spec.pins,
        layers=spec.layers,
        patches=patches,
        mirrors=spec.mirrors,
        cache=spec.cache,
        requires=tuple(tier for tier in Tier if tier in spec.requires),
        variants=tuple(made),
        groups=groups,
        channels=channels,
        profiles=spec.profiles,
        warnings=warnings,
    )


def _cache_warnings(
    settings: Mapping[str, Profile], variants: Sequence[Variant], document: Document
) -> Iterator[Problem]:
    """A warning for each cache below /root in a profile of images that another user runs."""
    others = [variant for variant in variants if variant.user.partition(":")[0] not in ROOT_USERS]
    for name, profile in settings.items() if others else ():
        fits = [one for one in others if name in profiles.fitting({name: profile}, one.name)]
        for cache, path in profile.caches.items() if fits else ():
            if path.startswith("/root/"):
                yield document.problem(
                    ("profiles", name, "caches", cache),
                    f"profile {name}: {fits[0].name} runs as {fits[0].user}, who cannot write "
                    f"{path}",
                    "keep the cache in a folder of that user",
                )


def select(
    matrix: Matrix, *, names: Sequence[str] = (), only: Sequence[str] = (), group: str | None = None
) -> tuple[Variant, ...]:
    """The variants of these names (or groups, or unique beginnings), matching one of the globs
    ``only``, or of this group; else all.

    Raises ``UsageError`` for a name, glob or group without a variant.
    """
    known = [variant.name for variant in matrix.variants]
    selected = {variant for name in names for variant in _named(matrix, name)} or set(known)
    if group is not None:
        selected &= set(matrix.groups[group])
    matching = {glob: {one for one in known if fnmatch.fnmatchcase(one, glob)} for glob in only}
    for glob, found in matching.items():
        if not found:
            raise UsageError(f"no variant matches {glob!r}", hint=validation.nearest(glob, known))
    if matching:
        selected &= set().union(*matching.values())
    return tuple(variant for variant in matrix.variants if variant.name in selected)


def _named(matrix: Matrix, name: str) -> Sequence[str]:
    """The variants that a name means: itself, those of a group, or the one that begins so."""
    known = [variant.name for variant in matrix.variants]
    if name in known:
        return [name]
    if name in matrix.groups:
        return matrix.groups[name]
    begin = [variant for variant in known if name and variant.startswith(name)]
    if len(begin) > 1:
        raise UsageError(
            f"{len(begin)} variants begin with {name!r}", hint=f"pass {' or '.join(begin)}"
        )
    if not begin:
        raise UsageError(
            f"there is no variant {name!r}",
            hint=validation.nearest(name, [*known, *matrix.groups]),
        )
    return begin


def _members(
    kind: str, globs: Mapping[str, Sequence[str]], names: Sequence[str], report: Report
) -> dict[str, tuple[str, ...]]:
    """The variants of each group, or of each channel."""
    members: dict[str, tuple[str, ...]] = {}
    for title, entries in globs.items():
        matches: dict[str, None] = {}
        for i, entry in enumerate(entries):
            matching = fnmatch.filter(names, entry)
            if not matching:
                what = f"{kind.removesuffix('s')} {title}: {entry!r} is no variant"
                report.require((kind, title, i), entry, names, what)
            matches |= dict.fromkeys(matching)
        members[title] = tuple(matches)
    return members
