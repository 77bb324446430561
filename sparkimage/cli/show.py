"""Plans as tables and as what other programs read. Builds nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparkimage.build import bake
from sparkimage.cli.base import new_table
from sparkimage.config.address import Mirrors
from sparkimage.config.plan import Plan
from sparkimage.config.schema import ImagePin
from sparkimage.core.arch import ARCHES
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from rich.table import Table

    from sparkimage.build.context import BuildContext
    from sparkimage.config.matrix import Matrix, Variant
    from sparkimage.verify.pipeline import Result


def as_table(plans: Sequence[Plan]) -> Table:
    """One row a variant."""

    columns = ("variant", "platform", "versions", "layers", "fetches")
    table = new_table(*columns, whole=["variant", "platform"])
    for plan in plans:
        table.add_row(
            plan.variant,
            plan.platform,
            " ".join(f"{pin} {version}" for pin, version in plan.versions.items()),
            " ".join(layer.name for layer in plan.layers),
            human(plan.download_bytes) if not plan.unresolved else "[red]not resolved[/]",
        )
    return table


def as_json(plans: Sequence[Plan]) -> str:
    """The whole plans."""
    return json.dumps([plan.to_dict() for plan in plans], indent=1)


def _runner(arch: str, *, big: bool) -> list[str]:
    """The labels of a runner: one of GitHub's (4 cores, 16 GB of memory, 14 GB of disk that are
    sure), or a big one of one's own. There GitHub's agent gives the first three labels, whoever
    sets it up the last one."""
    one = ARCHES[arch]
    return ["self-hosted", "linux", one.self_hosted, "big"] if big else [one.hosted]


def as_github(plans: Sequence[Plan], matrix: Matrix) -> str:
    """A strategy matrix, on one line as a step's output must be.

    https://docs.github.com/actions/reference/workflow-syntax-for-github-actions
    """
    variants = {variant.name: variant for variant in matrix.variants}
    rows = [
        {
            "variant": plan.variant,
            "platform": plan.platform,
            "runner": _runner(plan.arch, big=_is_big(variants[plan.variant], matrix)),
            "image": plan.image,
            "lock": plan.lock_checksum,
            "resolved": not plan.unresolved,
        }
        for plan in plans
    ]
    return json.dumps({"include": rows})


def _is_big(variant: Variant, matrix: Matrix) -> bool:
    """Whether it compiles, or begins as an image that is whole already (one with a version):
    either is more than a hosted runner holds. From the matrix, since a plan whose pins are not
    resolved says neither."""
    for layer in (matrix.layers[name] for name in variant.layers):
        if layer.source is not None:
            return True
        pin = matrix.pins[layer.base][variant.pins[layer.base]] if layer.base else None
        if isinstance(pin, ImagePin) and pin.version is not None:
            return True
    return False


def as_policy(plans: Sequence[Plan], mirrors: Mirrors) -> str:
    """The BuildKit source policy: what a build of these plans may read."""
    return json.dumps(bake.policy(plans, mirrors), indent=1)


def as_bake(plans: Sequence[Plan], context: BuildContext) -> str:
    """The bake file, with everything that it names made ready, so that it can be run by hand."""
    return json.dumps(context.definition(plans), indent=1)


def results_table(results: Sequence[Result]) -> Table:
    """What was built, for a terminal: a block a variant, since a row would not fit 80 columns."""
    from rich.markup import escape
    from rich.table import Table

    # One space between: a digest of 71 characters fits 80 columns whole.
    made = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for result in results:
        layers = len(result.image.layers)
        made.add_row("variant", f"[bold]{result.plan.variant}[/]")
        made.add_row("digest", result.image.digest)
        made.add_row("platform", result.plan.platform)
        made.add_row("size", f"{human(result.image.size)} in {layers} layers")
        made.add_row("verified", f"[green]{len(result.checks)} checks passed[/], sealed")
        for name, why in result.not_run.items():
            made.add_row("", f"[yellow]{name}[/]: {escape(why)}")
        made.add_row("time", clock(result.seconds) + (", unchanged" * result.unchanged))
        made.add_row("name", result.plan.image)
        made.add_section()
    return made


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
