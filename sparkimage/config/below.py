"""What pins are resolved against: what lies below them in the variants that use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from sparkimage.config import series
from sparkimage.config.schema import DebianPin, ImagePin, LayerSpec, Pin, WheelsPin
from sparkimage.config.series import SERIES
from sparkimage.core.arch import GLIBC, SUITE_GLIBC

if TYPE_CHECKING:
    from sparkimage.config.lockfile import Key
    from sparkimage.config.matrix import Matrix


def glibc(lowest: LayerSpec, pins: Mapping[str, Pin]) -> str:
    """The oldest glibc ("2.39") among the bases of a variant's lowest layer."""
    bases = [pins[name] for role, name, _ in lowest.roles if role in ("base", "source")]
    known = [_glibc(pin) for pin in bases if isinstance(pin, DebianPin | ImagePin)]
    return min(known, default=GLIBC)


def _glibc(base: DebianPin | ImagePin) -> str:
    if isinstance(base, DebianPin):
        return SUITE_GLIBC.get(base.suite, GLIBC)
    return base.glibc or GLIBC


def requests(matrix: Matrix) -> dict[Key, dict[str, Any]]:
    """What the requests of pins have beside the keys of the pins: the oldest glibc, the pins that
    constrain them."""
    more: dict[Key, dict[str, Any]] = {}
    for key, oldest in wheels_glibc(matrix).items():
        more[key] = {"glibc": oldest}
    for key, others in constraints(matrix).items():
        more[key]["constraints"] = [" ".join(other) for other in others]
    return more


def wheels_glibc(matrix: Matrix) -> dict[Key, str]:
    """The oldest glibc among the bases that the wheels of a pin are used on."""
    oldest: dict[Key, str] = {}
    for variant in matrix.variants:
        pins = {name: matrix.pins[name][value] for name, value in variant.pins.items()}
        for key in variant.pins.items():
            if isinstance(pins[key[0]], WheelsPin):
                here = glibc(matrix.layers[variant.layers[0]], pins)
                oldest[key] = min(oldest.get(key, here), here)
    return oldest


def constraints(matrix: Matrix) -> dict[Key, tuple[Key, ...]]:
    """The pins whose versions hold for a wheels pin, too."""
    return {
        key: tuple((name, variant.pins[name]) for name in pin.constraints)
        for variant in matrix.variants
        for key in variant.pins.items()
        if isinstance(pin := matrix.pins[key[0]][key[1]], WheelsPin) and pin.constraints
    }


def levels(keys: Iterable[Key], dependencies: Mapping[Key, Iterable[Key]]) -> Iterator[list[Key]]:
    """The keys in groups: what they depend on is in an earlier one."""
    sorter = TopologicalSorter({key: dependencies.get(key, ()) for key in keys})
    sorter.prepare()
    while sorter.is_active():
        level = sorter.get_ready()
        yield list(level)
        sorter.done(*level)


def dependencies(matrix: Matrix) -> dict[Key, tuple[Key, ...]]:
    """What a pin or a series is resolved against: when that moves, it is resolved anew."""
    made = (one for variant in matrix.variants for one in series.to_lock(matrix, variant))
    return {**constraints(matrix), **{(SERIES, one.key): one.depends_on for one in made}}
