"""The static check that no layer installs something older than what lies below it.

An overlay exists to bring the newer one. An older one in its place is a forgotten pin: the base, or
the Dockerfile of a source, has moved on.
"""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from sparkimage.config.plan import Plan
from sparkimage.core import debian_version
from sparkimage.image.layerindex import ImageFiles
from sparkimage.verify.static_nccl import Compared, is_copy

NCCL = ("libnccl", "nvidia-nccl")
"""Prefixes of the packages and wheels that bring NCCL."""


def checks(plan: Plan, files: ImageFiles) -> Iterator[Compared]:
    """The comparison; none where the plan installs no package and no wheel."""
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
    title = "packages and wheels older than those in the layers below (`downgrade` allows it)"
    yield "overlay-order", title, sorted(found), []


def _older(ours: str, other: str) -> bool:
    try:
        return bool(ours and other) and Version(ours) < Version(other)
    except InvalidVersion:
        return False
