"""Reads the Dockerfiles of sources, and holds them against the matrix before anything is built."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sparkimage.config import source_checks, yamlfile
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.config.source_checks import SourceFile
from sparkimage.config.validation import Finding, Report
from sparkimage.core.errors import SparkError
from sparkimage.core.files import write
from sparkimage.resolve import git, patch_files
from sparkimage.resolve.context import ResolveContext

OVERRIDE = "VLLM_VERSION_OVERRIDE"


def check(
    matrix: Matrix, plans: Sequence[Plan], context: ResolveContext, *, offline: bool = False
) -> tuple[str, ...]:
    """Hold the arguments, targets and images of every source against its own Dockerfile.

    ``offline`` reads only what an earlier command has read. Returns why others were not checked.
    Raises ``ConfigError`` with every problem.
    """
    skipped: dict[str, None] = {}
    files: dict[object, SourceFile | None] = {}
    found: dict[tuple[str, Finding], None] = {}
    for plan in plans:
        for layer in plan.layers:
            source = layer.source
            if source is None or plan.unresolved:
                continue
            path = source.path(source.dockerfile)
            key = (source.repository, source.commit, path, layer.patches)
            if key not in files:
                try:
                    files[key] = read(layer, path, matrix.root, context, offline=offline)
                except SparkError as error:
                    files[key] = None
                    what = f"{path} of {source.pin} {source.value}"
                    skipped[f"{what} was not read, and is not checked: {error.message}"] = None
            if (file := files[key]) is not None:
                findings = source_checks.findings(matrix, plan, layer, source, file)
                found |= {(layer.name, finding): None for finding in findings}
    if found:
        report = Report(yamlfile.load(matrix.file))
        for name, finding in found:
            report.extend(("layers", name), [finding])
        report.close()
    return tuple(skipped)


def takes_version(layer: LayerPlan, project: Path, context: ResolveContext) -> bool:
    """Whether the setup.py of the layer's source takes vLLM's own variable for its version.

    Errors as ``Repository.fetch``.
    """
    if layer.source is None or layer.source.version is None:
        return False
    file = read(layer, layer.source.path("setup.py"), project, context)
    return file is not None and OVERRIDE in (file.text or "")


def read(
    layer: LayerPlan, path: str, project: Path, context: ResolveContext, *, offline: bool = False
) -> SourceFile | None:
    """A file of the layer's source, as its patches leave it; None where ``offline`` has it not."""
    source = layer.source
    assert source is not None
    for series in layer.patches:
        if path in (target.path for target in series.targets):
            if offline:
                return None
            file = patch_files.after(series, project, context)[path]
            text = file.data.decode(errors="replace") if file is not None else None
            return SourceFile(text=text)
    commit = source.commit
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    kept = context.home / "git" / "files" / f"{commit}-{name}"
    if kept.is_file():
        return SourceFile(text=kept.read_text(errors="replace"))
    if offline:
        return None
    clone = git.fetched(source, context)
    data = clone.read(commit, path)
    if data is None:
        return SourceFile(text=None, paths=clone.paths(commit))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write(kept, data)
    return SourceFile(text=data.decode(errors="replace"))
