"""The command line. What it does stands in the modules; here are only words and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage import __version__
from sparkimage.cli import doctor as cli_doctor
from sparkimage.cli import engine as cli_engine
from sparkimage.cli import explain as cli_explain
from sparkimage.cli import fleet as cli_fleet
from sparkimage.cli import launch as cli_launch
from sparkimage.cli import lock as cli_lock
from sparkimage.cli import patches as cli_patches
from sparkimage.cli import probe as cli_probe
from sparkimage.cli import publish as cli_publish
from sparkimage.cli import ship as cli_ship
from sparkimage.cli import store as cli_store
from sparkimage.cli import verify as cli_verify
from sparkimage.cli.base import (
    JsonOption,
    MirrorOption,
    Settings,
    build_context,
    console,
    new_table,
    plans_of,
    print_json,
    read_matrix,
    resolve_context,
    use_mirrors,
)
from sparkimage.core import interrupts
from sparkimage.core.errors import ConfigError, GateError, SparkError, UsageError

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix, Variant
    from sparkimage.config.plan import Plan

app = typer.Typer(
    name="build.py",
    help="Build, prove and ship container images for clusters of Docker nodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_engine.app, name="engine")
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_patches.app, name="patches")
app.command("lock")(cli_lock.lock)
app.command("verify")(cli_verify.verify)
app.command("report")(cli_verify.report)
app.command("save")(cli_ship.save)
app.command("load")(cli_ship.load)
app.command("publish")(cli_publish.publish)
app.command("inspect")(cli_publish.inspect)
app.command("verify-published")(cli_publish.verify_published)
app.command("distribute")(cli_fleet.distribute)
app.command("nodes")(cli_fleet.nodes)
app.command("rollback")(cli_fleet.rollback)
app.command("gc")(cli_fleet.gc)
app.command("receipts")(cli_fleet.receipts)
app.command("launch")(cli_launch.launch)
app.command("status")(cli_launch.status)
app.command("logs")(cli_launch.logs)
app.command("stop")(cli_launch.stop)
app.command("restart")(cli_launch.restart)
app.command("doctor")(cli_doctor.doctor)
app.command("explain")(cli_explain.explain)
app.command("probe")(cli_probe.probe)


class Form(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"
    BAKE = "bake"
    POLICY = "policy"
    GITHUB = "github"


PrintOption = Annotated[
    Form | None, typer.Option("--print", help="Show the plan in this form and build nothing.")
]
BuilderOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="A buildx builder to build with (remote, kubernetes, several nodes)."
    ),
]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    matrix: Annotated[bool, typer.Option("--matrix", help="Build every variant.")] = False,
    only: Annotated[str | None, typer.Option(help="Only variants that match this glob.")] = None,
    print_: PrintOption = None,
    builder: BuilderOption = None,
    mirror: MirrorOption = None,
    matrix_file: Annotated[Path, typer.Option(help="The matrix.")] = Path("matrix.yaml"),
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Build, prove and ship container images for clusters of Docker nodes."""
    Settings.matrix_file = matrix_file
    Settings.debug = debug
    use_mirrors(mirror)
    if context.invoked_subcommand is not None:
        if matrix or only or print_ or builder:
            raise UsageError(
                "--matrix, --only, --print and --builder stand without a command",
                hint="python build.py --matrix --only 'GLOB'; "
                "python build.py image NAME --print FORM",
            )
        return
    if not matrix and not only and not print_:
        typer.echo(context.get_help())
        raise typer.Exit
    from sparkimage.config.matrix import select

    read = read_matrix()
    _build(read, select(read, only=only), print_, builder_name=builder)


