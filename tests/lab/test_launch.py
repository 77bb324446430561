"""`launch` and what goes with it, on four real nodes with a stand-in for vLLM."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from sparkimage.engines.engine import Engine
from tests.lab.serving import PIN, Serving, serving

NODES = ["node1", "node2", "node3", "node4"]
LAUNCH_FAILED, NODE_FAILED = 18, 13


@pytest.fixture(scope="module")
def yard(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(engine, tmp_path_factory.mktemp("serving")) as made:
        yield made


@pytest.fixture
def ready(yard: Serving) -> Serving:
    """The nodes with a model, and nothing that runs."""
    yard.clean()
    return yard


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_four_nodes_serve_and_are_proven(ready: Serving) -> None:
    done = ready.launch()
    print(done.stdout, done.stderr)
    said = ok(done)
    assert set(map(tuple, ready.containers().values())) == {("vllm running",)}
    assert said.count(f"NCCL {PIN}") == 4
    print(ready.run("status").stdout)
