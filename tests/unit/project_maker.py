"""Makes small projects: a matrix of every kind of pin, and locks that fit it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkimage.config import folders, lockfile, matrix
from sparkimage.config.lock_items import (
    CHANGES,
    KEPT,
    Commit,
    Deb,
    File,
    Item,
    PatchText,
    PinnedImage,
    Step,
    Target,
    Wheel,
)
from sparkimage.config.lockfile import Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import Key
from sparkimage.config.plan import Origin
from sparkimage.config.series import SERIES

ORIGIN = Origin(source="https://example.org/x", revision="0" * 40, epoch=7)
ARM = "linux/arm64"
FORK = "https://git.example/fork.git"
OS = {"kind": "debian", "suite": "trixie", "packages": ["gcc", "python3"]}
CUDA = {"kind": "image", "image": "nvidia/cuda:13.0"}
NCCL = {
    "kind": "deb",
    "packages": ["libnccl2=2.30", "libnccl-dev=2.30"],
    "repository": {ARM: "https://repo.example/arm", "linux/amd64": "https://repo.example/amd"},
}
FILE = {"kind": "file", "url": "https://files.example/a/words.txt?v=1"}
APP = {
    "kind": "wheels",
    "require": ["app==1.0", "lib==2.0"],
    "exclude": ["other", "more"],
    "python": "3.12",
}


def git_pin(commit: str, repository: str = FORK, **more: str) -> dict[str, str]:
    return {"kind": "git", "repository": repository, "commit": commit, "version": "1.0",
            "python": "3.12", **more}  # fmt: skip


def include(name: str, *layers: str, platform: str = ARM, **pins: str) -> dict[str, Any]:
    return {"name": name, "platform": platform, "layers": list(layers), "pins": pins}


def document(
    pins: Mapping[str, Any], layers: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "version": 1,
        "repository": "r",
        "pins": pins,
        "layers": layers,
        "defaults": {"name": "x", "layers": list(layers), "entrypoint": ["run"]},
        "include": variants,
        "groups": {"default": ["*"]},
    }


def write(
    folder: Path, data: Mapping[str, Any], patches: Mapping[str, Any] | None = None
) -> Matrix:
    """The project on disk, a Dockerfile for each of our layers, and its matrix read."""
    for name, spec in data["layers"].items():
        if "source" not in spec:
            (folder / "images" / name).mkdir(parents=True, exist_ok=True)
            (folder / "images" / name / "Dockerfile").write_text(f"FROM layer AS {name}\n")
    if patches is not None:
        (folder / "patches").mkdir(exist_ok=True)
        (folder / folders.PATCH_FILE).write_text(json.dumps({"version": 1, "patches": patches}))
    (folder / "matrix.yaml").write_text(json.dumps(data))
    return matrix.load(folder / "matrix.yaml")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


Items = Callable[[Matrix, Key, str], tuple[Item, ...]]


def items(read: Matrix, key: Key, _platform: str = "") -> tuple[Item, ...]:
    """What ``key`` comes to in a lock that is made up."""
    name = " ".join(key)
    if key[0] == PATCHES:
        return (PatchText(size=1, sha256=sha256(name)),)
    if key[0] == SERIES:
        patches = lockfile.series_to_lock(read)[key[1]].names
        steps = (
            Step(number=number, state=CHANGES, patch=patch)
            for number, patch in enumerate(patches, 1)
        )
        text = sha256(f"{PATCHES} {patches[-1]}")
        return (*steps, Target(before=sha256("before"), after=text, size=1, mode=KEPT, path="a/b"))
    pin = read.pins[key[0]][key[1]]
    if pin.kind == "git":
        return (Commit(commit=pin.commit.ljust(40, "0"), tree=sha256(name)[:40]),)
    if pin.kind == "image":
        image = f"sha256:{sha256(name)}"
        return (PinnedImage(name="docker.io/nvidia/cuda", digest=image, tagged=image),)
    if pin.kind == "wheels":
        return tuple(
            Wheel(name=one, version="1.0", size=10, sha256=sha256(one), file=f"{one}.whl")
            for one in ("app", "lib")
        )
    if pin.kind == "file":
        return (File(size=10, sha256=pin.sha256 or sha256(name), name=pin.file),)
    parts = ("root", "more") if pin.kind == "debian" else ("more",)
    return tuple(
        Deb(name=f"x-{part}", version="1", part=part, size=5, sha256=sha256(part), file="x.deb")
        for part in parts
    )


def locked(read: Matrix, made: Items = items) -> Lock:
    """A lock that fits, with made-up items."""
    return Lock(
        file="matrix.lock",
        request_digest=lockfile.request_digest(read),
        entries={
            key: Entry(requested=ask, platforms={one: made(read, key, one) for one in platforms})
            for key, (ask, platforms) in lockfile.requests(read).items()
        },
    )
