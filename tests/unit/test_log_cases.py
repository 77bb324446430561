"""Whole logs and excerpts of real failures: each is named by what began it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparkimage.serve.explain import knowledge, loglines, together

LOGS = Path(__file__).parent / "logs"

EXPECTED: dict[str, tuple[str, str]] = {
    "a01-reasoning-parser": ("unknown-parser", "line lists"),
    "d01-803": ("compat-libcuda", "compat"),
    "d03-nvml-mismatch": ("driver-mismatch", "Reboot"),
    "d06-exec-missing": ("no-program", "vllm serve"),
    "d08-port-docker": ("port-in-use", "ss -ltnp"),
    "d10-manifest": ("no-manifest", "variant of that platform"),
    "h02-localentry": ("model-not-cached", "--model DIR"),
    "h06-no-config": ("no-config", "Fetch the model again"),
    "i01-libcudart": ("wrong-cuda-library", "cu130"),
    "i04-tokenizersbackend": ("transformers-too-old", "transformers >= 5"),
    "i07-instanttensor": ("missing-package", "--load-format"),
    "i08-mistral-tokenizer": ("no-tokenizer", "tokenizer_mode"),
    "j01-ptxas-e2m1x2": ("fp4-arch", "12.1a"),
    "j03-no-supported-arch": ("backend-of-other-gpu", "Unset it"),
    "j05-cutlass-caller": ("cutlass-failed", "VLLM_DISABLED_KERNELS"),
    "j07-sink": ("backend-refuses", "TRITON_ATTN"),
    "m02-profiling-grew": ("profiling-grew", "drop_caches"),
    "m04-cuda-error-oom": ("cuda-out-of-memory", "drop_caches"),
    "m06-core-sig9": ("process-ended", "segmentation fault"),
    "n01-modifyqp-61": ("rdma-connect", "Never one index"),
    "n03-modifyqp-unreachable": ("rdma-connect", "one network"),
    "n05-completion-new-format": ("rdma-broke", "IPv4 address"),
    "n07-completion-old": ("rdma-broke", "NCCL_IB_GID_INDEX"),
    "n09-locprot-iommu": ("rdma-broke", "iommu=pt"),
    "r03-gloo-hostname-number": ("host-not-found", "GLOO_SOCKET_IFNAME"),
    "r07-too-few-ray": ("ray-too-small", "ray status"),
    "x02-xid": ("gpu-fault", "Xid 31"),
    "x03-ptx-toolchain": ("ptx-toolchain", "Update the driver"),
    "x04-mamba-seqs": ("mamba-blocks", "max_num_seqs"),
    "x05-dockerd-logfmt": ("name-in-use", "--replace"),
    # The event of a port was survived for three hours; a rank that ended is what its own log says.
    "s01-port-event-survived": ("nccl-timeout", "VllmWorker-1 ended"),
    "vllm-0.25-bad-kv": ("unknown-value", "--help=all"),
    "vllm-0.25-lfs-pointer": ("broken-safetensors", "git lfs pull"),
    "vllm-0.25-no-flashinfer": ("missing-package", "require"),
    "vllm-0.25-no-gpu": ("no-gpu-visible", "CUDA_VISIBLE_DEVICES"),
    "vllm-0.25-offline-repo": ("model-not-cached", "HF_HUB_OFFLINE"),
    "vllm-0.25-port-in-use": ("port-in-use", "stop"),
    "vllm-0.25-too-long": ("context-too-long", "max_model_len"),
    "vllm-0.25-tp2-preload-missing": ("preload-ignored", "seal"),
    "vllm-0.25-tp3": ("more-ranks-than-gpus", "--nnodes"),
    "vllm-0.25-two-mixed-r0": ("mixed-nccl", "distribute"),
    # Of an H200: this project's own image, which could not compile.
    "vllm-0.33-memory-taken": ("memory-not-free", "gpu_memory_utilization"),
    "vllm-0.33-nvcc-headers": ("nvcc-headers", "static/cuda-compiler"),
    "vllm-0.33-older-nccl": ("undefined-symbol", "older than torch needs"),
    "vllm-0.33-two-nodes-r0": ("nvcc-headers", "static/cuda-compiler"),
    "vllm-0.33-two-nodes-r1": ("nvcc-headers", "static/cuda-compiler"),
    # The next one, which serves there.
    "vllm-0.33-preload-missing-serves": ("preload-ignored", "2.30.7+cuda13.3"),
    "vllm-0.33-killed-r0": ("peer-left", "That rank ended"),
    "vllm-0.33-killed-r1": ("worker-died", "a signal"),
    # Four ranks on one H200: 2.30.7, and 2.30.4 on the last one.
    "vllm-0.33-mixed-r0": ("mixed-nccl", "distribute"),
    "vllm-0.33-mixed-r3": ("mixed-nccl", "distribute"),
    # Four ranks of the default image: 2.30.4, and 2.29.7 on the last one; 2.28.9; and no preload.
    "vllm-0.32-mixed-r0": ("mixed-nccl", "distribute"),
    "vllm-0.32-mixed-r3": ("mixed-nccl", "distribute"),
    "vllm-0.32-older-nccl": ("undefined-symbol", "older than torch needs"),
    "vllm-0.32-preload-missing": ("preload-ignored", "2.30.4+cuda13.2"),
    "vllm-0.33-headless-r1": ("connection-reset", "That rank ended"),
    "vllm-0.25-wedge-stop": ("shm-broadcast", "VllmWorker-1 ended (line 381)"),
}
"""Log → the failure that it is to be named first, and words of its title, cause, fix or note."""
HEALTHY = (
    "fa02-dlvsym-nccl230-healthy", "fa04-responses-logged-healthy", "vllm-0.25-two-good-r0",
    "vllm-0.25-two-good-r1", "vllm-0.25-two-mixed-r1", "vllm-0.33-one-gpu", "vllm-0.33-drafts",
    "vllm-0.33-tp2", "vllm-0.33-served-r0", "vllm-0.33-served-r1", "vllm-0.33-caches-brought",
    "vllm-0.33-tp4-r0", "vllm-0.33-tp4-r3", "vllm-0.33-headless-r0", "vllm-0.32-one-gpu",
    "vllm-0.32-tp4-r0", "vllm-0.32-tp4-r3", "vllm-0.32-another-nccl",
)  # fmt: skip
"""Nothing failed in them; two-mixed-r1 hangs without a word, which its peer's log shows,
headless-r0 was killed from outside, and that another-nccl is not the pinned one `launch` knows."""
TWO_FAULTS = "vllm-0.33-preload-missing"


def reading(name: str) -> knowledge.Reading:
    (path,) = LOGS.glob(f"{name}.log*")
    read = knowledge.Reading(source=path.name)
    with path.open("rb") as stream:
        for line in loglines.lines_of(stream):
            read.take(line)
    return read


def test_every_log_has_its_answer() -> None:
    names = {path.name.removesuffix(".gz").removesuffix(".log") for path in LOGS.iterdir()}
    assert names == {*EXPECTED, *HEALTHY, TWO_FAULTS}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_is_named_by_what_began_it(name: str) -> None:
    id_, words = EXPECTED[name]
    first, *others = reading(name).matches()
    assert first.entry.id == id_
    said = f"{first.title} {first.cause} {first.fix} {first.note}"
    assert words in said
    assert all(match.entry.rank == "echo" for match in others)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_log_raises_nothing(name: str) -> None:
    assert reading(name).matches() == []


def test_an_echo_names_what_it_follows_from() -> None:
    first, echo = reading("n05-completion-new-format").matches()
    assert first.captured["local"] == "fe80::2"
    assert echo.entry.id == "shm-broadcast"
    assert f"follows from: {first.title} (line 3" in echo.note


def test_ranks_of_two_builds_are_told_over_two_logs() -> None:
    in_order = together.in_order(
        [reading("vllm-0.25-two-mixed-r0"), reading("vllm-0.25-two-mixed-r1")]
    )
    assert [match.entry.id for match in in_order] == ["mixed-nccl"]
    assert re.search(r"2\.28\.9 .*; 2\.30\.4 ", in_order[0].note)


def test_two_faults_of_one_rank_are_both_told() -> None:
    found = [match.entry.id for match in reading(TWO_FAULTS).matches()]
    assert found[:2] == ["preload-ignored", "nvcc-headers"]


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("vllm-0.25-")])
def test_where_it_began_is_told_without_the_table(name: str) -> None:
    read = reading(name)
    began = read.began()
    if name.endswith(("preload-missing", "wedge-stop")):
        assert began is None or began.line_number
        return
    first = read.matches()[0]
    assert began is not None
    assert abs(began.line_number - first.line_number) <= 1, began.line


def test_a_worker_that_a_signal_ended_comes_before_its_echo() -> None:
    died, echo = together.in_order([reading("vllm-0.33-killed-r0"), reading("vllm-0.33-killed-r1")])
    assert (died.entry.id, died.entry.rank) == ("worker-died", "outcome")
    assert echo.entry.id == "peer-left"
    assert "follows from: A worker process died (vllm-0.33-killed-r1" in echo.note


def test_a_rank_that_was_killed_from_outside_is_named_by_the_others() -> None:
    head, worker = reading("vllm-0.33-headless-r0"), reading("vllm-0.33-headless-r1")
    (echo,) = together.in_order([head, worker])
    assert (
        echo.note
        == "the log of node1 (vllm-0.33-headless-r0.log.gz) shows no failure: it was killed"
    )
    (alone,) = together.in_order([worker])
    assert alone.note == ""


def test_a_line_that_has_an_entry_is_known_as_where_it_began() -> None:
    """And what the program says after glibc's loader is no more of that line."""
    for name in ("vllm-0.33-preload-missing-serves", "vllm-0.33-older-nccl"):
        read = reading(name)
        (match,) = read.matches()
        assert read.began() == match
        assert match.message == []


