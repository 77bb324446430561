"""The command that reads logs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from sparkimage.cli.base import JsonOption, console, print_json
from sparkimage.core.errors import KnownFailureError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sparkimage.serve.explain.knowledge import Match, Reading
    from sparkimage.serve.explain.logfacts import Facts

STDIN = "-"
SHOWN = 400
"""Characters of a log's line that are shown."""
NAMES = 9
"""Columns of the names before values."""


def explain(
    logs: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|-", help="Logs, one of each node; `-`: standard input."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit code 21 when a known failure was found.")
    ] = False,
    known: Annotated[
        bool, typer.Option("--reference", help="Print every failure that is known; read no log.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read logs of vLLM, NCCL or Docker and name known failures, with cause and fix.

    docker logs NAME 2>&1 | python build.py explain -

    The exit code is 0 whether something was found or not; --check makes it 21 when something was.
    """
    from sparkimage.serve.explain import failures, knowledge

    if known:
        typer.echo(failures.reference())
        return
    if not logs:
        raise UsageError(
            "no log was named", hint="docker logs NAME 2>&1 | python build.py explain -"
        )
    readings = [_read(name) for name in logs]
    across = knowledge.across(readings)
    count = sum(len(reading.matches()) for reading in readings) + len(across)
    if as_json:
        print_json(
            {
                "found": count,
                "logs": [_facts(reading) for reading in readings],
                "across": [match.to_dict() for match in across],
            }
        )
    else:
        _print(console(), readings, across)
    if check and count:
        raise KnownFailureError(
            f"{count} known failure{'s' if count != 1 else ''} in {', '.join(logs)}"
        )


def _read(name: str) -> Reading:
    from sparkimage.serve.explain import loglines
    from sparkimage.serve.explain.knowledge import Reading

    reading = Reading(source="standard input" if name == STDIN else name)
    with _open(name) as stream:
        for line in loglines.lines_of(stream):
            reading.take(line)
    return reading


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    if name == STDIN:
        yield sys.stdin.buffer
        return
    try:
        with open(name, "rb") as stream:
            yield stream
    except OSError as error:
        raise UsageError(
            f"{name} cannot be read: {error.strerror}",
            hint="name a file that holds a log, or `-` for standard input",
        ) from error


def _facts(reading: Reading) -> dict[str, object]:
    return {
        "source": reading.source,
        "lines": reading.lines,
        "facts": reading.facts.to_dict(),
        "matches": [match.to_dict() for match in reading.matches()],
    }


def _print(to: Console, readings: Sequence[Reading], across: Sequence[Match]) -> None:
    for reading in readings:
        matches = reading.matches()
        lines = f"{reading.lines} line{'s' if reading.lines != 1 else ''}"
        if matches:
            failures = f"{len(matches)} known failure{'s' if len(matches) != 1 else ''}"
            to.print(f"{reading.source}: {failures} ({lines})", style="bold", markup=False)
        else:
            to.print(f"{reading.source}: nothing known was found ({lines})", markup=False)
        for match in matches:
            _print_match(to, match)
        told = _told(reading.facts)
        if told:
            to.print()
            for name, value in told:
                _print_row(to, name, value, style="dim")
        to.print()
    if across:
        to.print("all logs together:", style="bold")
        for match in across:
            _print_match(to, match)
        to.print()


def _print_match(to: Console, match: Match) -> None:
    from rich.text import Text

    where = f" (line {match.line_number}" if match.line_number else ""
    if where:
        where += f", {match.count} times)" if match.count > 1 else ")"
    to.print()
    to.print(Text.assemble(("✗ ", "red"), (match.entry.title, "bold"), where))
    for name, value in (
        ("line", match.line.strip()[:SHOWN]),
        ("seen", match.note),
        ("cause", match.entry.cause),
        ("fix", match.entry.fix),
        ("more", match.entry.sources[0]),
    ):
        if value:
            _print_row(to, name, value, style="" if name in ("seen", "cause", "fix") else "dim")


def _print_row(to: Console, name: str, value: str, *, style: str = "") -> None:
    text = textwrap.fill(
        value,
        width=max(40, to.width),
        initial_indent=f"  {name:<{NAMES}}",
        subsequent_indent=" " * (NAMES + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    to.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _told(facts: Facts) -> list[tuple[str, str]]:
    """What else a log tells, as rows."""
    from sparkimage.serve.explain.logfacts import PHASES

    rows = []
    if facts.vllm:
        rows.append(("vLLM", facts.vllm))
    for version, nodes in facts.nccl.items():
        named = ", ".join(node for node in nodes if node)
        rows.append(("NCCL", version + (f" on {named}" if named else "")))
    if facts.via:
        rows.append(("over", ", ".join(f"{via} {count}x" for via, count in facts.via.items())))
    reached = [one.name for one in PHASES if one.name in facts.phases]
    if reached:
        rows.append(("came to", ", ".join(reached)))
    return rows
