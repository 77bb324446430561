"""What pins are resolved against: what lies below them in the variants that use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from sparkimage.config import series
from sparkimage.config.pins import DebianPin, DebPin, ImagePin, Key, Pin, WheelsPin
from sparkimage.config.schema import LayerSpec
from sparkimage.config.series import SERIES
from sparkimage.core import suites
from sparkimage.core.arch import GLIBC
from sparkimage.core.errors import LockError

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.variants import Variant

Stack = tuple[Key, ...]
"""The base of a layer, and the pins whose packages lie below it, from the lowest up; a pin is twice
in it where both its root and its packages are."""
ON = "on"
"""The key of a request that names these."""


def glibc(lowest: LayerSpec, pins: Mapping[str, Pin]) -> str:
    """The oldest glibc ("2.39") among the bases of a variant's lowest layer."""
    bases = [pins[name] for role, name, _ in lowest.roles if role in ("base", "source")]
    known = [_glibc(pin) for pin in bases if isinstance(pin, DebianPin | ImagePin)]
    return min(known, default=GLIBC)


def _glibc(base: DebianPin | ImagePin) -> str:
    if isinstance(base, DebianPin):
        return suites.find(base.suite).glibc
    return base.glibc or GLIBC


def requests(matrix: Matrix) -> dict[Key, dict[str, Any]]:
    """What the requests of pins have beside the keys of the pins: the oldest glibc, the pins that
    constrain them."""
    more: dict[Key, dict[str, Any]] = {}
    for key, oldest in wheels_glibc(matrix).items():
        more[key] = {"glibc": oldest}
    for key, others in constraints(matrix).items():
        more[key]["constraints"] = [" ".join(other) for other in others]
    rooted = roots(matrix)
    for key, platforms in stacks(matrix).items():
        found = {stack for several in platforms.values() for stack in several}
        if key in rooted:
            found.add((key,))
        names = [" + ".join(" ".join(one) for one in stack) for stack in found]
        more.setdefault(key, {})[ON] = sorted(names)
    return more


def wheels_glibc(matrix: Matrix) -> dict[Key, str]:
    """The oldest glibc among the bases that the wheels of a pin are used on."""
    oldest: dict[Key, str] = {}
    for variant in matrix.variants:
        pins = matrix.pins_of(variant)
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


def stacks(matrix: Matrix) -> dict[Key, dict[str, tuple[Stack, ...]]]:
    """What the packages of a suite are installed on, by pin and platform; without the root of their
    own suite, which they are resolved together with."""
    found: dict[Key, dict[str, tuple[Stack, ...]]] = {}
    for variant in matrix.variants:
        stack = _base(matrix, variant)
        for debs in (matrix.layers[name].debs for name in variant.layers):
            if debs is None:
                continue
            key = (debs, variant.pins[debs])
            pin = matrix.pins[debs][key[1]]
            on_itself = key in stack  # the root of its own suite, or another layer with it
            if isinstance(pin, DebianPin | DebPin) and pin.suite is not None and not on_itself:
                known = found.setdefault(key, {}).setdefault(variant.platform, ())
                found[key][variant.platform] = tuple(dict.fromkeys((*known, stack)))
            if key not in stack[1:]:
                stack = (*stack, key)
    return found


def roots(matrix: Matrix) -> set[Key]:
    """The pins that are the base of a variant."""
    return {key for variant in matrix.variants for key in _base(matrix, variant)}


def _base(matrix: Matrix, variant: Variant) -> Stack:
    """The base of a variant's lowest layer, where it has one."""
    base = matrix.layers[variant.layers[0]].base
    return tuple((pin, value) for pin, value in variant.pins.items() if pin == base)


def levels(keys: Iterable[Key], dependencies: Mapping[Key, Iterable[Key]]) -> Iterator[list[Key]]:
    """The keys in groups: what they depend on is in an earlier one."""
    sorter = TopologicalSorter({key: dependencies.get(key, ()) for key in keys})
    try:
        sorter.prepare()
    except CycleError as error:
        one, other, *_ = (" ".join(key) for key in error.args[1])
        raise LockError(
            f"pins {one} and {other} are each below the other in some variant",
            hint="keep their layers in one order, or give one of them another value where it lies "
            "differently",
        ) from None
    while sorter.is_active():
        level = sorter.get_ready()
        yield list(level)
        sorter.done(*level)


def dependencies(matrix: Matrix) -> dict[Key, tuple[Key, ...]]:
    """What a pin or a series is resolved against: when that moves, it is resolved anew."""
    made = (one for variant in matrix.variants for one in series.to_lock(matrix, variant))
    found = {**constraints(matrix), **{(SERIES, one.key): one.depends_on for one in made}}
    for key, platforms in stacks(matrix).items():
        keys = (one for several in platforms.values() for stack in several for one in stack)
        found[key] = tuple(dict.fromkeys(keys))
    return found
