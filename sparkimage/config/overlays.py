"""Packages of a layer that are older than those of a layer below: told from the lock. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sparkimage.config.plan import LayerPlan, debs
from sparkimage.core import debian_version
from sparkimage.core.errors import LockError
from sparkimage.core.program import program


def refuse_older(variant: str, layers: Sequence[LayerPlan]) -> None:
    """Raises ``LockError`` with every such package, unless its layer may ``downgrade``."""
    below: dict[str, tuple[str, str]] = {}
    """Version, and layer, by package."""
    older = []
    for layer in layers:
        for deb in debs(layer):
            version, where = below.get(deb.name, (deb.version, layer.name))
            if version == deb.version or layer.downgrade:
                pass
            elif debian_version.key(deb.version) < debian_version.key(version):
                older.append(
                    f"layer {layer.name}: {deb.name} {deb.version}, where layer {where} has "
                    f"{version}"
                )
            below[deb.name] = (deb.version, layer.name)
    if older:
        raise LockError(
            f"variant {variant} would install older packages over newer ones",
            detail="\n".join(older),
            hint=f"pin versions that are not older, then run `{program()} lock`; or write "
            "`downgrade: true` at the layer",
        )
