"""What the words of a node's engine mean when it refuses an image. Pure."""

from __future__ import annotations

import re

from sparkimage.core.errors import DamagedError, NodeError, UnreachableError
from sparkimage.nodes.ssh import Remote

NOT_PULLED = 94
"""The exit code of stage.sh when a pull failed."""
NOT_UNPACKED = 92
"""The exit code of stage.sh when containerd's store said that it could not unpack."""
UNUSABLE = (95, 97)
"""The exit codes of stage.sh when no container can be made of an image, or it cannot be read."""
GONE = re.compile(
    r"cannot connect to the docker daemon|error during connect|unexpected EOF"
    r"|connection reset by peer|is the docker daemon running",
    re.IGNORECASE,
)
"""What the docker command says when its daemon went away."""
FULL = "no space left on device"
BLOB_LOST = re.compile(r"content digest sha256:[0-9a-f]{64}: not found")
"""What a broken load has left is listed until containerd collects its garbage."""
DAMAGED = re.compile(r"/(?:overlay2|snapshots)/\S+: no such file or directory")
"""The files of a layer are gone that the engine says it has."""
LEFT_OVER = re.compile(r"rename \S+ (/\S+/image/overlay2/layerdb/sha256/[0-9a-f]{64}): file exists")
"""overlay2 meets the record of a layer that it does not have: it could not rename it when it
removed the layer, for want of space (https://github.com/moby/moby/issues/44909)."""

RECORD_LEFT = "a full disk has left the record of a layer that is gone"


def last(said: str) -> str:
    """The last line of what was said."""
    return next((line for line in reversed(said.strip().splitlines()) if line), "")


def of_the_engine(said: str) -> bool:
    """Whether it failed for a reason of the engine's own, wherever the layers come from."""
    return FULL in said or any(one.search(said) for one in (GONE, LEFT_OVER, DAMAGED))


def left_over(said: str) -> str:
    """The path of the record that keeps the engine from taking a layer; "" where none does."""
    found = LEFT_OVER.search(said)
    return found[1] if found is not None else ""


def meaning(remote: Remote, code: int, said: str) -> NodeError:
    """The error for a script's exit code and words on this node; ``UnreachableError`` for what
    may pass, ``DamagedError`` for what must be brought anew."""
    name, ssh, docker, detail = remote.name, remote.ssh, remote.docker, last(said)
    look = f"look there: {ssh} {docker} system df; journalctl -u docker"
    if GONE.search(said):
        return UnreachableError(
            f"{name}: its Docker went away in mid-work", definite=False, detail=detail,
            hint=f"look there: {ssh} sudo systemctl status docker",
        )  # fmt: skip
    if BLOB_LOST.search(said):
        return UnreachableError(
            f"{name}: layers that were there are gone", definite=False, detail=detail,
            hint="run the same command again",
        )  # fmt: skip
    if FULL in said:
        return NodeError(
            f"{name}: its disk is full", detail=detail,
            hint="free some: python build.py gc; there: docker system df",
        )  # fmt: skip
    record = left_over(said)
    if record:
        return NodeError(
            f"{name}: {RECORD_LEFT}, and Docker there refuses the layer until it goes",
            detail=detail,
            hint=f"remove it: {ssh} sudo rm -r {record}",
        )
    damaged = DAMAGED.search(said) is not None
    if code == NOT_UNPACKED and not damaged:
        return NodeError(
            f"{name}: its engine could not unpack the image, and called it a success",
            detail=said.strip(), hint=look,
        )  # fmt: skip
    if damaged or code in UNUSABLE:
        what = "layers are damaged there" if damaged else "no container can be made of the image"
        return DamagedError(
            f"{name}: {what}", detail=detail,
            hint="images there that share its layers may be damaged, too: remove those; "
            f"{ssh} {docker} image ls",
        )  # fmt: skip
    return NodeError(
        f"{name}: docker there refused the image (code {code}): {detail}",
        detail=said.strip() if said.strip() != detail else "", hint=look,
    )  # fmt: skip
