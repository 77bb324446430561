"""Plans and results as tables, and in the formats that other programs read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparkimage.cli import base
from sparkimage.config.pins import ImagePin
from sparkimage.config.plan import Plan
from sparkimage.core.arch import ARCHES
from sparkimage.core.markup import GLUE
from sparkimage.core.units import clock, human, plural

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.variants import Variant
    from sparkimage.core.tables import Table
    from sparkimage.verify.pipeline import Result

UNRESOLVED = "not resolved"


def plans_table(plans: Sequence[Plan]) -> Table:
    """One row a variant; several repositories have a column of their own."""
    several = len({plan.image.rpartition(":")[0] for plan in plans}) > 1
    columns = ["variant", "platform", "versions", "layers", "download"]
    table = base.new_table(
        *["repository"] * several, *columns,
        right=["download"], wrap=["versions", "layers"], drop=["layers", "versions", "platform"],
    )  # fmt: skip
    for plan in plans:
        table.add_row(
            *[plan.image.rpartition(":")[0]] * several,
            plan.variant,
            plan.platform,
            " ".join(f"{pin}{GLUE}{version}" for pin, version in plan.versions.items()),
            " ".join(layer.name for layer in plan.layers),
            human(plan.download_bytes) if not plan.unresolved else f"[red]{UNRESOLVED}[/]",
        )
    return table


def _runner(arch: str, *, big: bool) -> dict[str, Any]:
    """The labels of a runner, and the engine to use on it: one that GitHub hosts (4 cores, 16 GB
    of memory, 14 GB of disk, which only the private engine's builds fit), or a big self-hosted one,
    whose last label is set by hand."""
    labels = ARCHES[arch]
    if big:
        return {"runner": ["self-hosted", "linux", labels.self_hosted, "big"], "engine": "auto"}
    return {"runner": [labels.hosted], "engine": "private"}


def as_github(plans: Sequence[Plan], matrix: Matrix) -> str:
    """A strategy matrix, on one line as a step's output must be.

    https://docs.github.com/actions/reference/workflow-syntax-for-github-actions
    """
    variants = {variant.name: variant for variant in matrix.variants}
    rows = [
        {
            "variant": plan.variant,
            "platform": plan.platform,
            **_runner(plan.arch, big=_is_big(variants[plan.variant], matrix)),
            "image": plan.image,
            "lock": plan.lock_checksum,
        }
        for plan in plans
    ]
    return json.dumps({"include": rows})


def _is_big(variant: Variant, matrix: Matrix) -> bool:
    """Whether it compiles vLLM or starts from an image that has vLLM (a pin with a version): more
    than a hosted runner can do. From the matrix, since an unresolved plan has neither."""
    for layer in (matrix.layers[name] for name in variant.layers):
        if layer.source is not None:
            return True
        pin = matrix.pins[layer.base][variant.pins[layer.base]] if layer.base else None
        if isinstance(pin, ImagePin) and pin.version is not None:
            return True
    return False


def results_table(results: Sequence[Result]) -> Table:
    """What was built, for a terminal: a block a variant, since a row would not fit 80 columns."""
    rows = []
    for result in results:
        plan, image = result.plan, result.image
        rows += [
            ("variant", f"[bold]{plan.variant}[/]"),
            ("digest", image.digest),
            ("platform", plan.platform),
            ("size", f"{human(image.size)} in {plural(len(image.layers), 'layer')}"),
            ("verified", f"[green]{len(result.checks)} checks passed[/], sealed"),
            *(
                ("", f"[yellow]{check}[/]: {base.plain(reason)}")
                for check, reason in result.not_run.items()
            ),
            ("time", clock(result.seconds) + ", unchanged" * result.unchanged),
            ("name", plan.image),
        ]
    return base.new_fields(rows)


def facts(result: Result) -> dict[str, Any]:
    """What was built, for machines."""
    return {
        "variant": result.plan.variant,
        "image": result.plan.image,
        "digest": result.image.digest,
        "platform": result.plan.platform,
        "size": result.image.size,
        "layers": [
            {"digest": layer.digest, "size": layer.size, "diff_id": layer.diff_id}
            for layer in result.image.layers
        ],
        "checks": len(result.checks),
        "notRun": dict(result.not_run),
        "seconds": round(result.seconds, 3),
        "unchanged": result.unchanged,
    }
