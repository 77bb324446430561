"""The tiers of verification, from what any host can run to what only a node can."""

from __future__ import annotations

from enum import StrEnum


class Tier(StrEnum):
    """Where checks run."""

    STATIC = "static"
    """On the layers in the store: no engine, seconds."""
    RUN = "run"
    """In a container of the image, emulated if necessary."""
    NODE = "node"
    """In a container with the GPU of a node."""


DEFAULT = (Tier.STATIC, Tier.RUN)
"""The tiers that a build runs, and that an image must pass by default before it ships."""
