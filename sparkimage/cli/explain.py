"""The command that finds known failures in logs, and where unknown ones began."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag
from sparkimage.core.errors import KnownFailureError, UsageError
from sparkimage.core.markup import fill
from sparkimage.core.program import program
from sparkimage.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader

    from sparkimage.serve.explain.found import Match
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
    check: Annotated[bool, flag("--check", "Exit with 21 if a failure is found.")] = False,
    reference: Annotated[bool, flag("--reference", "Print all known failures.")] = False,
    as_json: options.Json = False,
) -> None:
    """Find failures in logs of vLLM, NCCL or Docker: what began it, its cause and its fix.

    A failure that is not known is shown with its line and those around it.

    Example: `docker logs NAME 2>&1 | sparkimage explain -`
    """
    from sparkimage.serve.explain import pages, together

    if reference:
        typer.echo("\n".join(pages.pages().values()).rstrip())
        return
    if not logs:
        raise UsageError("no log file given", hint=f"docker logs NAME 2>&1 | {program()} explain -")
    readings = [_read(name) for name in logs]
    across = together.across(readings)
    in_order = together.in_order(readings)
    count = len(in_order)
    if as_json:
        base.print_json(
            {
                "found": count,
                "logs": [_to_dict(reading) for reading in readings],
                "across": [match.to_dict() for match in across],
                "story": [match.to_dict() for match in in_order] if len(readings) > 1 else [],
            }
        )
    else:
        _print(readings, across)
        if len(readings) > 1:
            _print_story(in_order)
    if check and count:
        what = _how_many(in_order)
        raise KnownFailureError(f"{what} in {', '.join(logs)}")


def _read(name: str) -> Reading:
    from sparkimage.serve.explain import batches, loglines
    from sparkimage.serve.explain.knowledge import Reading

    reading = Reading(source="standard input" if name == STDIN else name)
    try:
        with nullcontext(sys.stdin.buffer) if name == STDIN else open(name, "rb") as stream:
            head = cast("BufferedReader", stream).peek(4)[:4]
            if (tool := loglines.OTHER_ARCHIVES.get(head)) is not None:
                raise UsageError(
                    f"{reading.source} is compressed with {tool}",
                    hint=f"unpack it: `{tool} -dc FILE | {program()} explain -`",
                )
            for lines in loglines.blocks_of(stream):
                batches.read(reading, lines)
    except loglines.EmptyArchiveError as error:
        raise UsageError(
            f"{reading.source} is a damaged or incomplete archive: nothing of it can be unpacked",
            hint="copy it again (of bzip2 900 KB must be complete), or give the log itself",
        ) from error
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
        "began": began.to_dict() if (began := reading.began()) else None,
        "remarks": [match.to_dict() for match in reading.remarks()],
    }


def _print(readings: Sequence[Reading], across: Sequence[Match]) -> None:
    for reading in readings:
        matches = reading.matches()
        head = base.plain(
            f"{reading.source}: {_how_many(matches)} in {plural(reading.lines, 'line')}"
        )
        base.show(f"[bold]{head}[/]" if matches else head)
        for match in matches:
            _print_match(match)
        rows = [*_began(reading, matches), *_remarks(reading), *_facts(reading.facts)]
        if rows:
            base.show()
        for name, value in rows:
            base.print_field(name, value, width=WIDTH, style="dim")
        base.show()
    if across:
        base.show("[bold]all logs together:[/]")
        for match in across:
            _print_match(match)
        base.show()


def _how_many(matches: Sequence[Match]) -> str:
    known = sum(match.known for match in matches)
    if known:
        return plural(known, "known failure")
    return "it failed, and not in a known way" if matches else "no known failure"


def _began(reading: Reading, matches: Sequence[Match]) -> list[tuple[str, str]]:
    """The first fault, where no failure that was found is that line."""
    began = reading.began()
    if began is None or any(
        match.line_number == began.line_number or not match.known for match in matches
    ):
        return []
    return [("began", f"line {began.line_number}: {began.line.strip()[:MAX_LINE]}")]


def _remarks(reading: Reading) -> list[tuple[str, str]]:
    """What did not stop the server."""
    return [
        ("remark", f"line {match.line_number}, did not stop the server: {match.title}")
        for match in reading.remarks()
    ]


def _print_story(story: Sequence[Match]) -> None:
    """The failures of all logs in one order: what began it first."""
    if not story:
        return
    base.show("[bold]in this order:[/]")
    for match in story:
        what = match.title if match.known else match.line.strip()[:MAX_LINE]
        where = ", ".join(
            part
            for part in (
                match.source,
                f"line {match.line_number}" if match.line_number else "",
                match.time,
            )
            if part
        )
        note = f"; {match.note}" if match.note else ""
        line = base.plain(f"{match.entry.rank}: {what} ({where or 'all logs'}){note}")
        base.show(fill(line, base.text_width(), first="  ", rest="  "))
    base.show()


def _print_match(match: Match) -> None:
    said = [line for line in match.message if match.known and line not in match.line]
    where = f" (line {match.line_number}" if match.line_number else ""
    if where:
        where += f", {match.count} times)" if match.count > 1 else ")"
    title = f"{base.FAILED} [bold]{base.plain(match.title)}[/]{where}"
    base.show("\n" + fill(title, base.text_width(), rest="  "))
    for name, value, style in (
        *(
            ("line" if line == match.line else "near", line.strip()[:MAX_LINE], "dim")
            for line in match.near or (match.line,)
        ),
        *(("says", line, "dim") for line in said),
        ("seen", match.note, ""),
        ("cause", match.cause, ""),
        ("fix", match.fix, ""),
        ("source", match.sources[0] if match.known else "", "dim"),
    ):
        if value:
            base.print_field(name, value, width=WIDTH, style=style)


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
