"""From matrix.yaml to variants: parsing, every problem in one report, and the expansion."""

from __future__ import annotations

import fnmatch
import itertools
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.config import patch_specs, pin_checks, profiles, validation, yamlfile
from sparkimage.config.address import without_login
from sparkimage.config.matrix_checks import MatrixChecks
from sparkimage.config.patch_specs import Patch
from sparkimage.config.profiles import Profile
from sparkimage.config.schema import AnswerSpec, Include, LayerSpec, MatrixFile, Pin, WheelsPin
from sparkimage.config.tier import Tier
from sparkimage.config.validation import Report
from sparkimage.config.yamlfile import Key
from sparkimage.core.errors import Problem, UsageError


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One image to build: its platform, its layers from the lowest up, and a value for each pin."""

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
    """Moving tags, each with the variants that it may name."""
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """How variants are started; no plan depends on them."""
    warnings: tuple[Problem, ...] = ()

    @property
    def root(self) -> Path:
        return self.file.parent

    @property
    def logins(self) -> dict[str, str]:
        """The addresses of indexes with a user or a password, by the same without them."""
        pins = [pin for values in self.pins.values() for pin in values.values()]
        indexes = [one for pin in pins if isinstance(pin, WheelsPin) for one in pin.index]
        return {bare: one for one in indexes if (bare := without_login(one)) != one}


def load(path: Path) -> Matrix:
    """Read and expand a matrix file. Raises ``ConfigError`` with every problem that it has."""
    path = path.absolute()
    document = yamlfile.load(path, if_missing="pass another one with --matrix-file")
    spec = validation.parse(document, MatrixFile)
    patches = patch_specs.load(path.parent / patch_specs.FILE)
    report = Report(document)
    checks = MatrixChecks(report=report, spec=spec, patches=patches, images=path.parent / "images")
    checks.check_pins()
    checks.check_layers()
    checks.check_axes()
    # What follows would only repeat these problems for every variant.
    report.close()
    rows, warnings = _rows(spec, report)
    variants: dict[str, tuple[Variant, Key]] = {}
    for entry, key in itertools.chain(_from_axes(spec, rows, report), _includes(spec, report)):
        variant = _variant(spec, entry)
        if variant.name in variants:
            other = document.line(variants[variant.name][1])
            report.add(
                key,
                f"two variants are called {variant.name!r} (the other: line {other})",
                "use an axis that differs in defaults.name, or rename one",
            )
        else:
            variants[variant.name] = (variant, key)
            checks.check_variant(variant, key)
    names = list(variants)
    checks.check_bake_targets(names)
    pin_checks.check_constraints(spec, [variant for variant, _ in variants.values()], report)
    for name, profile in spec.profiles.items():
        report.extend(("profiles", name), profiles.problems(profile, names), f"profile {name}: ")
    groups = _members("groups", spec.groups, names, report)
    channels = _members("channels", spec.channels, names, report)
    if "default" not in groups:
        report.add(("groups",), "there is no group `default`", "add `default: [VARIANT]`")
    report.close()
    return Matrix(
        file=path,
        repository=spec.repository,
        source=spec.source,
        pins=spec.pins,
        layers=spec.layers,
        patches=patches,
        mirrors=spec.mirrors,
        cache=spec.cache,
        requires=tuple(tier for tier in Tier if tier in spec.requires),
        variants=tuple(variant for variant, _ in variants.values()),
        groups=groups,
        channels=channels,
        profiles=spec.profiles,
        warnings=warnings,
    )


def select(
    matrix: Matrix, *, names: Sequence[str] = (), only: str | None = None, group: str | None = None
) -> tuple[Variant, ...]:
    """The variants of these names, matching the glob ``only``, or of this group; else all.

    Raises ``UsageError`` for a name, glob or group without a variant.
    """
    known = [variant.name for variant in matrix.variants]
    for kind, requested, existing in (
        ("variant", names, known),
        ("group", [group] if group is not None else [], matrix.groups),
    ):
        for name in requested:
            if name not in existing:
                raise UsageError(
                    f"there is no {kind} {name!r}", hint=validation.nearest(name, existing)
                )
    selected = set(names or known)
    if group is not None:
        selected &= set(matrix.groups[group])
    if only is not None:
        selected = {name for name in selected if fnmatch.fnmatchcase(name, only)}
        if not selected:
            raise UsageError(f"no variant matches {only!r}", hint="known are " + ", ".join(known))
    return tuple(variant for variant in matrix.variants if variant.name in selected)


def _rows(spec: MatrixFile, report: Report) -> tuple[list[Mapping[str, str]], tuple[Problem, ...]]:
    """The product of the axes without what is excluded; a warning for each idle exclude."""
    axes = spec.axes
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    rows = rows if axes else []
    rows_with: dict[tuple[str, str], set[int]] = {}
    for n, row in enumerate(rows):
        for item in row.items():
            rows_with.setdefault(item, set()).add(n)
    warnings = []
    kept = all_rows = frozenset(range(len(rows)))
    for i, entry in enumerate(spec.exclude):
        excluded = all_rows.intersection(*(rows_with.get(item, set()) for item in entry.items()))
        kept -= excluded
        if not excluded:
            what = "this exclude matches no variant"
            todo = "correct its values, or remove it"
            warnings.append(report.document.problem(("exclude", i), what, todo))
    return [rows[n] for n in sorted(kept)], tuple(warnings)


def _from_axes(
    spec: MatrixFile, rows: Iterable[Mapping[str, str]], report: Report
) -> Iterator[tuple[Include, Key]]:
    """Each row of the axes as an entry of `include` would have it."""
    template = _name_template(spec, report) if spec.axes else []
    for row in rows:
        words = {**row, "arch": row["platform"].split("/")[1]}
        name = "".join(text + (words[axis] if axis else "") for text, axis in template)
        entry = Include.model_construct(name=name, platform=row["platform"], pins=row)
        yield entry, ("defaults", "name")


def _name_template(spec: MatrixFile, report: Report) -> list[tuple[str, str | None]]:
    """``defaults.name`` in pieces: text, and the axis (or None) whose value comes after it."""
    template, known = spec.defaults.name, (*spec.axes, "arch")
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
        what = f"the name template {template!r} cannot be filled in: {wrong}"
        todo = "known are " + ", ".join(f"{{{axis}}}" for axis in known)
        report.add(("defaults", "name"), what, todo)
        report.close()
    return [(text, axis) for text, axis, _, _ in pieces]


def _includes(spec: MatrixFile, report: Report) -> Iterator[tuple[Include, Key]]:
    """The entries of `include`, their pins checked."""
    for i, entry in enumerate(spec.include):
        for pin, value in entry.pins.items():
            values = spec.pins.get(pin, {})
            if value not in values:
                what = f"variant {entry.name} names {pin} {value!r}, which is not in pins"
                wrong, known = (value, values) if pin in spec.pins else (pin, spec.pins)
                report.require(("include", i, "pins", pin), wrong, known, what)
        yield entry, ("include", i, "name")


def _variant(spec: MatrixFile, entry: Include) -> Variant:
    """The variant of an entry, with the defaults for what it leaves out."""
    defaults = spec.defaults
    layers = entry.layers or defaults.layers
    used = {pin for name in layers if name in spec.layers for pin in spec.layers[name].uses}
    # Another program gives another answer.
    answer = defaults.answer if entry.entrypoint in (None, defaults.entrypoint) else None
    return Variant(
        name=entry.name,
        platform=entry.platform,
        layers=tuple(layers),
        pins={pin: entry.pins[pin] for pin in sorted(used) if pin in entry.pins},
        entrypoint=tuple(defaults.entrypoint if entry.entrypoint is None else entry.entrypoint),
        cmd=tuple(defaults.cmd if entry.cmd is None else entry.cmd),
        answer=entry.answer or answer,
    )


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
