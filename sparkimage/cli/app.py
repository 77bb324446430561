"""The command line: commands, global options, and how errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparkimage import __version__
from sparkimage.cli import (
    base,
    doctor,
    engine,
    explain,
    fleet,
    init,
    launch,
    lock,
    options,
    patches,
    probe,
    publish,
    store,
    verify,
)
from sparkimage.cli.options import flag, value
from sparkimage.core import interrupts
from sparkimage.core.errors import ConfigError, SparkError, UsageError

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.plan import Plan
    from sparkimage.config.variants import Variant

app = typer.Typer(
    name="build.py",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


PlanFormat = Literal["table", "json", "bake", "policy", "github"]
Print = Annotated[PlanFormat | None, typer.Option("--print", help="Print the plan; build nothing.")]
Builder = Annotated[str | None, value("NAME", "Build with this buildx builder.")]
Secret = Annotated[
    list[str] | None,
    value("id=NAME,src=FILE", "A layer's build secret; default: the environment variable NAME."),
]
Lean = Annotated[bool, flag("--lean", "Use half the disk: drop the build cache after the build.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    matrix: Annotated[bool, flag("--matrix", "Build every variant.")] = False,
    only: Annotated[str | None, value("GLOB", "Build the variants that match GLOB.")] = None,
    print_: Print = None,
    builder: Builder = None,
    secret: Secret = None,
    lean: Lean = False,
    _mirror: options.Mirror = None,
    matrix_file: Annotated[Path, value("FILE", "Read this matrix.")] = Path("matrix.yaml"),
    debug: Annotated[bool, flag("--debug", "Print tracebacks.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Build, verify and ship container images for clusters of Docker nodes."""
    base.Settings.matrix_file = matrix_file
    base.Settings.debug = debug
    if context.invoked_subcommand is not None:
        if matrix or only or print_ or builder or secret or lean:
            raise UsageError(
                "--matrix, --only, --print, --builder, --secret and --lean cannot be combined with "
                "a command",
                hint="python build.py --matrix --only 'GLOB'; "
                "python build.py image NAME --print FORMAT",
            )
        return
    if not matrix and not only and not print_:
        typer.echo(context.get_help())
        raise typer.Exit
    from sparkimage.config.matrix import select

    project = base.read_matrix()
    variants = select(project, only=only)
    if print_ == "github" and only is None:
        _print_jobs(project, base.plans_of(project, variants))
        return
    _build(
        project, variants, print_, builder=builder, secrets=secret or (), lean=lean,
    )  # fmt: skip


