"""The figures of a measurement, and what is compared with what."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import UsageError
from sparkimage.serve import measure, openai_api
from sparkimage.serve.openai_api import Granted

REAL = json.loads(Path(__file__).with_name("bench_result.json").read_text())
"""What vLLM 0.32.0's own `vllm bench serve` wrote of six requests to the stand-in of the tests."""
GRANTED = Granted(extras={}, refused=(), thinks=False)


def bench(*waits: float, **more: Any) -> dict[str, Any]:
    """A result of `vllm bench serve`, of answers that began after these seconds."""
    count = len(waits)
    return {
        "duration": 4.0, "completed": count, "output_throughput": 101 * count / 4.0,
        "output_lens": [101] * count, "ttfts": list(waits), "itls": [[0.5] * 4] * count,
        "generated_texts": ["text"] * count, "errors": [""] * count, **more,
    }  # fmt: skip


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
            "settings": measure.Settings(), "rows": list(rows), "marks": [],
            "tool_call": measure.ToolCall(works=True, seen=""), **more,
        }
    )  # fmt: skip


def test_a_rate_is_without_the_first_token_and_a_total_with_all_waiting() -> None:
    got = measure.summarise(2, ["one", "two"], bench(0.5, 1.0))
    assert (got.rate, got.kinds) == (50.0, {"one": 50.0, "two": 50.0})
    assert (got.tokens, got.seconds, got.total) == (202, 4.0, 50.5)
    assert (got.ttft, got.ttft_p95) == (0.75, 1.0)
    assert (got.acceptance, got.acceptance_length) == (None, None)
    # Pieces are no tokens: more of them in the same time change nothing.
    assert measure.summarise(2, ["one", "two"], bench(0.5, 1.0, itls=[[0.25] * 8] * 2)) == got
    drafts = {"spec_decode_acceptance_rate": 60.0, "spec_decode_acceptance_length": 2.8}
    got = measure.summarise(2, ["one", "two"], bench(0.5, 1.0, **drafts))
    assert (got.acceptance, got.acceptance_length) == (60.0, 2.8)


def test_the_result_of_real_vllm_is_read() -> None:
    got = measure.summarise(2, ["mail"] * 6, REAL)
    assert (got.requests, got.tokens) == (6, 6 * 24)
    # Of a server that gave 100 tokens a second after 200 ms, in chunks of three.
    assert got.rate == pytest.approx(100, rel=0.01)
    assert got.ttft == pytest.approx(0.2, rel=0.05)
    assert got.acceptance_length == pytest.approx(24 / 9)
    assert got.total == REAL["output_throughput"]
    assert 0 < got.ttft <= got.ttft_p95 == max(REAL["ttfts"])
    assert measure.marks_of(GRANTED, [REAL], 24, 0.0) == []


def test_what_is_not_known_is_none() -> None:
    # vLLM takes one token for each answer that was not counted, when it has no tokenizer.
    got = measure.summarise(2, ["one", "two"], bench(0.5, 1.0, output_lens=[1, 1]))
    assert (got.tokens, got.rate, got.total) == (None, None, None)
    assert measure.summarise(1, ["one"], bench(0.5, itls=[[]])).rate is None
    assert measure.middle([row(), row(rate=None)]).rate is None


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=200))
def test_of_any_waits_the_median_is_not_above_the_p95(waits: list[float]) -> None:
    got = measure.summarise(1, ["one"] * len(waits), bench(*waits))
    assert min(waits) <= got.ttft <= max(waits)
    assert got.ttft_p95 <= max(waits)
    assert sum(wait <= got.ttft_p95 for wait in waits) >= 0.95 * len(waits)


def test_rounds_give_medians() -> None:
    rows = [row(rate=1.0, ttft=9.0, kinds={"mail": 1.0}), row(rate=5.0, ttft=1.0), row(rate=3.0)]
    got = measure.middle(rows)
    assert (got.rate, got.ttft, got.requests, got.kinds) == (3.0, 1.0, 9, {"mail": 1.0})


