"""The user's own file of mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparkimage.config import validation, yamlfile
from sparkimage.config.address import mirror_problem
from sparkimage.config.schema import MirrorsFile
from sparkimage.config.validation import Report


def read(path: Path) -> Mapping[str, str]:
    """Its ``mirrors:``. Raises ``ConfigError`` with every problem of the file."""
    document = yamlfile.load(path)
    mirrors = validation.parse(document, MirrorsFile).mirrors
    report = Report(document)
    check(mirrors, report)
    report.close()
    return mirrors


def check(mirrors: Mapping[str, str], report: Report) -> None:
    """Add the problems of ``mirrors:`` to the report."""
    for start, to in mirrors.items():
        if (wrong := mirror_problem(start, to)) is not None:
            report.add(("mirrors", start), *wrong)