def image(
    variant: Annotated[
        list[str] | None, typer.Argument(help="Variants; default: the group `default`.")
    ] = None,
    print_: Print = None,
    rebuild: Annotated[bool, flag("--rebuild", "Rebuild and verify unchanged variants.")] = False,
    repair: Annotated[bool, flag("--repair", "Replace corrupt blobs in the image store.")] = False,
    builder: Builder = None,
    secret: Secret = None,
    lean: Lean = False,
    _mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Build and verify variants, and tag those that pass."""
    from sparkimage.config.matrix import select

    matrix = base.read_matrix()
    variants = select(matrix, names=variant) if variant else select(matrix, group="default")
    _build(
        matrix, variants, print_,
        rebuild=rebuild, repair=repair, as_json=as_json, builder=builder, secrets=secret or (),
        lean=lean,
    )  # fmt: skip


def schema(
    file: Annotated[Literal["matrix", "fleet"], typer.Argument(help="The file.")] = "matrix",
) -> None:
    """Print the JSON schema of matrix.yaml or fleet.yaml, for editors."""
    from sparkimage.config import inventory, schema

    model = schema.MatrixFile if file == "matrix" else inventory.FleetFile
    typer.echo(json.dumps(model.json_schema(), indent=2))


def _build(
    matrix: Matrix,
    variants: Sequence[Variant],
    plan_format: PlanFormat | None,
    *,
    rebuild: bool = False,
    repair: bool = False,
    as_json: bool = False,
    builder: str | None = None,
    secrets: Sequence[str] = (),
    lean: bool = False,
) -> None:
    plans = base.plans_of(matrix, variants)
    if any(layer.source for plan in plans for layer in plan.layers):
        outside = base.resolve_context(matrix, base.quiet)
        base.check_sources(matrix, plans, outside, offline=plan_format is not None)
    if plan_format is not None:
        _print(matrix, plans, plan_format)
        return
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import show
    from sparkimage.verify import pipeline

    refuse_unresolved(plans)
    context = base.build_context(matrix, quiet=as_json, builder=builder, secrets=secrets, lean=lean)
    pipeline.require_secrets(plans, context, rebuild=rebuild or repair)
    results = [pipeline.build(plan, context, rebuild=rebuild, repair=repair) for plan in plans]
    if as_json:
        base.print_json([show.facts(result) for result in results])
        return
    terminal = base.console()
    terminal.print(show.results_table(results))
    plan = results[0].plan
    terminal.print(
        f"\n[bold]Next:[/] {base.program()} verify {plan.variant}\n"
        f"      docker run --rm --gpus all {plan.image} MODEL   [dim](arguments follow "
        f"`{' '.join(plan.entrypoint)}`)[/]",
        soft_wrap=True,
    )


def _print(matrix: Matrix, plans: Sequence[Plan], plan_format: PlanFormat) -> None:
    from sparkimage.build import bake
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import show

    if plan_format in ("bake", "policy", "github"):
        refuse_unresolved(plans)
    match plan_format:
        case "table":
            head, *lines = show.as_table(plans, base.console().width)
            typer.secho(head, bold=True)
            red = typer.style(show.UNRESOLVED, fg="red")
            typer.echo("\n".join(line.replace(show.UNRESOLVED, red) for line in lines))
        case "json":
            base.print_json([plan.to_dict() for plan in plans])
        case "github":
            typer.echo(show.as_github(plans, matrix))
        case "policy":
            context = base.resolve_context(matrix, base.quiet)
            base.print_json(bake.policy(plans, context.mirrors))
        case "bake":
            # With its build contexts prepared, so that it can be run by hand.
            base.print_json(base.build_context(matrix, quiet=True).definition(plans))


def _print_jobs(matrix: Matrix, plans: Sequence[Plan]) -> None:
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
            base.warn(f"{plan.variant} is left out, its pins are not resolved: {pins}")
    typer.echo(show.as_github(resolved, matrix))


PANELS = {
    "Build": (image, lock.lock, verify.verify, verify.report, schema),
    "Image store": (store.images, store.save, store.load),
    "Registry": (publish.publish, publish.verify_published, publish.inspect),
    "Nodes": (fleet.distribute, fleet.nodes, fleet.rollback, fleet.gc, fleet.receipts),
    "Servers": (
        doctor.doctor, launch.launch, launch.status, launch.logs, launch.stop, launch.restart,
        explain.explain, probe.probe,
    ),
}  # fmt: skip
"""Commands by the heading of --help that they stand under."""

for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(init.app, name="init", rich_help_panel="Build")
app.add_typer(patches.app, name="patches", rich_help_panel="Build")
app.add_typer(engine.app, name="engine", rich_help_panel="Build")
app.add_typer(store.app, name="store", rich_help_panel="Image store")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the only place where errors become messages and exit codes."""
    interrupts.install()
    # Looking for plugins reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(args=list(argv) if argv is not None else None, standalone_mode=True)
    except SparkError as error:
        if base.Settings.debug:
            raise
        _print_error(error)
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        state = ", ".join(getattr(interrupt, "__notes__", ())) or "no name was changed"
        base.say(f"interrupted: {state}; run the same command again to continue")
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        # sys.exit would wait for threads that wait for a server's answer.
        os._exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if base.Settings.debug:
            raise
        base.say(f"error: {type(error).__name__}: {error}\n→ run it again with --debug")
        sys.exit(1)


def _print_error(error: SparkError) -> None:
    lines = [f"error: {error.message}", *(f"  {line}" for line in error.detail.splitlines())]
    if error.hint:
        lines.append(f"→ {error.hint}")
    elif isinstance(error, ConfigError):
        lines.append("→ correct the file, then run the same command again")
    base.say("\n".join(lines))
