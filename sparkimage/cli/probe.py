"""The command that measures a server of models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import JsonOption, console, new_table, print_json, read_fleet
from sparkimage.cli.fleet import PatienceOption
from sparkimage.cli.launch import NameOption
from sparkimage.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from sparkimage.serve.measure import Bench, Ratios, Result, Row
    from sparkimage.serve.openai_api import Server

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""Variables of the environment that a container gets that measures over the network."""
CA = "/tmp/ca.pem"  # in the container


def probe(
    url: Annotated[
        str, typer.Option(metavar="URL", help="Any server, as http://HOST:8000; with --image.")
    ] = "",
    nodes: Annotated[
        str, typer.Option(metavar="FILE|LIST", help="Measure what runs there, on its head's node.")
    ] = "",
    name: NameOption = None,
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="With --url: whose vLLM measures, in Docker here.")
    ] = "",
    model: Annotated[str, typer.Option(help="One that it serves; default: its first.")] = "",
    streams: Annotated[
        str, typer.Option(metavar="LIST", help="Requests at a time, one row for each.")
    ] = "1,8",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 256,
    requests: Annotated[
        int, typer.Option(min=0, help="Requests of each row; 0: every kind, 2 a stream.")
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
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Give up a row after SECONDS.")
    ] = 1800.0,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Measure tokens a second and time to the first token with vLLM's own `vllm bench serve`.

    It runs where the server is, in the container of a deployment's head (--nodes), or in a
    container of an image here (--url, --image). Prompts are unique, tokens are counted by the
    server, answers may not end early, thinking is off; what a server does not grant of that is
    said with the numbers. A key comes from the environment variable SPARKIMAGE_API_KEY.
    """
    from sparkimage.serve import measure

    before = measure.load(compare) if compare is not None else None
    settings = measure.Settings(
        streams=measure.parse_streams(streams), tokens=tokens, requests=requests, rounds=rounds
    )
    if bool(url) == bool(nodes):
        raise UsageError(
            "give either --url or --nodes",
            hint="probe --nodes fleet.yaml, or probe --url http://HOST:8000 --image IMAGE",
        )

    def say(line: str) -> None:
        if not as_json:
            typer.echo(line, err=True)

    with (
        _deployment(nodes, name, timeout, patience) if nodes else _address(url, image, timeout, say)
    ) as (server, bench, marks):
        served = server.models()
        if model and model not in served:
            raise UsageError(
                f"{server.url} does not serve {model}", hint=f"it serves {', '.join(served)}"
            )
        server.model = model or served[0]
        result = measure.run(server, bench, settings, say)
    result.marks.extend(marks)
    if save is not None:
        measure.save(result, save)
    ratios, warnings = measure.compare(result, before) if before is not None else ({}, [])
    if as_json:
        said = result.to_dict()
        if before is not None:
            said["compared"] = {
                "with": before.when,
                "ratios": [{"streams": one, **figures} for one, figures in ratios.items()],
                "warnings": warnings,
            }
        print_json(said)
        return
    terminal = console()
    terminal.print(_table(result, ratios))
    kinds = result.rows[0].kinds
    if kinds:
        slowest_first = sorted(kinds.items(), key=lambda entry: entry[1])
        rates = ", ".join(f"{kind} {rate:.1f}" for kind, rate in slowest_first)
        terminal.print(f"by text ({result.rows[0].streams} at a time): {rates}", markup=False)
    mark = "[green]✓[/]" if result.tool_call.works else "[red]✗[/]"
    terminal.print(f"{mark} tool call: {_plain(result.tool_call.seen)}", highlight=False)
    for mark in result.marks:
        terminal.print(f"[yellow]![/] {_plain(mark)}", highlight=False)
    for warning in warnings:
        terminal.print(f"[yellow]![/] {_plain(warning)}", highlight=False)


@contextmanager
def _deployment(
    nodes: str, name: str | None, timeout_s: float, patience_s: float
) -> Iterator[tuple[Server, Bench, list[str]]]:
    """The server of a deployment, and `vllm bench serve` in its head's container."""
    from sparkimage.serve import running
    from sparkimage.serve.measure import Bench
    from sparkimage.serve.openai_api import Server

    with running.head(read_fleet(nodes), name=name, patience_s=patience_s) as (session, head):
        docker = session.remote.docker.split()
        server = Server(
            url=f"http://{head.head}:{head.port}", socket=session.remote.forward_port(head.port)
        )
        bench = Bench(
            runner=session.remote,
            command=(*docker, "exec", "--interactive", head.id, "sh"),
            kill=(*docker, "exec", head.id, "sh"),
            url=f"http://127.0.0.1:{head.port}",
            timeout_s=timeout_s,
        )
        yield server, bench, []


