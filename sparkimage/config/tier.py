"""The tiers of verification, from what any host can do to what only a node can."""

from __future__ import annotations

from enum import StrEnum


class Tier(StrEnum):
    """Where the checks of a verification look."""

    STATIC = "static"
    """Into the layers of the store: no engine, seconds."""
    RUN = "run"
    """Into a container of the image, emulated where need be."""
    NODE = "node"
    """Into a container with the GPU of a node."""


DEFAULT = (Tier.STATIC, Tier.RUN)
"""What a build proves, and what ships where the matrix says nothing else."""
