"""Series: the patches that a layer applies to one pin, each to what the one before made. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkimage.config import patch_specs, patched_pins
from sparkimage.config.patch_specs import PATCHES, State
from sparkimage.config.pins import GitPin, ImagePin, Key, Pin

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.variants import Variant

SERIES = "patches of"
"""The lock has the series under this name, which no pin can have, as values of a pin."""


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
            pin = next(iter(patched_pins.candidates(patch, layer, layers[0], pins)), None)
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
