"""The versions of Docker Engine, and of what, that make a difference to what is done on nodes.

Everything else is decided by what an engine says of itself.
"""

from __future__ import annotations

Version = tuple[int, ...]

OLDEST: Version = (20, 10)
"""The first that loads the layers of an OCI layout as manifest.json lists them."""
TELLS_UNPACKED: Version = (28, 0)
"""The first that reports each layer that it has unpacked into containerd's store."""
CDI_FOR_GPUS: Version = (29,)
"""The first that surely maps ``--gpus`` to CDI devices, where there is no hook:
https://github.com/moby/moby/pull/50228"""
LIMITS_ALL_PULLS: Version = (29, 7)
"""The first that downloads for all pulls into containerd's store together no more layers at once
than its limit, three by default: a second pull waits for the first one's layers.
https://github.com/moby/moby/pull/53081"""


def keeps_of_one_pull(numbers: Version, *, containerd: bool) -> bool:
    """Whether the layers of a pull can be kept by a second one while the first goes on: the engine
    says what it has unpacked, and lets the second one through."""
    return not containerd or TELLS_UNPACKED <= numbers < LIMITS_ALL_PULLS