def test_two_builds_of_one_release_are_a_finding() -> None:
    logs = []
    for node, commit in (("node1", "747384637"), ("node2", "fd168324a")):
        read = knowledge.Reading(source=f"{node}.log")
        read.take(f"{node}:101:101 [0] NCCL INFO NCCL version 2.30.4+cuda13.2")
        read.take(f"{node}:101:101 [0] NCCL INFO NCCL git version HEAD {commit}")
        assert read.matches() == []
        logs.append(read)
    (mixed,) = together.in_order(logs)
    assert mixed.note == "HEAD 747384637 (node1); HEAD fd168324a (node2)"


def test_a_worker_that_was_killed_and_a_head_that_hangs_are_one_story() -> None:
    ready = "(APIServer pid=1) INFO:     Application startup complete."
    head, worker = knowledge.Reading(source="head"), knowledge.Reading(source="worker")
    head.take(ready)
    head.take(
        "(EngineCore pid=6) INFO 11-29 21:01:10 [shm_broadcast.py:705] No available shared memory "
        "broadcast block found in 60 seconds."
    )
    worker.take("Nov 29 21:00:05 node2 kernel: Out of memory: Killed process 82 (python3)")
    root, echo = together.in_order([head, worker])
    assert (root.entry.id, root.source) == ("killed-by-kernel", "worker")
    assert echo.entry.id == "shm-broadcast"
    assert "follows from: " + root.title + " (worker, line 1, 11-29 21:00:05)" in echo.note


