"""Measures the lock's verbs and the builds of `ds4-flash` in the lab: `make bench-recipe`.

Not a test of any time: it prints what it saw, as the rows of a table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.conftest import Lab, spare_engine
from tests.lab.recipe import Recipe

VARIANT = "ds4-flash"
pytestmark = pytest.mark.arm64


def say(capsys: pytest.CaptureFixture[str], what: str, seen: str) -> None:
    with capsys.disabled():
        print(f"| {what} | {seen} |")


def seconds(run: Callable[[], object], times: int) -> str:
    """The median of several runs, with the least and the most."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        run()
        found.append(time.monotonic() - began)
    rest = f" ({min(found):.2f} to {max(found):.2f}, {times} runs)" if times > 1 else ""
    return f"{statistics.median(found):.2f} s{rest}"


def test_lock_verbs(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    lab = recipe.lab
    path = lab.project / "matrix.lock"
    held = path.read_text()

    def verb(*words: str) -> None:
        done = lab.run("lock", *words)
        assert done.returncode == 0, done.stderr

    def anew() -> None:
        path.unlink()
        verb()
        assert path.read_text() == held

    with capsys.disabled():
        print()
    say(capsys, "lines of the lab's lock", str(len(held.splitlines())))
    say(capsys, "lock, from nothing", seconds(anew, 3))
    say(capsys, "lock, nothing to do", seconds(verb, 5))
    say(capsys, "lock --check", seconds(lambda: verb("--check"), 5))
    say(capsys, "lock --update vllm==20260727", seconds(lambda: verb("--update", "vllm"), 3))
    say(capsys, "lock --update nccl", seconds(lambda: verb("--update", "nccl"), 3))
    say(capsys, "lock --outdated", seconds(lambda: verb("--outdated"), 3))


def test_builds(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    project = recipe.lab.project
    with spare_engine("bench") as (home, engine):
        lab = Lab(project, home / "store", engine, recipe.lab.mirrors)
        say(capsys, f"{VARIANT} cold, with its proof", seconds(lambda: lab.build(VARIANT), 1))
        good = lab.build(VARIANT)
        say(capsys, "unchanged", seconds(lambda: lab.build(VARIANT), 5))
        say(capsys, "warm, proven again", seconds(lambda: lab.build(VARIANT, rebuild=True), 3))
        with recipe.lab.kept():
            recipe.write_patches(origin=recipe.later_patch())
            recipe.lab.lock()
            say(capsys, "patch changed", seconds(lambda: lab.build(VARIANT), 1))
            made = lab.build(VARIANT)
        assert made.image.layers[:-1] == good.image.layers[:-1]
        blobs, before = dict(made.image.blobs()), dict(good.image.blobs())
        new = sum(size for digest, size in blobs.items() if digest not in before)
        manifest = Path(lab.context.store.path(made.image.digest)).stat().st_size
        say(capsys, "bytes that the patch change adds", f"{new + manifest} in all")
        say(capsys, "of them its layer", f"{made.image.layers[-1].size}")
        say(capsys, "bytes of the whole image", f"{made.image.size}")
        lab.said.close()
