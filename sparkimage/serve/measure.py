"""How fast a server of models is: measured so that the number is honest, and compared.

Four rules: no prompt was seen before (a prefix cache would answer), tokens are counted by the
server (a chunk may hold several), no answer ends early (`ignore_eos`), and thinking is off.
"""

from __future__ import annotations

import json
import math
import random
import secrets
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparkimage.core.errors import ProbeError, UsageError
from sparkimage.serve.completions import Answer, Refusal, Server

VERSION = 1
"""Of the saved form."""
WORDS = (
    "river", "stone", "lantern", "garden", "window", "copper", "silver", "morning", "harbor",
    "letter", "engine", "valley", "orchard", "needle", "bridge", "candle", "forest", "marble",
    "velvet", "thunder", "anchor", "saddle", "pepper", "ribbon", "compass",
)  # fmt: skip
PROMPT_WORDS = 200


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    streams: tuple[int, ...] = (1, 8)
    tokens: int = 256
    """Of each answer."""
    requests: int = 0
    """Of each number of streams; 0: two for each stream, and three at least."""
    rounds: int = 1

    def count(self, streams: int) -> int:
        """Requests to make with so many streams."""
        return max(self.requests or max(3, 2 * streams), streams)


@dataclass(frozen=True, kw_only=True)
class Row:
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


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measurement."""

    url: str
    model: str
    when: str
    settings: Settings
    rows: tuple[Row, ...]
    marks: tuple[str, ...]
    """What the numbers lack of being honest."""
    tool_works: bool
    tool_seen: str

    def to_dict(self) -> dict[str, Any]:
        """For machines, and for a later comparison."""
        return {
            "probe": VERSION,
            "url": self.url,
            "model": self.model,
            "when": self.when,
            "settings": {
                "streams": list(self.settings.streams),
                "tokens": self.settings.tokens,
                "rounds": self.settings.rounds,
            },
            "rows": [
                {one.name: getattr(row, one.name) for one in fields(Row)} for row in self.rows
            ],
            "marks": list(self.marks),
            "tool_call": {"works": self.tool_works, "seen": self.tool_seen},
        }


def prompts(chance: random.Random, nonce: str) -> Iterator[str]:
    """Prompts without end, no two of which begin alike; ``nonce`` makes them those of one run."""
    number = 0
    while True:
        words = " ".join(chance.choice(WORDS) for _ in range(PROMPT_WORDS))
        yield f"{nonce}-{number:06x} {words}\nWrite a long story that uses these words."
        number += 1


def parse_streams(given: str) -> tuple[int, ...]:
    """Numbers of streams from ``1,8``, in order, none twice. Raises ``UsageError``."""
    try:
        found = tuple(sorted({int(word) for word in given.split(",")}))
    except ValueError as error:
        raise UsageError(f"--streams {given!r} is no list of numbers", hint="1,8") from error
    if found[0] < 1 or found[-1] > 1024:
        raise UsageError(f"--streams {given!r}: each is from 1 to 1024", hint="1,8")
    return found


def summarise(streams: int, answers: Sequence[Answer]) -> Row:
    """The figures of answers that were made by ``streams`` at a time."""
    seconds = max(one.last for one in answers) - min(one.asked for one in answers)
    counts = [answer.tokens for answer in answers]
    known = [count for count in counts if count is not None]
    tokens = sum(known) if len(known) == len(counts) else None
    rates = [
        (answer.tokens - 1) / (answer.last - answer.first)
        for answer in answers
        if answer.tokens is not None and answer.tokens > 1 and answer.last > answer.first
    ]
    waits = sorted(answer.first - answer.asked for answer in answers)
    return Row(
        streams=streams,
        requests=len(answers),
        tokens=tokens,
        rate=statistics.median(rates) if rates else None,
        total=tokens / seconds if tokens is not None and seconds > 0 else None,
        ttft=statistics.median(waits),
        ttft_p95=waits[math.ceil(0.95 * len(waits)) - 1],
        seconds=seconds,
    )


def middle(rows: Sequence[Row]) -> Row:
    """The median of each figure over rounds."""

    def median(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if len(known) == len(values) else None

    return Row(
        streams=rows[0].streams,
        requests=sum(row.requests for row in rows),
        tokens=sum(row.tokens or 0 for row in rows) if rows[0].tokens is not None else None,
        rate=median([row.rate for row in rows]),
        total=median([row.total for row in rows]),
        ttft=statistics.median([row.ttft for row in rows]),
        ttft_p95=statistics.median([row.ttft_p95 for row in rows]),
        seconds=sum(row.seconds for row in rows),
    )


def marks_of(server: Server, answers: Sequence[Answer], tokens: int) -> tuple[str, ...]:
    """What the answers lack of the four rules, in words."""
    marks = []
    if "ignore_eos" in server.without:
        marks.append("ignore_eos is refused: answers end when the model likes, lengths differ")
    short = sum(a.tokens is not None and a.tokens < tokens for a in answers)
    if short and "ignore_eos" not in server.without:
        marks.append(f"ignore_eos is not heeded: {short} of {len(answers)} answers ended early")
    if any(answer.tokens is None for answer in answers):
        marks.append("no usage: tokens cannot be counted, for chunks are no tokens")
    if any(answer.thought for answer in answers):
        marks.append("thinking could not be turned off: it counts as text")
    elif "chat_template_kwargs" in server.without:
        marks.append("chat_template_kwargs is refused: whether the model thinks is its own affair")
    cached = sum(
        answer.prompt_tokens is not None and answer.cached_tokens > answer.prompt_tokens / 4
        for answer in answers
    )
    if cached:
        marks.append(f"{cached} of {len(answers)} prompts came from the prefix cache")
    if any(answer.chunks == 1 and (answer.tokens or 2) > 1 for answer in answers):
        marks.append("an answer came in one piece: its rate is not known (a proxy that buffers?)")
    return tuple(marks)


def run(server: Server, settings: Settings, say: Callable[[str], None]) -> Result:
    """Measure. ``say`` is told what is being done. Raises ``ProbeError``."""
    try:
        return _run(server, settings, say)
    except BaseException as interrupt:
        server.stop.set()
        interrupt.add_note("nothing was measured to its end")
        raise


def _run(server: Server, settings: Settings, say: Callable[[str], None]) -> Result:
    source = prompts(random.Random(), secrets.token_hex(8))
    say(f"warming up {server.model} (not counted)")
    server.settle(next(source), min(settings.tokens, 32))
    answers: list[Answer] = []
    rounds: dict[int, list[Row]] = {}
    for number in range(settings.rounds):
        for streams in settings.streams:
            count = settings.count(streams)
            of = f", round {number + 1} of {settings.rounds}" if settings.rounds > 1 else ""
            say(f"{count} requests of {settings.tokens} tokens, {streams} at a time{of}")
            came = _together(server, [next(source) for _ in range(count)], settings, streams)
            rounds.setdefault(streams, []).append(summarise(streams, came))
            answers += came
    say("asking for a tool call")
    works, seen = server.call_tool()
    return Result(
        url=server.url,
        model=server.model,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        rows=tuple(middle(rows) for rows in rounds.values()),
        marks=marks_of(server, answers, settings.tokens),
        tool_works=works,
        tool_seen=seen,
    )


def _together(
    server: Server, todo: Sequence[str], settings: Settings, streams: int
) -> list[Answer]:
    """The answers to these prompts, so many at a time. Raises the first error of any."""
    left, answers = list(todo), list[Answer]()
    errors: list[Exception] = []
    lock, start = threading.Lock(), threading.Barrier(streams)

    def work() -> None:
        try:
            # The time to the first token is the server's: connected is everybody before.
            server.models()
            start.wait()
            while not server.stop.is_set():
                with lock:
                    if not left:
                        return
                    prompt = left.pop()
                answer = server.ask(prompt, settings.tokens)
                with lock:
                    answers.append(answer)
        except (ProbeError, Refusal) as error:
            with lock:
                errors.append(error)
            server.stop.set()
            start.abort()
        except threading.BrokenBarrierError:
            return

    # Daemons: one that hangs must not keep an interrupted program from its end.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors:
            thread.join(0.1)
    if errors:
        first = errors[0]
        raise server.explain(first) if isinstance(first, Refusal) else first
    return answers


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A measurement beside an earlier one: ratios, 1 for as before; None: one is unknown."""

    streams: int
    rate: float | None
    total: float | None
    ttft: float | None

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {one.name: getattr(self, one.name) for one in fields(Comparison)}


