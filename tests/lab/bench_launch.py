"""How long `launch` takes until a set of four nodes is ready and proven, with a server that needs
next to nothing for it: what is measured is this project's own part."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from tests.lab.serving import serving

ROUNDS = int(os.environ.get("ROUNDS", "3"))


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
        print()
        for what, times in found.items():
            said = ", ".join(f"{one:.2f}" for one in times)
            print(f"{what}, four nodes: median {statistics.median(times):.2f} s of {said}")
