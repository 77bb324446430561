"""What a launch runs with: which profile, which node as which rank, which libnccl. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparkimage.config.inventory import Fleet, Node, head_of
from sparkimage.config.profiles import Profile, fitting
from sparkimage.config.validation import nearest
from sparkimage.core.errors import LaunchError, UsageError
from sparkimage.image.layerindex import ImageFiles
from sparkimage.verify import static_nccl


def order(fleet: Fleet, count: int) -> tuple[Node, ...]:
    """The nodes by rank: the head first, then in the order of the file.

    Raises ``UsageError`` where there are fewer than ``count``.
    """
    if len(fleet.nodes) < count:
        raise UsageError(
            f"the profile is for {count} nodes, {fleet.file or '--nodes'} has {len(fleet.nodes)}",
            hint="name more nodes, or take another --profile",
        )
    head = head_of(fleet.nodes)
    return (head, *(node for node in fleet.nodes if node != head))[:count]


def pick(
    profiles: dict[str, Profile], variant: str, wanted: str | None, nodes: int
) -> tuple[str, Profile]:
    """The profile that was asked for; else the one for the variant and so many nodes.

    Raises ``UsageError`` where that is none, or not only one.
    """
    fits = fitting(profiles, variant)
    if wanted is not None:
        if wanted not in profiles:
            raise UsageError(f"no profile is called {wanted!r}", hint=nearest(wanted, profiles))
        if wanted not in fits:
            raise UsageError(
                f"profile {wanted} is not for {variant}",
                hint="its profiles are " + ", ".join(fits)
                if fits
                else f"add a glob for {variant} to its `variants` in the matrix",
            )
        return wanted, profiles[wanted]
    if not fits:
        raise UsageError(
            f"no profile of the matrix is for {variant}",
            hint="write one below `profiles:`, as docs/launch.md says",
        )
    same = [name for name in fits if profiles[name].nodes == nodes]
    if len(same) != 1:
        said = ", ".join(f"{name} ({profiles[name].nodes} nodes)" for name in fits)
        raise UsageError(
            f"{len(same) or 'no'} profiles are for {variant} on {nodes} nodes",
            hint=f"say --profile NAME, or name so many --nodes: {said}",
        )
    return same[0], profiles[same[0]]


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
