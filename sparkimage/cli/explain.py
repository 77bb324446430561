"""The command that finds known failures in logs."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag
from sparkimage.core.errors import KnownFailureError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sparkimage.serve.explain.failures import Match
    from sparkimage.serve.explain.knowledge import Reading
    from sparkimage.serve.explain.logfacts import Facts

STDIN = "-"
MAX_LINE = 400
"""Characters of a log line that are shown."""
WIDTH = 9
"""Columns of the names before values."""


def explain(
    logs: Annotated[
        list[str] | None, typer.Argument(metavar="FILE|-", help="Logs of one or more nodes.")
    ] = None,
    check: Annotated[bool, flag("--check", "Exit with 21 if a known failure is found.")] = False,
    reference: Annotated[bool, flag("--reference", "Print all known failures.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find known failures in logs of vLLM, NCCL or Docker, with cause and fix.

    Example: `docker logs NAME 2>&1 | python build.py explain -`
    """
    from sparkimage.serve.explain import failures, knowledge

    if reference:
        typer.echo(failures.reference())
        return
    if not logs:
        raise UsageError(
            "no log file given", hint="docker logs NAME 2>&1 | python build.py explain -"
        )
    readings = [_read(name) for name in logs]
    across = knowledge.across(readings)
    count = sum(len(reading.matches()) for reading in readings) + len(across)
    if as_json:
        base.print_json(
            {
                "found": count,
                "logs": [_to_dict(reading) for reading in readings],
                "across": [match.to_dict() for match in across],
            }
        )
    else:
        _print(base.console(), readings, across)
    if check and count:
        raise KnownFailureError(f"{base.plural(count, 'known failure')} in {', '.join(logs)}")


def _read(name: str) -> Reading:
    from sparkimage.serve.explain import loglines
    from sparkimage.serve.explain.knowledge import Reading

    reading = Reading(source="standard input" if name == STDIN else name)
    try:
        with nullcontext(sys.stdin.buffer) if name == STDIN else open(name, "rb") as stream:
            for line in loglines.lines_of(stream):
                reading.take(line)
    except OSError as error:
        raise UsageError(
            f"cannot read {name}: {error.strerror}", hint="pass a log file, or `-` for stdin"
        ) from error
    return reading


def _to_dict(reading: Reading) -> dict[str, object]:
    return {
        "source": reading.source,
        "lines": reading.lines,
        "facts": reading.facts.to_dict(),
        "matches": [match.to_dict() for match in reading.matches()],
    }


def _print(to: Console, readings: Sequence[Reading], across: Sequence[Match]) -> None:
    for reading in readings:
        matches = reading.matches()
        failures = base.plural(len(matches), "known failure") if matches else "no known failure"
        to.print(
            f"{reading.source}: {failures} in {base.plural(reading.lines, 'line')}",
            style="bold" if matches else "", markup=False,
        )  # fmt: skip
        for match in matches:
            _print_match(to, match)
        facts = _facts(reading.facts)
        if facts:
            to.print()
        for name, value in facts:
            base.print_field(to, name, value, width=WIDTH, style="dim")
        to.print()
    if across:
        to.print("all logs together:", style="bold")
        for match in across:
            _print_match(to, match)
        to.print()


def _print_match(to: Console, match: Match) -> None:
    where = f" (line {match.line_number}" if match.line_number else ""
    if where:
        where += f", {match.count} times)" if match.count > 1 else ")"
    to.print(f"\n{base.FAILED} [bold]{base.plain(match.entry.title)}[/]{where}")
    for name, value, style in (
        ("line", match.line.strip()[:MAX_LINE], "dim"),
        ("seen", match.note, ""),
        ("cause", match.entry.cause, ""),
        ("fix", match.entry.fix, ""),
        ("source", match.entry.sources[0], "dim"),
    ):
        if value:
            base.print_field(to, name, value, width=WIDTH, style=style)


def _facts(facts: Facts) -> list[tuple[str, str]]:
    """What else a log shows, as rows."""
    from sparkimage.serve.explain.logfacts import PHASES

    rows = [("vLLM", facts.vllm or "")]
    for version, nodes in facts.nccl.items():
        names = ", ".join(node for node in nodes if node)
        rows.append(("NCCL", version + (f" on {names}" if names else "")))
    rows.append(("over", ", ".join(f"{via} {count}x" for via, count in facts.via.items())))
    rows.append(("phases", ", ".join(phase.name for phase in PHASES if phase.name in facts.phases)))
    return [(name, value) for name, value in rows if value]
