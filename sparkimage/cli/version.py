"""What --version prints: the program's commit, and what the project at hand pins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from sparkimage import __version__
from sparkimage.cli import base
from sparkimage.core.errors import SparkError
from sparkimage.core.process import Local
from sparkimage.core.program import NAME


def lines() -> Iterator[str]:
    """The program with its commit, then each pin of the matrix with all of its values."""
    yield f"{NAME} {__version__} ({_commit() or 'commit unknown'})"
    pins: dict[str, list[str]] = {}
    with suppress(SparkError):
        from sparkimage.config.matrix import load

        for variant in load(base.matrix_file()).variants:
            for pin, value in variant.pins.items():
                values = pins.setdefault(pin, [])
                values += [value] if value not in values else []
    width = max(map(len, pins), default=0)
    yield from (f"  {pin:<{width}}  {', '.join(values)}" for pin, values in sorted(pins.items()))


def _commit() -> str:
    """The commit of the clone that this runs from, or that pip installed; empty where unknown."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        with suppress(SparkError):
            git = ["git", "-C", str(root)]
            commit = Local().run([*git, "rev-parse", "--short=12", "HEAD"]).stdout.strip()
            changed = Local().run([*git, "status", "--porcelain", "--", NAME]).stdout.strip()
            return f"commit {commit}" + ", changed" * bool(changed)
        return ""
    # https://packaging.python.org/specifications/direct-url/
    with suppress(metadata.PackageNotFoundError, ValueError):
        text = metadata.distribution(NAME).read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
        return f"commit {commit[:12]}" if commit else ""
    return ""
