"""The command line. What it does stands in the modules; here are only words and exit codes."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage import __version__
from sparkimage.errors import ConfigError, LockError, SparkError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from sparkimage.builder import Workshop
    from sparkimage.matrix import Matrix, Variant
    from sparkimage.plan import Plan

app = typer.Typer(
    name="build.py",
    help="Build, prove and ship container images for clusters of Docker nodes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
engine_app = typer.Typer(help="The Docker engine to build with.", no_args_is_help=True)
store_app = typer.Typer(help="The image store.", no_args_is_help=True)
app.add_typer(engine_app, name="engine")
app.add_typer(store_app, name="store")


class Form(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"
    BAKE = "bake"
    GITHUB = "github"


PrintOption = Annotated[
    Form | None, typer.Option("--print", help="Show the plan in this form and build nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Say the same as JSON, on stdout.")]


class Settings:
    """What the global options said."""

    matrix_file = Path("matrix.yaml")
    debug = False


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


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
    if context.invoked_subcommand is not None:
        if matrix or only or print_:
            raise UsageError(
                "--matrix, --only and --print stand without a command",
                hint="python build.py --matrix --only 'GLOB'; "
                "python build.py image NAME --print FORM",
            )
        return
    if not matrix and not only and not print_:
        typer.echo(context.get_help())
        raise typer.Exit
    from sparkimage.matrix import select

    read = _read()
    _build(read, select(read, only=only), print_)


@app.command()
def image(
    variant: Annotated[
        list[str] | None, typer.Argument(help="Variants; none: the default group.")
    ] = None,
    print_: PrintOption = None,
    rebuild: Annotated[bool, typer.Option(help="Build and prove even what is unchanged.")] = False,
    repair: Annotated[bool, typer.Option(help="Replace what is damaged in the store.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build variants, prove them, and give them their names."""
    from sparkimage.matrix import select

    read = _read()
    chosen = select(read, names=variant) if variant else select(read, group="default")
    _build(read, chosen, print_, rebuild=rebuild, repair=repair, as_json=as_json)


@app.command()
def verify(
    reference: Annotated[str, typer.Argument(help="A variant, or a digest (or its beginning).")],
    as_json: JsonOption = False,
) -> None:
    """Run an image's checks again, and write its seal."""
    from sparkimage import seal
    from sparkimage import verify as verifying
    from sparkimage.builder import engine_reference
    from sparkimage.plan import LABEL
    from sparkimage.progress import clock

    read = _read()
    shop = _workshop(read, quiet=as_json)
    names = {variant.name: variant for variant in read.variants}
    held = shop.store.resolve(f"{read.repository}:{reference}" if reference in names else reference)
    labels = held.config.get("config", {}).get("Labels") or {}
    name = labels.get(f"{LABEL}variant", reference)
    if name not in names:
        raise UsageError(
            f"{held.digest[:19]} was built as {name!r}, which {read.file.name} does not have",
            hint="check out the commit that its revision label names",
        )
    plan = _plans(read, [names[name]])[0]
    outcome = None
    with shop.view.busy("verifying: the checks of every layer"):
        try:
            outcome = verifying.verify(
                plan,
                held,
                reference=engine_reference(plan, held, shop),
                project=read.root,
                store=shop.store,
                engine=shop.engine,
                runner=shop.runner,
            )
        finally:
            if as_json:
                verdict = seal.verdict(shop.store, held.digest)
                typer.echo(json.dumps(verdict.statement if verdict else None, indent=1))
    if not as_json:
        console = _console()
        for check in outcome.checks:
            console.print(f"[green]✓[/] {check.id}  [dim]{check.title}[/]", highlight=False)
        console.print(
            f"{plan.variant} ({held.digest[:19]}): {len(outcome.checks)} checks passed in "
            f"{clock(outcome.seconds)}; the seal says PASSED",
            highlight=False,
        )


