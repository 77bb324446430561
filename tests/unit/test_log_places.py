"""A failure that no entry knows is told with the part of the software that it began in."""

from __future__ import annotations

import pytest

from sparkimage.serve.explain import failures, knowledge

PACKAGES = "/usr/local/lib/python3.12/dist-packages"
ERROR = "(EngineCore pid=194) ERROR 09-17 16:21:42 [core.py:1161] "

FRAMES: dict[str, tuple[str, str]] = {
    "triton": (f"{PACKAGES}/triton/compiler/compiler.py", "IndexError: list index out of range"),
    "compile": (f"{PACKAGES}/torch/_inductor/scheduler.py", "AssertionError: mutation"),
    "jit": (f"{PACKAGES}/flashinfer/jit/core.py", "RuntimeError: no such module"),
    "kernels": (f"{PACKAGES}/vllm/model_executor/layers/fused_moe/layer.py", "ValueError: odd"),
    "hub": (f"{PACKAGES}/huggingface_hub/file_download.py", "OSError: odd"),
    "weights": (f"{PACKAGES}/vllm/model_executor/model_loader/utils.py", "IndexError: odd"),
    "lora": (f"{PACKAGES}/vllm/lora/layers/fused_moe.py", "AssertionError"),
    "model-files": (f"{PACKAGES}/transformers/tokenization_utils_base.py", "TypeError: odd"),
    "all-reduce": (
        f"{PACKAGES}/vllm/distributed/device_communicators/pcie_allreduce.py",
        "RuntimeError: invalid argument at pcie_allreduce.cu:321",
    ),
    "network": (f"{PACKAGES}/torch/distributed/rendezvous.py", "ValueError: odd"),
    "arguments": (f"{PACKAGES}/vllm/config/vllm.py", "ValueError: HiSparse needs CUDA."),
    "cache-memory": (f"{PACKAGES}/vllm/v1/core/kv_cache_utils.py", "ValueError: No free blocks"),
    "draft": (f"{PACKAGES}/vllm/v1/spec_decode/eagle.py", "AssertionError: odd"),
    "scheduler": (f"{PACKAGES}/vllm/v1/core/block_pool.py", "AssertionError: odd"),
    "chat-template": ("<template>", "TypeError: can only concatenate str to str"),
    "runner": (f"{PACKAGES}/vllm/v1/worker/gpu_model_runner.py", "IndexError: odd"),
    "kv-transfer": (f"{PACKAGES}/lmcache/v1/cache_engine.py", "IndexError: odd"),
    "cuda": (f"{PACKAGES}/torch/cuda/__init__.py", "RuntimeError: odd"),
    "ray": (f"{PACKAGES}/ray/_private/external_storage.py", "IOError: odd"),
    "vllm": (f"{PACKAGES}/vllm/snapshot/runtime.py", "RuntimeError: odd"),
    "processes": ("/usr/lib/python3.12/multiprocessing/synchronize.py", "FileNotFoundError: odd"),
}
"""Part → the deepest source file of a traceback, and the line that ends it."""
WARNINGS: dict[str, str] = {
    "nccl-rdma": "transport/net_ib/common.cc:99 NCCL WARN NET/IB : Unable to open device mlx5_0",
    "nccl-network": "bootstrap.cc:99 NCCL WARN Bootstrap Root : rank 3 checked in twice",
    "nccl-shm": "transport/p2p.cc:99 NCCL WARN failed to peer with device 1: 217 odd",
    "nccl-gpu": "misc/nvmlwrap.cc:99 NCCL WARN nvmlDeviceGetHandleByIndex(0) failed: odd",
    "nccl": "init.cc:99 NCCL WARN Invalid config blocking attribute value -1",
}
LINES: dict[str, str] = {
    "docker": "docker: Error response from daemon: invalid IPv6 address: odd",
    "driver": "Sep 09 10:00:01 spark2 kernel: NVRM: gpuHandleSanityCheckRegReadError: odd error",
    "jit": "nvcc fatal   : A single input file is required for a non-link phase",
    "network": "[c10d] ValueError: odd",
}


def place_of(*lines: str) -> str | None:
    (match,) = knowledge.read(lines)
    assert not match.known
    assert match.place is None or (
        match.place.where in match.title or match.title.startswith(match.place.title or "?")
    )
    return match.place.id if match.place else None


def traceback(frames: list[str], end: str) -> list[str]:
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        lines += [f'  File "{frame}", line 10, in load', "    raise error"]
    return [ERROR + line for line in [*lines, end]]


