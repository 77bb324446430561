"""Checks before a build: what would fail it after an hour is reported in a second."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.build import capacity
from sparkimage.build.engine import content
from sparkimage.build.engine.emulation import ensure_emulation
from sparkimage.config import folders
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.core.errors import BuildError, CommandError, LockError, PreflightError
from sparkimage.core.files import device, free_bytes
from sparkimage.core.program import program
from sparkimage.core.units import human
from sparkimage.resolve import fetch

if TYPE_CHECKING:
    from sparkimage.build.context import BuildContext

UNPACKED, COMPRESSED = 2.1, 0.95
"""Bytes of disk for each byte of wheels and packages: as files of a layer, and as its blob."""
BASE_BYTES = 600_000_000
"""What a build takes beside: build contexts, the temporary files of a step, databases."""
UNEVEN_BYTES = 1_000_000_000
"""Of the wheels of one layer: of less, dividing it saves a node nothing."""
CLOSED = "--network=none"
"""Flag of a RUN step: https://docs.docker.com/reference/dockerfile/#run---networknone"""
WHEELS = re.compile(r"--mount=\S*\bfrom=uv(,|$)")
"""Mount of the step that installs the locked wheels, by hash."""


def check(plan: Plan, context: BuildContext) -> bool:
    """Check secrets, disk and emulation before anything long starts.

    Returns whether to drop the build cache before the image is unpacked: because the user wants it,
    or because the private engine's disk is short. Raises ``PreflightError``.
    """
    context.secrets.require([plan])
    if advice := uneven(plan):
        context.say(advice)
    lean = _lean(plan, context)
    capacity.check(plan, context)
    # The image is verified here, even where another machine builds it.
    ensure_emulation(context.home, context.runner, plan.platform, context.say)
    return lean


def _lean(plan: Plan, context: BuildContext) -> bool:
    short = _short(plan, context, lean=context.lean)
    if not short:
        return context.lean
    if _short(plan, context, lean=True):
        hint = "free some disk, or point SPARKIMAGE_HOME (or SPARKIMAGE_STORE) elsewhere"
        raise PreflightError(short, hint=hint)
    if not context.engine.private:
        hint = f"{program()} image {plan.variant} --lean, which drops the engine's build cache"
        raise PreflightError(short, hint=hint)
    context.view.say("the disk is short: dropping the build cache before unpacking")
    return True


def _short(plan: Plan, context: BuildContext, *, lean: bool) -> str:
    """Which disk is too small for a build, and by how much; empty where each suffices."""
    unpacked, compressed = (int(plan.download_bytes * each) for each in (UNPACKED, COMPRESSED))
    data_root, store = Path(context.engine.data_root), context.store.root
    # A layer is unpacked in BuildKit's cache, and again for running (or by `docker save`).
    once = context.builder.remote or (lean and context.engine.containerd_store)
    need = compressed + BASE_BYTES + unpacked * (1 if once else 2)
    if free_bytes(data_root) < need:
        # What is in BuildKit's cache is not made again. Only asked where it matters: for the answer
        # an engine measures every container and volume.
        with suppress(CommandError), context.engine.cli() as docker:
            need -= docker.system.disk_free().build_cache.size or 0
    needs = [(data_root, need)]
    if not content.linkable(context.engine, context.home, store):
        needs.append((store, compressed + BASE_BYTES))
    for place, _ in needs:
        needed = sum(each for other, each in needs if device(other) == device(place))
        if (free := free_bytes(place)) < needed:
            return f"{place} has {human(free)} free; {plan.variant} needs {human(needed)}"
    return ""


def uneven(plan: Plan) -> str:
    """What to do about a layer with more than half of all wheels and packages; empty where there is
    none, or nothing to divide."""
    for layer in plan.layers:
        size = sum(wheel.size for wheel in layer.wheels)
        if len(layer.wheels) > 1 and size > max(UNEVEN_BYTES, plan.download_bytes / 2):
            return (
                f"layer {layer.name} has {human(size)} of {human(plan.download_bytes)}, and nodes "
                "unpack one layer at a time: let other layers `select` some of its wheels "
                "(docs/images.md)"
            )
    return ""


def refuse_open_steps(plan: Plan, project: Path) -> None:
    """Raises ``BuildError`` for a step of a layer that could fetch what is not locked."""
    for layer in plan.layers:
        if layer.source is not None:
            continue
        if steps := open_steps(folders.dockerfile(project, layer).read_text()):
            raise BuildError(
                f"{layer.dockerfile}: a step has network access, and what it fetches is not locked",
                detail="\n".join(steps),
                hint=f"write `RUN {CLOSED} …`, and take what it needs from pins of the "
                "matrix (`debs`, `wheels`, `patches`, `inputs`)",
            )


def refuse_unresolved(plans: Sequence[Plan]) -> None:
    """Raises ``LockError`` when one of ``plans`` needs a pin that is not resolved yet."""
    missing = {str(pin): pin for plan in plans for pin in plan.unresolved}
    if missing:
        names = ", ".join(plan.variant for plan in plans if plan.unresolved)
        raise LockError(
            f"{names} cannot be built yet: {len(missing)} of its pins are not resolved",
            # As it was then: nothing was asked now.
            detail="\n".join(
                [
                    f"when `{program()} lock` last ran:",
                    *(f"  {pin.reason}" for pin in missing.values()),
                ]
            ),
            hint=f"where these can be reached, run `{program()} lock` and commit matrix.lock: "
            "it resolves what is missing and changes nothing else",
        )


def fetch_key(layer: LayerPlan) -> str | None:
    """A sha256 over what a layer fetches while it is built; None where it fetches nothing."""
    fetched = f"{layer.requirements}{layer.images}{layer.trees}{layer.files}"
    if not (layer.wheels or layer.images or layer.trees or layer.files):
        return None
    return hashlib.sha256(fetched.encode()).hexdigest()


def reachable(plan: Plan, context: BuildContext) -> None:
    """Check that what no earlier build has fetched can be fetched, before anything long starts.

    Images and commits are looked up; of wheels the smallest is downloaded, which shows whether the
    index answers. Raises ``NetworkError`` or ``LockError`` naming the pin.
    """
    probed = False
    for layer in plan.layers:
        key = fetch_key(layer)
        if key is None or context.store.get_fact("fetched", key) is not None:
            continue
        fetch.available(layer, context)
        local = fetch.local_wheels(layer, context.project)
        remote = [wheel for wheel in layer.wheels if wheel.file not in local]
        if remote and not probed:
            smallest = min(remote, key=lambda wheel: (wheel.size, wheel.name))
            fetch.probe(smallest, layer, plan, context)
            probed = True


def open_steps(text: str) -> tuple[str, ...]:
    """The RUN steps that have a network and do not install the locked wheels."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    steps = [
        line.split() for line in joined.splitlines() if re.match(r"\s*RUN\s", line, re.IGNORECASE)
    ]
    return tuple(" ".join(words) for words in steps if not _closed(words[1:]))


def _closed(words: list[str]) -> bool:
    flags = list(itertools.takewhile(lambda word: word.startswith("--"), words))
    return CLOSED in flags or any(WHEELS.match(flag) for flag in flags)
