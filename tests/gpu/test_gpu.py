"""What this project builds, on real GPUs: an image of the store serves a small model of random
weights on one GPU, on all, and on nodes of one GPU each, and fails in the ways that users see.

What proves most comes first: a machine may be lent for a while only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sparkimage.cli.base import open_store
from sparkimage.core.process import Local
from sparkimage.verify import gpu, plan_record
from tests.gpu import machine
from tests.gpu.cluster import BROKEN, NAME, SEQUENCES, Cluster
from tests.lab.node import Node

NOT_OF_THE_IMAGE = {"node/infiniband", "node/memlock"}
"""Checks of the machine: one without RDMA, or that may not lift limits, fails them."""
SEEN_WITHIN_S = 60.0
SHORT = ("--streams", "1,4", "--tokens", "16", "--requests", "4")
LONG = ("--streams", "8", "--tokens", "4000", "--requests", "20")
"""Long generations, as the recipe that this project grew from was tried with."""


def pinned(cluster: Cluster) -> str:
    """The version of NCCL that the image must load."""
    store = open_store()
    return plan_record.load(store, store.resolve(cluster.image).digest).plan.expect.nccl or ""


def causes(explained: dict[str, Any]) -> list[str]:
    """The ids of the known failures."""
    matches = [match for log in explained["logs"] for match in log["matches"]]
    return [str(match["id"]) for match in (*matches, *explained["across"])]


def banners(cluster: Cluster, name: str) -> list[list[str]]:
    """The versions of NCCL in each rank's log."""
    logs = [log.read_text() for log in cluster.logs(name, cluster.nodes)]
    return [sorted(set(re.findall(r"NCCL version (\d+\.\d+\.\d+)", log))) for log in logs]


def served(cluster: Cluster, name: str) -> None:
    """All nodes serve, and each has proven its NCCL."""
    done = cluster.launch(name, "gpu-nodes", cluster.nodes, "--no-warm-up")
    assert done.returncode == 0, done.stderr
    proven = [one for one in json.loads(done.stdout)["proof"] if one["ok"]]
    assert len(proven) >= len(cluster.nodes)


def broken(cluster: Cluster, name: str, nodes: Sequence[Node] | None = None) -> list[str]:
    """The causes that are found after `status` has said that a deployment is broken."""
    nodes = cluster.nodes if nodes is None else nodes
    seen = cluster.until_broken(name, nodes, 2 * SEEN_WITHIN_S)
    found = causes(cluster.explain(name, nodes))
    cluster.results.note(**{f"{name} causes": found})
    assert seen is not None
    assert seen <= SEEN_WITHIN_S
    return found


