"""Memory that is free on a node before a start."""

from __future__ import annotations

from typing import Any

import pytest

from sparkimage.config.profiles import Profile
from sparkimage.serve import memory
from tests.unit.spark_facts import spark

GPUS = "0, NVIDIA H200, 580.95.05, 143771, GPU-0\n1, NVIDIA H200, 580.95.05, 143771, GPU-1"
LISTED = "0, 143771, 143000\n1, 143771, 20000\n"


def profile(part: float | None = 0.8, **values: Any) -> Profile:
    serve = {"gpu_memory_utilization": part} if part else {}
    return Profile.model_validate({"variants": ["*"], "serve": serve, **values})


def meminfo(free: int, available: int) -> str:
    """Of a machine with 128 GB; in GB."""
    kib = 10**9 // 1024
    rows = {"MemTotal": 128, "MemFree": free, "MemAvailable": available, "SwapTotal": 0}
    return "\n".join(f"{name}:  {size * kib} kB" for name, size in rows.items())


def found(memory_: str, part: float | None = 0.8, **values: Any) -> tuple[list[str], str]:
    node = spark(memory=memory_)
    given = profile(part, **values)
    pools = memory.pools(node, "", given.gpus)
    return list(memory.shortages(node, pools, given)), memory.cached(pools, given)


def test_a_unified_machine() -> None:
    assert found(meminfo(110, 120)) == ([], "")
    (short,), _ = found(meminfo(40, 90))
    assert short.startswith(
        "90.0 GB of 128.0 GB are free, and vLLM takes 102.4 GB (gpu_memory_utilization 0.8)"
    )
    assert "or gpu_memory_utilization 0.7 in the profile" in short
    # vLLM's own default.
    (short,), _ = found(meminfo(40, 110), None)
    assert "vLLM takes 115.2 GB (gpu_memory_utilization 0.9)" in short


def test_the_page_cache_is_no_reason_to_refuse() -> None:
    short, warning = found(meminfo(10, 120))
    assert short == []
    assert warning.startswith("110.0 GB of 128.0 GB are in the page cache")
    assert "drop_caches" in warning


@pytest.mark.parametrize(("nodes", "refused"), [(1, True), (4, False)])
def test_the_part_of_the_model(nodes: int, refused: bool) -> None:
    model = "@folder\n200000000000 ./a.safetensors\n10 ./config.json"
    node = spark(memory=meminfo(120, 125), model=model)
    given = profile(nodes=nodes, serve={"tensor_parallel": nodes, "gpu_memory_utilization": 0.8})
    texts = list(memory.shortages(node, memory.pools(node, "", 1), given))
    assert bool(texts) == refused
    if refused:
        assert (
            "its part of the model is 200.0 GB, and vLLM may take 102.4 GB of 128.0 GB" in texts[0]
        )
        assert "a profile for more nodes" in texts[0]


def test_gpus_with_memory_of_their_own() -> None:
    node = spark(gpus=f"@smi\n{GPUS}\n@process 4711, python3")
    one, two = profile(), profile(gpus=2)
    assert list(memory.shortages(node, memory.pools(node, LISTED, 1), one)) == []
    (short,) = memory.shortages(node, memory.pools(node, LISTED, 2), two)
    assert short.startswith("GPU 1: 21.0 GB of 150.8 GB are free, and vLLM takes 120.6 GB")
    assert "on its GPUs: 4711, python3" in short
    # Nothing is concluded where nvidia-smi does not say it.
    assert memory.pools(node, "No devices were found\n", 2) == []
