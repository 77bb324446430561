"""The machine that compiles has the memory and the disk that a source needs, or says so first."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkimage.build import capacity
from sparkimage.build.engine.builders import Builder
from sparkimage.config.plan import LayerPlan, Plan, SourceBuild
from sparkimage.core.errors import PreflightError
from sparkimage.core.process import Local
from sparkimage.image.store import Store
from tests.unit import good_maker

GB = 10**9
SOURCE = SourceBuild(
    pin="fork", value="1", repository="https://git.example/x", commit="a" * 40, tree="b" * 40,
    dockerfile="Dockerfile", target=None, version="1", images={},
)  # fmt: skip


def plan(*, memory: int = 0, disk: int = 0, source: SourceBuild | None = SOURCE) -> Plan:
    layer = LayerPlan(
        name="compiled", dockerfile="Dockerfile", args={"max_jobs": "2"}, source=source
    )
    return dataclasses.replace(good_maker.plan(), layers=(layer,), memory=memory, disk=disk)


@dataclass
class Context:
    """What is asked of a build's context: an engine at a socket, a builder, a store."""

    store: Store
    builder: Builder
    host: str = "unix:///run/docker.sock"
    docker: str = "false"
    said: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Any:
        return SimpleNamespace(host=self.host, data_root="/", docker=(self.docker,))

    @property
    def runner(self) -> Local:
        return Local()

    def say(self, line: str) -> None:
        self.said.append(line)


def context(tmp_path: Path, *endpoints: str, docker: str = "false") -> Any:
    builder = Builder(
        buildx=(), options=(), environment={}, remote=bool(endpoints),
        arches=("arm64",) * (len(endpoints) or 1), endpoints=endpoints,
    )  # fmt: skip
    return Context(Store.open(tmp_path / "store"), builder, docker=docker)


def cli(tmp_path: Path, answer: str) -> str:
    """A docker CLI that answers `info`."""
    path = tmp_path / "docker"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("needs", "what"),
    [({"memory": 10**15}, "of memory free"), ({"disk": 10**16}, "of disk free")],
)
def test_a_machine_with_too_little_is_told_what_it_has(
    tmp_path: Path, needs: dict[str, Any], what: str
) -> None:
    with pytest.raises(PreflightError) as refusal:
        capacity.check(plan(**needs), context(tmp_path))
    assert refusal.value.message.startswith("small cannot be compiled here: this machine has ")
    assert f"{what}; compiled needs 10" in refusal.value.message
    assert "--builder" in refusal.value.hint


def test_a_machine_with_enough_is_left_alone(tmp_path: Path) -> None:
    seen = context(tmp_path)
    capacity.check(plan(memory=10**6, disk=10**6), seen)
    capacity.check(plan(memory=10**15, source=None), seen)
    assert seen.said == []


def test_what_was_compiled_before_is_not_asked_for_again(tmp_path: Path) -> None:
    seen, large = context(tmp_path), plan(memory=10**15)
    capacity.record(large, seen)
    capacity.check(large, seen)
    other = dataclasses.replace(large.layers[0], args={"max_jobs": "3"})
    with pytest.raises(PreflightError):
        capacity.check(dataclasses.replace(large, layers=(other,)), seen)


def test_a_remote_engine_is_asked_for_what_it_can_say(tmp_path: Path) -> None:
    small = context(tmp_path, "ssh://spark1", docker=cli(tmp_path, str(64 * GB)))
    with pytest.raises(
        PreflightError, match=r"ssh://spark1 has 64\.0 GB of memory; compiled needs"
    ):
        capacity.check(plan(memory=107 * GB), small)
    large = context(tmp_path, "ssh://spark1", docker=cli(tmp_path, str(128 * GB)))
    capacity.check(plan(memory=107 * GB, disk=150 * GB), large)
    assert large.said == ["ssh://spark1 was not asked for its disk; compiled needs 150.0 GB free"]


def test_a_builder_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    silent = context(tmp_path, "tcp://buildkit.example:1234")
    capacity.check(plan(memory=107 * GB), silent)
    assert silent.said == [
        "tcp://buildkit.example:1234 was not asked for its memory; compiled needs 107.0 GB free"
    ]


def test_only_the_node_of_that_architecture_is_asked(tmp_path: Path) -> None:
    seen = context(tmp_path, "tcp://one", "tcp://two")
    seen.builder = dataclasses.replace(seen.builder, arches=("amd64", "arm64"))
    capacity.check(plan(memory=GB), seen)
    assert [line.split()[0] for line in seen.said] == ["tcp://two"]


def test_free_memory_is_what_can_be_had_without_swapping() -> None:
    assert capacity.parse_meminfo("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   3 kB\n") == 3072
    assert capacity.parse_meminfo("MemTotal: 9 kB\n") is None
