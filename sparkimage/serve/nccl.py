"""What was measured in an image that a command for it must know: its NCCL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparkimage.core.errors import LaunchError
from sparkimage.image.layerindex import ImageFiles
from sparkimage.verify import static_nccl


@dataclass(frozen=True, kw_only=True)
class Library:
    """A libnccl: its path in the image, and the version that stands in its bytes."""

    path: str
    version: str


def libraries(files: ImageFiles) -> tuple[Library, ...]:
    """Every libnccl that a container of the image sees."""
    found = [
        Library(path=f"/{entry.path}", version=str(entry.seen.get("nccl") or ""))
        for entry in files.final.values()
        if static_nccl.is_copy(entry)
    ]
    return tuple(sorted(found, key=lambda one: one.path))


def choose(found: tuple[Library, ...], pin: str, env: Mapping[str, str]) -> Library:
    """The library to preload: of the pin's version, the one that the image names itself before
    others, one of the system before torch's. Raises ``LaunchError`` where there is none."""
    named = env.get("LD_PRELOAD", "").replace(":", " ").split()
    fitting = [one for one in found if one.version == pin]
    if not fitting:
        held = ", ".join(f"{one.version or 'unknown'} ({one.path})" for one in found) or "none"
        raise LaunchError(
            f"the image holds no NCCL {pin}, which its variant pins: it has {held}",
            hint="build it again: python build.py image VARIANT --rebuild",
        )
    return min(
        fitting, key=lambda one: (one.path not in named, not one.path.startswith("/usr/lib/"))
    )
