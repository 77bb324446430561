"""The lock: what every pin of the matrix resolved to.

``matrix.lock`` is made by ``python build.py lock`` and read by everything else. For a wheels
pin it holds one exact file per project and platform: the wheel that the platform's installer
would choose, with its size and sha256, and no index address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkimage.errors import LockError

if TYPE_CHECKING:
    from sparkimage.matrix import Matrix

VERSION = 1
REMEDY = "run `python build.py lock`, and commit matrix.lock"


@dataclass(frozen=True, kw_only=True, order=True)
class Wheel:
    """One wheel: normalised project name, version, file name, size in bytes, sha256 in hex."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WheelsEntry:
    """A resolved wheels pin: what was asked for, and per platform what it came to."""

    asked: Mapping[str, Any]
    platforms: Mapping[str, tuple[Wheel, ...]]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The whole lock: ``entries`` by (pin, value)."""

    file: str
    entries: Mapping[tuple[str, str], WheelsEntry]

    def wheels(self, pin: str, value: str, platform: str) -> tuple[Wheel, ...]:
        """The wheels of one pin for one platform. Raises ``LockError`` when not locked."""
        entry = self.entries.get((pin, value))
        if entry is None or platform not in entry.platforms:
            raise LockError(
                f"{self.file} holds nothing for pin {pin} {value} on {platform}", hint=REMEDY
            )
        return entry.platforms[platform]

    def slice(self, pins: Mapping[str, str], platform: str) -> dict[str, Any]:
        """What the lock holds for these pins on this platform, as plain data."""
        held: dict[str, Any] = {}
        for pin, value in sorted(pins.items()):
            entry = self.entries.get((pin, value))
            wheels = entry.platforms.get(platform, ()) if entry is not None else ()
            held[f"{pin}/{value}"] = [asdict(wheel) for wheel in wheels]
        return held


def asked(pin: Any) -> dict[str, Any]:
    """What a wheels pin asks the resolver for; the lock is stale when this has changed."""
    return {
        "require": sorted(pin.require),
        "exclude": sorted(pin.exclude),
        "python": pin.python,
    }


def load(path: Path) -> Lock:
    """Read ``matrix.lock``. Raises ``LockError`` when it is missing, damaged or foreign."""
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = yaml.load(path.read_text("utf-8"), Loader=loader)  # noqa: S506 - a safe loader
    except FileNotFoundError:
        raise LockError(f"{path.name} is missing", hint=REMEDY) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LockError(f"{path.name} cannot be read: {error}", hint=REMEDY) from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise LockError(
            f"{path.name} is not a lock of version {VERSION}",
            hint=REMEDY,
        )
    try:
        entries = {
            (pin, value): WheelsEntry(
                asked=entry["asked"],
                platforms={
                    platform: tuple(_read_wheel(line) for line in lines)
                    for platform, lines in entry["platforms"].items()
                },
            )
            for pin, values in data["pins"].items()
            for value, entry in values.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LockError(f"{path.name} is damaged: {error!r}", hint=REMEDY) from None
    return Lock(file=path.name, entries=entries)


def check(matrix: Matrix, lock: Lock) -> list[str]:
    """Every way in which lock and matrix disagree, as sentences; empty when they agree. No I/O."""
    wrong = []
    wanted = _wanted(matrix)
    for (pin, value), platforms in wanted.items():
        entry = lock.entries.get((pin, value))
        if entry is None:
            wrong.append(f"pin {pin} {value} is not locked")
            continue
        if dict(entry.asked) != asked(matrix.pins[pin][value]):
            wrong.append(f"pin {pin} {value} asks for something else than was locked")
        wrong += [
            f"pin {pin} {value} is not locked for {platform}"
            for platform in platforms
            if platform not in entry.platforms
        ]
    wrong += [
        f"pin {pin} {value} is locked but no variant uses it"
        for pin, value in lock.entries
        if (pin, value) not in wanted
    ]
    return wrong


def _wanted(matrix: Matrix) -> dict[tuple[str, str], tuple[str, ...]]:
    """The wheels pins that some variant uses, each with the platforms it is used on."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for variant in matrix.variants:
        for pin, value in variant.pins.items():
            if matrix.pins[pin][value].kind == "wheels":
                wanted.setdefault((pin, value), set()).add(variant.platform)
    return {key: tuple(sorted(platforms)) for key, platforms in sorted(wanted.items())}


def dump(lock: Lock) -> str:
    """The lock as the text of ``matrix.lock``: sorted, one line a wheel."""
    import json

    lines = [
        "# Made by `python build.py lock`, not to be edited: what each pin of matrix.yaml came to.",
        "# A wheel: project, version, size in bytes, sha256, file.",
        f"version: {VERSION}",
        "pins:" if lock.entries else "pins: {}",
    ]
    pins = sorted({pin for pin, _ in lock.entries})
    for pin in pins:
        lines.append(f"  {json.dumps(pin)}:")
        for (_, value), entry in sorted(e for e in lock.entries.items() if e[0][0] == pin):
            lines.append(f"    {json.dumps(value)}:")
            lines.append(f"      asked: {json.dumps(entry.asked, sort_keys=True)}")
            lines.append("      platforms:")
            for platform, wheels in sorted(entry.platforms.items()):
                lines.append(f"        {platform}:")
                lines += [f"          - {_write_wheel(wheel)}" for wheel in sorted(wheels)]
    return "\n".join(lines) + "\n"


def _write_wheel(wheel: Wheel) -> str:
    return f"{wheel.name} {wheel.version} {wheel.size} {wheel.sha256} {wheel.file}"


def _read_wheel(line: str) -> Wheel:
    name, version, size, sha256, file = line.split(" ")
    if len(sha256) != 64 or int(sha256, 16) < 0:
        raise ValueError(f"no sha256 in {line!r}")
    return Wheel(name=name, version=version, file=file, size=int(size), sha256=sha256)