@app.command()
def lock(
    check: Annotated[
        bool, typer.Option(help="Only say whether it fits the matrix (offline).")
    ] = False,
) -> None:
    """Resolve the matrix's pins into matrix.lock."""
    from sparkimage import lock as locking

    read = _read()
    path = read.file.with_suffix(".lock")
    if check:
        wrong = locking.check(read, locking.load(path))
        if wrong:
            raise LockError(
                f"{path.name} does not fit {read.file.name}",
                detail="\n".join(wrong),
                hint=locking.REMEDY,
            )
        typer.echo(f"{path.name} fits {read.file.name}")
        return
    from sparkimage.resolve import resolve
    from sparkimage.run import Local

    made = locking.dump(resolve(read, Local(), typer.echo))
    if path.is_file() and path.read_text() == made:
        typer.echo(f"{path.name} is unchanged")
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(made)
    temporary.replace(path)
    typer.echo(f"{path.name} is written; look at `git diff {path.name}`")


@app.command()
def schema() -> None:
    """Print the JSON schema of matrix.yaml."""
    from sparkimage.model import schema as made

    typer.echo(json.dumps(made(), indent=2))


@app.command()
def images(as_json: JsonOption = False) -> None:
    """List what the image store holds."""
    from rich.table import Table

    from sparkimage import paths, seal
    from sparkimage.progress import human
    from sparkimage.store import Store

    store = Store.open(paths.store())
    rows: list[dict[str, Any]] = []
    for name, digest in sorted(store.names().items()):
        held = store.resolve(digest)
        verdict = seal.verdict(store, digest)
        rows.append(
            {
                "name": name,
                "digest": digest,
                "platform": held.platform,
                "size": held.size,
                "layers": len(held.layers),
                "seal": verdict.result if verdict else None,
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("name", "digest", "platform", "size", "layers", "seal"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row["name"], row["digest"][7:19], row["platform"], human(row["size"]),
            str(row["layers"]), row["seal"] or "none",
        )  # fmt: skip
    _console().print(table)


@store_app.command("check")
def store_check() -> None:
    """Read every blob of every named image, and say which are damaged."""
    from sparkimage import paths
    from sparkimage.errors import StoreError
    from sparkimage.store import Store

    store = Store.open(paths.store())
    wrong = {name: store.damaged(digest) for name, digest in sorted(store.names().items())}
    for name, blobs in wrong.items():
        typer.echo(f"{name}: {'whole' if not blobs else 'damaged: ' + ', '.join(blobs)}")
    broken = [name for name, blobs in wrong.items() if blobs]
    if broken:
        raise StoreError(
            f"{len(broken)} of {len(wrong)} images in the store are damaged",
            hint=f"python build.py image {broken[0].rpartition(':')[2]} --repair",
        )


@store_app.command("gc")
def store_gc() -> None:
    """Remove the blobs that no named image uses."""
    from sparkimage import paths
    from sparkimage.progress import human
    from sparkimage.store import Store

    typer.echo(f"{human(Store.open(paths.store()).gc())} set free")


@engine_app.command("up")
def engine_up() -> None:
    """Start the private engine; the first time, fetch Debian's packages for it."""
    from sparkimage import paths, private_engine
    from sparkimage.run import Local

    made = private_engine.up(paths.home(), Local(), typer.echo)
    typer.echo(f"Docker Engine {made.version} with buildx {made.buildx} answers at {made.host}")


@engine_app.command("down")
def engine_down(
    purge: Annotated[bool, typer.Option(help="Remove its data and its packages too.")] = False,
) -> None:
    """Stop the private engine."""
    from sparkimage import paths, private_engine
    from sparkimage.run import Local

    private_engine.down(paths.home(), Local(), purge)
    typer.echo("the private engine is stopped" + (" and removed" if purge else ""))


@engine_app.command("status")
def engine_status() -> None:
    """Say which engine is used, why, and what it has."""
    from rich.table import Table

    from sparkimage import paths, private_engine
    from sparkimage.progress import human
    from sparkimage.run import Local

    status = private_engine.status(paths.home(), Local())
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    used = status.used
    rows = {
        "engine": f"{used.version} at {used.host}" if used else "none",
        "why": status.why,
        "buildx": used.buildx if used else "",
        "image store": ("containerd" if used.containerd_store else "classic") if used else "",
        "data root": used.data_root if used else "",
        "private engine": "running" if status.running else "stopped",
        "size on disk": human(status.size_bytes),
        "free disk": human(status.free_bytes),
        "bridge": status.bridge or "",
        "emulated": ", ".join(status.platforms) or "nothing",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    _console().print(table, highlight=False)


def _read() -> Matrix:
    from sparkimage import matrix

    read = matrix.load(Settings.matrix_file)
    for warning in read.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return read


def _plans(read: Matrix, variants: Sequence[Variant]) -> list[Plan]:
    from sparkimage import lock as locking
    from sparkimage import origin, plan
    from sparkimage.run import Local

    held = locking.load(read.file.with_suffix(".lock"))
    wrong = locking.check(read, held)
    if wrong:
        raise LockError(
            f"{held.file} does not fit {read.file.name}", detail="\n".join(wrong),
            hint=locking.REMEDY,
        )  # fmt: skip
    where = origin.of(read.root, read.source, Local())
    return list(plan.make_all(read, variants, held, where))


def _workshop(read: Matrix, *, quiet: bool = False) -> Workshop:
    from sparkimage import paths
    from sparkimage.builder import Workshop
    from sparkimage.engine import ensure
    from sparkimage.progress import View
    from sparkimage.run import Local
    from sparkimage.store import Store

    view = View(_console(stderr=True), quiet=quiet)
    home = paths.home()
    runner = Local()
    return Workshop(
        project=read.root,
        home=home,
        store=Store.open(paths.store()),
        engine=ensure(home, runner, view.say),
        runner=runner,
        view=view,
    )


def _build(
    read: Matrix,
    variants: Sequence[Variant],
    form: Form | None,
    *,
    rebuild: bool = False,
    repair: bool = False,
    as_json: bool = False,
) -> None:
    plans = _plans(read, variants)
    if form is not None:
        _print(read, plans, form)
        return
    from sparkimage import builder

    shop = _workshop(read, quiet=as_json)
    results = [builder.build(plan, shop, rebuild=rebuild, repair=repair) for plan in plans]
    if as_json:
        typer.echo(json.dumps([builder.facts(result) for result in results], indent=1))
        return
    console = _console()
    console.print(builder.table(results))
    first = results[0]
    console.print(
        f"\n[bold]Next:[/] python build.py verify {first.plan.variant}\n"
        f"      docker run --rm --gpus all {first.plan.image} MODEL   [dim](arguments follow "
        f"`{' '.join(first.plan.entrypoint)}`)[/]",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _print(read: Matrix, plans: Sequence[Plan], form: Form) -> None:
    from sparkimage import show

    printers: dict[Form, Callable[[], str]] = {
        Form.JSON: lambda: show.as_json(plans),
        Form.GITHUB: lambda: show.as_github(plans),
        Form.BAKE: lambda: show.as_bake(plans, _workshop(read, quiet=True)),
    }
    if form is Form.TABLE:
        _console().print(show.as_table(plans))
    else:
        typer.echo(printers[form]())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the only place where errors become words and exit codes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app(args=list(argv) if argv is not None else None, standalone_mode=True)
    except SparkError as error:
        if Settings.debug:
            raise
        _complain(error)
        sys.exit(error.exit_code)
    except Interrupted:
        print(
            "interrupted: no name was changed; the same command goes on from here", file=sys.stderr
        )
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if Settings.debug:
            raise
        print(
            f"error: {type(error).__name__}: {error}\n→ run it again with --debug", file=sys.stderr
        )
        sys.exit(1)


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, of which typer makes an exit code of its own."""


def _interrupt(_number: int, _frame: object) -> None:
    raise Interrupted


def _complain(error: SparkError) -> None:
    lines = [f"error: {error.message}"]
    if error.detail:
        lines += [f"  {line}" for line in error.detail.splitlines()]
    if error.hint:
        lines.append(f"→ {error.hint}")
    elif isinstance(error, ConfigError):
        lines.append("→ correct these, then run the same command")
    print("\n".join(lines), file=sys.stderr)
