"""The figures of a measurement, and what is compared with what."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.core.errors import UsageError
from sparkimage.serve import completions, measure
from sparkimage.serve.completions import Answer


def answer(**more: Any) -> Answer:
    return Answer(
        **{
            "asked": 10.0, "first": 10.5, "last": 12.5, "tokens": 101, "prompt_tokens": 200,
            "cached_tokens": 0, "chunks": 34, "thought": False, "reason": "length", **more,
        }
    )  # fmt: skip


def row(**more: Any) -> measure.Row:
    return measure.Row(
        **{
            "streams": 1, "requests": 3, "tokens": 30, "rate": 50.0, "total": 40.0, "ttft": 0.2,
            "ttft_p95": 0.3, "seconds": 1.0, **more,
        }
    )  # fmt: skip


def result(*rows: measure.Row, **more: Any) -> measure.Result:
    return measure.Result(
        **{
            "url": "http://one:8000", "model": "one", "when": "2026-08-01T00:00:00+00:00",
            "settings": measure.Settings(), "rows": rows, "marks": (), "tool_works": True,
            "tool_seen": "", **more,
        }
    )  # fmt: skip


def test_a_rate_is_without_the_first_token_and_a_total_with_all_waiting() -> None:
    came = [answer(), answer(asked=11.0, first=12.0, last=14.0)]
    got = measure.summarise(2, came)
    assert got.rate == 50.0
    assert (got.tokens, got.seconds, got.total) == (202, 4.0, 50.5)
    assert (got.ttft, got.ttft_p95) == (0.75, 1.0)
    # Pieces are no tokens: twice as many change nothing.
    assert measure.summarise(2, [answer(chunks=101), came[1]]) == got


def test_what_is_not_known_is_none() -> None:
    got = measure.summarise(2, [answer(), answer(tokens=None)])
    assert (got.tokens, got.total) == (None, None)
    assert measure.summarise(1, [answer(first=12.5)]).rate is None
    assert measure.middle([row(), row(rate=None)]).rate is None


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200))
def test_of_any_waits_the_median_is_not_above_the_p95(waits: list[float]) -> None:
    came = [answer(asked=0.0, first=wait, last=wait + 1) for wait in waits]
    got = measure.summarise(1, came)
    assert min(waits) <= got.ttft <= max(waits)
    assert got.ttft_p95 <= max(waits)
    assert sum(wait <= got.ttft_p95 for wait in waits) >= 0.95 * len(waits)


def test_rounds_give_medians() -> None:
    got = measure.middle([row(rate=1.0, ttft=9.0), row(rate=5.0, ttft=1.0), row(rate=3.0)])
    assert (got.rate, got.ttft, got.requests) == (3.0, 1.0, 9)


@settings(max_examples=25)
@given(st.integers(), st.integers())
def test_prompts_never_begin_alike(first: int, second: int) -> None:
    texts = [
        *itertools.islice(measure.prompts(random.Random(first), "a" * 16), 20),
        *itertools.islice(measure.prompts(random.Random(second), "b" * 16), 20),
    ]
    assert len({text.split()[0] for text in texts}) == len(texts)


def test_marks_say_what_a_server_lacks() -> None:
    server = completions.Server(url="http://one")
    assert measure.marks_of(server, [answer()], 101) == ()
    assert "3 of 3" not in str(measure.marks_of(server, [answer(cached_tokens=40)] * 3, 101))
    (cached,) = measure.marks_of(server, [answer(cached_tokens=60)] * 3, 101)
    assert cached.startswith("3 of 3 prompts came from the prefix cache")
    (early,) = measure.marks_of(server, [answer(tokens=7), answer()], 101)
    assert early == "ignore_eos is not heeded: 1 of 2 answers ended early"
    (one,) = measure.marks_of(server, [answer(chunks=1)], 101)
    assert "in one piece" in one


def test_a_comparison_is_of_the_rows_that_both_have() -> None:
    ratios, warnings = measure.compare(
        result(row(rate=60.0, ttft=0.1), row(streams=8)),
        result(row(total=None), row(streams=4), model="two"),
    )
    (one,) = ratios
    assert (one.streams, one.rate, one.total, one.ttft) == (1, 1.2, None, 0.5)
    assert warnings == ["not measured alike: model: one now, two then"]
    assert measure.compare(result(row()), result(row(streams=2)))[1] == [
        "no number of streams was measured both times"
    ]


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    measure.save(result(row(rate=None), marks=("one",)), file)
    assert measure.load(file) == result(row(rate=None), marks=("one",))


@pytest.mark.parametrize("change", [{"probe": 2}, {"rows": [{}]}, {"settings": 3}, {"rows": 3}])
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "one.json"
    file.write_text(json.dumps({**result(row()).to_dict(), **change}))
    with pytest.raises(UsageError, match="no saved measurement"):
        measure.load(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"probe": 1}'])
def test_no_measurement_at_all_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "one.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="no saved measurement"):
        measure.load(file)
    with pytest.raises(UsageError, match="cannot be read"):
        measure.load(tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        measure.save(result(row()), tmp_path)


@pytest.mark.parametrize(("given_", "wanted"), [("8,1,8", (1, 8)), ("4", (4,)), ("1, 2", (1, 2))])
def test_streams_are_numbers(given_: str, wanted: tuple[int, ...]) -> None:
    assert measure.parse_streams(given_) == wanted


@pytest.mark.parametrize("wrong", ["", "0", "1,,2", "many", "2000", "-1"])
def test_other_streams_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        measure.parse_streams(wrong)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ("http://one:8000", "http://one:8000"),
        ("http://one:8000/v1/", "http://one:8000"),
        ("https://one/models/v1", "https://one/models"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_addresses_are_taken_with_or_without_v1(given_: str, wanted: str) -> None:
    assert completions.parse_url(given_) == wanted


@pytest.mark.parametrize(
    "wrong",
    ["one:8000", "ftp://one", "http://", "http://one:port", "http://u:p@one", "http://a?k=1"],
)
def test_other_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        completions.parse_url(wrong)


def call(**function: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"tool_calls": [{"function": function}]}}]}


@pytest.mark.parametrize(
    ("said", "works", "seen"),
    [
        (call(name="get_weather", arguments='{"city": "Berlin"}'), True, "city='Berlin'"),
        (call(name="other", arguments="{}"), False, "another tool"),
        (call(name="get_weather", arguments="{}"), False, "lacks the argument"),
        (call(name="get_weather", arguments='{"city": 3}'), False, "lacks the argument"),
        (call(name="get_weather", arguments='{"city": "Ber'), False, "no JSON"),
        (call(name="get_weather"), False, "no JSON"),
        ({"choices": [{"message": {"content": "<tool_call>{}"}}]}, False, "'<tool_call>{}'"),
        ({"choices": []}, False, "no message"),
        ({"choices": [{"message": 3}]}, False, "no message"),
        ({}, False, "no message"),
    ],
)
def test_a_tool_call_is_judged(said: dict[str, Any], works: bool, seen: str) -> None:
    judged = completions.judge_tool_call(said)
    assert judged[0] is works
    assert seen in judged[1]
