"""Commands that meet: two that build for one name, and one that was killed before it named."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparkimage.verify import plan_record, seal
from tests.lab.conftest import PROJECT, REPOSITORY, STORE, Lab, matrix_data
from tests.lab.node import wait

NAME = f"{REPOSITORY}:tiny-amd64"
CHECK = """
import select
from pathlib import Path

FOLDER = Path({folder!r})


def test_waits(check):
    (FOLDER / "begun").touch()
    while not (FOLDER / "go").exists():
        select.select([], [], [], 0.05)
    check("it went on", seen=1, expected=1)
"""


class Waiting:
    """A project that builds ``NAME`` too, whose check waits until the test lets it go on."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.folder = folder
        (folder / "images" / "waits").mkdir(parents=True)
        for one in (PROJECT / "images").iterdir():
            (folder / "images" / one.name).symlink_to(one)
        (folder / "images" / "waits" / "Dockerfile").write_text("FROM layer AS waits\n")
        (folder / "images" / "waits" / "test_waits.py").write_text(CHECK.format(folder=str(folder)))
        (folder / "wheels").symlink_to(lab.project / "wheels")
        self.lab = Lab(folder, STORE, lab.engine)
        data: dict[str, Any] = copy.deepcopy(matrix_data())
        data["layers"]["waits"] = {}
        tiny = next(one for one in data["include"] if one["name"] == "tiny-amd64")
        tiny["layers"] = ["debian", "waits"]
        self.lab.write(data)
        self.lab.lock()

    @property
    def begun(self) -> bool:
        return (self.folder / "begun").exists()

    def go(self) -> None:
        (self.folder / "go").touch()


@contextmanager
def started(lab: Lab, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        lab.argv("image", "tiny-amd64", *words), env=lab.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def waiting(lab: Lab, tmp_path: Path) -> Iterator[Waiting]:
    made = Waiting(lab, tmp_path)
    yield made
    made.lab.said.close()


def proven(lab: Lab, layers: int) -> str:
    """The digest that the name stands for in engine and store, with a seal of its own plan."""
    store = lab.context.store
    digest = store.names()[NAME]
    image = store.resolve(digest)
    known = (digest, image.manifest["config"]["digest"])
    assert lab.docker.image.inspect(NAME).id in known
    record = plan_record.load(store, digest)
    assert len(record.plan.layers) == layers
    verdict = seal.verdict(store, digest, plan_checksum=record.checksum)
    assert verdict is not None
    assert verdict.result == "PASSED"
    return digest


def unproven(lab: Lab) -> list[str]:
    return [name for name in lab.images() if ":unproven-" in name]


def test_two_builds_of_one_name_go_one_after_the_other(lab: Lab, waiting: Waiting) -> None:
    before = lab.context.store.names().get(NAME)
    with started(waiting.lab) as first:
        wait(lambda: waiting.begun or first.poll() is not None, "the check did not begin")
        assert waiting.begun, first.communicate()
        # Not proven yet, so that it has no name; nor is it one that the other one could take.
        own = f"{REPOSITORY}:unproven-{os.uname().nodename}-{first.pid}"
        wait(lambda: unproven(lab) == [own], "the image did not come into the engine")
        assert lab.context.store.names().get(NAME) == before
        with started(lab, "--rebuild") as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            while "waiting for" not in said:
                assert said, "it did not wait"
                said = second.stderr.readline()
            assert f"waiting for process {first.pid}, which makes {NAME}, too" in said
            # What is removed meanwhile is not what they work on.
            waits: list[str] = []
            gc = subprocess.Popen(
                lab.argv("store", "gc"), env=lab.environment(), stderr=subprocess.PIPE, text=True
            )
            assert gc.stderr is not None
            waits.append(gc.stderr.readline())
            assert "which uses the store" in waits[0]
            waiting.go()
            out, err = first.communicate(timeout=300)
            assert first.returncode == 0, err
            assert "checks passed, sealed" in out
            out, err = second.communicate(timeout=300)
            assert second.returncode == 0, err
            gc.communicate(timeout=300)
            assert gc.returncode == 0
    proven(lab, layers=1)
    assert unproven(lab) == []


def test_what_a_killed_build_left_unproven_is_removed_by_the_next(
    lab: Lab, waiting: Waiting
) -> None:
    with started(waiting.lab) as killed:
        wait(lambda: waiting.begun or killed.poll() is not None, "the check did not begin")
        own = f"{REPOSITORY}:unproven-{os.uname().nodename}-{killed.pid}"
        wait(lambda: unproven(lab) == [own], "the image did not come into the engine")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    assert unproven(lab) == [own]
    waiting.go()
    waiting.lab.build("tiny-amd64", rebuild=True)
    proven(lab, layers=2)
    assert unproven(lab) == []