PORT_ERROR = (
    "[2026-09-02 03:00:00] spark1:1:2 [0] transport/net_ib.cc:90 NCCL WARN NET/IB : rocep1s0f1:1 "
    "Got async event : port error"
)
TIMEOUT = (
    "[rank0]:[E902 {}:05:59.896772212 ProcessGroupNCCL.cpp:691] [Rank 0] Watchdog caught "
    "collective operation timeout: WorkNCCL(SeqNum=8, OpType=ALLREDUCE, Timeout(ms)=600000) "
    "ran for 600012 milliseconds before timing out."
)
TOKENS = (
    "(APIServer pid=1) INFO 09-02 03:04:00 [loggers.py:310] Engine 000: Avg prompt throughput: 0.0 "
    "tokens/s, Avg generation throughput: {} tokens/s, Running: 1 reqs"
)


@pytest.mark.parametrize(
    ("log", "passed"),
    [
        ([PORT_ERROR, TIMEOUT.format("03")], False),
        ([PORT_ERROR, TOKENS.format("0.0"), TIMEOUT.format("03")], False),
        ([PORT_ERROR, TOKENS.format("22.1"), TIMEOUT.format("03")], True),
        ([PORT_ERROR, TIMEOUT.format("09")], True),
        ([PORT_ERROR, TOKENS.format("22.1"), PORT_ERROR, TIMEOUT.format("03")], False),
    ],
    ids=["minutes before", "no token between", "tokens between", "hours before", "again after it"],
)
def test_a_port_event_that_was_survived_is_no_cause_of_a_later_timeout(
    log: list[str], *, passed: bool
) -> None:
    read = knowledge.Reading()
    for line in log:
        read.take(line)
    found = [match.entry.id for match in read.matches()]
    assert found == (["nccl-timeout"] if passed else ["rdma-port", "nccl-timeout"])
    assert [match.entry.id for match in read.remarks()] == (["rdma-port"] if passed else [])


