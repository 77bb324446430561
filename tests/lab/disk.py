"""File systems of a size, and what is used of one from step to step."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparkimage.core import paths
from sparkimage.core.process import Local
from sparkimage.core.rights import run_as_root

EVERY_S = 0.2


@contextmanager
def file_system(name: str, size: int) -> Iterator[Path]:
    """An ext4 file system of ``size`` bytes in a sparse file of the home's disk, mounted."""
    paths.home().mkdir(parents=True, exist_ok=True)
    place = paths.home() / f"lab-{name}-{os.getpid()}"
    image = place.with_suffix(".ext4")
    runner = Local()
    with image.open("wb") as file:
        file.truncate(size)
    try:
        # None of it kept for root, and few inodes: an image has some 100,000 files.
        argv = ("mkfs.ext4", "-q", "-m", "0", "-i", "65536", str(image))
        run_as_root(runner, argv)
        place.mkdir()
        run_as_root(runner, ("mount", "-o", "loop", str(image), str(place)))
        try:
            run_as_root(runner, ("chown", f"{os.getuid()}:{os.getgid()}", str(place)))
            yield place
        finally:
            run_as_root(runner, ("umount", str(place)))
            place.rmdir()
    finally:
        image.unlink()


def free(place: Path) -> int:
    """Bytes that are free on the file system of ``place``."""
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


class Sampler:
    """Samples how many bytes of a file system are used, and keeps the most of each step."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.before = self._used()
        self.peaks: dict[str, int] = {"": 0}
        self.step = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    def report(self) -> str:
        """A line for each step."""
        return "\n".join(f"{peak / 1e9:6.2f} GB  {step}" for step, peak in self.peaks.items())

    def begin(self, step: str) -> None:
        """What is sampled from now on is of this step."""
        self.peaks.setdefault(step, 0)
        self.step = step

    def _used(self) -> int:
        status = os.statvfs(self.place)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_S):
            step = self.step
            self.peaks[step] = max(self.peaks[step], self._used() - self.before)