def test_prompts_are_of_all_kinds_and_never_begin_alike() -> None:
    taken = [list(itertools.islice(measure.prompts(nonce), 20)) for nonce in ("a" * 16, "b" * 16)]
    texts = [text for run in taken for _, text in run]
    assert len({text.split()[0] for text in texts}) == len(texts)
    kinds = {kind for kind, _ in taken[0]}
    assert len(kinds) == len(measure.battery()) == 9
    assert measure.Settings().count(1) == 9
    assert measure.Settings().count(8) == 18
    assert measure.Settings(requests=3).count(8) == 8


def test_marks_say_what_a_server_lacks() -> None:
    def marks(result: dict[str, Any], granted: Granted = GRANTED, cached: float = 0.0) -> list[str]:
        return measure.marks_of(granted, [result], 101, cached)

    assert marks(bench(0.5)) == []
    assert marks(bench(0.5), cached=0.2) == []
    assert marks(bench(0.5), cached=0.6) == [
        "60% of the prompts' tokens came from the prefix cache"
    ]
    assert marks(bench(0.5, 0.5, output_lens=[7, 101])) == [
        "ignore_eos is ignored: 1 of 2 answers ended early"
    ]
    refused = Granted(extras={}, refused=("ignore_eos", "chat_template_kwargs"), thinks=False)
    eos, thinking = marks(bench(0.5, output_lens=[7]), refused)
    assert eos.startswith("ignore_eos is rejected")
    assert thinking.startswith("chat_template_kwargs is rejected")
    thinks = Granted(extras={}, refused=(), thinks=True)
    assert marks(bench(0.5), thinks) == marks(bench(0.5, generated_texts=[""]))
    assert marks(bench(0.5, output_lens=[1]))[0].startswith("no usage")
    (one,) = marks(bench(0.5, itls=[[0.0]]))
    assert "in one chunk" in one


def test_a_comparison_is_of_the_rows_that_both_have() -> None:
    ratios, warnings = measure.compare(
        result(row(rate=60.0, ttft=0.1), row(streams=8)),
        result(row(total=None), row(streams=4), model="two"),
    )
    assert ratios == {1: {"rate": 1.2, "total": None, "ttft": 0.5}}
    assert warnings == ["measured differently: model: one now, two before"]
    assert measure.compare(result(row()), result(row(streams=2)))[1] == [
        "no number of streams was measured in both"
    ]


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    measure.save(result(row(rate=None), marks=["one"]), file)
    assert measure.load(file) == result(row(rate=None), marks=["one"])


@pytest.mark.parametrize("change", [{"probe": 1}, {"rows": [{}]}, {"settings": 3}, {"rows": 3}])
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "one.json"
    file.write_text(json.dumps({**result(row()).model_dump(mode="json"), **change}))
    with pytest.raises(UsageError, match="not a saved measurement"):
        measure.load(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"probe": 2}'])
def test_no_measurement_at_all_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "one.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="not a saved measurement"):
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
    assert openai_api.parse_url(given_) == wanted


@pytest.mark.parametrize(
    "wrong",
    ["one:8000", "ftp://one", "http://", "http://one:port", "http://u:p@one", "http://a?k=1"],
)
def test_other_addresses_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        openai_api.parse_url(wrong)


def call(**function: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"tool_calls": [{"function": function}]}}]}


@pytest.mark.parametrize(
    ("said", "works", "seen"),
    [
        (call(name="get_weather", arguments='{"city": "Berlin"}'), True, "city='Berlin'"),
        (call(name="other", arguments="{}"), False, "another tool"),
        (call(name="get_weather", arguments="{}"), False, "lacks the argument"),
        (call(name="get_weather", arguments='{"city": 3}'), False, "lacks the argument"),
        (call(name="get_weather", arguments='{"city": "Ber'), False, "not JSON"),
        (call(name="get_weather"), False, "not JSON"),
        ({"choices": [{"message": {"content": "<tool_call>{}"}}]}, False, "'<tool_call>{}'"),
        ({"choices": []}, False, "no message"),
        ({"choices": [{"message": 3}]}, False, "no message"),
        ({}, False, "no message"),
    ],
)
def test_a_tool_call_is_judged(said: dict[str, Any], works: bool, seen: str) -> None:
    judged = openai_api.judge_tool_call(said)
    assert judged[0] is works
    assert seen in judged[1]
