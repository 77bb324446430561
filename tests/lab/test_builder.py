"""A build that outgrows this machine: on a node's engine, by a Docker context over SSH."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors
from tests.lab import fleet as fleets
from tests.lab import servers
from tests.lab.conftest import REPOSITORY, Lab
from tests.lab.fleet import Fleet
from tests.lab.node import Spec

CONTEXT, NODE = "lab-remote", "lab-node"


@pytest.fixture(scope="module")
def remote(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("remote")
    with fleets.fleet(lab.engine, folder, {NODE: Spec()}) as made:
        yield made


@pytest.fixture(scope="module")
def environment(
    lab: Lab, remote: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A user's configuration in which the node is a context."""
    found = {"DOCKER_CONFIG": str(tmp_path_factory.mktemp("docker")), **remote.environment}
    subprocess.run(
        [lab.engine.docker[0], "context", "create", CONTEXT,
         f"--docker=host=ssh://root@{NODE}"],
        env={**os.environ, **found}, check=True, capture_output=True,
    )  # fmt: skip
    return found


def test_a_nodes_engine_builds_and_the_image_is_proven_here(
    lab: Lab, remote: Fleet, environment: dict[str, str]
) -> None:
    done = lab.run("image", "tiny-amd64", "--builder", CONTEXT, "--rebuild", **environment)
    assert done.returncode == 0, done.stderr
    assert f"{REPOSITORY}:tiny-amd64" in lab.images()
    held = lab.context.store.resolve(f"{REPOSITORY}:tiny-amd64")
    assert lab.docker.image.inspect(f"{REPOSITORY}:tiny-amd64").id == held.digest
    # What was built there left its layers there.
    cached = remote[NODE].docker("system", "df", "--format", "{{.Type}} {{.Size}}")
    assert "Build Cache 0B" not in cached


def test_the_same_layers_come_of_both(lab: Lab, environment: dict[str, str]) -> None:
    there = lab.context.store.resolve(f"{REPOSITORY}:tiny-amd64")
    here = lab.build("tiny-amd64", rebuild=True)
    assert [la.diff_id for la in here.image.layers] == [la.diff_id for la in there.layers]
    again = lab.run("image", "tiny-amd64", "--builder", CONTEXT, **environment)
    assert "unchanged" in again.stdout


def test_an_unknown_builder_is_named(lab: Lab) -> None:
    done = lab.run("image", "tiny-amd64", "--builder", "nowhere")
    assert done.returncode == 3
    assert "the builder 'nowhere' cannot be used" in done.stderr
    assert "docker buildx ls" in done.stderr


def test_the_cache_goes_to_a_registry(lab: Lab, tmp_path: Path) -> None:
    with servers.registry(tmp_path / "cache") as registry:
        data = lab.data | {"cache": f"{registry.address}/build-cache"}
        lab.write(data)
        try:
            done = lab.run("image", "tiny-amd64", "--rebuild")
            assert done.returncode == 0, done.stderr
            tags = registry.folder / "docker/registry/v2/repositories/build-cache/_manifests/tags"
            assert [one.name for one in tags.iterdir()] == ["tiny-amd64"]
        finally:
            lab.write(lab.data)


def test_mirrors_are_no_part_of_the_image(lab: Lab) -> None:
    plain = lab.plan("tiny-amd64")
    lab.mirrors["docker.io"] = "127.0.0.1:1"
    try:
        assert lab.plan("tiny-amd64").checksum() == plain.checksum()
        assert Mirrors(rules=lab.mirrors).of("docker.io/nvidia/cuda") == "127.0.0.1:1/nvidia/cuda"
    finally:
        lab.mirrors.clear()
