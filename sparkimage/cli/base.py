"""What the commands share: the global options, and how what they work on comes to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.errors import LockError

if TYPE_CHECKING:
    from rich.console import Console

    from sparkimage.building.workshop import Workshop
    from sparkimage.inputs.outside import Outside
    from sparkimage.plans.lock import Lock
    from sparkimage.plans.matrix import Matrix, Variant
    from sparkimage.plans.plan import Plan

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


class Settings:
    """What the global options said."""

    matrix_file = Path("matrix.yaml")
    debug = False
    mirrors: tuple[str, ...] = ()


def use_mirrors(given: Sequence[str] | None) -> None:
    """Take in what ``--mirror`` said. Raises ``UsageError``."""
    from sparkimage.address import parse_rules

    parse_rules(given or ())
    Settings.mirrors += tuple(given or ())


def say(line: str) -> None:
    """Tell the user something beside the result: on standard error."""
    typer.echo(line, err=True)


def console(*, stderr: bool = False) -> Console:
    """A terminal to print to."""
    from rich.console import Console

    return Console(stderr=stderr)


def read_matrix() -> Matrix:
    """The matrix that the global options name; its warnings are said."""
    from sparkimage.plans import matrix

    read = matrix.load(Settings.matrix_file)
    for warning in read.warnings:
        typer.echo(f"warning: {warning}", err=True)
    return read


def read_lock(read: Matrix) -> Lock:
    """The matrix's lock. Raises ``LockError`` when it is missing or does not fit."""
    from sparkimage.plans import lock as locking

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
    from sparkimage import origin
    from sparkimage.plans import planning
    from sparkimage.run import Local

    where = origin.of(read.root, read.source, Local())
    return list(planning.make_all(read, variants, read_lock(read), where))


def outside(read: Matrix | None, say: Callable[[str], None]) -> Outside:
    """How this machine reaches what is elsewhere: ``--mirror`` goes before the user's own file,
    and that before the matrix."""
    from sparkimage import paths
    from sparkimage.address import Mirrors, parse_rules, read_rules
    from sparkimage.inputs.outside import Outside
    from sparkimage.run import Local

    rules = {
        **(read.mirrors if read is not None else {}),
        **read_rules(paths.mirrors()),
        **parse_rules(Settings.mirrors).rules,
    }
    return Outside(home=paths.home(), runner=Local(), mirrors=Mirrors(rules=rules), say=say)


def workshop(
    read: Matrix,
    *,
    quiet: bool = False,
    builder: str | None = None,
) -> Workshop:
    """What a build works with, the engine started where none answers."""
    from sparkimage import paths
    from sparkimage.building.workshop import Workshop
    from sparkimage.engines import builders
    from sparkimage.engines.private_engine import ensure
    from sparkimage.progress import View
    from sparkimage.storage.store import Store

    view = View(console(stderr=True), quiet=quiet)
    reached = outside(read, view.say)
    engine = ensure(reached.home, reached.runner, view.say)
    return Workshop(
        matrix_file=read.file,
        store=Store.open(paths.store()),
        engine=engine,
        view=view,
        outside=reached,
        builder=builders.own(engine)
        if builder is None
        else builders.named(builder, engine, reached.runner),
        cache=read.cache,
    )
