"""What can be wrong with pins that are resolved against others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparkimage.config.schema import MatrixFile, WheelsPin
from sparkimage.config.validation import Report

if TYPE_CHECKING:
    from sparkimage.config.variants import Variant


def check_constraints(spec: MatrixFile, variants: Sequence[Variant], report: Report) -> None:
    """Add the problems of the `constraints` of wheels pins to ``report``."""
    for pin, values in spec.pins.items():
        for value, one in values.items():
            for i, other in enumerate(one.constraints if isinstance(one, WheelsPin) else ()):
                key = ("pins", pin, value, "constraints", i)
                title = f"pin {pin} {value} is constrained by {other!r}"
                if other not in spec.pins:
                    report.require(key, other, spec.pins, f"{title}, which is not in pins")
                elif pin in _reached(spec, other):
                    report.add(key, f"{title}, and that one by {pin}", "remove one of the two")
                else:
                    _check_values(spec, variants, report, (pin, value), i)


def _reached(spec: MatrixFile, pin: str) -> set[str]:
    """The pin, and all that constrain it."""
    reached: set[str] = set()
    todo = [pin]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            values = spec.pins.get(name, {}).values()
            todo += [o for one in values if isinstance(one, WheelsPin) for o in one.constraints]
    return reached


def _check_values(
    spec: MatrixFile,
    variants: Sequence[Variant],
    report: Report,
    pin: tuple[str, str],
    number: int,
) -> None:
    """Check that the pin which constrains ``pin`` is of wheels, and of one value in all variants:
    the lock has one set of wheels for each value of a pin."""
    one = spec.pins[pin[0]][pin[1]]
    assert isinstance(one, WheelsPin)
    other = one.constraints[number]
    key = ("pins", *pin, "constraints", number)
    title = f"pin {' '.join(pin)} is constrained by {other}"
    users = {v.name: v.pins.get(other) for v in variants if pin in v.pins.items()}
    values = list(dict.fromkeys(value for value in users.values() if value is not None))
    for name in [name for name, value in users.items() if value is None][:1]:
        what = f"{title}, and no layer of variant {name} uses that"
        report.add(key, what, f"add a layer with the wheels of {other}, or remove the constraint")
    for kind in {spec.pins[other][value].kind for value in values} - {"wheels"}:
        report.add(key, f"{title}, a {kind} pin", "name a pin of kind wheels")
    if len(values) > 1:
        report.add(
            key,
            f"{title}, which has {len(values)} values in the variants that use both: "
            + ", ".join(values),
            f"give each of them its own value of {pin[0]}, with a `version:`",
        )