def compare(now: Result, before: Result) -> tuple[list[Comparison], list[str]]:
    """The ratios of the rows that both have, and why they may not compare."""

    def ratio(new: float | None, old: float | None) -> float | None:
        return new / old if new is not None and old else None

    old = {row.streams: row for row in before.rows}
    ratios = [
        Comparison(
            streams=row.streams,
            rate=ratio(row.rate, old[row.streams].rate),
            total=ratio(row.total, old[row.streams].total),
            ttft=ratio(row.ttft, old[row.streams].ttft),
        )
        for row in now.rows
        if row.streams in old
    ]
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
        file.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror}", hint="--save names a file"
        ) from error


def load(file: Path) -> Result:
    """A saved measurement. Raises ``UsageError``."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["probe"] != VERSION:
            raise ValueError("another version")
        return Result(
            url=str(held["url"]),
            model=str(held["model"]),
            when=str(held["when"]),
            settings=Settings(
                streams=tuple(held["settings"]["streams"]),
                tokens=int(held["settings"]["tokens"]),
                rounds=int(held["settings"]["rounds"]),
            ),
            rows=tuple(_row(row) for row in held["rows"]),
            marks=tuple(str(mark) for mark in held["marks"]),
            tool_works=bool(held["tool_call"]["works"]),
            tool_seen=str(held["tool_call"]["seen"]),
        )
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}", hint="--compare names a file of --save"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is no saved measurement", hint="--compare names a file of --save"
        ) from error


def _row(held: dict[str, Any]) -> Row:
    figures = {one.name: held[one.name] for one in fields(Row)}
    if not all(value is None or isinstance(value, int | float) for value in figures.values()):
        raise ValueError("no figures")
    return Row(**figures)
