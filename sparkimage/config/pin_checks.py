"""What can be wrong with pins of wheels and of Debian packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.config.pins import DebianPin, DebPin, FilePin, WheelsPin
from sparkimage.config.schema import MatrixFile
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


def check_apt(spec: MatrixFile, root: Path, report: Report) -> None:
    """Add the problems of where Debian packages come from; ``root`` is the project's folder."""
    for name, values in spec.pins.items():
        for value, pin in values.items():
            key, title = ("pins", name, value), f"pin {name} {value}"
            if not isinstance(pin, DebianPin | DebPin):
                continue
            if isinstance(pin, DebPin) and pin.suite is None:
                _check_flat(pin, key, title, report)
                continue
            for field, what in (
                ("pockets", "the default mirror of a suite has its pockets anyway"),
                ("snapshot", "the default mirror of a suite is no snapshot service"),
            ):
                if getattr(pin, field) and not pin.repository:
                    todo = f"add the `repository` that `{field}` is of, or remove it"
                    report.add((*key, field), f"{title}: {what}", todo)
            if pin.key is not None:
                _check_key(spec, root, pin.key, key, title, report)


def _check_flat(pin: DebPin, key: tuple[str, ...], title: str, report: Report) -> None:
    if not pin.repository:
        what = f"{title} has neither a `suite` nor a `repository`"
        report.add(key, what, "add `suite: noble`, say, or the address of a flat repository")
    for field in ("components", "pockets", "key", "snapshot"):
        if getattr(pin, field):
            what = f"{title}: `{field}` is of a suite, and it has a flat repository"
            report.add((*key, field), what, f"add `suite:`, or remove `{field}`")
    for i, package in enumerate(pin.packages):
        if "=" not in package:
            what = f"{title}: {package!r} has no version, and a flat repository no newest one"
            report.add((*key, "packages", i), what, "write NAME=VERSION, or add `suite:`")


def _check_key(
    spec: MatrixFile, root: Path, name: str, key: tuple[str, ...], title: str, report: Report
) -> None:
    """Check that the key is a file of the project, or what one file pin has."""
    pins = list(spec.pins.get(name, {}).values())
    if not pins and not (root / name).is_file():
        what = f"{title}: its key {name!r} is neither a file of the project nor a pin"
        report.add((*key, "key"), what, "save what `gpg --armor --export` writes there")
    for pin in pins:
        if not isinstance(pin, FilePin) or pin.sha256 is None or len(pins) > 1:
            what = f"{title}: its key {name!r} is not a file pin of one value with a `sha256`"
            report.add((*key, "key"), what, "give it that, or name a file of the project")
            break
