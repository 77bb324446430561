"""Where the recipe comes from: what git says of the project's folder."""

from __future__ import annotations

import re
from pathlib import Path

from sparkimage.config.plan import Origin
from sparkimage.core.errors import SparkError
from sparkimage.core.process import Runner

INPUTS = ("images", "patches", "matrix.yaml", "matrix.lock")
"""What decides an image; a commit to anything else leaves its labels, and its digest, alone."""
UNKNOWN = "unknown"


def of(project: Path, source: str | None, runner: Runner) -> Origin:
    """The origin for the labels. ``source`` (from the matrix) goes before the git remote's."""

    def git(*words: str) -> str:
        try:
            done = runner.run(["git", "-C", str(project), *words], check=False)
        except SparkError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    revision, _, seconds = git("log", "-1", "--format=%H %ct", "--", *INPUTS).partition(" ")
    if revision and git("status", "--porcelain", "--", *INPUTS):
        revision += "-dirty"
    remote = source or _public(git("remote", "get-url", "origin"))
    return Origin(source=remote or UNKNOWN, revision=revision or UNKNOWN, epoch=int(seconds or 0))


def _public(remote: str) -> str:
    """The remote's address without any login in it; nothing for a path of this machine."""
    match = re.fullmatch(r"(https?|ssh|git)://(?:[^/]*@)?(.+)", remote)
    if match:
        return f"{match[1]}://{match[2]}"
    match = re.fullmatch(r"(?:[\w.-]+@)?([\w.-]+\.[\w-]+):(.+)", remote)
    return f"ssh://{match[1]}/{match[2]}" if match else ""