def test_the_node_tier(gpus: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """All GPUs of the first node, in a container: NCCL, and the real entry point."""
    gpus.give(gpus.head, gpus.numbers)
    # With the `ssh` that knows the nodes.
    monkeypatch.setenv("PATH", gpus.fleet.environment["PATH"])
    store = open_store()
    plan = plan_record.load(store, store.resolve(gpus.image).digest).plan
    came = gpu.examine(plan, gpus.engine(gpus.head), gpus.image, Local())
    seen = {one.id: [one.passed, one.seen] for one in came.checks}
    gpus.results.note(**{"node tier": seen, "node tier not run": dict(came.not_run)})
    assert came.not_run == {}
    assert {one.id for one in came.checks if not one.passed} <= NOT_OF_THE_IMAGE
    assert {"node/nccl-communicator", "node/nccl-banner"} <= set(seen)


def test_one_gpu(gpus: Cluster) -> None:
    """With vLLM's own defaults: compiled, with CUDA graphs; then again, with what was compiled."""
    done = gpus.launch("one", "gpu-one", gpus.nodes[:1])
    assert done.returncode == 0, done.stderr
    answer = gpus.complete(64)
    gpus.results.note(**{"one answer": answer})
    assert answer["usage"]["completion_tokens"] == 64
    assert gpus.status("one", gpus.nodes[:1]).returncode == 0
    assert causes(gpus.explain("one", gpus.nodes[:1])) == []
    probe = gpus.probe("one", gpus.nodes[:1], "--streams", "1,8")
    assert all(row["rate"] > 0 for row in probe["rows"])

    gpus.restore()
    assert gpus.launch("again", "gpu-one", gpus.nodes[:1]).returncode == 0
    gpus.probe("again", gpus.nodes[:1], *LONG)


def test_nodes_of_one_gpu_each(gpus: Cluster) -> None:
    """NCCL over sockets between the engines; then a worker of the last node is stopped."""
    served(gpus, "nodes")
    assert gpus.complete(64)["usage"]["completion_tokens"] == 64
    said = "".join(log.read_text() for log in gpus.logs("nodes", gpus.nodes))
    assert "via NET/Socket" in said
    assert set(causes(gpus.explain("nodes", gpus.nodes))) <= {"socket-fallback"}
    gpus.probe("nodes", gpus.nodes, *(SHORT if gpus.shared else LONG))

    with gpus.busy():
        gpus.signal_worker("stopped", gpus.nodes[-1], "STOP")
        broken(gpus, "stopped")


def test_a_worker_that_is_killed(gpus: Cluster) -> None:
    served(gpus, "killed")
    gpus.signal_worker("killed", gpus.nodes[-1], "KILL")
    assert broken(gpus, "killed") != []


def test_a_preload_that_is_missing(gpus: Cluster) -> None:
    """The NCCL of torch would run, silently; the proof says so."""
    last = gpus.nodes[-1]
    gpus.preload(last, f"/nowhere/libnccl.so.{pinned(gpus)}")
    done = gpus.launch("missing", "gpu-nodes", gpus.nodes, "--no-warm-up")
    assert done.returncode != 0
    assert "preload" in (done.stdout + done.stderr).lower()
    assert re.search(r"ld\.so: object '/nowhere", gpus.logs("missing", gpus.nodes)[-1].read_text())
    assert causes(gpus.explain("missing", gpus.nodes)) != []


@pytest.mark.parametrize("other", machine.other_nccls(), ids=str)
def test_another_nccl_on_all_ranks(gpus: Cluster, other: Path) -> None:
    """They agree and would serve, or torch does not load with it: `launch` says which."""
    name = f"all {machine.version(other)}"
    gpus.fleet.each(lambda node: gpus.preload_nccl(node, other))
    done = gpus.launch(name, "gpu-nodes", gpus.nodes, "--no-warm-up")
    assert done.returncode == BROKEN
    gpus.status(name, gpus.nodes)
    found = causes(gpus.explain(name, gpus.nodes))
    seen = banners(gpus, name)
    gpus.results.note(**{f"{name} banners": seen, f"{name} causes": found})
    if any(seen):
        wrong = f"NCCL {pinned(gpus)}; seen: {machine.version(other)}"
        assert f"looked for: {wrong}" in done.stderr
    else:
        assert found != []


@pytest.mark.parametrize("other", machine.other_nccls(), ids=str)
def test_two_versions_of_nccl(gpus: Cluster, other: Path) -> None:
    """They hang without a word, or break off: `launch` fails, and `explain` names them."""
    name = f"one {machine.version(other)}"
    gpus.preload_nccl(gpus.nodes[-1], other)
    done = gpus.launch(name, "gpu-nodes", gpus.nodes, "--no-warm-up", limit_s=110)
    assert done.returncode == BROKEN
    found = causes(gpus.explain(name, gpus.nodes))
    gpus.results.note(**{f"{name} banners": banners(gpus, name), f"{name} causes": found})
    assert found != []


def test_all_gpus_of_one_node(together: Cluster) -> None:
    """Tensor parallel; then one of its workers is killed."""
    done = together.launch("several", "gpu-several", together.nodes[:1], "--no-warm-up")
    assert done.returncode == 0, done.stderr
    proof = {one["what"]: one["seen"] for one in json.loads(done.stdout)["proof"]}
    assert proof[f"NCCL {pinned(together)}"].startswith(pinned(together))
    assert together.complete(256)["usage"]["completion_tokens"] == 256
    assert causes(together.explain("several", together.nodes[:1])) == []
    together.probe("several", together.nodes[:1], *LONG)

    together.signal_worker("several killed", together.head, "KILL")
    assert broken(together, "several killed", together.nodes[:1]) != []


def test_drafts(gpus: Cluster) -> None:
    """Speculative decoding by n-grams, which needs no draft model: `probe` has its acceptance."""
    done = gpus.launch("drafts", "gpu-drafts", gpus.nodes[:1], "--no-warm-up")
    assert done.returncode == 0, done.stderr
    probe = gpus.probe("drafts", gpus.nodes[:1])
    assert all(row["acceptance"] is not None for row in probe["rows"])


def test_memory_that_another_process_took(gpus: Cluster) -> None:
    program = (
        "import torch, time; free, all_ = torch.cuda.mem_get_info(); "
        "kept = torch.empty(int(free * 0.6), dtype=torch.uint8, device='cuda'); "
        "print('taken', kept.numel(), flush=True); time.sleep(600)"
    )
    gpus.head.docker(
        "run", "--detach", "--name", "other", "--device", "nvidia.com/gpu=all",
        "--entrypoint", "timeout", gpus.image, "600", "python3", "-c",
        f"{program}",
    )  # fmt: skip
    said = gpus.head.exec(
        "timeout", "90", "sh", "-c",
        "until docker logs other 2>&1 | grep taken; do docker inspect other >/dev/null; done",
    )  # fmt: skip
    gpus.results.note(**{"memory taken": said})
    done = gpus.launch("memory", "gpu-all-memory", gpus.nodes[:1])
    assert done.returncode != 0
    assert "are free, and vLLM takes" in done.stderr
    # What vLLM itself says of it.
    gpus.start("memory", "gpu-all-memory", gpus.head)
    gpus.head.exec("timeout", "240", "docker", "wait", NAME)
    assert causes(gpus.explain("memory", gpus.nodes[:1])) != []


def test_caches_that_another_node_compiled(gpus: Cluster) -> None:
    """The last node compiles nothing of what the first one has saved."""
    first, last = gpus.nodes[:1], gpus.nodes[-1:]
    gpus.forget_caches(gpus.nodes[-1])
    assert gpus.launch("saved", "gpu-one", first, "--save-caches").returncode == 0
    gpus.restore()
    assert gpus.launch("brought", "gpu-one", last).returncode == 0
    (log,) = gpus.logs("brought", last)
    said = log.read_text()
    assert "Directly load AOT compilation" in said
    assert "Building JIT module sampling" not in said


def test_a_head_that_is_killed(gpus: Cluster) -> None:
    served(gpus, "headless")
    gpus.head.docker("kill", NAME)
    assert broken(gpus, "headless") != []


def test_more_sequences_at_once(gpus: Cluster) -> None:
    """Throughput rises with ``max_num_seqs`` where there are requests for it."""
    rates = []
    for count in SEQUENCES:
        name = f"{count} sequences"
        done = gpus.launch(name, f"gpu-{count}-sequences", gpus.nodes[:1], "--no-warm-up")
        assert done.returncode == 0, done.stderr
        probe = gpus.probe(name, gpus.nodes[:1], "--streams", "4,8", "--requests", "16")
        rates.append([row["total"] for row in probe["rows"]])
        gpus.restore()
    (few, _), (_, _), (_, many) = rates
    assert few < many
    assert [all_ for _, all_ in rates] == sorted(all_ for _, all_ in rates)
