"""Fixtures for tests on real GPUs (`make test-gpu`).

$GPU_IMAGE names the image (default: the newest of the store for this machine), $GPU_OUT the folder
for logs and figures.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.build.engine.private import ensure
from sparkimage.cli.base import open_store
from sparkimage.core import paths
from sparkimage.core.arch import native_arch
from sparkimage.core.process import Local
from sparkimage.verify import plan_record
from tests.gpu import machine
from tests.gpu.cluster import Cluster, Results, cluster

NO_GPU = "no NVIDIA GPU"
QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Where logs and figures are kept."""
    if not machine.gpus():
        pytest.skip(NO_GPU)
    folder = Path(os.environ.get("GPU_OUT") or tmp_path_factory.mktemp("results"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nlogs and figures: {folder}")
    return Results(folder=folder)


@pytest.fixture(scope="session")
def image() -> str:
    """The name of an image of the store that serves with NCCL on this machine's architecture."""
    if wanted := os.environ.get("GPU_IMAGE"):
        return wanted
    store = open_store()
    fitting = []
    for name in store.names():
        plan = plan_record.load(store, store.resolve(name).digest).plan
        if plan.platform == f"linux/{native_arch()}" and plan.expect.nccl:
            fitting.append(name)
    if not fitting:
        pytest.skip(f"no image for linux/{native_arch()} with NCCL in the store: make image")
    return max(fitting)


@pytest.fixture(scope="session")
def machine_nodes(
    results: Results, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Nodes with a GPU each."""
    engine = ensure(paths.home(), Local(), print)
    with cluster(engine, tmp_path_factory.mktemp("gpu"), image, results, print) as made:
        smi = made.head.exec("nvidia-smi", *QUERY).splitlines()
        results.note(
            image=image, gpus=smi,
            machine=f"{platform.machine()}, {os.cpu_count()} cores, kernel {platform.release()}",
            engine=engine.version, shares=made.shares,
        )  # fmt: skip
        yield made


@pytest.fixture(scope="session")
def distributed(machine_nodes: Cluster) -> Cluster:
    """The nodes with the image."""
    machine_nodes.results.note(digest=open_store().resolve(machine_nodes.image).digest)
    done = machine_nodes.distribute()
    assert done.returncode == 0, done.stderr
    return machine_nodes


@pytest.fixture
def gpus(distributed: Cluster) -> Iterator[Cluster]:
    """The nodes as they began: one GPU each, nothing runs."""
    distributed.restore()
    distributed.give(distributed.head, distributed.numbers[:1])
    yield distributed
    distributed.restore()


@pytest.fixture
def together(gpus: Cluster) -> Cluster:
    """The first node has all GPUs, of several."""
    if len(gpus.numbers) < 2:
        pytest.skip("one GPU")
    gpus.give(gpus.head, gpus.numbers)
    return gpus
