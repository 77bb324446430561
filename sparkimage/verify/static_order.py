"""The static checks of what each layer installs: nothing older than what lies below it, and its own
wheels only.

An overlay exists to bring the newer one. An older one in its place is a forgotten pin: the base, or
the Dockerfile of a source, has moved on. A wheel in another layer than the plan's makes that layer
change with a pin that is not its own: nodes that have it load gigabytes again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Set

from packaging.version import InvalidVersion, Version

from sparkimage.config.plan import Plan
from sparkimage.core import debian_version
from sparkimage.image.layerindex import ImageFiles
from sparkimage.image.linking import Root
from sparkimage.verify.static_nccl import Compared, is_copy

NCCL = ("libnccl", "nvidia-nccl")
"""Prefixes of the packages and wheels that bring NCCL."""


def checks(plan: Plan, files: ImageFiles, own_layers: Set[int]) -> Iterator[Compared]:
    """The comparisons; none where the plan installs no package and no wheel."""
    if any(layer.wheels for layer in plan.layers):
        title = "every wheel is in its own layer"
        yield "wheel-layers", title, _misplaced(plan, files, own_layers), []
    if not any(layer.debs or layer.wheels for layer in plan.layers):
        return
    layers = [layer for layer in plan.layers if not layer.downgrade]
    debs = {deb.name: deb.version for la in layers if la.debs for deb in la.debs.debs}
    wheels = {wheel.name: wheel.version for layer in layers for wheel in layer.wheels}
    found = dict[str, None]()
    brings_nccl = any(name.startswith(NCCL) for name in (*debs, *wheels))
    nccl = (plan.expect.nccl or "") if brings_nccl else ""
    for number, layer in enumerate(files.layers):
        for entry in layer:
            for name, version in entry.seen.get("packages", {}).items():
                ours = debs.get(name, version)
                if debian_version.key(version) > debian_version.key(ours):
                    found[f"{name} {ours}: layer {number} has {version}"] = None
            name, version = entry.seen.get("wheel", ("", ""))
            if _older(wheels.get(name, ""), version):
                found[f"{name} {wheels[name]}: layer {number} has {version}"] = None
            if nccl and is_copy(entry) and _older(nccl, entry.seen.get("nccl", "")):
                found[f"NCCL {nccl}: {entry} is {entry.seen['nccl']}"] = None
    title = "no package or wheel is older than in the layers below (`downgrade` allows it)"
    yield "overlay-order", title, sorted(found), []


def _misplaced(plan: Plan, files: ImageFiles, own_layers: Set[int]) -> list[str]:
    """The plan's wheels in an image layer that has more of another layer's.

    A Dockerfile makes any number of image layers: whose each one is, its wheels tell.
    """
    found = []
    for number, entries in enumerate(files.layers):
        if number not in own_layers:
            continue
        root = Root({entry.path: entry for entry in entries})
        owners: dict[str, list[str]] = {}
        for layer in plan.layers:
            installed = root.wheels(plan.python, layer.into) if layer.wheels else {}
            for wheel in layer.wheels:
                if wheel.version in installed.get(wheel.name, ()):
                    owners.setdefault(wheel.name, []).append(layer.name)
        for main, _ in Counter(itertools.chain(*owners.values())).most_common(1):
            found += [
                f"{name} of {names[0]}: image layer {number}, which is {main}'s"
                for name, names in sorted(owners.items())
                if main not in names
            ]
    return found


def _older(ours: str, other: str) -> bool:
    try:
        return bool(ours and other) and Version(ours) < Version(other)
    except InvalidVersion:
        return False
