"""The command image, and the plans that it prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparkimage.cli import base, complete, options
from sparkimage.cli.options import flag

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.plan import Plan
    from sparkimage.config.variants import Variant


def image(
    variant: Annotated[
        list[str] | None,
        typer.Argument(
            help="Variants or groups; default: the group `default`.",
            autocompletion=complete.variants,
        ),
    ] = None,
    print_: options.Print = None,
    rebuild: Annotated[bool, flag("--rebuild", "Rebuild and verify unchanged variants.")] = False,
    repair: Annotated[bool, flag("--repair", "Replace corrupt blobs in the image store.")] = False,
    builder: options.Builder = None,
    secret: options.Secret = None,
    lean: options.Lean = False,
    _mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Build and verify variants, and tag those that pass."""
    from sparkimage.config.matrix import select

    matrix = base.read_matrix()
    variants = select(matrix, names=variant) if variant else select(matrix, group="default")
    build(
        matrix, variants, print_,
        rebuild=rebuild, repair=repair, as_json=as_json, builder=builder, secrets=secret or (),
        lean=lean,
    )  # fmt: skip


def schema(
    file: Annotated[
        Literal["matrix", "fleet", "patches"], typer.Argument(help="The file.")
    ] = "matrix",
) -> None:
    """Print the JSON schema of matrix.yaml, fleet.yaml or patches.yaml, for editors."""
    from sparkimage.config import inventory, patch_specs, schema, validation

    models: dict[str, type[validation.Strict]] = {
        "matrix": schema.MatrixFile,
        "fleet": inventory.FleetFile,
        "patches": patch_specs.PatchFile,
    }
    typer.echo(json.dumps(models[file].json_schema(), indent=2))


def build(
    matrix: Matrix,
    variants: Sequence[Variant],
    plan_format: options.PlanFormat | None,
    *,
    rebuild: bool = False,
    repair: bool = False,
    as_json: bool = False,
    builder: str | None = None,
    secrets: Sequence[str] = (),
    lean: bool = False,
) -> None:
    """Build, verify and tag ``variants``, or print their plan in ``plan_format``."""
    plans = base.plans_of(matrix, variants, origin=plan_format != "table")
    if any(layer.source for plan in plans for layer in plan.layers):
        outside = base.resolve_context(matrix, base.quiet)
        base.check_sources(matrix, plans, outside, offline=plan_format is not None)
    if plan_format is not None:
        _print(matrix, plans, plan_format)
        return
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import next_steps, show
    from sparkimage.verify import pipeline

    refuse_unresolved(plans)
    context = base.build_context(matrix, quiet=as_json, builder=builder, secrets=secrets, lean=lean)
    pipeline.require_secrets(plans, context, rebuild=rebuild or repair)
    results = [pipeline.build(plan, context, rebuild=rebuild, repair=repair) for plan in plans]
    if as_json:
        base.print_json([show.facts(result) for result in results])
        return
    base.print_table(show.results_table(results))
    lines = next_steps.after_build(
        results[0].plan, context.engine, fleet=base.has_fleet(), gpu=next_steps.has_gpu()
    )
    base.show("\n[bold]Next:[/] " + "\n      ".join(map(base.plain, lines)))


def _print(matrix: Matrix, plans: Sequence[Plan], plan_format: options.PlanFormat) -> None:
    from sparkimage.cli import show

    if plan_format in ("bake", "policy", "github"):
        from sparkimage.build.preflight import refuse_unresolved

        refuse_unresolved(plans)
    match plan_format:
        case "table":
            base.print_table(show.plans_table(plans))
        case "json":
            base.print_json([plan.to_dict() for plan in plans])
        case "github":
            typer.echo(show.as_github(plans, matrix))
        case "policy":
            from sparkimage.build import bake

            context = base.resolve_context(matrix, base.quiet)
            base.print_json(bake.policy(plans, context.mirrors))
        case "bake":
            # With its build contexts prepared, so that it can be run by hand.
            base.print_json(base.build_context(matrix, quiet=True).definition(plans))


def print_jobs(matrix: Matrix, plans: Sequence[Plan]) -> None:
    """Print a job for each variant whose pins are resolved; the others are named.

    Raises ``LockError`` when there is none.
    """
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import show

    resolved = [plan for plan in plans if not plan.unresolved]
    if not resolved:
        refuse_unresolved(plans)
    for plan in plans:
        if plan.unresolved:
            pins = "; ".join(pin.reason for pin in plan.unresolved)
            base.warn(
                f"{plan.variant} is left out, its pins are not resolved: at the last lock, {pins}"
            )
    typer.echo(show.as_github(resolved, matrix))
