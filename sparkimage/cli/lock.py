"""The command of the lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import (
    JsonOption,
    MirrorOption,
    console,
    new_table,
    print_json,
    read_lock,
    read_matrix,
    resolve_context,
    say,
    use_mirrors,
)
from sparkimage.core import locks
from sparkimage.core.errors import LockError, NetworkError, UsageError
from sparkimage.core.files import write

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.core.errors import SparkError


def lock(
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it fits the matrix (offline).")
    ] = False,
    update: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[==V]",
            help="Move this pin, patch or wheel, and nothing else; NAME may be a glob.",
        ),
    ] = None,
    outdated: Annotated[
        bool, typer.Option("--outdated", help="List what has a newer version; change nothing.")
    ] = False,
    mirror: MirrorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Resolve the matrix's pins into matrix.lock; what fits there already stays as it is."""
    if check + outdated + bool(update) > 1:
        raise UsageError("--check, --update and --outdated exclude each other", hint="take one")
    use_mirrors(mirror)
    read = read_matrix()
    if check:
        _check(read)
    elif outdated:
        _outdated(read, as_json=as_json)
    else:
        _resolve(read, update or ())


def _check(read: Matrix) -> None:
    held = read_lock(read)
    typer.echo(f"{held.file} fits {read.file.name}")
    for (pin, value), entry in sorted(held.entries.items()):
        if entry.unresolved is not None:
            typer.echo(f"  not resolved yet: {pin} {value}")


def _outdated(read: Matrix, *, as_json: bool) -> None:

    from sparkimage.resolve import resolver

    held = read_lock(read)
    quiet = resolve_context(read, lambda _: None)
    terminal = console()
    with console(stderr=True).status("asking registries, repositories and indexes"):
        pins, fresh = resolver.outdated(read, held, quiet)
    if as_json:
        print_json([asdict(pin) for pin in pins])
    elif pins:
        table = new_table("pin", "what", "locked", "newest")
        for pin in pins:
            table.add_row(pin.pin, pin.what, pin.locked, pin.newest)
        terminal.print(table)
        terminal.print("\nto take one: python build.py lock --update NAME", highlight=False)
    else:
        typer.echo("nothing that could be asked is newer than in the lock")
    _report(tuple(fresh.failures.values()), written=False)


def _resolve(read: Matrix, update: Sequence[str]) -> None:
    from sparkimage.config import lockfile as locking
    from sparkimage.resolve import resolver

    path = read.file.with_suffix(".lock")
    # The folder stays while files in it are replaced.
    with locks.exclusive(read.root, say, f"writes {path.name}"):
        try:
            held = locking.load(path)
        except LockError:
            held = None  # missing, of an older version or damaged: made anew
        wanted = resolver.parse_update(read, held, update)
        outcome = resolver.resolve(read, held, resolve_context(read, typer.echo), wanted)
        made = locking.dump(outcome.lock)
        if path.is_file() and path.read_text() == made:
            typer.echo(f"{path.name} is unchanged")
        else:
            write(path, made.encode())
            typer.echo(f"{path.name} is written; look at `git diff {path.name}`")
    _report(tuple(outcome.failures.values()), written=True)


def _report(failures: Sequence[SparkError], *, written: bool) -> None:
    """Every pin that could not be resolved, each with what to do; the exit code says so too."""
    if not failures:
        return
    lines = []
    for failure in failures:
        lines.append(f"✗ {failure.message}")
        lines += [f"    {line}" for line in failure.detail.splitlines()[-4:]]
        lines.append(f"    → {failure.hint}")
    unreachable = all(isinstance(failure, NetworkError) for failure in failures)
    kind = NetworkError if unreachable else LockError
    count = f"{len(failures)} pin{'s' * (len(failures) > 1)}"
    raise kind(
        f"{count} could not be {'reached' if unreachable else 'resolved'}"
        + ("; all the others are in the lock" if written else ""),
        detail="\n".join(lines),
        hint="run the same command where they can be: what is resolved stays"
        if unreachable
        else "correct these, then run the same command: what is resolved stays",
    )
