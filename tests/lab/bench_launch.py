"""How long `launch` takes until a set of four nodes is ready and proven, and `status` to say that a
rank does nothing, with a server that needs next to nothing for it: what is measured is this
project's own part.

And what saved caches spare it, with a server that takes COMPILE seconds (default 10) to compile its
graph, and a tenth of that for each kernel.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from tests.lab.node import wait
from tests.lab.serving import NODES, OnNodes, serving

ROUNDS = int(os.environ.get("ROUNDS", "3"))
COMPILE = float(os.environ.get("COMPILE", "10"))


def test_how_long_a_launch_takes(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path / "serving") as ready:
        found: dict[str, list[float]] = {"launch to ready": [], "the whole command": []}
        for _ in range(ROUNDS):
            ready.clean()
            began = time.monotonic()
            done = ready.launch("--json")
            found["the whole command"].append(time.monotonic() - began)
            assert done.returncode == 0, done.stderr
            found["launch to ready"].append(json.loads(done.stdout)["seconds"])
        _print(found)


def test_what_caches_spare(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path / "serving") as ready:
        ready.clean()
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            _forget(ready)
            _measure(ready, found, "no caches", "--save-caches")
            _measure(ready, found, "its own caches")
            _forget(ready)
            _measure(ready, found, "brought caches")
            ready.run("store", "gc")
            for file in (ready.store.root / "caches").glob("*.json"):
                file.unlink()
        _print(found)


def test_how_long_until_status_says_that_a_rank_does_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    """From the moment at which a rank stops, or takes no step any more, to the end of `status`;
    what `/health` says all that time is ok."""
    with serving(engine, tmp_path / "serving") as ready:
        found: dict[str, list[float]] = {}

        def measure(what: str, fault: Callable[[], object], *words: str) -> None:
            began = time.monotonic()
            fault()
            done = ready.run("status")
            found.setdefault(what, []).append(time.monotonic() - began)
            assert done.returncode == 18, done.stdout
            for word in words:
                assert word in done.stderr, done.stderr

        def launch() -> None:
            ready.clean()
            done = ready.launch()
            assert done.returncode == 0, done.stderr

        def busy() -> bool:
            return re.search(r"num_requests_running.* 1\.0", ready.metrics()) is not None

        for _ in range(ROUNDS):
            launch()
            began = time.monotonic()
            assert ready.run("status").returncode == 0
            found.setdefault("nothing is wrong", []).append(time.monotonic() - began)
            measure(
                "a process is stopped",
                lambda: ready.docker("node3", "kill", "--signal", "STOP", "vllm"),
                "rank 2 on node3 is stopped",
            )
            launch()
            measure("idle, a rank hangs", lambda: ready.model("node3", deaf=True), "no answer in")
            launch()
            ready.request(1_000_000)
            wait(busy, "no request runs")
            measure("busy, a rank hangs", lambda: ready.model("node3", deaf=True), "no token came")
        _print(found)


def _forget(ready: OnNodes) -> None:
    """No node has caches, and all take their time to compile."""
    ready.fleet.each(lambda node: node.exec("rm", "-rf", "/root/.cache/sparkimage"))
    for name in NODES:
        ready.model(name, compile_s=COMPILE)


def _measure(ready: OnNodes, found: dict[str, list[float]], what: str, *words: str) -> None:
    began = time.monotonic()
    done = ready.launch("--json", "--replace", "--warm-up", "300", *words)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    for name, seconds in (
        ("ready", facts["seconds"]),
        ("ready and warm", facts["seconds"] + facts["warm_up"]["seconds"]),
        ("whole command", time.monotonic() - began),
    ):
        found.setdefault(f"{what}: {name}", []).append(seconds)


def _print(found: dict[str, list[float]]) -> None:
    print()
    for what, times in found.items():
        said = ", ".join(f"{one:.2f}" for one in times)
        print(f"{what}, four nodes: median {statistics.median(times):.2f} s of {said}")
