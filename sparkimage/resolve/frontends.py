"""The frontends of Dockerfiles: the images that their ``# syntax=`` lines name.

Such an image runs the whole build. Where none is pinned the line is dropped, and the builder's own
frontend is used, which is part of BuildKit.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from sparkimage.config import dockerfile, folders
from sparkimage.config.plan import LayerPlan
from sparkimage.core.errors import BuildError, LockError
from sparkimage.resolve import source_files
from sparkimage.resolve.context import ResolveContext


def without_syntax(text: str) -> str | None:
    """A Dockerfile without its ``# syntax=`` line; None where it has none."""
    if (use := dockerfile.frontend(text)) is None:
        return None
    lines = text.removeprefix("\ufeff").splitlines(keepends=True)
    return "".join(lines[: use.line - 1] + lines[use.line :])


def rewritten(layer: LayerPlan, project: Path, context: ResolveContext) -> str | None:
    """The layer's Dockerfile without its ``# syntax=`` line; None where it is built as it is.

    Raises ``LockError`` where the source has no such Dockerfile, ``NetworkError``; ``BuildError``
    where the Dockerfile's own .dockerignore would be lost with the line.
    """
    if layer.syntax is not None:
        return None
    text = _read(layer, layer.dockerfile, project, context)
    if text is None:
        assert layer.source is not None
        raise LockError(
            f"layer {layer.name}: {layer.source.repository} has no {layer.dockerfile} at "
            f"{layer.source.commit[:12]}",
            hint="correct `dockerfile` and `context` of its `source` in the matrix",
        )
    stripped = without_syntax(text)
    ignored = f"{layer.dockerfile}.dockerignore"
    if stripped is not None and _read(layer, ignored, project, context) is not None:
        # BuildKit looks for it beside the Dockerfile, and there is no file then.
        raise BuildError(
            f"layer {layer.name}: without its `# syntax=` line {layer.dockerfile} would be built "
            f"without {posixpath.basename(ignored)}",
            hint="move that to .dockerignore, or pin the frontend: `syntax: PIN`, an image pin",
        )
    return stripped


def _read(layer: LayerPlan, path: str, project: Path, context: ResolveContext) -> str | None:
    """A file beside the layer's Dockerfile, or in the repository that it is built from."""
    if (source := layer.source) is None:
        file = folders.dockerfile(project, layer).with_name(posixpath.basename(path))
        return file.read_text() if file.is_file() else None
    found = source_files.read(layer, source.path(path), project, context)
    return found.text if found is not None else None
