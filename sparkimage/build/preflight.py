"""Looks before a build begins: what would end it after an hour is said in a second."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.build.engine.emulation import ensure_emulation
from sparkimage.config import dockerfile
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.core.errors import BuildError, LockError, PreflightError
from sparkimage.core.units import human
from sparkimage.resolve import fetch as inputs

if TYPE_CHECKING:
    from sparkimage.build.context import Workshop

UNPACKED_PER_BYTE = 6.5
"""Bytes of disk for each byte of wheels: 2.1 in BuildKit's snapshots, 2.1 unpacked for running,
1.0 compressed in the engine, 1.0 in the store, and the temporary ones of one step."""
BASE_BYTES = 2_000_000_000


def check(plan: Plan, shop: Workshop) -> None:
    """Check disk and emulation before anything long starts. Raises ``PreflightError``."""
    need = int(plan.download_bytes * UNPACKED_PER_BYTE) + BASE_BYTES
    data_root = Path(shop.engine.data_root)
    if free_bytes(data_root) < need:
        # What BuildKit already holds of an earlier run need not be made again. Asked where it
        # matters: for the answer an engine measures every container and volume.
        need -= _cached_bytes(shop)
    places = {
        # The store holds the compressed layers once; the engine holds all the rest.
        shop.store.root: plan.download_bytes + BASE_BYTES // 4,
        data_root: need,
    }
    for place, bytes_needed in places.items():
        free = free_bytes(place)
        if free < bytes_needed:
            raise PreflightError(
                f"{place} has {human(free)} free; {plan.variant} needs {human(bytes_needed)}",
                hint="free some disk, or point SPARKIMAGE_HOME (or SPARKIMAGE_STORE) elsewhere",
            )
    # The checks run here, even where another machine builds.
    ensure_emulation(shop.home, shop.runner, plan.platform, shop.view.say)


def refuse_open_steps(plan: Plan, project: Path) -> None:
    """Raises ``BuildError`` when a step of a layer could take in what the lock does not hold."""
    for layer in plan.layers:
        if layer.source is None and (
            steps := dockerfile.open_steps((project / layer.dockerfile).read_text())
        ):
            raise BuildError(
                f"{layer.dockerfile}: a step has a network, and what it fetches is in no lock",
                detail="\n".join(steps),
                hint=f"write `RUN {dockerfile.CLOSED} …`, and let pins of the matrix bring what it "
                "needs (`debs`, `wheels`, `patches`)",
            )


def refuse_unresolved(plans: Sequence[Plan]) -> None:
    """Raises ``LockError`` when one of ``plans`` needs what the lock has no answer for yet."""
    missing = {str(one): one for plan in plans for one in plan.unresolved}
    if missing:
        names = ", ".join(plan.variant for plan in plans if plan.unresolved)
        raise LockError(
            f"{names} cannot be built yet: {len(missing)} of its pins are not resolved",
            detail="\n".join(one.reason for one in missing.values()),
            hint="where these can be reached, run `python build.py lock`, and commit matrix.lock: "
            "it resolves what is missing and leaves all else as it is",
        )


def fetch_key(layer: LayerPlan) -> str | None:
    """Names what a layer fetches while it is built; None for nothing."""
    if not (layer.wheels or layer.image or layer.source):
        return None
    fetched = f"{layer.requirements}{layer.image}{layer.source}"
    return hashlib.sha256(fetched.encode()).hexdigest()


def reachable(plan: Plan, shop: Workshop) -> None:
    """See that what no earlier build has fetched can be had, before anything long starts.

    Images and commits are asked for; of wheels the smallest is fetched: the index answers, or
    not. Raises ``NetworkError`` or ``LockError`` naming the pin.
    """
    probed = False
    for layer in plan.layers:
        key = fetch_key(layer)
        if key is None or shop.store.get_fact("fetched", key) is not None:
            continue
        inputs.available(layer, shop.outside)
        local = inputs.local_wheels(layer, shop.project)
        ours = [wheel for wheel in layer.wheels if wheel.file not in local]
        if ours and not probed:
            smallest = min(ours, key=lambda wheel: (wheel.size, wheel.name))
            inputs.probe(smallest, layer, plan, shop.outside)
            probed = True


def free_bytes(place: Path) -> int:
    """Free bytes of the file system on which ``place`` lies or will lie."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _cached_bytes(shop: Workshop) -> int:
    """Bytes in the engine's build cache."""
    done = shop.runner.run(
        [*shop.engine.docker, "system", "df", "--format", "{{json .}}"], check=False
    )
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        if row.get("Type") == "Build Cache":
            size = row["Size"]
            unit = next(u for u in ("kB", "MB", "GB", "TB", "B") if size.endswith(u))
            return int(float(size.removesuffix(unit)) * units[unit])
    return 0
