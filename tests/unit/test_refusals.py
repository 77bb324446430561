"""What an engine says when it refuses an image, and what a user is told of it.

The words are those of Docker 26.1.5 and 28.5.2 with either store, as the lab's nodes printed them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.config.inventory import Node
from sparkimage.core.errors import DamagedError, NodeError, UnreachableError
from sparkimage.nodes import refusals
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.ssh import Remote

NODE = Remote(node=Node(name="spark1", control="10.0.0.1", sudo=True), sockets=Path("unused"))
CHAIN = "cf0c9eed6052b658e807139a39866df01353253ec539cc502aca90b21345c3a8"
RECORD = f"/var/lib/docker/image/overlay2/layerdb/sha256/{CHAIN}"
LEFT_OVER = f"rename /var/lib/docker/image/overlay2/layerdb/tmp/write-set-5 {RECORD}: file exists"
OVERLAY2 = "/var/lib/docker/overlay2"
SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
NO_FILE = "no such file or directory"
CASES = {
    "the daemon is gone": (
        Act.LOAD, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.",
        UnreachableError, "its Docker daemon went away", "systemctl status docker",
    ),
    "it went in mid-work": (
        Act.PULL, "error during connect: Post …/v1.45/images/create: EOF",
        UnreachableError, "its Docker daemon went away", "systemctl status docker",
    ),
    "blobs are gone": (
        Act.LOAD, f"content digest sha256:{CHAIN}: not found",
        UnreachableError, "containerd lost layers", "run the same command again",
    ),
    "the blobs of an image that is named are gone": (
        Act.CREATE, f"Error response from daemon: content digest sha256:{CHAIN}: not found",
        DamagedError, "no container can be created", "images there that share its layers",
    ),
    "the disk is full": (
        Act.LOAD, "write /blobs/sha256/5: no space left on device",
        NodeError, "its disk is full", "sparkimage gc",
    ),
    "a record is left": (
        Act.PULL, f"b1: Extracting\nfailed to register layer: {LEFT_OVER}",
        NodeError, "a full disk has left the record", f"sudo rm -r {RECORD}",
    ),
    "the top layer's files are gone": (
        Act.CREATE, f"@@ image \nError response from daemon: stat {OVERLAY2}/c412: {NO_FILE}",
        DamagedError, "layers are damaged there", "sudo -n docker image ls",
    ),
    "a lower layer's files are gone": (
        Act.CREATE, f"Error response: error creating overlay mount to {OVERLAY2}/f-init: {NO_FILE}",
        DamagedError, "layers are damaged there", "images there that share its layers",
    ),
    "a snapshot's files are gone": (
        Act.LOAD, f"failed to stat parent: stat {SNAPSHOTS}/9/fs: {NO_FILE}: unknown",
        DamagedError, "layers are damaged there", "images there that share its layers",
    ),
    "no container": (
        Act.CREATE, f"failed to mount /tmp/containerd-mount34: {NO_FILE}",
        DamagedError, "no container can be created", "images there that share its layers",
    ),
    "a layer's files are gone, which containerd calls a success": (
        Act.LOAD, f"Error unpacking image: failed to stat: stat {SNAPSHOTS}/74/fs: {NO_FILE}",
        DamagedError, "layers are damaged there", "images there that share its layers",
    ),
    "a success that is none": (
        Act.LOAD, "Error unpacking image sparkimage-staging:5: wrong diff id",
        NodeError, "reported success", "journalctl -u docker",
    ),
    "anything else": (
        Act.LOAD, "invalid tar header",
        NodeError, "its engine refused to load the image: invalid tar header", "system df",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "output", "kind", "message", "hint"), CASES.values(), ids=CASES)
def test_error_for_engine_output(
    act: Act, output: str, kind: type[NodeError], message: str, hint: str
) -> None:
    error = refusals.error_for(NODE, act, output)
    assert type(error) is kind
    assert error.message.startswith("spark1: ")
    assert message in error.message
    assert hint in error.hint
    assert refusals.last_line(output) in f"{error.message}\n{error.detail}"
    if isinstance(error, UnreachableError):
        assert not error.definite


def test_stale_record_is_a_path_of_layerdb_only() -> None:
    assert refusals.stale_record(LEFT_OVER) == RECORD
    for other in (
        LEFT_OVER.replace(CHAIN, CHAIN[:-1]),
        LEFT_OVER.replace(CHAIN, f"{CHAIN}/../../../.."),
        LEFT_OVER.replace(RECORD, f"/etc /{CHAIN}"),
        LEFT_OVER.replace("file exists", "permission denied"),
        "invalid tar header",
    ):
        assert refusals.stale_record(other) == ""


def test_engine_faults() -> None:
    faults = {name for name, (_, output, *_) in CASES.items() if refusals.is_engine_fault(output)}
    assert faults == {
        "the daemon is gone", "it went in mid-work", "the disk is full", "a record is left",
        "the top layer's files are gone", "a lower layer's files are gone",
        "a snapshot's files are gone", "a layer's files are gone, which containerd calls a success",
    }  # fmt: skip
