"""GPUs by CDI on real engines: what a node's Docker says it has, and the options that follow. The
device is /dev/fuse, under the name that NVIDIA's have."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from sparkimage.config import inventory
from sparkimage.nodes.session import sessions
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.nodes.ssh import MACHINE
from tests.lab import node_image
from tests.lab.cdi import give_devices, take_devices
from tests.lab.fleet import Fleet
from tests.lab.node import Node

IMAGE = "lab-busybox"
DEVICES = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": "/dev/fuse"}]}}
        for name in ("0", "all")
    ],
    "containerEdits": {"env": ["GIVEN=by CDI"]},
}


def put_image(node: Node) -> None:
    """An image with a busybox."""
    archive, busybox = io.BytesIO(), node_image.busybox(node.engine.arch)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        file = tarfile.TarInfo("bin/sh")
        file.mode, file.size = 0o755, len(busybox)
        tar.addfile(file, io.BytesIO(busybox))
    node.docker("import", "-", IMAGE, given=archive.getvalue())


def snapshots(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> dict[str, NodeSnapshot]:
    """What the program sees of each node."""
    monkeypatch.setenv("PATH", fleet.environment["PATH"])
    file = fleet.folder / "cdi-fleet.yaml"
    file.write_text(json.dumps(fleet.data()))
    with sessions(inventory.load(file), 60.0) as all_:
        return {session.name: session.open(MACHINE) for session in all_}


def test_an_engine_with_cdi_devices(two: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(one.gives_gpus for one in snapshots(two, monkeypatch).values())
    node = next(iter(two))
    try:
        give_devices(node, json.dumps(DEVICES).encode())
        seen = snapshots(two, monkeypatch)
        assert [name for name, one in seen.items() if one.gives_gpus] == [node.name]
        put_image(node)
        run = ("run", "--rm", "--network=none", *seen[node.name].gpu_options, IMAGE)
        assert node.docker(*run, "sh", "-c", "echo $GIVEN /dev/fus*") == "by CDI /dev/fuse"
        with pytest.raises(RuntimeError, match="could not select device driver"):
            node.docker("run", "--rm", "--gpus", "all", IMAGE, "sh", "-c", ":")
    finally:
        take_devices(node)
