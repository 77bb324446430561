"""From the axes and the includes of a matrix file to its variants. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sparkimage.config.pins import PLATFORMS
from sparkimage.config.schema import NOT, ROOT, AnswerSpec, Include, LayerSpec, MatrixFile, Selector
from sparkimage.config.template import Template
from sparkimage.config.validation import Report
from sparkimage.config.yamlfile import Key
from sparkimage.core.errors import Problem
from sparkimage.core.spelling import closest

REPOSITORY_NAME = re.compile(r"[a-z0-9]+([._/-][a-z0-9]+)*")
PLATFORM = "platform"
ARCH = "arch"
"""What ``{arch}`` stands for beside the axes: the platform's architecture."""
BESIDE = " or `platforms:` beside its name"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One image to build: its platform, its layers from the lowest up, and a value for each pin."""

    name: str
    platform: str
    repository: str
    layers: tuple[str, ...]
    pins: Mapping[str, str]
    """The values of the pins that its layers use."""
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str = ROOT
    answer: AnswerSpec | None = None
    axes: Mapping[str, str] = field(default_factory=dict)
    """Its values of the axes without pins."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What ``{NAME}`` stands for: all values of axes and pins, and ``arch``."""

    @property
    def arch(self) -> str:
        return self.words[ARCH] if ARCH in self.words else self.platform.split("/")[1]

    @property
    def image(self) -> str:
        """The image's name in the engine and in the store."""
        return f"{self.repository}:{self.name}"


def fits(value: str | None, selector: Selector) -> bool:
    """Whether a variant's value of an axis is selected; an axis that it has not is no value."""
    choices = [selector] if isinstance(selector, str) else selector
    refused = {choice.removeprefix(NOT) for choice in choices if choice.startswith(NOT)}
    wanted = [choice for choice in choices if not choice.startswith(NOT)]
    return value not in refused and (not wanted or value in wanted)


def known_values(spec: MatrixFile) -> dict[str, dict[str, None]]:
    """Every axis that some variant can have, pins included, with its values."""
    known = {PLATFORM: dict.fromkeys(map(str, PLATFORMS))}
    known |= {pin: dict.fromkeys(values) for pin, values in spec.pins.items()}
    given = itertools.chain(
        ((axis, values) for axis, values in spec.axes.items()),
        ((axis, [value]) for entry in spec.include for axis, value in entry.axes.items()),
    )
    for axis, values in given:
        if axis not in spec.pins and axis != PLATFORM:
            known.setdefault(axis, {}).update(dict.fromkeys(values))
    return known


def expand(
    spec: MatrixFile, report: Report
) -> tuple[list[tuple[Variant, Key]], tuple[Problem, ...]]:
    """Every variant with the key that names it, and warnings; problems go to ``report``."""
    expansion = _Expansion(spec, report)
    variants = [*expansion.from_axes(), *expansion.from_includes()]
    return variants, (*expansion.warnings, *_idle_axes(spec, report))


def expecting(layers: Mapping[str, LayerSpec], name: str) -> tuple[str, ...]:
    """The layers whose expectations hold in an image with the layer: it, and those whose checks it
    takes."""
    return tuple(one for one in (*layers[name].checks, name) if one in layers)


def expectations(layers: Mapping[str, LayerSpec], names: Sequence[str]) -> dict[str, str]:
    """What an image with the layers ``names`` is held to, as in the matrix; they agree, as that
    was checked."""
    expects = [layers[one].expect for name in names for one in expecting(layers, name)]
    return {key: value for one in expects for key, value in one if value is not None}