@app.command()
def image(
    variant: Annotated[
        list[str] | None, typer.Argument(help="Variants; none: the default group.")
    ] = None,
    print_: PrintOption = None,
    rebuild: Annotated[bool, typer.Option(help="Build and prove even what is unchanged.")] = False,
    repair: Annotated[bool, typer.Option(help="Replace what is damaged in the store.")] = False,
    builder: BuilderOption = None,
    mirror: MirrorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build variants, prove them, and give them their names."""
    from sparkimage.config.matrix import select

    read = read_matrix()
    chosen = select(read, names=variant) if variant else select(read, group="default")
    use_mirrors(mirror)
    _build(
        read, chosen, print_, rebuild=rebuild, repair=repair, as_json=as_json, builder_name=builder
    )


class Kind(StrEnum):
    """A file that people write."""

    MATRIX = "matrix"
    FLEET = "fleet"


@app.command()
def schema(
    kind: Annotated[Kind, typer.Argument(help="Of matrix.yaml or of fleet.yaml.")] = Kind.MATRIX,
) -> None:
    """Print the JSON schema of a file, for editors."""
    from sparkimage.config import inventory, schema

    made = (schema.MatrixFile if kind is Kind.MATRIX else inventory.FleetFile).json_schema()
    typer.echo(json.dumps(made, indent=2))


@app.command()
def images(as_json: JsonOption = False) -> None:
    """List what the image store holds."""

    from sparkimage.core import paths
    from sparkimage.core.units import human
    from sparkimage.image.store import Store
    from sparkimage.verify import seal

    store = Store.open(paths.store())
    rows: list[dict[str, Any]] = []
    for name, digest in sorted(store.names().items()):
        held = store.resolve(digest)
        try:
            verdict = seal.verdict(store, digest)
            sealed = f"{verdict.result} {'+'.join(verdict.tiers)}".strip() if verdict else None
        except GateError:
            sealed = "refused"
        rows.append(
            {
                "name": name,
                "digest": digest,
                "platform": held.platform,
                "size": held.size,
                "layers": len(held.layers),
                "seal": sealed,
            }
        )
    if as_json:
        print_json(rows)
        return
    table = new_table("name", "digest", "platform", "size", "layers", "seal")
    for row in rows:
        table.add_row(
            row["name"], row["digest"][7:19], row["platform"], human(row["size"]),
            str(row["layers"]), row["seal"] or "none",
        )  # fmt: skip
    console().print(table)


def _build(
    read: Matrix,
    variants: Sequence[Variant],
    form: Form | None,
    *,
    rebuild: bool = False,
    repair: bool = False,
    as_json: bool = False,
    builder_name: str | None = None,
) -> None:
    plans = plans_of(read, variants)
    if form is not None:
        _print(read, plans, form)
        return
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import show
    from sparkimage.verify import pipeline

    refuse_unresolved(plans)
    context = build_context(read, quiet=as_json, builder=builder_name)
    results = [pipeline.build(plan, context, rebuild=rebuild, repair=repair) for plan in plans]
    if as_json:
        print_json([show.facts(result) for result in results])
        return
    terminal = console()
    terminal.print(show.results_table(results))
    first = results[0]
    terminal.print(
        f"\n[bold]Next:[/] python build.py verify {first.plan.variant}\n"
        f"      docker run --rm --gpus all {first.plan.image} MODEL   [dim](arguments follow "
        f"`{' '.join(first.plan.entrypoint)}`)[/]",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _print(read: Matrix, plans: Sequence[Plan], form: Form) -> None:
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.cli import show

    if form in (Form.BAKE, Form.POLICY):
        refuse_unresolved(plans)
    printers: dict[Form, Callable[[], str]] = {
        Form.JSON: lambda: show.as_json(plans),
        Form.GITHUB: lambda: show.as_github(plans, read),
        Form.POLICY: lambda: show.as_policy(plans, resolve_context(read, lambda _: None).mirrors),
        Form.BAKE: lambda: show.as_bake(plans, build_context(read, quiet=True)),
    }
    if form is Form.TABLE:
        console().print(show.as_table(plans))
    else:
        typer.echo(printers[form]())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the only place where errors become words and exit codes."""
    interrupts.install()
    # Looking for them would read the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(args=list(argv) if argv is not None else None, standalone_mode=True)
    except SparkError as error:
        if Settings.debug:
            raise
        _complain(error)
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        what = ", ".join(getattr(interrupt, "__notes__", ())) or "no name was changed"
        print(f"interrupted: {what}; the same command goes on from here", file=sys.stderr)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        # sys.exit would wait for threads that wait for somebody's answer.
        os._exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if Settings.debug:
            raise
        print(
            f"error: {type(error).__name__}: {error}\n→ run it again with --debug", file=sys.stderr
        )
        sys.exit(1)


def _complain(error: SparkError) -> None:
    lines = [f"error: {error.message}"]
    if error.detail:
        lines += [f"  {line}" for line in error.detail.splitlines()]
    if error.hint:
        lines.append(f"→ {error.hint}")
    elif isinstance(error, ConfigError):
        lines.append("→ correct these, then run the same command")
    print("\n".join(lines), file=sys.stderr)
