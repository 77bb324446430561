"""What a node's engine means when it refuses an image. Pure."""

from __future__ import annotations

import re
from enum import StrEnum

from sparkimage.core.errors import DamagedError, NodeError, UnreachableError
from sparkimage.core.program import program
from sparkimage.nodes.ssh import Remote

UNPACK_FAILED = "Error unpacking"
"""containerd's store says this of an image, and then ends as if all were well."""


class Act(StrEnum):
    """What an engine was to do."""

    LOAD = "load the image"
    PULL = "pull the image"
    TAG = "tag the image"
    CREATE = "create a container from the image"
    MOVE = "move the name"
    RUN = "do what it was told"


GONE = re.compile(
    r"cannot connect to the docker daemon|error during connect|unexpected EOF"
    r"|connection reset by peer|is the docker daemon running",
    re.IGNORECASE,
)
"""The docker command lost its daemon."""
FULL = "no space left on device"
BLOB_LOST = re.compile(r"content digest sha256:[0-9a-f]{64}: not found")
"""containerd lists what a failed load left until it collects its garbage."""
DAMAGED = re.compile(r"/(?:overlay2|snapshots)/\S+: no such file or directory")
"""The engine has the record of a layer, and its files are gone."""
STALE_RECORD = re.compile(
    r"rename \S+ (/\S+/image/overlay2/layerdb/sha256/[0-9a-f]{64}): file exists"
)
"""overlay2 still has the record of a layer that it removed: the disk was too full to rename it
(https://github.com/moby/moby/issues/44909)."""
RECORD_LEFT = "a full disk has left the record of a layer that is gone"


def last_line(output: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(output.strip().splitlines()) if line), "")


def is_engine_fault(output: str) -> bool:
    """Whether the engine itself failed, so that it would with layers from anywhere."""
    return FULL in output or any(
        pattern.search(output) for pattern in (GONE, STALE_RECORD, DAMAGED)
    )


def stale_record(output: str) -> str:
    """The path of the record that keeps the engine from taking a layer, or nothing."""
    match = STALE_RECORD.search(output)
    return match[1] if match is not None else ""


def error_for(remote: Remote, act: Act, output: str) -> NodeError:
    """The error for what an engine said on this node.

    ``UnreachableError`` for what a retry may help; ``DamagedError`` for an image that must be
    removed there and sent again.
    """
    ssh, docker, record = remote.ssh, remote.docker, stale_record(output)
    look = f"look there: {ssh} {docker} system df; journalctl -u docker"
    remove = (
        "images there that share its layers may be damaged, too: remove those; "
        f"{ssh} {docker} image ls"
    )
    detail = output.strip() if UNPACK_FAILED in output else last_line(output)
    cases: tuple[tuple[object, type[NodeError], str, str], ...] = (
        (GONE.search(output), UnreachableError, "its Docker daemon went away",
         f"look there: {ssh} sudo systemctl status docker"),
        # An image that lacks them has a name: it must go first.
        (BLOB_LOST.search(output) and act is not Act.CREATE, UnreachableError,
         "containerd lost layers that it had listed",
         "run the same command again"),
        (FULL in output, NodeError, "its disk is full",
         f"free some: {program()} gc; there: docker system df"),
        (record, NodeError, f"{RECORD_LEFT}, and Docker refuses the layer until it is removed",
         f"remove it: {ssh} sudo rm -r {record}"),
        (DAMAGED.search(output), DamagedError, "layers are damaged there", remove),
        (UNPACK_FAILED in output, NodeError,
         "its engine could not unpack the image, and reported success", look),
        (act is Act.CREATE, DamagedError, "no container can be created from the image", remove),
    )  # fmt: skip
    for applies, error, what, hint in cases:
        if applies:
            return error(f"{remote.name}: {what}", detail=detail, hint=hint)
    return NodeError(
        f"{remote.name}: its engine refused to {act}: {detail}",
        detail=output.strip() if output.strip() != detail else "", hint=look,
    )  # fmt: skip
