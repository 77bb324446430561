"""The command that measures a server of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import JsonOption, console, print_json
from sparkimage.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sparkimage.serve.measure import Comparison, Result


def probe(
    url: Annotated[str, typer.Option(help="The server, as http://HOST:8000.")],
    model: Annotated[str, typer.Option(help="One that it serves; default: its first.")] = "",
    streams: Annotated[
        str, typer.Option(metavar="LIST", help="Requests at a time, one row for each.")
    ] = "1,8",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 256,
    requests: Annotated[
        int, typer.Option(min=0, help="Requests of each row; 0: two for each stream, at least 3.")
    ] = 0,
    rounds: Annotated[
        int, typer.Option(min=1, max=99, help="Measure so often, and take the medians.")
    ] = 1,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result there, for --compare.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show ratios to an earlier result.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1,
            help="Without any sign of life for so long, it counts as hung.",
        ),
    ] = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens a second and time to the first token of any OpenAI-compatible server.

    Prompts are unique, tokens are counted by the server, answers may not end early, thinking is
    off; what a server does not grant of that is said with the numbers. A key comes from the
    environment variable SPARKIMAGE_API_KEY.
    """
    from sparkimage.serve import measure
    from sparkimage.serve.completions import Server, parse_url

    before = measure.load(compare) if compare is not None else None
    settings = measure.Settings(
        streams=measure.parse_streams(streams), tokens=tokens, requests=requests, rounds=rounds
    )
    server = Server(url=parse_url(url), patience_s=patience)
    served = server.models()
    if model and model not in served:
        raise UsageError(
            f"{server.url} does not serve {model}", hint=f"it serves {', '.join(served)}"
        )
    server.model = model or served[0]

    def say(line: str) -> None:
        if not as_json:
            typer.echo(line, err=True)

    result = measure.run(server, settings, say)
    if save is not None:
        measure.save(result, save)
    ratios, warnings = measure.compare(result, before) if before is not None else ([], [])
    if as_json:
        said = result.to_dict()
        if before is not None:
            said["compared"] = {
                "with": before.when,
                "ratios": [one.to_dict() for one in ratios],
                "warnings": warnings,
            }
        print_json(said)
        return
    terminal = console()
    terminal.print(_table(result, ratios))
    if result.tool_works:
        terminal.print(f"[green]✓[/] tool call: {_plain(result.tool_seen)}", highlight=False)
    else:
        terminal.print(f"[red]✗[/] tool call: {_plain(result.tool_seen)}", highlight=False)
    for mark in result.marks:
        terminal.print(f"[yellow]![/] {_plain(mark)}", highlight=False)
    for warning in warnings:
        terminal.print(f"[yellow]![/] {_plain(warning)}", highlight=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _table(result: Result, ratios: Sequence[Comparison]) -> Table:
    from rich.table import Table

    beside = {one.streams: one for one in ratios}
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left",
        title=_plain(f"{result.model} at {result.url}, {result.settings.tokens} tokens an answer"),
        title_style="bold",
    )  # fmt: skip
    for column in ("streams", "tok/s each", "tok/s all", "first token", "p95", "requests"):
        table.add_column(column, justify="right")
    star = "*" if result.marks else ""
    for row in result.rows:
        one = beside.get(row.streams)
        table.add_row(
            str(row.streams),
            _rate(row.rate, star) + _times(one.rate if one else None),
            _rate(row.total, star) + _times(one.total if one else None),
            _wait(row.ttft) + _times(one.ttft if one else None),
            _wait(row.ttft_p95),
            str(row.requests),
        )
    return table


def _rate(value: float | None, star: str) -> str:
    return f"{value:.1f}{star}" if value is not None else "unknown"


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _times(ratio: float | None) -> str:
    return f" ({ratio:.2f}x)" if ratio is not None else ""
