"""Series: the patches that a layer applies to one pin, each to what the one before made. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkimage.config import patch_specs
from sparkimage.config.patch_specs import PATCHES, Patch, State
from sparkimage.config.pins import GitPin, ImagePin, Pin, WheelsPin
from sparkimage.config.schema import LayerSpec

if TYPE_CHECKING:
    from sparkimage.config.lockfile import Key, Wheel
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.variants import Variant

SERIES = "patches of"
"""The lock has the series under this name, which no pin can have, as values of a pin."""
KINDS = ("git", "image", "wheels")
"""Of the pins that can be patched."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The patches of a layer that change the files of one pin, in their order."""

    layer: str
    pin: str | None
    """None for a file that no pin of the variant has: its patch says what it expects there."""
    value: str | None
    names: tuple[str, ...]
    below: tuple[str, ...]
    """The patches that layers below have applied to the same files."""
    root: str | None
    """The folder of the image that has the files; None for the tree that a source is built from."""

    @property
    def key(self) -> str:
        """Its name in the lock."""
        below = f" with {' '.join(self.below)}" if self.below else ""
        return f"{self.pin} {self.value}{below}: {' '.join(self.names)}"

    @property
    def depends_on(self) -> tuple[Key, ...]:
        """The keys in the lock of what it is resolved against: its pin, and each patch."""
        patches = ((PATCHES, name) for name in (*self.below, *self.names))
        return (str(self.pin), str(self.value)), *patches


def candidates(
    patch: Patch, layer: LayerSpec, lowest: LayerSpec, pins: Mapping[str, Pin]
) -> tuple[str, ...]:
    """The pins of a variant that ``patch`` of ``layer`` may be for: one where it is clear.

    ``lowest`` is the variant's lowest layer.
    """
    if patch.pin is not None:
        return (patch.pin,)
    if layer.source is not None:
        return (layer.source.pin,)
    commits = {
        name: pin.commit
        for name, pin in pins.items()
        if isinstance(pin, GitPin | ImagePin) and pin.commit is not None
    }
    if mentioned := [name for name in commits if patch_specs.mentions(patch, commits[name])]:
        return tuple(mentioned)
    if forks := [name for name, pin in pins.items() if pin.kind == "git"] or list(commits):
        return tuple(forks)
    base = pins.get(lowest.base or "")
    return (str(lowest.base),) if base is not None and base.kind == "image" else ()


def of(matrix: Matrix, variant: Variant) -> tuple[Series, ...]:
    """The series of a variant, from the lowest layer up."""
    layers = [matrix.layers[name] for name in variant.layers]
    if not any(layer.patches for layer in layers):
        return ()
    pins = matrix.pins_of(variant)
    made: list[Series] = []
    for name, layer in zip(variant.layers, layers, strict=True):
        groups: dict[tuple[str | None, str | None], list[str]] = {}
        for one in layer.patches:
            patch = matrix.patches[one]
            pin = next(iter(candidates(patch, layer, layers[0], pins)), None)
            if pin not in variant.pins:
                pin = None
            root = patch.root if layer.source is None else None
            groups.setdefault((pin, root), []).append(one)
        for (pin, root), names in groups.items():
            below = (s.names for s in made if s.pin == pin and s.root in (None, root))
            made.append(
                Series(
                    layer=name,
                    pin=pin,
                    value=variant.pins[pin] if pin is not None else None,
                    names=tuple(names),
                    below=tuple(one for group in below for one in group),
                    root=root,
                )
            )
    return tuple(made)


def to_lock(matrix: Matrix, variant: Variant) -> Iterator[Series]:
    """The series of a variant whose files `lock` reads: those whose patches say that they fit."""
    for series in of(matrix, variant):
        if series.pin is None or series.value is None:
            continue
        commit = commit_of(matrix.pins[series.pin][series.value])
        verdicts = [
            patch_specs.judge(matrix.patches[name], commit=commit, applied=True)
            for name in series.names
        ]
        if all(verdict.state is State.APPLIED for verdict in verdicts):
            yield series


def commit_of(pin: Pin) -> str | None:
    """The commit that a pin names, in full or abbreviated."""
    return pin.commit if isinstance(pin, GitPin | ImagePin) else None


def wheels_of(
    wheels: Iterable[Wheel], projects: Iterable[str | None], paths: Iterable[str]
) -> tuple[Wheel, ...]:
    """The wheels with the files of patches: each patch's `project`, and those that are called as
    the first folder of a path."""
    from packaging.utils import canonicalize_name

    names = {canonicalize_name(project) for project in projects if project is not None}
    names |= {canonicalize_name(path.partition("/")[0].removesuffix(".py")) for path in paths}
    return tuple(wheel for wheel in wheels if wheel.name in names)


def problems(
    variant: Variant,
    layers: Mapping[str, LayerSpec],
    patches: Mapping[str, Patch],
    pins: Mapping[str, Mapping[str, Pin]],
) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the patches of a variant: the layer, what, and the next action."""
    used = {
        name: pins[name][value]
        for name, value in variant.pins.items()
        if value in pins.get(name, {})
    }
    known = [name for name in variant.layers if name in layers]
    seen: dict[str, str] = {}
    for name in known:
        layer = layers[name]
        for one in (one for one in layer.patches if one in patches):
            patch, title = patches[one], f"variant {variant.name}: layer {name}: patch {one}"
            if (other := seen.setdefault(one, name)) != name or layer.patches.count(one) > 1:
                yield name, f"{title} is applied twice (layer {other})", "keep one of them"
            of_it = candidates(patch, layer, layers[known[0]], used)
            yield from ((name, f"{title} {what}", todo) for what, todo in _wrong(
                patch, layer, of_it, used, pins
            ))  # fmt: skip


def _wrong(
    patch: Patch,
    layer: LayerSpec,
    of_it: Sequence[str],
    used: Mapping[str, Pin],
    pins: Mapping[str, Mapping[str, Pin]],
) -> Iterator[tuple[str, str]]:
    where = f"in {patch_specs.FILE}"
    if len(of_it) > 1:
        names = " or ".join(sorted(of_it))
        yield f"may be for {names}", f"say which {where}: `for: {min(of_it)}`"
        return
    if not of_it:
        if patch.replaces is None or patch.expects is None:
            yield "is for no pin of the variant", f"say which {where}: `for: PIN`"
    elif of_it[0] not in pins:
        todo = f"correct `for` {where}: known are {', '.join(sorted(pins))}"
        yield f"is for {of_it[0]}, which is not in pins", todo
    elif of_it[0] not in used:
        yield f"is for pin {of_it[0]}, which the variant has no value of", f"correct `for` {where}"
    elif layer.source is not None and of_it[0] != layer.source.pin:
        todo = f"apply it in a layer above, or correct `for` {where}"
        yield f"is for {of_it[0]}, and the source is built from {layer.source.pin}", todo
    elif used[of_it[0]].kind not in KINDS:
        todo = f"a pin of kind {', '.join(KINDS)} can be patched"
        yield f"is for {of_it[0]}, which is of kind {used[of_it[0]].kind}", todo
    if layer.source is None and patch.root is None:
        yield (
            "has no `root`",
            f"name the folder of the image that has its files {where}: `root: /…`",
        )
    if patch.project is not None and of_it and not isinstance(used.get(of_it[0]), WheelsPin):
        yield "has a `project`, and its pin is of no wheels", f"remove it {where}"