def test_every_place_is_shown_by_something() -> None:
    shown = {*FRAMES, *WARNINGS, *LINES}
    assert shown == {place.id for place in failures.known().places}


@pytest.mark.parametrize("id_", FRAMES)
def test_the_deepest_source_file_says_where(id_: str) -> None:
    frame, end = FRAMES[id_]
    assert place_of(*traceback([f"{PACKAGES}/vllm/v1/engine/core.py", frame], end)) == id_


@pytest.mark.parametrize("id_", WARNINGS)
def test_a_warning_of_nccl_says_where_by_its_own_file(id_: str) -> None:
    assert place_of(f"spark1:101:202 [0] {WARNINGS[id_]}") == id_


@pytest.mark.parametrize("id_", LINES)
def test_a_line_without_a_traceback_says_where(id_: str) -> None:
    assert place_of(LINES[id_]) == id_


def test_files_that_most_tracebacks_pass_through_count_last() -> None:
    end = "ValueError: this kernel is not available"
    assert place_of(*traceback([f"{PACKAGES}/vllm/v1/engine/core.py"], end)) == "kernels"
    assert place_of(*traceback(["/opt/plugin/loader.py"], "ValueError: odd")) is None


def test_what_vllm_says_of_its_arguments_is_in_the_title_unless_another_part_raised_it() -> None:
    frame, end = FRAMES["arguments"]
    (match,) = knowledge.read(traceback([frame], end))
    assert match.title == "vLLM refuses its arguments: HiSparse needs CUDA."
    (match,) = knowledge.read(traceback([frame, "/opt/harmony/__init__.py"], end))
    assert match.place
    assert match.title == (
        f"A value or a feature is refused, {match.place.where}: HiSparse needs CUDA."
    )


KINDS = {
    "code": "AttributeError: 'ColumnParallelLinear' object has no attribute 'weight'",
    "value": "ValueError: odd",
    "failure": "RuntimeError: odd",
    "file": "FileNotFoundError: [Errno 2] No such file or directory: '/odd'",
}


@pytest.mark.parametrize("id_", KINDS)
def test_the_type_of_an_exception_says_what_kind_of_failure_it_is(id_: str) -> None:
    kind = next(kind for kind in failures.known().kinds if kind.id == id_)
    frame, _ = FRAMES["kernels"]
    (match,) = knowledge.read(traceback([frame], KINDS[id_]))
    assert match.place
    assert match.title.startswith(f"{kind.title}, {match.place.where}: ")
    assert match.cause.startswith(kind.cause)
    assert match.cause.endswith(match.place.cause)
    assert match.fix == match.place.fix
    (match,) = knowledge.read(traceback(["/opt/plugin/loader.py"], KINDS[id_]))
    assert match.title.startswith(f"{kind.title}: ")
    assert match.cause == kind.cause.strip()
    assert match.place is None
    (match,) = knowledge.read(traceback([frame], "strange.pkg.OddThing: 42"))
    assert match.kind is None


def test_a_warning_of_torch_with_a_month_of_one_digit_is_no_failure() -> None:
    assert knowledge.read(["[W923 06:02:02.705785697 socket.cpp:207] RuntimeError: handled"]) == []
    (match,) = knowledge.read(["[E923 06:02:02.705785697 socket.cpp:207] RuntimeError: odd"])
    assert match.time == "09-23 06:02:02"


REMARK = "(EngineCore pid=194) Optional module left out: No module named 'odd'"


def test_an_exception_that_nothing_knows_is_more_than_what_a_remark_names() -> None:
    assert [match.entry.id for match in knowledge.read([REMARK])] == ["missing-package"]
    frame, end = FRAMES["triton"]
    assert place_of(REMARK, *traceback([frame], end)) == "triton"
    known = "ModuleNotFoundError: No module named 'odd'"
    first, *_ = knowledge.read([REMARK, *traceback([frame], known)])
    assert first.entry.id == "missing-package"


def test_what_ended_a_process_is_more_than_the_exception_of_one_that_waited_for_it() -> None:
    killed = "./entrypoint.sh: line 28:     7 Killed                  python3 -m vllm"
    frame, _ = FRAMES["processes"]
    for end in ("EOFError", "BrokenPipeError: [Errno 32] Broken pipe", "queue.Empty"):
        first, *_ = knowledge.read([killed, *traceback([frame], end)])
        assert first.entry.id == "killed-by-kernel"