class _Expansion:
    """Makes the variants; what many of them share is computed once."""

    def __init__(self, spec: MatrixFile, report: Report) -> None:
        self.spec, self.report = spec, report
        self.warnings: list[Problem] = []
        self.sole = {pin: next(iter(known)) for pin, known in spec.pins.items() if len(known) == 1}
        """The pins of which there is one value: it need not be chosen."""
        self.used_pins = cache(self._used_pins)

    def from_axes(self) -> Iterator[tuple[Variant, Key]]:
        """A variant for each combination of the axes' values that is not excluded."""
        spec, key = self.spec, ("defaults", "name")
        if not spec.axes:
            return
        name = self._name(key, spec.defaults.name, (*{**spec.axes, **self.sole}, ARCH))
        if name is None:
            # What follows would only repeat this problem.
            self.report.close()
            return
        entry = Include.model_construct(name="")
        for row in self._rows():
            yield self._variant(entry, row[PLATFORM], row, name, key), key

    def _rows(self) -> list[dict[str, str]]:
        """The product of the axes without what is excluded; warns of each idle exclude."""
        axes = self.spec.axes
        rows = [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]
        rows_with: dict[tuple[str, str], set[int]] = {}
        for n, row in enumerate(rows):
            for item in row.items():
                rows_with.setdefault(item, set()).add(n)
        kept = all_rows = frozenset(range(len(rows)))
        for i, entry in enumerate(self.spec.exclude):
            excluded = all_rows
            for axis, selector in entry.items():
                selected = [value for value in axes[axis] if fits(value, selector)]
                excluded &= set().union(*(rows_with[axis, value] for value in selected))
            kept -= excluded
            if not excluded:
                what = "this exclude matches no variant"
                todo = "correct its values, or remove it"
                for axis, selector in entry.items():
                    if not any(fits(value, selector) for value in axes[axis]):
                        what = f"{what}: {axis} has no value {selector!r}"
                        todo = f"{axis} has {', '.join(axes[axis])}; correct it, or remove this"
                self.warnings.append(self.report.document.problem(("exclude", i), what, todo))
        if not kept:
            what, todo = "the excludes leave no variant of the axes", "remove one, or the axes"
            self.warnings.append(self.report.document.problem(("exclude",), what, todo))
        return [rows[n] for n in sorted(kept)]

    def from_includes(self) -> Iterator[tuple[Variant, Key]]:
        """The variants of each include, one for each of its platforms."""
        for i, own in enumerate(self.spec.include):
            key: Key = ("include", i, "name")
            self._check_values(i, own)
            entry = self._extended(i, own)
            if entry is None:
                continue
            known = (*{**entry.axes, **entry.pins, **self.sole}, PLATFORM, ARCH)
            name = self._name(key, own.name, known)
            if name is None:
                continue
            if entry.platforms and ARCH not in name.names:
                name = Template((*name.pieces, ("-", ARCH)))
            platforms = entry.platforms or ([entry.platform] if entry.platform else [])
            for platform in platforms:
                values = {**entry.axes, **entry.pins, PLATFORM: platform}
                yield self._variant(entry, platform, values, name, key), key

    def _check_values(self, i: int, entry: Include) -> None:
        """Check the values of an include's own axes and pins."""
        spec = self.spec
        for pin, value in entry.pins.items():
            values = spec.pins.get(pin, {})
            if value not in values:
                what = f"variant {entry.name} names {pin} {value!r}, which is not in pins"
                wrong, known = (value, values) if pin in spec.pins else (pin, spec.pins)
                key: Key = ("include", i, "pins", pin)
                if pin in (PLATFORM, ARCH):
                    what = f"variant {entry.name}: {pin} is no pin"
                    self.report.add(key, what, f"write `platform:`{BESIDE}")
                elif pin not in spec.pins and pin in spec.axes:
                    what = f"variant {entry.name}: {pin} is an axis without pins"
                    self.report.add(key, what, f"write it under `axes`: `axes: {{{pin}: …}}`")
                else:
                    self.report.require(key, wrong, known, what)
        for axis in entry.axes:
            key = ("include", i, "axes", axis)
            if axis in spec.pins:
                what = f"variant {entry.name}: {axis} is a pin"
                self.report.add(key, what, f"write it under `pins`: `pins: {{{axis}: …}}`")
            elif axis in (PLATFORM, ARCH):
                what = f"variant {entry.name} has {axis} as an axis of its own"
                self.report.add(key, what, f"write `platform:`{BESIDE}")
            elif entry.axes[axis].startswith(NOT):
                what = f"variant {entry.name}: {axis} {entry.axes[axis]!r} would mean all but one"
                self.report.add(key, what, "begin it with another character")

    def _extended(self, i: int, entry: Include) -> Include | None:
        """The include with what it takes from those that it extends; None with a problem of it."""
        others = {other.name: other for other in self.spec.include}
        chain, title = [entry], f"variant {entry.name}"
        while (name := chain[-1].extends) is not None:
            if name not in others:
                if chain == [entry]:
                    what = f"{title} extends {name!r}, which is no include"
                    known = [other for other in others if other != entry.name]
                    self.report.require(("include", i, "extends"), name, known, what)
                return None
            if others[name] in chain:
                path = " → ".join([*(link.name for link in chain), name])
                what = f"{title} extends itself: {path}"
                self.report.add(("include", i, "extends"), what, "remove one `extends`")
                return None
            chain.append(others[name])
        merged: dict[str, Any] = {}
        pins: dict[str, str] = {}
        axes: dict[str, str] = {}
        for link in reversed(chain):
            own = {name: value for name, value in link if name in link.model_fields_set}
            for one, other in ((PLATFORM, "platforms"), ("platforms", PLATFORM)):
                if own.get(one) is not None:
                    merged.pop(other, None)
            merged |= {name: value for name, value in own.items() if value is not None}
            pins |= link.pins
            axes |= link.axes
        if (PLATFORM in merged) == ("platforms" in merged):
            what = f"{title} has both `platform` and `platforms`"
            todo = "keep one of them"
            if PLATFORM not in merged:
                what, todo = f"{title} has no platform", "add `platform: linux/arm64`"
            self.report.add(("include", i, "name"), what, todo)
            return None
        return Include.model_construct(**{**merged, "pins": pins, "axes": axes})

    def _variant(
        self, entry: Include, platform: str, values: Mapping[str, str], name: Template, key: Key
    ) -> Variant:
        """The variant of an entry, with the defaults for what it leaves out."""
        spec, defaults = self.spec, self.spec.defaults
        values = {**self.sole, **values}
        words = {**values, ARCH: platform.split("/")[1]}
        layers = tuple(
            layer for layer in entry.layers or defaults.layers if self._is_in(layer, values)
        )
        # Another program gives another answer.
        answer = defaults.answer if entry.entrypoint in (None, defaults.entrypoint) else None
        title = name.fill(words)
        return Variant(
            name=title,
            platform=platform,
            repository=self._repository(entry, title, words, key),
            layers=layers,
            pins={pin: values[pin] for pin in self.used_pins(layers) if pin in values},
            entrypoint=tuple(defaults.entrypoint if entry.entrypoint is None else entry.entrypoint),
            cmd=tuple(defaults.cmd if entry.cmd is None else entry.cmd),
            user=defaults.user if entry.user is None else entry.user,
            answer=entry.answer or answer,
            axes={n: v for n, v in values.items() if n not in spec.pins and n != PLATFORM},
            words=words,
        )

    def _repository(self, entry: Include, title: str, words: Mapping[str, str], key: Key) -> str:
        text = entry.repository or self.spec.repository
        if "{" not in text:
            return text
        place = (*key[:-1], "repository") if entry.repository else ("repository",)
        whose = f"variant {title}: the repository {text!r}"
        if (parsed := template(self.report, place, text, words, whose)) is None:
            return text
        name = parsed.fill(words)
        if not REPOSITORY_NAME.fullmatch(name):
            what = f"variant {title}: {name!r} cannot be a repository"
            self.report.add(place, what, "use lower-case letters, digits, and single `._-/`")
        return name

    def _is_in(self, name: str, values: Mapping[str, str]) -> bool:
        layer = self.spec.layers.get(name)
        return layer is None or all(fits(values.get(axis), s) for axis, s in layer.when.items())

    def _name(self, key: Key, text: str, known: Collection[str]) -> Template | None:
        """A variant's name as a template over ``known``; None with a problem of it."""
        return template(self.report, key, text, known, f"the name template {text!r}")

    def _used_pins(self, names: Sequence[str]) -> list[str]:
        layers = self.spec.layers
        known = [name for name in names if name in layers]
        expected = {
            pin for name in known for one in expecting(layers, name)
            for pin in layers[one].expect.pins
        }  # fmt: skip
        return sorted(expected | {pin for name in known for pin in layers[name].uses})