REFUSED = (
    "[rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:93, invalid usage",
    "[rank0]: ncclInvalidArgument: Invalid value for an argument.",
    "[rank0]: Last error:",
)


def test_what_nccl_said_last_is_told_where_torch_quotes_it() -> None:
    (told,) = knowledge.read([*REFUSED, "[rank0]: FP8 reduction support begins with sm90"])
    assert told.line.endswith("begins with sm90")
    assert told.place
    assert told.place.id == "nccl"
    (silent,) = knowledge.read([*REFUSED, "[rank0]: "])
    assert silent.entry.id == "nccl-unexplained"


LINK_UP = "Sep 05 10:00:01 spark1 kernel: mlx5_core 0000:01:00.0 enp1s0f0np0: Link up"
LINK_DOWN = "Sep 05 12:00:01 spark1 kernel: mlx5_core 0000:01:00.0 enp1s0f0np0: Link down"


@pytest.mark.parametrize(
    ("log", "lost"),
    [
        ([LINK_UP, LINK_DOWN], True),
        ([LINK_DOWN], True),
        (["[99913.740127] mlx5_core 0000:01:00.0 enp1s0f0np0: Link down"], True),
        ([LINK_DOWN, LINK_UP], False),
        (["[   13.740127] mlx5_core 0000:01:00.0 enp1s0f0np0: Link down"], False),
    ],
    ids=["after up", "log begins later", "long after boot", "up again", "no cable at boot"],
)
def test_a_link_is_lost_when_it_was_in_use(log: list[str], *, lost: bool) -> None:
    assert [match.entry.id for match in knowledge.read(log)] == (["link-down"] if lost else [])


def test_code_of_a_model_that_cannot_be_imported_hides_no_better_answer() -> None:
    inspected = "ValueError: Model architectures ['X'] failed to be inspected."
    (alone,) = knowledge.read([inspected])
    assert alone.entry.id == "model-code-failed"
    error = "(APIServer pid=1) ERROR 09-12 00:52:32 [registry.py:424] "
    first = [f"{error}Error in inspecting model architecture 'X'", f"{error}Traceback (most recent"]
    missing = f"{error}ModuleNotFoundError: No module named 'odd'"
    known, *_ = knowledge.read([*first, missing, inspected])
    assert known.entry.id == "missing-package"
    unknown, *_ = knowledge.read([*first, f"{error}AttributeError: no such thing", inspected])
    assert unknown.line.endswith("no such thing")


STARTS: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("log_healthy.yaml").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("release", STARTS["releases"], ids=lambda one: f"{one['nccl']}")
def test_a_start_of_each_release_that_went_well_raises_nothing(release: dict[str, str]) -> None:
    log = STARTS["start"]
    for name, version in {**release, "release": release["nccl"].split("+")[0]}.items():
        log = log.replace(f"{{{name}}}", version)
    read = knowledge.Reading()
    for line in log.splitlines():
        read.take(line)
    assert read.facts.up
    assert read.matches() == []
    assert read.began() is None


def composed(log: str) -> knowledge.Reading:
    for _ in range(2):
        for name, part in STARTS["parts"].items():
            log = log.replace(f"{{{name}}}", part)
    read = knowledge.Reading()
    for line in log.splitlines():
        read.take(line)
    return read


@pytest.mark.parametrize("case", STARTS["served"], ids=lambda one: str(one["name"]))
def test_what_a_server_survives_is_no_failure(case: dict[str, str]) -> None:
    read = composed(case["log"])
    assert [match.line for match in read.matches()] == []
    assert read.began() is None


@pytest.mark.parametrize("case", STARTS["failed"], ids=lambda one: str(one["name"]))
def test_what_looks_like_it_and_is_a_failure_is_told(case: dict[str, Any]) -> None:
    told = [match.entry.id for match in composed(case["log"]).matches()]
    assert case["id"] in told
    assert len(told) == 1 or "alone" not in case
