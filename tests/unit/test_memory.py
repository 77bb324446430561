"""Memory that is free on a node before a start."""

from __future__ import annotations

from typing import Any

import pytest

from sparkimage.config.profiles import Profile
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve import memory
from tests.unit.spark_facts import spark

GPUS = """\
@smi
0, NVIDIA H200, 580.95.05, 143771, GPU-0, 143000
1, NVIDIA H200, 580.95.05, 143771, GPU-1, 20000
@process 4711, python3"""


def profile(part: float | None = 0.8, **values: Any) -> Profile:
    return Profile.model_validate(
        {"variants": ["*"], "serve": {"gpu_memory_utilization": part}, **values}
    )


def meminfo(free: int, available: int) -> str:
    """Of a machine with 128 GB; in GB."""
    kib = 10**9 // 1024
    rows = {"MemTotal": 128, "MemFree": free, "MemAvailable": available, "SwapTotal": 0}
    return "\n".join(f"{name}:  {size * kib} kB" for name, size in rows.items())


def short(node: NodeSnapshot, given: Profile, vllm: str = "0.33.0") -> list[str]:
    part = memory.utilization(given, vllm)
    return list(memory.shortages(node, memory.pools(node, given.gpus), given, part))


def found(memory_: str) -> tuple[list[str], str]:
    node, given = spark(memory=memory_), profile()
    return short(node, given), memory.cached(memory.pools(node, 1), 0.8)


def test_what_a_model_takes_is_said() -> None:
    node = spark(memory=meminfo(110, 120))
    assert memory.shares([node], profile(), "0.33.0") == (
        "the model is 78.0 GB; vLLM takes 102.4 GB of 128.0 GB there, "
        "24.4 GB of it for the KV cache and the rest"
    )
    four = memory.shares([node] * 4, profile(nodes=4), "0.33.0")
    assert four.startswith("the model is 78.0 GB, 19.5 GB on each of 4 nodes; vLLM takes 102.4 GB")
    gpus = memory.shares([spark(gpus=GPUS)], profile(gpus=2), "0.33.0")
    assert gpus.startswith("the model is 78.0 GB, 39.0 GB on each of 2 GPUs; ")
    assert memory.shares([spark(memory="")], profile(), "0.33.0") == ""
    assert memory.shares([spark(model="")], profile(), "0.33.0") == ""


def test_a_unified_machine() -> None:
    assert found(meminfo(110, 120)) == ([], "")
    (text,), _ = found(meminfo(40, 90))
    assert text.startswith(
        "90.0 GB of 128.0 GB are free, and vLLM takes 102.4 GB (gpu_memory_utilization 0.8)"
    )
    assert "or gpu_memory_utilization 0.7 in the profile" in text


@pytest.mark.parametrize(
    ("vllm", "part", "taken"),
    [
        ("0.33.0", "0.92", "117.8"), ("0.20.0", "0.92", "117.8"), ("0.19.1", "0.9", "115.2"),
        ("20260613.dev297+ga93b9098b", "0.92", "117.8"),
        # Without its tags a clone counts from 0.1.
        ("0.1.dev19369+gd64074e6f", "0.9", "115.2"), ("", "0.9", "115.2"),
    ],
)  # fmt: skip
def test_vllms_own_default(vllm: str, part: str, taken: str) -> None:
    (text,) = short(spark(memory=meminfo(40, 110)), profile(None), vllm)
    assert f"vLLM takes {taken} GB (gpu_memory_utilization {part})" in text
    assert short(spark(memory=meminfo(40, 119)), profile(None), vllm) == []


def test_the_page_cache_is_no_reason_to_refuse() -> None:
    texts, warning = found(meminfo(10, 120))
    assert texts == []
    assert warning.startswith("110.0 GB of 128.0 GB are in the page cache")
    assert "drop_caches" in warning


@pytest.mark.parametrize(("nodes", "refused"), [(1, True), (4, False)])
def test_the_part_of_the_model(nodes: int, refused: bool) -> None:
    model = "@folder\n200000000000 ./a.safetensors\n10 ./config.json"
    node = spark(memory=meminfo(120, 125), model=model)
    given = profile(nodes=nodes, serve={"tensor_parallel": nodes, "gpu_memory_utilization": 0.8})
    texts = short(node, given)
    assert bool(texts) == refused
    if refused:
        assert (
            "its part of the model is 200.0 GB, and vLLM may take 102.4 GB of 128.0 GB" in texts[0]
        )
        assert "a profile for more nodes" in texts[0]


def test_gpus_with_memory_of_their_own() -> None:
    node = spark(gpus=GPUS)
    assert short(node, profile()) == []
    (text,) = short(node, profile(gpus=2))
    assert text.startswith("GPU 1: 21.0 GB of 150.8 GB are free, and vLLM takes 120.6 GB")
    assert "on its GPUs: 4711, python3" in text
    # Nothing is concluded where nvidia-smi does not say it.
    unknown = spark(gpus=GPUS.replace(", 20000", ", [Unknown Error]"))
    assert short(unknown, profile(gpus=2)) == []
