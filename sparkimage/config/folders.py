"""The folders of layers, and those that every project has: of the package, or its own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

TOOLS, BUILDER, EVERY = "_tools", "_builder", "_every"
"""What our steps call, the image that a source is compiled in, and the checks of every image."""


def of(project: Path, name: str) -> Path:
    """The folder of a layer, or of ``TOOLS``, ``BUILDER`` and ``EVERY``: the project's own, which
    goes before the package's."""
    own = project / "images" / name
    if name in (TOOLS, BUILDER, EVERY) and not own.is_dir():
        return Path(str(resources.files("sparkimage"))) / "data" / "images" / name
    return own
