"""What runs on nodes, judged: zombies, gaps, mixtures; and what a rank's log shows."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import NodeError
from sparkimage.core.interrupts import Interrupted
from sparkimage.serve import deployments, readiness, warmup
from sparkimage.serve.deployments import Member
from sparkimage.serve.readiness import Log
from sparkimage.serve.spec import LABEL
from tests.unit.spark_facts import spark


def member(rank: int, state: str = "running", **values: Any) -> Member:
    return Member(
        **{
            "node": f"n{rank}", "id": f"c{rank}", "name": "s", "rank": rank, "nodes": 3, "gpus": 1,
            "variant": "v", "profile": "p", "digest": "sha256:d", "head": "h", "port": 8000,
            "nccl": "2.30.4",
            "rdma": True, "image": f"i{rank}", "identity": "same", "state": state,
            "exit_code": 0 if state == "running" else 137, "oom": False, "started": "", "ended": "",
            "restarts": 0, **values,
        }
    )  # fmt: skip


WHOLE = [member(rank) for rank in range(3)]


def problems(*members: Member, unknown: tuple[str, ...] = ()) -> str:
    (one,) = deployments.judge(members, unknown)
    return "\n".join(one.problems)


def test_a_whole_set() -> None:
    (one,) = deployments.judge(WHOLE)
    assert one.problems == ()
    assert one.zombies == ()
    assert one.head == WHOLE[0]
    assert one.lives


def test_zombies() -> None:
    dead = [member(0, "exited"), *WHOLE[1:]]
    assert problems(*dead) == (
        "the head on n0 is exited (137): zombie workers on n1, n2 hold their GPUs"
    )
    assert [one.rank for one in deployments.judge(dead)[0].zombies] == [1, 2]
    assert problems(*WHOLE[1:]).startswith("the head is gone: zombie workers on n1, n2")
    # It may be on the node that cannot be asked.
    assert problems(*WHOLE[1:], unknown=("n0",)) == ""


def test_what_else_is_broken() -> None:
    assert problems(*WHOLE[:2]) == "no node has rank 2"
    assert problems(*WHOLE[:2], unknown=("n2",)) == ""
    assert problems(*WHOLE[:2], member(2, "exited")) == "rank 2 on n2 is exited (137)"
    killed = member(2, "exited", oom=True)
    assert problems(*WHOLE[:2], killed) == "rank 2 on n2 is killed, out of memory (137)"
    assert "more than one container has rank 1: n1, n9" in problems(*WHOLE, member(1, node="n9"))
    for other in ({"identity": "other"}, {"digest": "sha256:e"}):
        assert "the ranks run different images" in problems(*WHOLE[:2], member(2, **other))
    again = member(1, "restarting", restarts=7)
    assert "keeps restarting (7 times)" in problems(WHOLE[0], again, WHOLE[2])
    held = member(1, stopped="is stopped: vllm (process 7) is in state T")
    assert problems(WHOLE[0], held, WHOLE[2]) == (
        "rank 1 on n1 is stopped: vllm (process 7) is in state T"
    )
    assert held.state_text == "running, stopped"
    everywhere = [member(rank, "exited") for rank in range(3)]
    assert problems(*everywhere).count("is exited") == 3
    assert not deployments.judge(everywhere)[0].lives


CONTAINER: dict[str, Any] = {
    "Id": "c", "Image": "i", "RestartCount": 2,
    "Config": {"Labels": {LABEL: "s", f"{LABEL}.rank": "1", f"{LABEL}.nodes": "4",
                          f"{LABEL}.port": "8000", f"{LABEL}.rdma": "1"}},
    "State": {"Status": "exited", "ExitCode": 3, "StartedAt": "2026-01-01T00:00:00Z",
              "FinishedAt": "0001-01-01T00:00:00Z"},
}  # fmt: skip


IMAGE = {"Id": "i", "RootFS": {"Layers": ["sha256:1"]}}


def lines(*documents: object) -> str:
    return "\n".join(map(json.dumps, documents))


def test_containers_of_a_node() -> None:
    foreign = {**CONTAINER, "Config": {"Labels": {LABEL: "s", f"{LABEL}.rank": "first"}}}
    node = spark(containers=lines(foreign, CONTAINER), images=lines(IMAGE), cache="/h/.cache")
    (one,) = deployments.members(node)
    assert (one.rank, one.nodes, one.state, one.exit_code, one.restarts) == (1, 4, "exited", 3, 2)
    assert (one.identity, one.ended, one.rdma) == (node.images[0].identity, "", True)
    assert node.caches == "/h/.cache"
    (gone,) = deployments.members(spark(containers=lines(CONTAINER)))
    assert gone == one.model_copy(update={"identity": ""})


def test_containers_that_are_not_listed_are_not_called_none() -> None:
    with pytest.raises(NodeError, match="did not list its containers") as caught:
        deployments.members(spark(containers="@failed Cannot connect to the Docker daemon"))
    assert "Cannot connect" in caught.value.detail


@given(st.text())
def test_no_words_of_a_node_break_it(text: str) -> None:
    with contextlib.suppress(NodeError):
        deployments.members(spark(containers=text))


# Logs and the proof


def log(*lines: str) -> Log:
    made = Log()
    for line in lines:
        made.feed(line)
    return made


IB = "h:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0"
SHARDS = "Loading safetensors checkpoint shards:"
IGNORED = (
    "ERROR: ld.so: object '/x.so' from LD_PRELOAD cannot be preloaded (no such file): ignored."
)
BANNER = "h:1:1 [0] NCCL INFO NCCL version 2.30.4+cuda13.2"


def test_phases_go_on_and_never_back() -> None:
    made = Log()
    seen = []
    for line in (
        "INFO parallel_state.py] rank 0 in world size 4 is assigned as DP rank 0, PP rank 0",
        "(Worker pid=9) INFO Starting to load model /m...",
        f"\r{SHARDS}   0% Completed | 0/46\r{SHARDS}   7% Completed | 3/46",
        "INFO Using cache directory: /root/.cache/vllm/x for vLLM's torch.compile",
        "\x1b[32mCapturing CUDA graphs (decode, FULL):  50%|#####     | 1/2 [00:01<00:01]\x1b[0m",
        "INFO Starting to load model /m... (the draft)",
        "INFO:     Application startup complete.",
    ):
        made.feed(line)
        seen.append((made.phase, made.detail))
    assert seen == [
        ("ranks joined", ""), ("weights", ""), ("weights", "3/46"), ("compile", ""),
        ("graph capture", "1/2"), ("graph capture", "1/2"), ("ready", ""),
    ]  # fmt: skip
    assert made.complete


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (("(Worker_TP0 pid=447) WARNING 08-14 14:09:46 [jit_monitor.py:135] Triton kernel JIT "
         "compilation during inference: _causal_conv1d_fwd_kernel. This causes a spike"), 1),
        (("WARNING 06-19 16:22:25 [jit_monitor.py:124] CuTeDSL JIT compilation during inference: "
         "FlashAttentionForwardSm100. This causes a latency spike"), 1),
        ("WARNING TileLang JIT compilation during inference: mhc_pre_big_fuse_tilelang.", 1),
        ("Triton autotuning for function _fwd_kernel,", 1),
        ("2025-06-08 21:06:35,733 - INFO - flashinfer.jit: Loading JIT ops: cascade", 1),
        ("2025-06-08 21:06:35,741 - INFO - flashinfer.jit: Finished loading JIT ops: cascade", 0),
        (("INFO 11-29 17:23:41 [jit_monitor.py:73] Kernel JIT monitor activated; monitored JIT "
         "compilations during inference will use mode=warn."), 0),
        ("INFO [backends.py:1] Directly load the compiled graph(s) for dynamic shape", 0),
    ],
)  # fmt: skip
def test_lines_about_kernels_that_are_compiled(line: str, count: int) -> None:
    assert log(line).compiled == count


def test_a_warm_up_has_prompts_that_the_server_takes() -> None:
    assert list(warmup.fitting(warmup.PLAN, 10**6)) == list(warmup.PLAN)
    for context in (1, 100, 512, 4096):
        words = [one.words for one in warmup.fitting(warmup.PLAN, context)]
        assert words == [8] or 2 * max(words) + warmup.TOKENS <= context
        assert all(len(one.prompt().split()) == one.words + 1 for one in warmup.PLAN[:2])
    growing = [one.requests for one in warmup.PLAN]
    assert growing == sorted(growing)


def find(logs: list[Log], *, rdma: bool = True, nccl: str = "2.30.4", gpus: int = 1) -> list[str]:
    found = readiness.prove(
        dict(enumerate(logs)), [f"n{i}" for i in range(len(logs))], nccl=nccl, rdma=rdma, gpus=gpus
    )
    return [f"{one.rank} {one.what}: {one.seen}" for one in found if not one.ok]


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ((BANNER, IB), []),
        ((IB,), ["1 NCCL 2.30.4: no banner"]),
        ((BANNER.replace("30.4", "28.9"), IB), ["1 NCCL 2.30.4: 2.28.9+cuda13.2"]),
        (
            (BANNER, BANNER.replace("30.4", "28.9"), IB),
            ["1 NCCL 2.30.4: 2.28.9+cuda13.2, 2.30.4+cuda13.2"],
        ),
        ((BANNER,), ["1 via NET/IB: none"]),
        ((BANNER, IB, IB.replace("IB", "Socket")), ["1 no NET/Socket: 1 line"]),
        ((BANNER, IB, "h NCCL INFO Using network Socket"), ["1 no NET/Socket: 1 line"]),
        (
            (BANNER, IB, IGNORED),
            ["1 LD_PRELOAD is loaded: ignored: no /x.so"],
        ),
    ],
)  # fmt: skip
def test_the_proof(lines: tuple[str, ...], wrong: list[str]) -> None:
    assert find([log(BANNER, IB), log(*lines)]) == wrong


def test_what_need_not_be_shown() -> None:
    # One GPU alone has nobody to talk to; but an NCCL that is loaded all the same counts.
    assert find([log()], rdma=False) == []
    assert find([log(BANNER.replace("30.4", "28.9"))], rdma=False) != []
    assert find([log()], rdma=False, gpus=2) == ["0 NCCL 2.30.4: no banner"]
    # No pin, nothing to compare with.
    assert find([log(), log()], rdma=False, nccl="") == []


@given(st.text())
def test_no_line_breaks_the_reading(text: str) -> None:
    made = Log()
    made.feed(text)
    assert len(made.tail) == 1


def test_an_interrupted_removal_says_what_may_still_run() -> None:
    with pytest.raises(Interrupted) as interrupt, deployments.removal("vllm"):
        raise Interrupted
    assert interrupt.value.__notes__ == ["vllm may still run on some nodes"]
    with pytest.raises(NodeError) as error, deployments.removal("vllm"):
        raise NodeError("node1 is lost")
    assert not hasattr(error.value, "__notes__")
