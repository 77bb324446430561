"""Reads the Dockerfiles of sources, and holds them against the matrix before anything is built."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from sparkimage.config import source_checks, yamlfile
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Plan, SourceBuild
from sparkimage.config.source_checks import SourceFile
from sparkimage.config.validation import Finding, Report
from sparkimage.core.errors import SparkError
from sparkimage.core.files import write
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.git import Repository

OVERRIDE = "VLLM_VERSION_OVERRIDE"


def check(
    matrix: Matrix, plans: Sequence[Plan], context: ResolveContext, *, offline: bool = False
) -> tuple[str, ...]:
    """Hold the arguments, targets and images of every source against its own Dockerfile.

    ``offline`` reads only what an earlier command has read. Returns why others were not checked.
    Raises ``ConfigError`` with every problem.
    """
    skipped: dict[str, None] = {}

    @cache
    def file(pin: str, repository: str, commit: str, path: str) -> SourceFile | None:
        try:
            return _read(pin, repository, commit, path, context, offline=offline)
        except SparkError as error:
            skipped[f"{path} of {pin} was not read, and is not checked: {error.message}"] = None
            return None

    found: dict[tuple[str, Finding], None] = {}
    for plan in plans:
        for layer in plan.layers:
            source = layer.source
            if source is None or plan.unresolved:
                continue
            title = f"{source.pin} {source.value}"
            path = source_checks.source_path(source)
            read = file(title, source.repository, source.commit, path)
            if read is not None:
                findings = source_checks.findings(matrix, plan, layer, source, read)
                found |= {(layer.name, finding): None for finding in findings}
    if found:
        report = Report(yamlfile.load(matrix.file))
        for name, finding in found:
            report.extend(("layers", name), [finding])
        report.close()
    return tuple(skipped)


def takes_version(source: SourceBuild, context: ResolveContext) -> bool:
    """Whether the source's setup.py takes vLLM's own variable for its version.

    Errors as ``Repository.fetch``.
    """
    if source.version is None:
        return False
    title = f"{source.pin} {source.value}"
    path = "/".join(filter(None, (source.context, "setup.py")))
    read = _read(title, source.repository, source.commit, path, context, offline=False)
    return read is not None and OVERRIDE in (read.text or "")


def _read(
    pin: str, repository: str, commit: str, path: str, context: ResolveContext, *, offline: bool
) -> SourceFile | None:
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    kept = context.home / "git" / "files" / f"{commit}-{name}"
    if kept.is_file():
        return SourceFile(text=kept.read_text(errors="replace"))
    if offline:
        return None
    clone = Repository(f"pin {pin}", repository, context)
    clone.fetch(commit)
    data = clone.read(commit, path)
    if data is None:
        return SourceFile(text=None, paths=clone.paths(commit))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write(kept, data)
    return SourceFile(text=data.decode(errors="replace"))
