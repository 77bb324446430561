"""`probe` against a stand-in of vLLM's API, which has every habit that makes a number a lie."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import ProbeError, UsageError
from sparkimage.serve import completions, measure
from tests.lab.command import PROGRAM, call
from tests.lab.standin_vllm.api import NO_TOOLS, Behaviour, Server

QUICK = measure.Settings(streams=(1, 4), tokens=24)
SECRET = "only-for-the-lab"
Lab = Callable[..., Server]


@pytest.fixture
def standin() -> Iterator[Lab]:
    """Starts stand-ins, and ends them."""
    started: list[Server] = []

    def start(**behaviour: Any) -> Server:
        server = Server(Behaviour(**behaviour))
        started.append(server.__enter__())
        return server

    yield start
    for server in started:
        server.__exit__()


def measured(server: Server, settings: measure.Settings = QUICK) -> measure.Result:
    client = completions.Server(url=server.url, patience_s=10.0)
    client.model = client.models()[0]
    return measure.run(client, settings, lambda _: None)


def probe(server: Server, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **more}
    return call(["probe", "--url", server.url, *words], environment)


def test_the_four_rules_are_kept(standin: Lab) -> None:
    server = standin(burst=3)
    result = measured(server)
    asked = [one for one in server.asked if "tools" not in one]
    # Unique: no two prompts are the same, or begin alike, the warm-up's included.
    texts = [one["messages"][0]["content"] for one in asked]
    assert len(texts) == 1 + 3 + 8
    assert len({text.split()[0] for text in texts}) == len(texts)
    assert len({tuple(text.split()[1:9]) for text in texts}) == len(texts)
    # Counted by the server: a chunk held three tokens.
    counted = sum(row.tokens or 0 for row in result.rows)
    assert counted == (3 + 8) * 24
    assert server.chunks < counted
    # No early end, and no thinking.
    assert all(one["ignore_eos"] is True and one["max_tokens"] == 24 for one in asked[1:])
    assert all(one["stream_options"] == {"include_usage": True} for one in asked)
    assert all(
        one["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        for one in server.asked
    )
    assert result.marks == ()
    # The warm-up is not counted, rows are those that were asked for.
    assert [(row.streams, row.requests) for row in result.rows] == [(1, 3), (4, 8)]
    for row in result.rows:
        assert row.rate is not None
        assert row.total is not None
        assert row.ttft_p95 >= row.ttft > 0
    assert (result.tool_works, result.tool_seen) == (True, "get_weather(city='Berlin')")


@pytest.mark.parametrize(
    ("behaviour", "mark"),
    [
        ({"knows_ignore_eos": False}, "ignore_eos is not heeded: 11 of 11 answers ended early"),
        ({"refuses": ("ignore_eos",)}, "ignore_eos is refused"),
        ({"refuses": ("stream_options",)}, "no usage"),
        ({"usage": False}, "no usage"),
        ({"refuses": ("chat_template_kwargs",)}, "thinking could not be turned off"),
        ({"refuses": ("chat_template_kwargs",), "thinks": False}, "is its own affair"),
    ],
)
def test_what_a_server_does_not_grant_is_said(
    standin: Lab, behaviour: dict[str, Any], mark: str
) -> None:
    result = measured(standin(**behaviour))
    assert any(mark in one for one in result.marks), result.marks


def test_without_usage_there_is_no_rate(standin: Lab) -> None:
    server = standin(usage=False)
    for row in measured(server).rows:
        assert (row.tokens, row.rate, row.total) == (None, None, None)
        assert row.ttft > 0
    done = probe(server, "--streams", "1", "--tokens", "8")
    assert done.returncode == 0
    assert "unknown" in done.stdout
    assert "! no usage: tokens cannot be counted" in done.stdout


def test_a_prefix_cache_would_be_noticed(standin: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(*_: object) -> Iterator[str]:
        while True:
            yield "the same words again and again"

    monkeypatch.setattr(measure, "prompts", same)
    marks = measured(standin(), measure.Settings(streams=(1,), tokens=4)).marks
    assert marks == ("3 of 3 prompts came from the prefix cache",)


def test_an_answer_in_one_piece_has_no_rate(standin: Lab) -> None:
    whole = {"choices": [{"delta": {"content": "all of it"}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": 8}}
    raw = "".join(f"data: {json.dumps(event)}\n\n" for event in (whole, usage))
    server = standin(always="raw", raw=f"{raw}data: [DONE]\n\n".encode())
    result = measured(server, measure.Settings(streams=(1,), tokens=8))
    (row,) = result.rows
    assert (row.tokens, row.rate) == (24, None)
    assert row.total is not None
    (mark,) = result.marks
    assert mark.startswith("an answer came in one piece")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("429", "refuses with status 429"),
        ("500", "refuses with status 500"),
        ("503", "refuses with status 503"),
        ("cut", "broke off"),
        ("error", "broke off an answer with an error"),
        ("garbage", "does not answer as an OpenAI-compatible server does"),
        ("hang", "no sign of life for too long"),
    ],
)
def test_a_fault_ends_it_with_a_word_and_without_a_number(
    standin: Lab, fault: str, words: str
) -> None:
    for always, faults in ((fault, []), ("", ["", "", fault])):
        server = standin(always=always, faults=list(faults))
        done = probe(server, "--tokens", "8", "--patience", "1", "--json")
        assert done.returncode == 20, done.stderr
        assert words in done.stderr
        assert "→ " in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


EVENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "usage", "completion_tokens", "error", "finish_reason",
             "prompt_tokens_details", "cached_tokens", "reasoning_content"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope="module")
def streaming() -> Iterator[Server]:
    """A server whose streams consist of what a test says."""
    with Server(Behaviour(always="raw")) as server:
        yield server


@given(
    events=st.lists(EVENTS.map(lambda one: b"data: " + json.dumps(one).encode()), max_size=3),
    rest=st.binary(max_size=30),
    ended=st.booleans(),
)
def test_whatever_a_stream_holds_is_an_answer_or_an_error(
    streaming: Server, events: list[bytes], rest: bytes, ended: bool
) -> None:
    raw = b"\n\n".join([*events, rest, b"data: [DONE]" if ended else b"", b""])
    streaming.behaviour.raw = raw
    client = completions.Server(url=streaming.url, model="standin", patience_s=10.0)
    answer = None
    # Nothing else may come out of it.
    with contextlib.suppress(ProbeError):
        answer = client.ask("one", 8)
    assert answer is None or (ended and answer.chunks > 0)


def test_an_interrupt_ends_it_at_once(standin: Lab) -> None:
    server = standin(faults=[""], always="hang")
    process = subprocess.Popen(
        [*PROGRAM, "probe", "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "warming up" in process.stderr.readline()
    assert "3 requests of 256 tokens" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said[0] == ""
    assert "interrupted: nothing was measured to its end" in said[1]


def test_a_server_that_is_not_there_is_said() -> None:
    server = Server()
    server.server_close()
    done = probe(server)
    assert done.returncode == 20
    assert "cannot be reached" in done.stderr
    assert "→ is the server ready? python build.py status" in done.stderr


def test_the_key_comes_from_the_environment_alone(standin: Lab) -> None:
    server = standin(api_key=SECRET)
    refused = probe(server, "--tokens", "8")
    assert refused.returncode == 20
    assert "SPARKIMAGE_API_KEY" in refused.stderr
    done = probe(server, "--tokens", "8", "--streams", "1", "--json", SPARKIMAGE_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    with pytest.raises(UsageError):
        completions.parse_url(f"http://user:{SECRET}@127.0.0.1:8000")


def test_a_tool_call_that_does_not_work_says_what_came(standin: Lab) -> None:
    result = measured(standin(tools=False), measure.Settings(streams=(1,), tokens=4))
    assert not result.tool_works
    assert NO_TOOLS in result.tool_seen
    done = probe(standin(tools=False), "--tokens", "8", "--streams", "1")
    assert done.returncode == 0
    assert "✗ tool call: refused with 400" in done.stdout


def test_a_table_is_for_people_and_json_for_machines(standin: Lab, tmp_path: Path) -> None:
    server, file = standin(), tmp_path / "before.json"
    first = probe(server, "--tokens", "8", "--streams", "1,2", "--save", str(file))
    assert first.returncode == 0, first.stderr
    assert "standin at http://127.0.0.1:" in first.stdout
    assert "tok/s each" in first.stdout
    assert "✓ tool call: get_weather" in first.stdout
    assert "warming up standin (not counted)" in first.stderr
    assert all(len(line) <= 80 for line in first.stdout.splitlines())
    saved = json.loads(file.read_text())
    assert [row["streams"] for row in saved["rows"]] == [1, 2]
    done = probe(
        server, "--tokens", "8", "--streams", "2,4", "--rounds", "3", "--compare", str(file),
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert [(row["streams"], row["requests"]) for row in said["rows"]] == [(2, 12), (4, 24)]
    assert [one["streams"] for one in said["compared"]["ratios"]] == [2]
    assert said["compared"]["with"] == saved["when"]
    assert said["compared"]["warnings"] == []
    beside = probe(server, "--tokens", "9", "--streams", "1", "--compare", str(file))
    assert "x)" in beside.stdout
    assert "! not measured alike: tokens of an answer: 9 now, 8 then" in beside.stdout


def test_a_model_that_is_not_served_is_refused(standin: Lab) -> None:
    done = probe(standin(model="one"), "--model", "two")
    assert done.returncode == 2
    assert "does not serve two" in done.stderr
    assert "→ it serves one" in done.stderr


def test_the_first_error_of_several_streams_is_the_one_that_is_shown(standin: Lab) -> None:
    server = standin(faults=["", "500", "hang", "hang", "hang"])
    client = completions.Server(url=server.url, model="standin", patience_s=20.0)
    with pytest.raises(ProbeError, match="refuses with status 500"):
        measure.run(client, measure.Settings(streams=(4,), tokens=8), lambda _: None)
