"""The command line in a terminal of its own, as wide as a test wants it."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab import command

STYLE = re.compile(r"\x1b\[[0-9;]*m")


def call(
    argv: Sequence[str], env: Mapping[str, str], columns: int, *, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``sparkimage argv`` in a terminal of this width. Its ``stdout`` is all that it showed,
    with styles, and with plain line ends."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {"TERM": "xterm", **{name: env[name] for name in env if name != "COLUMNS"}}
    process = command.start(argv, env, (theirs, theirs, theirs), cwd=cwd)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:
        # How Linux says that nobody has the other end any more.
        pass
    finally:
        os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    return subprocess.CompletedProcess(list(argv), process.wait(), text, "")


def lines(shown: str) -> list[str]:
    """The lines without styles."""
    return STYLE.sub("", shown).splitlines()
