"""`probe` against a stand-in of vLLM's API, which has every habit that makes a number a lie, and
with a stand-in for `vllm bench serve`: on this machine, and in a container of a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.core.errors import ProbeError, UsageError
from sparkimage.core.process import Local
from sparkimage.serve import measure, openai_api
from tests.lab.command import PROGRAM, call
from tests.lab.node import wait
from tests.lab.serving import measuring_image
from tests.lab.standin_nodes import BENCH
from tests.lab.standin_vllm.api import NO_TOOLS, Behaviour, Server

QUICK = measure.Settings(streams=(1, 4), tokens=24)
SECRET = "only-for-the-lab"
IMAGE = "lab/measuring:one"
Lab = Callable[..., Server]


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell of this machine is that of a container that has `vllm`."""
    monkeypatch.setenv("PATH", f"{BENCH}:{os.environ['PATH']}")


@pytest.fixture(scope="module")
def image(engine: Engine) -> Iterator[str]:
    """An image with the stand-in for vLLM."""
    process = subprocess.run(
        [*engine.docker, "import", "-", IMAGE], input=measuring_image(engine.arch), check=True,
        capture_output=True,
    )  # fmt: skip
    assert process.stdout
    yield IMAGE
    subprocess.run([*engine.docker, "image", "rm", IMAGE], check=True, capture_output=True)


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


def here(server: Server, timeout_s: float = 60.0) -> tuple[openai_api.Server, measure.Bench]:
    """What asks the server, and what measures it on this machine."""
    client = openai_api.Server(url=server.url)
    client.model = client.models()[0]
    return client, measure.Bench(
        runner=Local(), command=("sh",), kill=("sh",), url=server.url, timeout_s=timeout_s
    )


def measured(server: Server, settings: measure.Settings = QUICK) -> measure.Result:
    return measure.run(*here(server), settings, lambda _: None)


def probe(server: Server, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **more}
    return call(["probe", "--url", server.url, "--image", IMAGE, *words], environment)


