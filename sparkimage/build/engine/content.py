"""The blobs of the private engine, which it shares with the image store.

Its containerd keeps each blob in a file that is named by its digest and never written again
(https://github.com/containerd/containerd/blob/main/docs/content-flow.md). A hard link to that file
is the blob in the image store, for no more disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.core.errors import CommandError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner
from sparkimage.core.rights import run_as_root

BLOBS = Path("containerd", "daemon", "io.containerd.content.v1.content", "blobs", "sha256")
"""In dockerd's data root; only root may read it."""
NAMESPACE = "moby"
"""dockerd's own in containerd."""


def linkable(engine: Engine, home: Path, store: Path) -> bool:
    """Whether the engine is the private one, and its blobs are on the file system of ``store``."""
    if not (engine.private and engine.containerd_store):
        return False
    return EnginePlace.of(home).data.stat().st_dev == store.stat().st_dev


def link(home: Path, folder: Path, runner: Runner) -> None:
    """Link every blob of the private engine into ``folder``. Raises ``PreflightError``.

    One that cannot be linked is left out, as is one that the engine removes meanwhile.
    """
    blobs = EnginePlace.of(home).data / BLOBS
    with suppress(CommandError):
        run_as_root(
            runner,
            ("find", str(blobs), "-type", "f", "-exec", "ln", "-t", str(folder), "{}", "+"),
        )


def add_image(home: Path, archive: Path, runner: Runner) -> None:
    """Give the private engine the image of an archive whose layers it has; nothing is unpacked.

    ``docker load`` would unpack it at once. Raises ``CommandError``, ``PreflightError``.
    """
    argv = ("images", "import", "--local", "--all-platforms", "--no-unpack", str(archive))
    _ctr(home, argv, runner)


def drop_files(home: Path, config: str, runner: Runner) -> None:
    """Remove the unpacked files of the image with this ``config``; its blobs stay, and it is
    unpacked again when it is run. Raises ``CommandError``, ``PreflightError``.

    They go with the label that keeps them: https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md.
    """
    _ctr(home, ("content", "label", config, "containerd.io/gc.ref.snapshot.overlayfs="), runner)
    collect_garbage(home, runner)


def collect_garbage(home: Path, runner: Runner) -> None:
    """Remove the files and blobs that nothing refers to any more; containerd would come to it some
    seconds later. Raises ``CommandError``, ``PreflightError``."""
    # The end of a lease is what collects at once.
    lease = f"sparkimage-{os.getpid()}"
    _ctr(home, ("leases", "create", "--id", lease), runner)
    _ctr(home, ("leases", "delete", "--sync", lease), runner)


def _ctr(home: Path, words: tuple[str, ...], runner: Runner) -> None:
    place = EnginePlace.of(home)
    argv = (
        str(place.root / "usr" / "bin" / "ctr"),
        "--address", str(place.run / "containerd" / "containerd.sock"), "--namespace", NAMESPACE,
        *words,
    )  # fmt: skip
    run_as_root(runner, argv)
