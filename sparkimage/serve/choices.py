"""Selects what a launch runs with: profile, nodes by rank. Pure."""

from __future__ import annotations

from sparkimage.config.inventory import Fleet, Node, head_of
from sparkimage.config.profiles import Profile, fitting
from sparkimage.config.validation import nearest
from sparkimage.core.errors import UsageError
from sparkimage.serve.command import serve_prefix

CACHES = {"/.cache/vllm": "vllm", "/.triton/cache": "triton"}
"""Where compiled kernels are kept below the home of the container's user, and by whom."""


def order(fleet: Fleet, count: int) -> tuple[Node, ...]:
    """The nodes by rank: the head first, then in the order of the file.

    Raises ``UsageError`` where there are fewer than ``count``.
    """
    if len(fleet.nodes) < count:
        raise UsageError(
            f"the profile is for {count} nodes, {fleet.file or '--nodes'} has {len(fleet.nodes)}",
            hint="add nodes, or pass another --profile",
        )
    head = head_of(fleet.nodes)
    return (head, *(node for node in fleet.nodes if node != head))[:count]


def pick(
    profiles: dict[str, Profile], variant: str, wanted: str | None, nodes: int
) -> tuple[str, Profile]:
    """The requested profile; else the one for the variant on this number of nodes.

    Raises ``UsageError`` where there is none, or more than one.
    """
    fits = fitting(profiles, variant)
    if wanted is not None:
        if wanted not in profiles:
            raise UsageError(f"no profile {wanted!r}", hint=nearest(wanted, profiles))
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
            hint="add one to `profiles:` in the matrix: docs/launch.md",
        )
    same = [name for name in fits if profiles[name].nodes == nodes]
    if len(same) != 1:
        available = ", ".join(f"{name} ({profiles[name].nodes} nodes)" for name in fits)
        raise UsageError(
            f"{len(same) or 'no'} profiles are for {variant} on {nodes} nodes",
            hint=f"pass --profile NAME, or another number of --nodes: {available}",
        )
    return same[0], profiles[same[0]]


def uncached(entrypoint: tuple[str, ...], profile: Profile) -> list[str]:
    """Whose compiled kernels the profile does not keep from one start to the next: vLLM's and
    Triton's; none where the image starts another engine. Raises as ``serve_prefix`` does."""
    started = (*entrypoint, *serve_prefix(entrypoint, profile.command))
    if not any("vllm" in word for word in started):
        return []
    kept = profile.caches.values()
    return [name for end, name in CACHES.items() if not any(path.endswith(end) for path in kept)]
