"""The command that benchmarks a model server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sparkimage.cli import base, options
from sparkimage.cli.options import value
from sparkimage.core import paths
from sparkimage.core.errors import UsageError
from sparkimage.core.process import Local
from sparkimage.core.program import program
from sparkimage.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sparkimage.core.tables import Table
    from sparkimage.serve.measure import Bench, Ratios, Result, Row
    from sparkimage.serve.openai_api import Server

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
"""Environment variables for a container that measures over the network."""
CA = "/tmp/ca.pem"  # in the container


def probe(
    url: Annotated[str, value("URL", "A server, as http://HOST:8000; needs --image.")] = "",
    nodes: Annotated[str, value("FILE|NAMES", "Measure the deployment on these nodes.")] = "",
    name: options.Name = None,
    image: Annotated[str, value("IMAGE", "With --url: a local image that has vLLM.")] = "",
    model: Annotated[str, value("NAME", "A model it serves. Default: its first.")] = "",
    streams: Annotated[str, value("LIST", "Concurrent requests, one row for each number.")] = "1,8",
    tokens: Annotated[int, value("N", "Output tokens a request.", min=2)] = 256,
    requests: Annotated[
        int, value("N", "Requests a row. 0: every kind of prompt, 2 a stream.", min=0)
    ] = 0,
    rounds: Annotated[int, value("N", "Run N rounds and show medians.", min=1, max=99)] = 1,
    save: Annotated[Path | None, value("FILE", "Save the result for --compare.")] = None,
    compare: Annotated[Path | None, value("FILE", "Show ratios to a saved result.")] = None,
    timeout: Annotated[float, value("SECONDS", "Give up on a row after SECONDS.", min=1)] = 1800,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Measure tokens/s and time to first token with vLLM's own `vllm bench serve`.

    It runs in the container of the deployment's head (--nodes), or in a new container of an image
    on this machine (--url, --image). Prompts are unique, the server counts the tokens, ignore_eos
    is set and thinking is off; what the server does not support of this is reported with the
    results. The API key is read from $SPARKIMAGE_API_KEY.
    """
    from sparkimage.serve import measure

    before = measure.load(compare) if compare is not None else None
    settings = measure.Settings(
        streams=measure.parse_streams(streams), tokens=tokens, requests=requests, rounds=rounds
    )
    if bool(url) == bool(nodes):
        raise UsageError(
            "pass either --url or --nodes",
            hint=f"{program()} probe --nodes fleet.yaml, or --url http://HOST:8000 --image IMAGE",
        )

    say = base.quiet if as_json else base.say
    with (
        _deployment(nodes, name, timeout, patience) if nodes else _url(url, image, timeout, say)
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
    if not as_json:
        _print(result, ratios, warnings)
        return
    document = result.model_dump(mode="json")
    if before is not None:
        document["compared"] = {
            "with": before.when,
            "ratios": [{"streams": count, **figures} for count, figures in ratios.items()],
            "warnings": warnings,
        }
    base.print_json(document)


@contextmanager
def _deployment(
    nodes: str, name: str | None, timeout_s: float, patience_s: float
) -> Iterator[tuple[Server, Bench, list[str]]]:
    """The server of a deployment, and `vllm bench serve` in its head's container."""
    from sparkimage.serve import running
    from sparkimage.serve.measure import Bench
    from sparkimage.serve.openai_api import Server

    with running.head(base.read_fleet(nodes), name=name, patience_s=patience_s) as (session, head):
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
def _url(
    url: str, image: str, timeout_s: float, say: Callable[[str], None]
) -> Iterator[tuple[Server, Bench, list[str]]]:
    """The server at a URL, and `vllm bench serve` in a new container on this machine."""
    from sparkimage.build.engine.private import ensure
    from sparkimage.core.arch import arch_name
    from sparkimage.serve.measure import EMULATED, Bench
    from sparkimage.serve.openai_api import Server, is_loopback, parse_url

    server = Server(url=parse_url(url))
    if not image:
        raise UsageError(
            "--url needs --image, an image with vLLM",
            hint=f"list the local ones: docker images; {program()} images",
        )
    # Where no server answers, no engine is set up to measure it.
    server.models()
    engine = ensure(paths.home(), Local(), say)
    inspect = [*engine.docker, "image", "inspect", "--format", "{{.Architecture}}", image]
    inspected = Local().run(inspect, check=False)
    if inspected.returncode != 0:
        raise UsageError(f"no such image here: {image}", hint="build or pull it: docker images")
    arch = inspected.stdout.strip()
    proxies = () if is_loopback(server.url) else PROXIES
    bundle = os.environ.get("REQUESTS_CA_BUNDLE", "")
    command = [
        *engine.docker, "run", "--rm", "--interactive", "--init", "--pull", "never",
        "--network", "host", "--platform", f"linux/{arch}",
        *(word for name in proxies if name in os.environ for word in ("--env", name)),
        *(
            ("--env", f"SSL_CERT_FILE={CA}", "--mount",
             f"type=bind,source={Path(bundle).absolute()},target={CA},readonly") if bundle else ()
        ),
        "--entrypoint", "sh", image,
    ]  # fmt: skip
    bench = Bench(runner=Local(), command=command, kill=(), url=server.url, timeout_s=timeout_s)
    yield server, bench, [EMULATED] if arch_name(arch) != engine.arch else []


def _print(result: Result, ratios: Mapping[int, Ratios], warnings: Sequence[str]) -> None:
    base.print_table(_table(result, ratios))
    first = result.rows[0]
    if first.kinds:
        slowest_first = sorted(first.kinds.items(), key=lambda entry: entry[1])
        rates = ", ".join(f"{kind} {rate:.1f}" for kind, rate in slowest_first)
        base.show(f"tok/s by prompt ({plural(first.streams, 'stream')}): {rates}")
    mark = base.OK if result.tool_call.works else base.FAILED
    base.show(f"{mark} tool call: {base.plain(result.tool_call.seen)}")
    for warning in (*result.marks, *warnings):
        base.show(f"{base.WARNING} {base.plain(warning)}")


def _table(result: Result, ratios: Mapping[int, Ratios]) -> Table:
    drafts = any(row.acceptance is not None for row in result.rows)
    columns = ["streams", "tok/s each", "tok/s all", "TTFT", "TTFT p95", "requests"]
    columns += ["drafts"] if drafts else []
    title = f"{result.model} at {result.url}, {result.settings.tokens} tokens a request"
    table = base.new_table(*columns, right=columns, title=base.plain(title))
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
    """The acceptance rate of draft tokens, and the tokens a step."""
    if row.acceptance is None:
        return "none"
    return f"{row.acceptance:.0f} %, {row.acceptance_length or 0:.1f} a step"


def _rate(value: float | None, star: str) -> str:
    return f"{value:.1f}{star}" if value is not None else "unknown"


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _times(ratio: float | None) -> str:
    return f" ({ratio:.2f}x)" if ratio is not None else ""