@contextmanager
def _address(
    url: str, image: str, timeout_s: float, say: Callable[[str], None]
) -> Iterator[tuple[Server, Bench, list[str]]]:
    """The server at an address, and `vllm bench serve` in a new container on this machine."""
    from sparkimage.build.engine.private import ensure
    from sparkimage.core import paths
    from sparkimage.core.arch import arch_name
    from sparkimage.core.process import Local
    from sparkimage.serve.measure import EMULATED, Bench
    from sparkimage.serve.openai_api import Server, is_loopback, parse_url

    server = Server(url=parse_url(url))
    if not image:
        raise UsageError(
            "--url needs --image: an image whose vLLM measures",
            hint="one that Docker has here: docker images; python build.py images",
        )
    engine = ensure(paths.home(), Local(), say)
    inspect = [*engine.docker, "image", "inspect", "--format", "{{.Architecture}}", image]
    held = Local().run(inspect, check=False)
    if held.returncode != 0:
        raise UsageError(
            f"Docker has no image {image} here", hint="build it, or pull it: docker images"
        )
    proxies = () if is_loopback(server.url) else PROXIES
    bundle = os.environ.get("REQUESTS_CA_BUNDLE", "")
    command = [
        *engine.docker, "run", "--rm", "--interactive", "--init", "--pull", "never",
        "--network", "host", "--platform", f"linux/{held.stdout.strip()}",
        *(word for name in proxies if name in os.environ for word in ("--env", name)),
        *(
            ("--env", f"SSL_CERT_FILE={CA}", "--mount",
             f"type=bind,source={Path(bundle).absolute()},target={CA},readonly") if bundle else ()
        ),
        "--entrypoint", "sh", image,
    ]  # fmt: skip
    bench = Bench(
        runner=Local(), command=command, kill=(), url=server.url, timeout_s=timeout_s
    )  # fmt: skip
    emulated = arch_name(held.stdout.strip()) != engine.arch
    yield server, bench, [EMULATED] if emulated else []


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _table(result: Result, ratios: Mapping[int, Ratios]) -> Table:
    drafts = any(row.acceptance is not None for row in result.rows)
    columns = ["streams", "tok/s each", "tok/s all", "first token", "p95", "requests"]
    columns += ["drafts"] if drafts else []
    title = f"{result.model} at {result.url}, {result.settings.tokens} tokens an answer"
    table = new_table(*columns, right=columns, title=_plain(title))
    star = "*" if result.marks else ""
    for row in result.rows:
        beside = ratios.get(row.streams, {})
        table.add_row(
            str(row.streams),
            _rate(row.rate, star) + _times(beside.get("rate")),
            _rate(row.total, star) + _times(beside.get("total")),
            _wait(row.ttft) + _times(beside.get("ttft")),
            _wait(row.ttft_p95),
            str(row.requests),
            *([_drafts(row)] if drafts else []),
        )
    return table


def _drafts(row: Row) -> str:
    """Which part of the drafted tokens was accepted, and how many tokens a step gives."""
    if row.acceptance is None:
        return "none"
    return f"{row.acceptance:.0f} %, {row.acceptance_length or 0:.1f} a step"


def _rate(value: float | None, star: str) -> str:
    return f"{value:.1f}{star}" if value is not None else "unknown"


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _times(ratio: float | None) -> str:
    return f" ({ratio:.2f}x)" if ratio is not None else ""
