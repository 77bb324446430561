"""Measures a model server with `vllm bench serve`, and compares measurements.

Four rules make the figures honest: every prompt is new (else the prefix cache answers), the server
counts the tokens (a chunk may hold several), no answer ends early (`ignore_eos`), and thinking is
off. The options and the result are those of vLLM 0.25 to 0.33:
https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/benchmarks/serve.py
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from sparkimage.config import yamlfile
from sparkimage.config.validation import Strict
from sparkimage.core.errors import CommandError, ProbeError, UsageError
from sparkimage.core.process import Local
from sparkimage.core.program import program
from sparkimage.nodes.ssh import Remote
from sparkimage.serve.openai_api import CHAT, Granted, Server, api_key

EMULATED = "vllm bench serve runs under emulation, and may be slower than the server"


class Settings(Strict):
    """What to measure."""

    streams: tuple[int, ...] = (1, 8)
    """Numbers of concurrent requests, a row each."""
    tokens: int = 256
    """Of each answer."""
    requests: int = 0
    """Of each row; 0: two for each stream at least, and every kind of prompt equally often."""
    rounds: int = 1

    def count(self, streams: int) -> int:
        """The number of requests of a row."""
        kinds = len(battery())
        return max(self.requests or kinds * math.ceil(2 * streams / kinds), streams)


class Row(Strict):
    """The figures for one number of streams. None: the server does not tell."""

    streams: int
    requests: int
    tokens: int | None
    """Of all answers, as the server counts them."""
    rate: float | None
    """Tokens a second of one stream after its first token: the median."""
    total: float | None
    """Tokens a second of all streams together, waiting included."""
    ttft: float
    """Seconds to the first token: the median."""
    ttft_p95: float
    seconds: float
    acceptance: float | None = None
    """Percent of the drafted tokens that were accepted; None: nothing is drafted."""
    acceptance_length: float | None = None
    """Tokens of one step of the model, the accepted drafts among them."""
    kinds: dict[str, float] = Field(default={})
    """``rate`` by the kind of prompt."""


class ToolCall(Strict):
    """Whether the server calls a tool when asked to, and what it answered."""

    works: bool
    seen: str


class Result(Strict):
    """A measurement."""

    probe: Literal[2] = 2
    """The version of the saved format; 1 was measured with other prompts."""
    url: str
    model: str
    when: str
    settings: Settings
    rows: list[Row]
    marks: list[str]
    """Which of the four rules the figures do not keep."""
    tool_call: ToolCall


@cache
def battery() -> Mapping[str, str]:
    """The prompts by kind of work."""
    with as_file(files("sparkimage") / "data" / "prompts.yaml") as path:
        prompts: dict[str, str] = yamlfile.load(path).data
        return prompts


def prompts(nonce: str) -> Iterator[tuple[str, str]]:
    """Endless kinds and prompts, each with its own beginning; ``nonce``: of the run."""
    for number, (kind, text) in enumerate(itertools.cycle(battery().items())):
        yield kind, f"{nonce}-{number:06x}: {text}"


def parse_streams(text: str) -> tuple[int, ...]:
    """The numbers in ``1,8``, sorted, without duplicates. Raises ``UsageError``."""
    try:
        streams = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        streams = (0,)
    if streams[0] < 1 or streams[-1] > 1024:
        raise UsageError(f"--streams {text!r} is not a list of numbers from 1 to 1024", hint="1,8")
    return streams


@dataclass(kw_only=True)
class Bench:
    """`vllm bench serve` in a container."""

    runner: Local | Remote
    """Runs ``command``: this machine, or the node that serves."""
    command: Sequence[str]
    """Starts a shell in the container: `docker exec -i ID sh`, `docker run … sh`."""
    kill: Sequence[str]
    """Starts a shell that can kill it there; empty: it ends with ``command``."""
    url: str
    """The server's address in the container."""
    timeout_s: float
    """Of one row."""
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    def run(
        self, server: Server, settings: Settings, streams: int, texts: Sequence[str],
        extras: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """VLLM's result for these prompts with this concurrency. Raises ``ProbeError``."""
        body = {name: value for name, value in extras.items() if name != "ignore_eos"}
        options = [
            "--backend", "openai-chat", "--base-url", self.url, "--endpoint", CHAT,
            "--model", server.model, "--skip-tokenizer-init",
            # The custom dataset that needs no pandas, which vLLM's wheel does not require.
            "--dataset-name", "custom_image", "--disable-shuffle", "--no-oversample",
            "--num-prompts", str(len(texts)), "--max-concurrency", str(streams),
            "--custom-output-len", str(settings.tokens), "--temperature", "0",
            *(["--ignore-eos"] if "ignore_eos" in extras else []),
            *(["--extra-body", json.dumps(body)] if body else []),
            # Either would send the first prompt before it is measured.
            "--ready-check-timeout-sec", "0", "--num-warmups", "0",
            "--disable-tqdm", "--save-result", "--save-detailed",
        ]  # fmt: skip
        rows = [{"content": [{"type": "text", "text": text}]} for text in texts]
        stdin = "\n".join([api_key(), *map(json.dumps, rows)]) + "\n"
        script = (files("sparkimage") / "data" / "bench.sh").read_text()
        try:
            done = self.runner.run(
                [*self.command, "-c", script, "bench.sh", self.id, *options],
                stdin=stdin, timeout_s=self.timeout_s,
            )  # fmt: skip
            result: dict[str, Any] = json.loads(done.stdout)
        except CommandError as error:
            raise ProbeError(
                "vllm bench serve failed in the container" if error.returncode != 124
                else f"vllm bench serve did not finish within {self.timeout_s:g} s",
                detail=error.output.strip()[-1500:],
                hint="use vLLM 0.25 or later, fewer --requests or a longer --timeout",
            ) from None  # fmt: skip
        except ValueError:
            raise ProbeError(
                "vllm bench serve wrote no result",
                detail=done.stderr.strip()[-1500:],
                hint="use vLLM 0.25 or later",
            ) from None
        except BaseException:
            # Raised again: a process in a container does not end with its client.
            if self.kill:
                pid = f"/tmp/sparkimage-probe-{self.id}/pid"  # made by bench.sh
                self.runner.run([*self.kill, "-c", 'kill "$(cat "$1")"', "kill", pid], check=False)
            raise
        failed = [str(error).strip()[-500:] for error in result.get("errors", ()) if error]
        if not failed and _usage(result):
            # vLLM ignores an error within a stream.
            lengths = zip(result["output_lens"], result["itls"], strict=True)
            short = sum(tokens == 1 and len(gaps) > 1 for tokens, gaps in lengths)
            failed = ["the answer broke off before its token count"] * short
        if failed or result.get("completed") != len(texts):
            count = len(failed) or len(texts)
            raise ProbeError(
                f"{count} of {len(texts)} requests failed",
                detail=failed[0] if failed else "vllm bench serve gives no reason",
                hint=f"see the server's log: {program()} explain FILE",
            )
        return result


def summarise(streams: int, kinds: Sequence[str], result: Mapping[str, Any]) -> Row:
    """The figures of a row, from vLLM's result for prompts of these kinds in this order."""
    counted = _usage(result)
    rates: dict[str, list[float]] = {}
    for kind, tokens, gaps in zip(kinds, result["output_lens"], result["itls"], strict=True):
        if counted and tokens > 1 and len(gaps) > 1 and sum(gaps) > 0:
            rates.setdefault(kind, []).append((tokens - 1) / sum(gaps))
    all_rates = list(itertools.chain(*rates.values()))
    ttfts = sorted(result["ttfts"])
    return Row(
        streams=streams,
        requests=len(ttfts),
        tokens=sum(result["output_lens"]) if counted else None,
        rate=statistics.median(all_rates) if all_rates else None,
        total=result["output_throughput"] if counted else None,
        ttft=statistics.median(ttfts),
        ttft_p95=ttfts[math.ceil(0.95 * len(ttfts)) - 1],
        seconds=result["duration"],
        acceptance=result.get("spec_decode_acceptance_rate"),
        acceptance_length=result.get("spec_decode_acceptance_length"),
        kinds={kind: statistics.median(of) for kind, of in rates.items()},
    )


def _usage(result: Mapping[str, Any]) -> bool:
    """Whether the server counted tokens: else vLLM, without a tokenizer, assumes one an answer."""
    return any(tokens > 1 for tokens in result.get("output_lens", ()))


def middle(rows: Sequence[Row]) -> Row:
    """The median of each figure over rounds."""

    def median(name: str) -> float | None:
        known = [value for row in rows if (value := getattr(row, name)) is not None]
        return statistics.median(known) if len(known) == len(rows) else None

    figures = ("rate", "total", "ttft", "ttft_p95", "acceptance", "acceptance_length")
    known = [row for row in rows if row.tokens is not None]
    return rows[0].model_copy(
        update={
            **{name: median(name) for name in figures},
            "requests": sum(row.requests for row in rows),
            "tokens": sum(row.tokens or 0 for row in known) if known else None,
            "seconds": sum(row.seconds for row in rows),
            "kinds": {
                kind: statistics.median(row.kinds[kind] for row in rows if kind in row.kinds)
                for kind in rows[0].kinds
            },
        }
    )


def marks_of(
    granted: Granted, results: Sequence[Mapping[str, Any]], tokens: int, cached: float
) -> list[str]:
    """Which of the four rules the answers do not keep; ``cached``: the part of all prompts'
    tokens that came from the prefix cache."""
    marks = []
    lengths = [length for result in results for length in result["output_lens"]]
    if not all(map(_usage, results)):
        marks.append("no usage: the tokens are unknown, since a chunk may hold several")
    elif "ignore_eos" in granted.refused:
        marks.append(
            "ignore_eos is rejected: answers end when the model stops, their lengths differ"
        )
    elif short := sum(length < tokens for length in lengths):
        marks.append(f"ignore_eos is ignored: {short} of {len(lengths)} answers ended early")
    texts = [text for result in results for text in result.get("generated_texts", ())]
    if granted.thinks or any(not text.strip() for text in texts):
        marks.append("thinking cannot be turned off: it counts as text")
    elif "chat_template_kwargs" in granted.refused:
        marks.append("chat_template_kwargs is rejected: the model may think")
    # The beginning of the chat template is the same in every prompt.
    if cached > 0.25:
        marks.append(f"{cached:.0%} of the prompts' tokens came from the prefix cache")
    if any(len(gaps) < 2 for result in results for gaps in result["itls"]) and tokens > 2:
        marks.append("an answer came in one chunk: its rate is unknown (a proxy that buffers?)")
    return marks


def run(server: Server, bench: Bench, settings: Settings, say: Callable[[str], None]) -> Result:
    """Measure; ``say`` gets a line at each step. Raises ``ProbeError``."""
    try:
        return _run(server, bench, settings, say)
    except BaseException as interrupt:
        interrupt.add_note("no measurement was completed")
        raise


def _run(server: Server, bench: Bench, settings: Settings, say: Callable[[str], None]) -> Result:
    source = prompts(secrets.token_hex(8))
    say(f"warming up {server.model} (not measured)")
    granted = server.try_rules(next(source)[1], min(settings.tokens, 32))
    before = server.prefix_cache()
    results: list[dict[str, Any]] = []
    rounds: dict[int, list[Row]] = {}
    for number in range(settings.rounds):
        for streams in settings.streams:
            count = settings.count(streams)
            of = f", round {number + 1} of {settings.rounds}" if settings.rounds > 1 else ""
            say(f"{count} requests of {settings.tokens} tokens, {streams} at a time{of}")
            kinds, texts = zip(*itertools.islice(source, count), strict=True)
            result = bench.run(server, settings, streams, texts, granted.extras)
            rounds.setdefault(streams, []).append(summarise(streams, kinds, result))
            results.append(result)
    after, cached = server.prefix_cache(), 0.0
    if before is not None and after is not None and after[0] > before[0]:
        cached = (after[1] - before[1]) / (after[0] - before[0])
    say("requesting a tool call")
    works, seen = server.call_tool(granted.extras)
    return Result(
        url=server.url,
        model=server.model,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        rows=[middle(rows) for rows in rounds.values()],
        marks=marks_of(granted, results, settings.tokens, cached),
        tool_call=ToolCall(works=works, seen=seen),
    )


Ratios = dict[str, float | None]
"""Figures divided by those of an earlier measurement; None: one is unknown."""


def compare(now: Result, before: Result) -> tuple[dict[int, Ratios], list[str]]:
    """The ratios of the rows that both have, by streams, and why they may not be comparable."""

    def ratio(new: float | None, old: float | None) -> float | None:
        return new / old if new is not None and old else None

    old = {row.streams: row for row in before.rows}
    ratios = {
        row.streams: {
            name: ratio(getattr(row, name), getattr(old[row.streams], name))
            for name in ("rate", "total", "ttft")
        }
        for row in now.rows
        if row.streams in old
    }
    warnings = []
    for what, mine, theirs in (
        ("model", now.model, before.model),
        ("tokens of an answer", now.settings.tokens, before.settings.tokens),
        ("marks", "; ".join(now.marks) or "none", "; ".join(before.marks) or "none"),
    ):
        if mine != theirs:
            warnings.append(f"measured differently: {what}: {mine} now, {theirs} before")
    if not ratios:
        warnings.append("no number of streams was measured in both")
    return ratios, warnings


def save(result: Result, file: Path) -> None:
    """Write a measurement for ``load``. Raises ``UsageError``."""
    try:
        file.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror}", hint="--save names a file"
        ) from error


def load(file: Path) -> Result:
    """A saved measurement. Raises ``UsageError``."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}", hint="--compare names what --save wrote"
        ) from error
    except ValidationError:
        raise UsageError(
            f"{file} is not a saved measurement of this version", hint="write a new one with --save"
        ) from None
