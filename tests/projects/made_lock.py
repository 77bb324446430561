"""Locks that are made up for the projects: what each pin comes to, the same each time."""

from __future__ import annotations

import hashlib

from sparkimage.config import lockfile
from sparkimage.config.address import image_name
from sparkimage.config.lock_items import (
    CHANGES,
    KEPT,
    Commit,
    Deb,
    File,
    Item,
    PatchText,
    PinnedImage,
    Step,
    Target,
    Wheel,
)
from sparkimage.config.lockfile import Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import DebianPin, DebPin, FilePin, GitPin, ImagePin, Key, Pin, WheelsPin
from sparkimage.config.plan import MORE, ROOT
from sparkimage.config.series import SERIES
from sparkimage.resolve.wheels import project_name
from tests.unit import project_maker

NEEDED = {"vllm": {"torch": "2.13.0", "triton": "3.7.1", "nvidia-cublas": "13.1.0.3"}}
"""A few of the projects that another one needs."""


def of(read: Matrix) -> Lock:
    """A lock that fits the matrix."""
    return project_maker.locked(read, items)


def sha256(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def items(read: Matrix, key: Key, platform: str) -> tuple[Item, ...]:
    """What a pin, a patch or a series comes to."""
    if key[0] == PATCHES:
        return (PatchText(size=1_000, sha256=sha256(*key)),)
    if key[0] == SERIES:
        names = lockfile.series_to_lock(read)[key[1]].names
        steps = (Step(number=n, state=CHANGES, patch=name) for n, name in enumerate(names, 1))
        before, after = sha256("before", *key), sha256("after", *key)
        path = read.patches[names[0]].replaces or f"{names[0]}.py"
        target = Target(before=before, after=after, size=1_000, mode=KEPT, path=path)
        return (*steps, target)
    return tuple(_pin(read.pins[key[0]][key[1]], sha256(*key, platform)))


def _pin(pin: Pin, digest: str) -> list[Item]:
    match pin:
        case GitPin():
            return [Commit(commit=pin.commit.ljust(40, "0"), tree=digest[:40])]
        case FilePin():
            return [File(size=1_000, sha256=pin.sha256 or digest, name=pin.file)]
        case ImagePin():
            name, digest = image_name(pin.image), f"sha256:{digest}"
            tagged = name.digest or digest
            return [PinnedImage(name=name.repository, digest=digest, tagged=tagged)]
        case WheelsPin():
            return [*_wheels(pin)]
        case DebPin() | DebianPin():
            names = [name.partition("=") for name in pin.packages]
            debs = [(name, version or "1.0-1", MORE) for name, _, version in names]
            root = [("base-files", "1.0-1", ROOT)] if isinstance(pin, DebianPin) else []
            return [_deb(*one) for one in sorted([*root, *debs])]


def _deb(name: str, version: str, part: str) -> Deb:
    digest = sha256(name, version)
    file = f"{name}_{version.replace(':', '%3a')}.deb"
    return Deb(name=name, version=version, part=part, size=100_000, sha256=digest, file=file)


def _wheels(pin: WheelsPin) -> list[Wheel]:
    versions: dict[str, str] = {}
    for requirement in pin.require:
        name = project_name(requirement)
        versions |= NEEDED.get(name, {}) if pin.deps else {}
        versions[name] = requirement.rpartition("==")[2]
    gone = {project_name(name) for name in pin.exclude}
    return [
        Wheel(name=name, version=version, size=1_000_000, sha256=sha256(name, version),
              file=f"{name.replace('-', '_')}-{version}-py3-none-any.whl")
        for name, version in sorted(versions.items())
        if name not in gone
    ]  # fmt: skip
