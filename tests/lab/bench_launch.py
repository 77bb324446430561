"""How long `launch` takes until a set of four nodes is ready and proven, with a server that needs
next to nothing for it: what is measured is this project's own part."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

from sparkimage.engines.engine import Engine
from tests.lab.serving import serving

ROUNDS = int(os.environ.get("ROUNDS", "3"))


def test_how_long_a_launch_takes(engine: Engine, tmp_path: Path) -> None:
    with serving(engine, tmp_path / "serving", variants=["good"]) as ready:
        found = []
        for _ in range(ROUNDS):
            ready.clean()
            done = ready.launch("--json")
            assert done.returncode == 0, done.stderr
            found.append(json.loads(done.stdout)["seconds"])
        said = ", ".join(f"{one:.2f}" for one in found)
        print(f"\nlaunch to ready, four nodes: median {statistics.median(found):.2f} s of {said}")