def text(asked: dict[str, Any]) -> str:
    content = asked["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_the_four_rules_are_kept(standin: Lab) -> None:
    server = standin(burst=3)
    result = measured(server)
    first, *asked = [one for one in server.asked if "tools" not in one]
    # Unique: no two prompts are the same, or begin alike, the warm-up's included.
    texts = [text(one) for one in (first, *asked)]
    assert len(texts) == 1 + 9 + 9
    assert len({text.split()[0] for text in texts}) == len(texts)
    # Of every kind, in each row.
    for some in (texts[1:10], texts[10:]):
        assert {text.partition(": ")[2] for text in some} == set(measure.battery().values())
    # Counted by the server: a chunk held three tokens.
    counted = sum(row.tokens or 0 for row in result.rows)
    assert counted == (9 + 9) * 24
    assert server.chunks < counted
    # No early end, and no thinking.
    assert all(one["ignore_eos"] is True for one in (first, *asked))
    assert all(one["max_completion_tokens"] == 24 for one in asked)
    assert all(one["stream_options"] == {"include_usage": True} for one in asked)
    assert all(
        one["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
        for one in server.asked
    )
    assert result.marks == []
    # The warm-up is not counted, rows are those that were asked for.
    assert [(row.streams, row.requests) for row in result.rows] == [(1, 9), (4, 9)]
    for row in result.rows:
        assert row.rate is not None
        assert row.total is not None
        assert row.ttft_p95 >= row.ttft > 0
        assert set(row.kinds) == set(measure.battery())
        # One token and then three at a time: of 23 drafted in 8 steps, 15 were accepted of 4 each.
        assert row.acceptance_length == pytest.approx(24 / 9)
        assert row.acceptance == pytest.approx(100 * 15 / (9 * 4))
    assert result.tool_call.seen == "get_weather(city='Berlin')"
    assert result.tool_call.works


def test_without_drafts_there_is_no_acceptance(standin: Lab) -> None:
    (row,) = measured(standin(), measure.Settings(streams=(2,), tokens=4)).rows
    assert (row.acceptance, row.acceptance_length) == (None, None)


@pytest.mark.parametrize(
    ("behaviour", "mark"),
    [
        ({"knows_ignore_eos": False}, "ignore_eos is ignored: 18 of 18 answers ended early"),
        ({"refuses": ("ignore_eos",)}, "ignore_eos is rejected"),
        ({"usage": False}, "no usage"),
        ({"refuses": ("chat_template_kwargs",)}, "thinking cannot be turned off"),
        ({"refuses": ("chat_template_kwargs",), "thinks": False}, "the model may think"),
    ],
)
def test_what_a_server_does_not_grant_is_said(
    standin: Lab, behaviour: dict[str, Any], mark: str
) -> None:
    result = measured(standin(**behaviour))
    assert any(mark in one for one in result.marks), result.marks


def test_without_usage_there_is_no_rate(standin: Lab) -> None:
    for row in measured(standin(usage=False)).rows:
        assert (row.tokens, row.rate, row.total) == (None, None, None)
        assert row.ttft > 0


def test_a_prefix_cache_would_be_noticed(standin: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(_nonce: str) -> Iterator[tuple[str, str]]:
        while True:
            yield "mail", "the same words again and again"

    monkeypatch.setattr(measure, "prompts", same)
    (mark,) = measured(standin(), measure.Settings(streams=(1,), tokens=4, requests=4)).marks
    assert mark == "75% of the prompts' tokens came from the prefix cache"


def test_an_answer_in_one_piece_has_no_rate(standin: Lab) -> None:
    server = standin(burst=24)
    result = measured(server, measure.Settings(streams=(1,), tokens=2, requests=1))
    assert result.marks == []
    server.behaviour.first = 24
    result = measured(server, measure.Settings(streams=(1,), tokens=24, requests=1))
    (row,) = result.rows
    assert (row.tokens, row.rate) == (24, None)
    assert row.total is not None
    (mark,) = result.marks
    assert mark.startswith("an answer came in one chunk")


@pytest.mark.parametrize(
    ("fault", "first", "later"),
    [
        ("429", "answers with HTTP status 429", "Too Many Requests"),
        ("500", "answers with HTTP status 500", "Internal Server Error"),
        ("503", "answers with HTTP status 503", "Service Unavailable"),
        ("garbage", "does not answer as an OpenAI-compatible server does", "Never received"),
        ("cut", "", "broke off"),
        ("error", "", "before its token count"),
    ],
)
def test_a_fault_ends_it_with_a_word_and_without_a_number(
    standin: Lab, fault: str, first: str, later: str
) -> None:
    if first:
        with pytest.raises(ProbeError, match=first):
            measured(standin(always=fault))
    with pytest.raises(ProbeError, match="1 of 9 requests failed") as caught:
        measured(standin(faults=["", "", "", fault]))
    assert later in caught.value.detail
    assert "sparkimage explain" in caught.value.hint


def test_a_server_that_hangs_is_given_up(standin: Lab) -> None:
    server = standin(faults=["", "", "hang"])
    with pytest.raises(ProbeError, match="did not finish within 3 s"):
        measure.run(*here(server, timeout_s=3), QUICK, lambda _: None)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("echo 'invalid choice: custom_image' >&2; exit 2", "invalid choice: custom_image"),
        ('echo "{}" >"$(dirname "$4")/result.json"', "9 of 9 requests failed"),
        ('echo "none" >"$(dirname "$4")/result.json"', "wrote no result"),
    ],
)
def test_a_vllm_that_cannot_measure_is_said(
    standin: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!/bin/sh\n{program}\n")
    vllm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ProbeError) as caught:
        measured(standin())
    assert words in caught.value.message + caught.value.detail


def test_a_server_that_is_not_there_is_said(image: str) -> None:
    assert image == IMAGE
    server = Server()
    server.server_close()
    done = probe(server)
    assert done.returncode == 20
    assert "cannot be reached" in done.stderr
    assert "→ is the server ready? sparkimage status" in done.stderr


# In a container


def test_an_interrupt_ends_it_at_once(standin: Lab, engine: Engine, image: str) -> None:
    server = standin(faults=[""], always="hang")
    process = subprocess.Popen(
        [*PROGRAM, "probe", "--url", server.url, "--image", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "warming up" in process.stderr.readline()
    assert "9 requests of 256 tokens" in process.stderr.readline()
    wait(lambda: len(server.asked) == 2, "nothing was asked")
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert said[0] == ""
    assert "interrupted: no measurement was completed" in said[1]
    running = [*engine.docker, "ps", "--quiet", "--filter", f"ancestor={image}"]
    wait(lambda: not Local().run(running).stdout, "the container runs on")


def test_the_key_comes_from_the_environment_alone(standin: Lab, image: str) -> None:
    assert image
    server = standin(api_key=SECRET)
    refused = probe(server, "--tokens", "8")
    assert refused.returncode == 20
    assert "SPARKIMAGE_API_KEY" in refused.stderr
    done = probe(server, "--tokens", "8", "--streams", "1", "--json", SPARKIMAGE_API_KEY=SECRET)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    with pytest.raises(UsageError):
        openai_api.parse_url(f"http://user:{SECRET}@127.0.0.1:8000")


def test_a_tool_call_that_does_not_work_says_what_came(standin: Lab) -> None:
    result = measured(standin(tools=False), measure.Settings(streams=(1,), tokens=4))
    assert not result.tool_call.works
    assert NO_TOOLS in result.tool_call.seen


def test_a_table_is_for_people_and_json_for_machines(
    standin: Lab, image: str, tmp_path: Path
) -> None:
    assert image
    server, file = standin(burst=3, tools=False), tmp_path / "before.json"
    first = probe(server, "--tokens", "8", "--streams", "1,2", "--save", str(file))
    assert first.returncode == 0, first.stderr
    assert "standin at http://127.0.0.1:" in first.stdout
    assert "tok/s each" in first.stdout
    assert "a step" in first.stdout
    assert "tok/s by prompt (1 stream): " in first.stdout
    assert "✗ tool call: HTTP status 400" in first.stdout
    assert "warming up standin (not measured)" in first.stderr
    saved = json.loads(file.read_text())
    assert [row["streams"] for row in saved["rows"]] == [1, 2]
    done = probe(
        server, "--tokens", "8", "--streams", "2,4", "--rounds", "2", "--compare", str(file),
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert [(row["streams"], row["requests"]) for row in said["rows"]] == [(2, 18), (4, 18)]
    assert [one["streams"] for one in said["compared"]["ratios"]] == [2]
    assert said["compared"]["with"] == saved["when"]
    assert said["compared"]["warnings"] == []
    beside = probe(server, "--tokens", "9", "--streams", "1", "--compare", str(file))
    assert "x)" in beside.stdout
    assert "! measured differently: tokens of an answer: 9 now, 8 before" in beside.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "two"], "does not serve two"),
        (["--image", "lab/nothing:one"], "no such image here: lab/nothing:one"),
        (["--image", ""], "--url needs --image"),
        (["--nodes", "fleet.yaml"], "pass either --url or --nodes"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    standin: Lab, image: str, words: Sequence[str], said: str
) -> None:
    assert image
    done = probe(standin(model="one"), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "→ " in done.stderr
