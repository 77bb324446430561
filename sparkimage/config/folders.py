"""The folders of layers, and those that every project has: of the package, or its own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparkimage.config.plan import LayerPlan

TOOLS, BUILDER, EVERY = "_tools", "_builder", "_every"
"""What our steps call, the image that a source is compiled in, and the checks of every image."""
PATCH_FILE = "patches/patches.yaml"
"""The file of a project's patches."""
INSTALLS = {
    "root": "_root", "image": "_image", "debs": "_debs", "wheels": "_wheels", "patches": "_patches",
}  # fmt: skip
"""The folders with the Dockerfiles of layers that have none of their own, by what those install."""


def of(project: Path, name: str) -> Path:
    """The folder of a layer, or one that every project has: the project's own, which goes before
    the package's."""
    own = project / "images" / name
    if name in (TOOLS, BUILDER, EVERY, *INSTALLS.values()) and not _is_there(own):
        return Path(str(resources.files("sparkimage"))) / "data" / "images" / name
    return own


def _is_there(folder: Path) -> bool:
    # Bytecode alone is what git leaves of a folder that a commit removed: no checks are meant.
    return folder.is_dir() and [path.name for path in folder.iterdir()] != ["__pycache__"]


def dockerfile(project: Path, layer: LayerPlan) -> Path:
    """The Dockerfile of a layer that is not built by a source's."""
    own = project / layer.dockerfile
    installs = [folder for part, folder in INSTALLS.items() if getattr(layer, part)]
    return own if own.is_file() or not installs else of(project, installs[0]) / "Dockerfile"
