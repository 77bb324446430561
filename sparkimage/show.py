"""Plans as tables and as what other programs read. Builds nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparkimage import bake
from sparkimage.address import Mirrors
from sparkimage.plan import Plan
from sparkimage.progress import human

if TYPE_CHECKING:
    from rich.table import Table

    from sparkimage.builder import Workshop


def as_table(plans: Sequence[Plan]) -> Table:
    """One row a variant."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("variant", "platform", "versions", "layers", "fetches"):
        table.add_column(column, overflow="fold", no_wrap=column in ("variant", "platform"))
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


def as_github(plans: Sequence[Plan]) -> str:
    """A strategy matrix, on one line as a step's output must be.

    https://docs.github.com/actions/reference/workflow-syntax-for-github-actions
    """
    runners = {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
    rows = [
        {
            "variant": plan.variant,
            "platform": plan.platform,
            "runner": runners[plan.arch],
            "image": plan.image,
            "lock": plan.lock_checksum,
            "resolved": not plan.unresolved,
        }
        for plan in plans
    ]
    return json.dumps({"include": rows})


def as_policy(plans: Sequence[Plan], mirrors: Mirrors) -> str:
    """The BuildKit source policy: what a build of these plans may read."""
    return json.dumps(bake.policy(plans, mirrors), indent=1)


def as_bake(plans: Sequence[Plan], shop: Workshop) -> str:
    """The bake file, with everything that it names made ready, so that it can be run by hand."""
    return json.dumps(shop.definition(plans), indent=1)
