"""Whether a server that says it is healthy generates tokens, against the stand-in for its API."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sparkimage.core.errors import ProbeError
from sparkimage.serve import liveness
from sparkimage.serve.openai_api import Server as Client
from tests.lab.node import wait
from tests.lab.standin_vllm.api import Behaviour, EngineDeadError, Server
from tests.unit.test_deployments import member

HUNG = "a rank hangs"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LIMIT_S", 0.5)
    monkeypatch.setattr(liveness, "POLL_S", 0.05)


def client(server: Server) -> Client:
    return Client(url=server.url, answer_s=0.5)


@contextmanager
def asked(server: Server, going: threading.Event) -> Iterator[None]:
    """A server that generates tokens as long as the event is set, and has a request."""

    def ask() -> None:
        # The server is closed before it has answered.
        with contextlib.suppress(ProbeError):
            Client(url=server.url, model="standin").complete("one", 10**6, ignore_eos=True)

    going.set()
    hangs_unless(server, going)
    thread = threading.Thread(target=ask)
    thread.start()
    wait(lambda: server.counters["generation_tokens"] > 0, "no token came")
    yield
    server.engine = ends
    going.set()
    thread.join()


def ends(_running: int, _prompt: int) -> None:
    """As an engine that has died."""
    raise EngineDeadError


def hangs_unless(server: Server, going: threading.Event) -> None:
    """The server's engine takes steps as long as the event is set."""

    def step(_running: int, _prompt: int) -> None:
        going.wait()

    server.engine = step


def test_an_idle_server_answers_a_request_of_one_token() -> None:
    with Server() as server:
        assert liveness.no_tokens(client(server)) == ""
    assert [one["max_tokens"] for one in server.asked] == [1]


def test_an_idle_server_that_hangs() -> None:
    going = threading.Event()
    with Server() as server:
        hangs_unless(server, going)
        assert liveness.no_tokens(client(server)) == (
            f"a request for one token got no answer in 0.5 s: {HUNG}"
        )
        going.set()


def test_a_server_whose_tokens_move_is_asked_for_none() -> None:
    going = threading.Event()
    with Server() as server, asked(server, going):
        assert liveness.no_tokens(client(server)) == ""
    assert len(server.asked) == 1


def test_a_server_whose_tokens_do_not_move() -> None:
    going = threading.Event()
    with Server() as server, asked(server, going):
        going.clear()
        text = f"no token came for 0.5 s, with 1 request to answer: {HUNG}"
        assert liveness.no_tokens(client(server)) == text


SAMPLES = (
    'vllm:num_requests_running{engine="0",model_name="/models/tiny one"} 2.0\n'
    'vllm:generation_tokens_total{engine="0",model_name="/models/tiny one"} 1.5e+06\n'
    'vllm:num_requests_running{engine="1",model_name="/models/tiny one"} 0.0\n'
    'vllm:generation_tokens_total{engine="1",model_name="/models/tiny one"} TOKENS\n'
)


def test_one_engine_of_several_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With data parallelism: the tokens of another one say nothing of it."""
    tokens = iter(range(10**6))
    monkeypatch.setattr(
        Server, "metrics", lambda _: SAMPLES.replace("TOKENS", f"{next(tokens)}.0")
    )  # fmt: skip
    with Server() as server:
        assert "with 2 requests to answer" in liveness.no_tokens(client(server))


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        # It wants a key: of its engine nothing is known.
        ({"api_key": "secret"}, ""),
        ({"always": "500"}, "it answers a request with HTTP 500: EngineCore encountered"),
        ({"always": "429"}, ""),
        ({"always": "hang"}, HUNG),
    ],
)
def test_answers_that_are_no_tokens(behaviour: dict[str, str], said: str) -> None:
    with Server(Behaviour(**behaviour)) as server:  # type: ignore[arg-type]
        found = liveness.no_tokens(client(server))
    assert said in found
    assert bool(said) == bool(found)


# Processes

TOP = """\
PID     STAT    COMMAND
4711    Ssl     python3 /usr/local/bin/vllm serve /models/m
4790    Sl      VLLM::EngineCore
4801    Rl      VLLM::Worker_TP0
4802    {}      VLLM::Worker_TP1
4900    Z       [nvcc] <defunct>
"""


@pytest.mark.parametrize(
    ("listed", "values", "said"),
    [
        (TOP.format("Rl"), {}, ""),
        (TOP.format("D"), {}, ""),
        (TOP.format("Tl"), {}, "is stopped: VLLM::Worker_TP1 (process 4802) is in state T"),
        (TOP.format("tl"), {}, "is stopped: VLLM::Worker_TP1 (process 4802) is in state t"),
        (TOP.format("Tl").replace("Rl ", "Tl "), {},
         "is stopped: VLLM::Worker_TP0 (process 4801) and 1 more is in state T"),
        (TOP.format("Rl"), {"state": "paused"}, "is paused"),
        # It ended after its container was looked at.
        ("", {}, ""),
        ("PID STAT COMMAND\n7 Ss sleep infinity\n", {},
         "has no process of vLLM, only sleep infinity (process 7)"),
        ("PID STAT COMMAND\n7 Ss llama-server\n", {"runs_vllm": False}, ""),
    ],
)  # fmt: skip
def test_what_the_processes_of_a_rank_show(listed: str, values: dict[str, Any], said: str) -> None:
    rank = member(1, **{"runs_vllm": True, **values})
    assert liveness.stopped(rank, liveness.processes(listed)) == said


def test_a_rank_in_the_kernel_is_named_where_no_token_comes() -> None:
    blocked = liveness.blocked(liveness.processes(TOP.format("Dl")))
    ranks = [member(0), member(1, blocked=blocked)]
    assert liveness.blocked_ranks(ranks) == [
        "rank 1 on n1 is in the kernel: VLLM::Worker_TP1 (process 4802) is in state D"
    ]
    assert liveness.blocked(liveness.processes(TOP.format("Rl"))) == ""
