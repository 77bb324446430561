"""How fast a server of models is, as `vllm bench serve` measures it, and compared.

Four rules make the figures honest: no prompt was seen before (a prefix cache would answer), tokens
are counted by the server (a chunk may hold several), no answer ends early (`ignore_eos`), and
thinking is off. The options and the result are those of vLLM 0.25 to 0.33:
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
from sparkimage.nodes.ssh import Remote
from sparkimage.serve.openai_api import CHAT, Granted, Server, api_key

EMULATED = "vllm bench serve is emulated here, and may be slower than the server"


class Settings(Strict):
    """What is measured."""

    streams: tuple[int, ...] = (1, 8)
    """Requests at a time, a row each."""
    tokens: int = 256
    """Of each answer."""
    requests: int = 0
    """Of each row; 0: two for each stream at least, and every kind of prompt equally often."""
    rounds: int = 1

    def count(self, streams: int) -> int:
        """Requests to make with so many streams."""
        kinds = len(battery())
        return max(self.requests or kinds * math.ceil(2 * streams / kinds), streams)


class Row(Strict):
    """The figures of one number of streams. None: the server does not let it be known."""

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
    """Whether the server calls a tool when asked to, and what was seen."""

    works: bool
    seen: str


class Result(Strict):
    """A measurement."""

    probe: Literal[2] = 2
    """The version of the saved form; 1 was measured with other prompts."""
    url: str
    model: str
    when: str
    settings: Settings
    rows: list[Row]
    marks: list[str]
    """What the numbers lack of being honest."""
    tool_call: ToolCall

    def to_dict(self) -> dict[str, Any]:
        """For machines, and for a later comparison."""
        return self.model_dump(mode="json")


@cache
def battery() -> Mapping[str, str]:
    """The prompts, by the kind of work that each is."""
    with as_file(files("sparkimage") / "data" / "prompts.yaml") as path:
        prompts: dict[str, str] = yamlfile.load(path).data
        return prompts


def prompts(nonce: str) -> Iterator[tuple[str, str]]:
    """Kinds and prompts without end, no two of which begin alike; ``nonce`` is that of one run."""
    for number, (kind, text) in enumerate(itertools.cycle(battery().items())):
        yield kind, f"{nonce}-{number:06x}: {text}"


def parse_streams(given: str) -> tuple[int, ...]:
    """Numbers of streams from ``1,8``, in order, none twice. Raises ``UsageError``."""
    try:
        found = tuple(sorted({int(word) for word in given.split(",")}))
    except ValueError as error:
        raise UsageError(f"--streams {given!r} is no list of numbers", hint="1,8") from error
    if found[0] < 1 or found[-1] > 1024:
        raise UsageError(f"--streams {given!r}: each is from 1 to 1024", hint="1,8")
    return found


@dataclass(kw_only=True)
class Bench:
    """`vllm bench serve` in a container."""

    runner: Local | Remote
    """What runs ``command``: this machine, or the node that serves."""
    command: Sequence[str]
    """Begins a shell in the container: `docker exec -i ID sh`, `docker run … sh`."""
    kill: Sequence[str]
    """Begins a shell that can end it there; empty: it ends with ``command``."""
    url: str
    """The server's address in there."""
    timeout_s: float
    """Of one row."""
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    def run(
        self, server: Server, settings: Settings, streams: int, texts: Sequence[str],
        extras: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """The result of vLLM for these prompts, so many at a time. Raises ``ProbeError``."""
        body = {name: value for name, value in extras.items() if name != "ignore_eos"}
        options = [
            "--backend", "openai-chat", "--base-url", self.url, "--endpoint", CHAT,
            "--model", server.model, "--skip-tokenizer-init",
            # The custom dataset that needs no pandas, which vLLM's wheel does not bring.
            "--dataset-name", "custom_image", "--disable-shuffle", "--no-oversample",
            "--num-prompts", str(len(texts)), "--max-concurrency", str(streams),
            "--custom-output-len", str(settings.tokens), "--temperature", "0",
            *(["--ignore-eos"] if "ignore_eos" in extras else []),
            *(["--extra-body", json.dumps(body)] if body else []),
            # Either would ask the first prompt before it is measured.
            "--ready-check-timeout-sec", "0", "--num-warmups", "0",
            "--disable-tqdm", "--save-result", "--save-detailed",
        ]  # fmt: skip
        rows = [{"content": [{"type": "text", "text": text}]} for text in texts]
        given = "\n".join([api_key(), *map(json.dumps, rows)]) + "\n"
        script = (files("sparkimage") / "data" / "bench.sh").read_text()
        try:
            done = self.runner.run(
                [*self.command, "-c", script, "bench.sh", self.id, *options],
                stdin=given, timeout_s=self.timeout_s,
            )  # fmt: skip
            result: dict[str, Any] = json.loads(done.stdout)
        except CommandError as error:
            raise ProbeError(
                "vllm bench serve failed in the container" if error.returncode != 124
                else f"vllm bench serve was not done after {self.timeout_s:g} s",
                detail=error.output.strip()[-1500:],
                hint="it must be vLLM 0.25 or later; fewer --requests or a longer --timeout",
            ) from None  # fmt: skip
        except ValueError:
            raise ProbeError(
                "vllm bench serve wrote no result", detail=done.stderr.strip()[-1500:]
            ) from None
        except BaseException:
            # Not handled: what runs in a container does not end with its client.
            if self.kill:
                pid = f"/tmp/sparkimage-probe-{self.id}/pid"  # made by bench.sh
                self.runner.run([*self.kill, "-c", 'kill "$(cat "$1")"', "kill", pid], check=False)
            raise
        failed = [str(error).strip()[-500:] for error in result.get("errors", ()) if error]
        if not failed and _usage(result):
            # vLLM passes over an error within a stream.
            lengths = zip(result["output_lens"], result["itls"], strict=True)
            short = sum(tokens == 1 and len(gaps) > 1 for tokens, gaps in lengths)
            failed = ["the answer broke off: no count of its tokens came"] * short
        if failed or result.get("completed") != len(texts):
            count = len(failed) or len(texts)
            raise ProbeError(
                f"{count} of {len(texts)} requests failed",
                detail=failed[0] if failed else "vllm bench serve does not say why",
                hint="look into the server's log: python build.py explain FILE",
            )
        return result


def summarise(streams: int, kinds: Sequence[str], result: Mapping[str, Any]) -> Row:
    """The figures of a row, from vLLM's result for prompts of these kinds, in order."""
    counted = _usage(result)
    rates: dict[str, list[float]] = {}
    for kind, tokens, gaps in zip(kinds, result["output_lens"], result["itls"], strict=True):
        if counted and tokens > 1 and len(gaps) > 1 and sum(gaps) > 0:
            rates.setdefault(kind, []).append((tokens - 1) / sum(gaps))
    every = list(itertools.chain(*rates.values()))
    waits = sorted(result["ttfts"])
    return Row(
        streams=streams,
        requests=len(waits),
        tokens=sum(result["output_lens"]) if counted else None,
        rate=statistics.median(every) if every else None,
        total=result["output_throughput"] if counted else None,
        ttft=statistics.median(waits),
        ttft_p95=waits[math.ceil(0.95 * len(waits)) - 1],
        seconds=result["duration"],
        acceptance=result.get("spec_decode_acceptance_rate"),
        acceptance_length=result.get("spec_decode_acceptance_length"),
        kinds={kind: statistics.median(of) for kind, of in rates.items()},
    )


def _usage(result: Mapping[str, Any]) -> bool:
    """Whether the server counted: without, and without a tokenizer, vLLM takes one for each."""
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
    """What the answers lack of the four rules, in words; ``cached``: the part of all prompts'
    tokens that came from the prefix cache."""
    marks = []
    lengths = [length for result in results for length in result["output_lens"]]
    if not all(map(_usage, results)):
        marks.append("no usage: tokens cannot be counted, for one piece may hold several")
    elif "ignore_eos" in granted.refused:
        marks.append("ignore_eos is refused: answers end when the model likes, lengths differ")
    elif short := sum(length < tokens for length in lengths):
        marks.append(f"ignore_eos is not heeded: {short} of {len(lengths)} answers ended early")
    texts = [text for result in results for text in result.get("generated_texts", ())]
    if granted.thinks or any(not text.strip() for text in texts):
        marks.append("thinking could not be turned off: it counts as text")
    elif "chat_template_kwargs" in granted.refused:
        marks.append("chat_template_kwargs is refused: whether the model thinks is its own affair")
    # A template's own words before every prompt are there each time.
    if cached > 0.25:
        marks.append(f"{cached:.0%} of the prompts' tokens came from the prefix cache")
    if any(len(gaps) < 2 for result in results for gaps in result["itls"]) and tokens > 2:
        marks.append("an answer came in one piece: its rate is not known (a proxy that buffers?)")
    return marks


def run(server: Server, bench: Bench, settings: Settings, say: Callable[[str], None]) -> Result:
    """Measure. ``say`` is told what is being done. Raises ``ProbeError``."""
    try:
        return _run(server, bench, settings, say)
    except BaseException as interrupt:
        interrupt.add_note("nothing was measured to its end")
        raise


def _run(server: Server, bench: Bench, settings: Settings, say: Callable[[str], None]) -> Result:
    source = prompts(secrets.token_hex(8))
    say(f"warming up {server.model} (not counted)")
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
    say("asking for a tool call")
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
"""Figures beside those of an earlier measurement, 1 for as before; None: one is unknown."""


def compare(now: Result, before: Result) -> tuple[dict[int, Ratios], list[str]]:
    """The ratios of the rows that both have, by their streams, and why they may not compare."""

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
            warnings.append(f"not measured alike: {what}: {mine} now, {theirs} then")
    if not ratios:
        warnings.append("no number of streams was measured both times")
    return ratios, warnings


def save(result: Result, file: Path) -> None:
    """Write a measurement for later. Raises ``UsageError``."""
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
            f"{file} is no saved measurement of this version", hint="write one anew with --save"
        ) from None
