"""What the commands share: the global options, and how what they work on comes to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.core.errors import LockError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sparkimage.build.context import BuildContext
    from sparkimage.config.inventory import Fleet
    from sparkimage.config.lockfile import Lock
    from sparkimage.config.matrix import Matrix, Variant
    from sparkimage.config.plan import Plan
    from sparkimage.resolve.context import ResolveContext

JsonOption = Annotated[bool, typer.Option("--json", help="Say the same as JSON, on stdout.")]
MirrorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        metavar="FROM=TO",
        help="Ask TO for what FROM has: the beginning of an address, `wheels` or `debian`.",
    ),
]

AllowOption = Annotated[
    bool,
    typer.Option(
        "--allow-unverified",
        help="Go over the gate's refusal, and write into what ships that it did.",
    ),
]

SignKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FILE|KMS",
        envvar="SPARKIMAGE_KEY",
        help="What to sign with: an ed25519 key (PEM), cosign's key file, or a KMS address.",
    ),
]
TrustKeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FILE|KMS",
        envvar="SPARKIMAGE_PUBLIC_KEY",
        help="The public key (PEM) whose signature it must have.",
    ),
]


class Settings:
    """What the global options said."""

    matrix_file = Path("matrix.yaml")
    debug = False
    mirrors: tuple[str, ...] = ()


def use_mirrors(given: Sequence[str] | None) -> None:
    """Take in what ``--mirror`` said. Raises ``UsageError``."""
    from sparkimage.config.address import parse_rules

    parse_rules(given or ())
    Settings.mirrors += tuple(given or ())


def say(line: str) -> None:
    """Tell the user something beside the result: on standard error."""
    typer.echo(line, err=True)


def print_json(data: Any) -> None:
    """The result for other programs: on standard output."""
    typer.echo(json.dumps(data, indent=1))


def new_table(
    *columns: str,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    title: str = "",
    header: bool = True,
) -> Table:
    """A table for a terminal: plain, its title on the left.

    Columns in ``right`` are aligned right; those in ``whole`` are not wrapped.
    """
    from rich.table import Table

    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header,
        title=title or None, title_justify="left", title_style="bold",
    )  # fmt: skip
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in whole,
        )
    return table


def project_folder() -> Path:
    """The folder of the matrix, with images/ and fleet.yaml."""
    return Settings.matrix_file.absolute().parent


def read_fleet(nodes: str) -> Fleet:
    """The nodes that ``--nodes`` names. Raises ``ConfigError`` or ``UsageError``."""
    from sparkimage.config import inventory

    return inventory.read(nodes, project_folder())


def console(*, stderr: bool = False) -> Console:
    """A terminal to print to."""
    from rich.console import Console

    return Console(stderr=stderr)


def read_matrix() -> Matrix:
    """The matrix that the global options name; its warnings are said."""
    from sparkimage.config import matrix

    read = matrix.load(Settings.matrix_file)
    for warning in read.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return read


def read_lock(read: Matrix) -> Lock:
    """The matrix's lock. Raises ``LockError`` when it is missing or does not fit."""
    from sparkimage.config import lockfile as locking

    held = locking.load(read.file.with_suffix(".lock"))
    wrong = locking.check(read, held)
    if wrong:
        raise LockError(
            f"{held.file} does not fit {read.file.name}", detail="\n".join(wrong),
            hint=locking.REMEDY,
        )  # fmt: skip
    return held


def plans_of(read: Matrix, variants: Sequence[Variant]) -> list[Plan]:
    """The plans of these variants; of an unresolved one as far as it goes."""
    from sparkimage.config import origin, planning
    from sparkimage.core.process import Local

    where = origin.of(read.root, read.source, Local())
    return list(planning.make_all(read, variants, read_lock(read), where))


def resolve_context(read: Matrix | None, say: Callable[[str], None]) -> ResolveContext:
    """How this machine reaches what is elsewhere: ``--mirror`` goes before the user's own file,
    and that before the matrix."""
    from sparkimage.config.address import Mirrors, parse_rules, read_rules
    from sparkimage.core import paths
    from sparkimage.core.process import Local
    from sparkimage.resolve.context import ResolveContext

    rules = {
        **(read.mirrors if read is not None else {}),
        **read_rules(paths.mirrors()),
        **parse_rules(Settings.mirrors).rules,
    }
    return ResolveContext(home=paths.home(), runner=Local(), mirrors=Mirrors(rules=rules), say=say)


def build_context(
    read: Matrix,
    *,
    quiet: bool = False,
    builder: str | None = None,
) -> BuildContext:
    """What a build works with, the engine started where none answers."""
    from sparkimage.build.context import BuildContext
    from sparkimage.build.engine import builders
    from sparkimage.build.engine.private import ensure
    from sparkimage.core import paths
    from sparkimage.core.progress import View
    from sparkimage.image.store import Store

    view = View(console(stderr=True), quiet=quiet)
    reached = resolve_context(read, view.say)
    engine = ensure(reached.home, reached.runner, view.say)
    return BuildContext(
        home=reached.home,
        runner=reached.runner,
        mirrors=reached.mirrors,
        say=reached.say,
        matrix_file=read.file,
        store=Store.open(paths.store()),
        engine=engine,
        view=view,
        builder=builders.own(engine)
        if builder is None
        else builders.named(builder, engine, reached.runner),
        cache=read.cache,
    )
