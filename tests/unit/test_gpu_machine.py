"""The parts of tests/gpu that need no GPU: what is found of a machine, and what is made for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparkimage.config import matrix
from tests.gpu import cluster, machine, model


@pytest.mark.parametrize(
    ("names", "found", "used"),
    [
        ([], (), ()),
        (["nvidiactl", "nvidia-uvm", "nvidia0"], (0,), (0,)),
        (["nvidia10", "nvidia2", "nvidia0"], (0, 2, 10), (0, 2)),
        ([f"nvidia{n}" for n in range(8)], tuple(range(8)), tuple(range(8))),
    ],
)
def test_the_gpus_of_a_machine(
    tmp_path: Path, names: list[str], found: tuple[int, ...], used: tuple[int, ...]
) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert machine.gpus(tmp_path) == found
    if found:
        assert machine.used(found) == used


def test_a_cdi_specification(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    made = machine.specification((1, 3), ("libcuda.so.1", "nvidia-smi"), "/usr/lib/x", tmp_path)
    devices = {
        one["name"]: [node["path"] for node in one["containerEdits"]["deviceNodes"]]
        for one in made["devices"]
    }
    both = ["/dev/nvidia1", "/dev/nvidia3"]
    assert devices == {"1": both[:1], "3": both[1:], "all": both}
    edits = made["containerEdits"]
    assert edits["deviceNodes"] == [{"path": "/dev/nvidiactl"}]
    assert [mount["containerPath"] for mount in edits["mounts"]] == ["/usr/lib/x/libcuda.so.1"]
    assert "NCCL_NVLS_ENABLE=0" in edits["env"]


def test_the_small_model() -> None:
    """Every byte has a token of its own."""
    files = {Path(path).name: json.loads(content) for path, (_, content) in model.files().items()}
    vocabulary = files["tokenizer.json"]["model"]["vocab"]
    assert len(vocabulary) == files["config.json"]["vocab_size"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert set(model.alphabet()) <= vocabulary.keys()
    assert len(set(model.alphabet())) == 256


@pytest.mark.parametrize(
    ("numbers", "nodes", "shares"),
    [([0], "", (0, 0)), ([0, 1], "", (0, 1)), ([0], "4", (0, 0, 0, 0)), ([3, 5], "3", (3, 5, 3))],
)
def test_the_gpu_of_each_node(
    monkeypatch: pytest.MonkeyPatch, numbers: list[int], nodes: str, shares: tuple[int, ...]
) -> None:
    monkeypatch.setenv("GPU_NODES", nodes)
    assert machine.shares(numbers) == shares


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 2), (1, 4), (2, 2), (8, 8)])
def test_the_profiles_fit_the_matrix(tmp_path: Path, gpus: int, nodes: int) -> None:
    folder = cluster.project(tmp_path / "project", gpus, nodes)
    profiles = matrix.load(folder / "matrix.yaml").profiles
    assert profiles["gpu-nodes"].nodes == nodes
    assert profiles["gpu-nodes"].serve.tensor_parallel == nodes
    assert (profiles["gpu-nodes"].serve.gpu_memory_utilization or 0) * nodes / gpus <= 0.6
    assert profiles["gpu-several"].gpus == gpus
    assert all(one.env["NCCL_NVLS_ENABLE"] == "0" for one in profiles.values())
