"""How the user started this program: for the commands in its messages, which can be pasted."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

NAME = "sparkimage"
"""The name that pip installs it under, and that data and docs use."""
VARIABLE = "SPARKIMAGE_PROGRAM"
"""In it, build.py says how it was started."""
_COMMAND = re.compile(rf"(?<![\w./-]){NAME}(?= (?:--)?[a-z])")


@cache
def program() -> str:
    """What the user types before the name of a command, such as ``./build.py``."""
    if called := os.environ.get(VARIABLE):
        return called
    start = Path(sys.argv[0])
    if start.name == "__main__.py" and NAME in sys.orig_argv:
        return shlex.join(sys.orig_argv[: sys.orig_argv.index(NAME) + 1])
    if start.name != NAME:
        return NAME
    if by_uv := _by_uv():
        return by_uv
    found = shutil.which(NAME)
    on_path = found is not None and Path(found).samefile(start)
    return NAME if on_path else shlex.quote(sys.argv[0])


def as_called(text: str) -> str:
    """A text of ``data/``, which says ``sparkimage COMMAND``, as the user can paste it."""
    return _COMMAND.sub(lambda _: program(), text)


def _by_uv() -> str:
    """The command of `uvx` or `uv run` that started this process, without its arguments; empty
    where none did. The folder that it starts from is on the child's PATH only:
    https://docs.astral.sh/uv/concepts/tools/#execution-vs-installation"""
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return ""
    words = [os.fsdecode(word) for word in parent.split(b"\0")[:-1]]
    before = words[: len(words) - len(sys.argv[1:])]
    if not words or Path(words[0]).name not in ("uv", "uvx") or before[-1:] != [NAME]:
        return ""
    # `uvx` starts `uv tool uvx`.
    begin = 2 if words[1:3] == ["tool", "uvx"] else 0
    return shlex.join([Path(before[begin]).name, *before[begin + 1 :]])
