"""The recipe's source repository and revision, from git."""

from __future__ import annotations

import re
from pathlib import Path

from sparkimage.config.plan import Origin
from sparkimage.core.errors import SparkError
from sparkimage.core.process import Runner

INPUTS = ("images", "patches", "matrix.yaml", "matrix.lock")
"""What decides an image: a commit to anything else changes no label."""
UNKNOWN = "unknown"
NONE = Origin(source=UNKNOWN, revision=UNKNOWN, epoch=0)


def of(project: Path, source: str | None, runner: Runner) -> Origin:
    """The origin for the labels. ``source`` of the matrix takes precedence over the git remote."""

    def git(*words: str) -> str:
        try:
            return runner.run(["git", "-C", str(project), *words]).stdout.strip()
        except SparkError:
            return ""

    revision, _, seconds = git("log", "-1", "--format=%H %ct", "--", *INPUTS).partition(" ")
    if revision and git("status", "--porcelain", "--", *INPUTS):
        revision += "-dirty"
    remote = source or _public(git("remote", "get-url", "origin"))
    return Origin(source=remote or UNKNOWN, revision=revision or UNKNOWN, epoch=int(seconds or 0))


def _public(remote: str) -> str:
    """The remote's URL without credentials; empty for a path of this machine."""
    match = re.fullmatch(r"(https?|ssh|git)://(?:[^/]*@)?(.+)", remote)
    if match:
        return f"{match[1]}://{match[2]}"
    match = re.fullmatch(r"(?:[\w.-]+@)?([\w.-]+\.[\w-]+):(.+)", remote)
    return f"ssh://{match[1]}/{match[2]}" if match else ""
