"""Selects the profile that a launch runs with. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sparkimage.config.inventory import Fleet
from sparkimage.config.profiles import BUILT_IN, Profile, fitting
from sparkimage.config.validation import nearest
from sparkimage.core.errors import UsageError
from sparkimage.core.units import plural
from sparkimage.serve.entrypoints import serve_prefix

CACHES = {"/.cache/vllm": "vllm", "/.triton/cache": "triton"}
"""Where compiled kernels are kept below the home of the container's user, and by whom."""


def named(profiles: Mapping[str, Profile], name: str) -> Profile:
    """The profile of this name, built-in ones included. Raises ``UsageError``."""
    known = {**BUILT_IN, **profiles}
    if name not in known:
        raise UsageError(f"no profile {name!r}", hint=nearest(name, known))
    return known[name]


def node_count(profile: Profile, fleet: Fleet) -> int:
    """How many nodes the profile takes of a fleet."""
    return max(len(fleet.nodes), profile.nodes) if profile.scale else profile.nodes


def pick(
    profiles: Mapping[str, Profile], variant: str, wanted: str | None, fleet: Fleet
) -> tuple[str, Profile]:
    """The requested profile, as it is on these nodes; else the one for the variant on this number
    of nodes; and for a variant that no profile is made for, the one that scales.

    Raises ``UsageError`` where there is none, or more than one.
    """
    name, profile = _pick({**BUILT_IN, **profiles}, variant, wanted, len(fleet.nodes))
    gpus = min(node.gpus if node.gpus is not None else profile.gpus for node in fleet.nodes)
    return name, profile.on(node_count(profile, fleet), gpus or 1)


def _pick(
    profiles: dict[str, Profile], variant: str, wanted: str | None, nodes: int
) -> tuple[str, Profile]:
    fits = fitting(profiles, variant)
    if wanted is not None:
        profile = named(profiles, wanted)
        if wanted not in fits:
            raise UsageError(
                f"profile {wanted} is not for {variant}",
                hint="its profiles are " + ", ".join(fits)
                if fits
                else f"add a glob for {variant} to its `variants` in the matrix",
            )
        return wanted, profile
    scaling = [name for name in fits if profiles[name].scale and profiles[name].nodes <= nodes]
    same = [name for name in fits if profiles[name].nodes == nodes and name not in scaling]
    if not same and all("*" in profiles[name].variants for name in fits):
        same = scaling
    if len(same) != 1:
        available = ", ".join(f"{name} ({_count(profiles[name])})" for name in fits)
        raise UsageError(
            f"{len(same) or 'no'} profiles are for {variant} on {plural(nodes, 'node')}",
            hint=f"pass --profile NAME, or another number of --nodes: {available}",
        )
    return same[0], profiles[same[0]]


def _count(profile: Profile) -> str:
    return f"{plural(profile.nodes, 'node')}{' or more' if profile.scale else ''}"


def uncached(entrypoint: tuple[str, ...], profile: Profile) -> list[str]:
    """Whose compiled kernels the profile does not keep from one start to the next: vLLM's and
    Triton's; none where the image starts another engine. Raises as ``serve_prefix`` does."""
    started = (*entrypoint, *serve_prefix(entrypoint, profile.command))
    if not any("vllm" in word for word in started):
        return []
    kept = profile.caches.values()
    return [name for end, name in CACHES.items() if not any(path.endswith(end) for path in kept)]