def template(
    report: Report, key: Key, text: str, known: Collection[str], title: str, more: str = ""
) -> Template | None:
    """The text as a template over ``known``; None with a problem, of which ``title`` says whose
    text it is."""
    other = None
    try:
        parsed = Template.parse(text)
        missing = parsed.missing(known)
    except ValueError as error:
        wrong = str(error).removesuffix(" in format string")
    else:
        if not missing:
            return parsed
        wrong = f"{missing[0]!r} is no axis"
        other = closest(missing[0], known)
    todo = "known are " + ", ".join(f"{{{name}}}" for name in known)
    todo = todo if other is None else f"did you mean {{{other}}}?"
    report.add(key, f"{title} cannot be filled in: {wrong}", todo + more)
    return None


def _idle_axes(spec: MatrixFile, report: Report) -> Iterator[Problem]:
    """A warning for each axis that changes no image."""
    names = {*spec.defaults.layers, *(la for entry in spec.include for la in entry.layers or ())}
    layers = [one for la in names if la in spec.layers for one in expecting(spec.layers, la)]
    used = {PLATFORM}
    for layer in (spec.layers[name] for name in layers):
        used |= {*layer.uses, *layer.when, *layer.filled, *layer.expect.axes}
    keys: list[Key] = [("axes", axis) for axis in spec.axes]
    keys += [("include", i, "axes", a) for i, entry in enumerate(spec.include) for a in entry.axes]
    for key in keys:
        axis = str(key[-1])
        if axis not in used:
            other = closest(axis, used - {str(key[-1]) for key in keys} - {PLATFORM})
            todo = f"use it in a layer: a pin, `when`, or {{{axis}}} in `args`; or remove it"
            yield report.document.problem(
                key, f"no layer uses axis {axis}: it changes no image",
                f"did you mean {other!r}?" if other else todo,
            )  # fmt: skip
