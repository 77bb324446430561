"""The command of the lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag, value
from sparkimage.core import locks
from sparkimage.core.errors import ConfigError, LockError, NetworkError, UsageError
from sparkimage.core.files import write
from sparkimage.core.program import program
from sparkimage.core.units import plural

if TYPE_CHECKING:
    from sparkimage.config.lockfile import Lock
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.plan import Plan
    from sparkimage.config.variants import Variant
    from sparkimage.core.errors import SparkError


def lock(
    check: Annotated[bool, flag("--check", "Only check, offline, that it fits.")] = False,
    update: Annotated[
        list[str] | None, value("NAME[==V]", "Update one pin, patch or wheel; may be a glob.")
    ] = None,
    outdated: Annotated[bool, flag("--outdated", "Only list what has newer versions.")] = False,
    only: Annotated[
        list[str] | None, value("GLOB", "Resolve the pins of the variants that match GLOB.")
    ] = None,
    _mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Resolve the pins that matrix.lock lacks; resolved pins stay as they are."""
    if check + outdated + bool(update or only) > 1:
        raise UsageError(
            "--check, --outdated, and --update or --only exclude each other", hint="pass one"
        )
    if as_json and not (check or outdated):
        raise UsageError("--json needs --check or --outdated", hint="drop --json, or pass one")
    matrix = base.read_matrix()
    if check:
        _check(matrix, as_json=as_json)
    elif outdated:
        _print_outdated(matrix, as_json=as_json)
    else:
        _resolve(matrix, update or (), only or ())


def _check(matrix: Matrix, *, as_json: bool) -> None:
    lock = base.read_lock(matrix)
    missing = {
        key: entry.unresolved
        for key, entry in sorted(lock.entries.items())
        if entry.unresolved is not None
    }
    if as_json:
        unresolved = [
            {"pin": pin, "value": value, "reason": reason}
            for (pin, value), reason in missing.items()
        ]
        base.print_json({"lock": lock.file, "fits": True, "unresolved": unresolved})
        return
    typer.echo(f"{lock.file} fits {matrix.file.name}")
    for key in missing:
        typer.echo(f"  not resolved yet: {' '.join(key)}")
    if missing:
        base.say(f"to resolve them where they can be reached: {program()} lock")


def _print_outdated(matrix: Matrix, *, as_json: bool) -> None:
    from sparkimage.resolve import resolver

    context = base.resolve_context(matrix, base.quiet)
    with base.new_view(quiet=as_json).busy("checking registries, repositories and indexes"):
        pins, outcome = resolver.outdated(matrix, base.read_lock(matrix), context)
    if as_json:
        base.print_json([asdict(pin) for pin in pins])
    elif pins:
        table = base.new_table("pin", "what", "locked", "newest", drop=["what"])
        for pin in pins:
            table.add_row(pin.pin, pin.what, pin.locked, pin.newest)
        base.print_table(table)
        typer.echo(f"\nto update one: {program()} lock --update NAME")
    else:
        typer.echo("no newer version found")
    _raise_failures(outcome.failures)


def _resolve(matrix: Matrix, update: Sequence[str], only: Sequence[str]) -> None:
    from sparkimage.config import lockfile
    from sparkimage.config.matrix import select
    from sparkimage.resolve import resolver

    path = matrix.file.with_suffix(".lock")
    variants = select(matrix, only=only) if only else None
    # Locked is the folder, since files in it are replaced.
    with locks.exclusive(matrix.root, base.say, f"writes {path.name}"):
        try:
            old = lockfile.load(path, older=True)
        except LockError as error:
            old = None
            if path.exists():
                base.warn(f"{error.message}: every pin is resolved anew")
        targets = resolver.parse_update(matrix, old, update)
        context = base.resolve_context(matrix, typer.echo)
        outcome = resolver.resolve(matrix, old, context, targets, variants)
        text = lockfile.dump(outcome.lock)
        if path.is_file() and path.read_text() == text:
            typer.echo(f"{path.name} is unchanged")
        else:
            write(path, text.encode())
            typer.echo(f"wrote {path.name}; review it with `git diff {path.name}`")
        _print_known(old, outcome.lock)
    try:
        base.check_sources(matrix, _plans(matrix, variants or matrix.variants), context)
    except ConfigError as error:
        if not outcome.failures:
            raise
        base.warn(f"{error.message}\n{error.detail}")
    _raise_failures(outcome.failures, "; all others are in the lock")


def _print_known(old: Lock | None, new: Lock) -> None:
    """What is known of the releases of NCCL that were not in the lock before."""
    from sparkimage.config.lockfile import nccl_releases
    from sparkimage.serve.explain import failures

    chosen = nccl_releases(new)
    for release in sorted(chosen.keys() - (nccl_releases(old) if old is not None else {}).keys()):
        for one in failures.known().known_of(nccl=release):
            pins = ", ".join(chosen[release])
            typer.echo(f"note: {pins}: NCCL {release} is {one.known}")
            typer.echo(f"  → {one.fix} {one.sources[0]}")


def _plans(matrix: Matrix, variants: Sequence[Variant]) -> list[Plan]:
    """The plans of those variants with a source that can be planned; `image` says what the others
    lack."""
    from sparkimage.config import origin, planning
    from sparkimage.core.process import Local

    lock = base.read_lock(matrix)
    source = origin.of(matrix.root, matrix.source, Local())
    plans = []
    for variant in variants:
        if any(matrix.layers[layer].source is not None for layer in variant.layers):
            with suppress(LockError):
                plans.append(planning.make(matrix, variant, lock, source))
    return plans


def _raise_failures(failures: Mapping[tuple[str, str], SparkError], rest: str = "") -> None:
    """Raise one error for all pins that could not be resolved, each with what to do."""
    if not failures:
        return
    from sparkimage.nodes.retag import lines

    unreachable = all(isinstance(failure, NetworkError) for failure in failures.values())
    kind, problem, action = (
        (NetworkError, "reached", "run the same command where they are reachable")
        if unreachable
        else (LockError, "resolved", "correct these, then run the same command again")
    )
    raise kind(
        f"{plural(len(failures), 'pin')} could not be {problem}{rest}",
        detail="\n".join(lines({" ".join(pin): error for pin, error in failures.items()})),
        hint=f"{action}; resolved pins stay",
    )
