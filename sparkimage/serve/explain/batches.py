"""Reads the lines of a log many at a time: those that tell nothing, and tracebacks that only repeat
what is not known, take a tenth of the time of the others.

What a line tells of has a text in it, and is looked for in many lines at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sparkimage.serve.explain import firstfault, logfacts
from sparkimage.serve.explain.failures import Failures
from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.explain.turns import QUOTED

LINES, FEW = 64, 8
"""Lines that are judged together: halves where those tell something, down to a few."""
PUNCTUATION = re.compile(r'[(:|\["&\r]')
"""A line without it has nothing before its message, and needs no cleaning."""
PREFIXES = ("pid=", "INFO ", "WARNING ", "ERROR ", "DEBUG ", "CRITICAL ", "NCCL ")
"""What is in an indented line that has something before its message."""
UNCLEAN = ("&", "\r", "\x1b", "^[", "u001b", "ESC[", 'msg="')
"""What is in a line that is to be cleaned."""


def read(reading: Reading, lines: Sequence[str]) -> None:
    """Read the next lines, which hold no NUL, with the results of ``Reading.take`` for each."""
    for at in range(0, len(lines), LINES):
        _read(reading, lines[at : at + LINES])


def _read(reading: Reading, lines: Sequence[str]) -> None:
    text = "\n".join(lines)
    if reading.is_idle and _says_nothing(text, reading.known):
        reading.pass_over(lines)
    elif len(lines) > FEW:
        half = len(lines) // 2
        _read(reading, lines[:half])
        _read(reading, lines[half:])
    elif _holds(text, _NOT_BARE):
        for line in lines:
            reading.take(line)
    else:
        for line in lines:
            if not reading.passes_by(line):
                reading.take(line)


def _says_nothing(text: str, known: Failures) -> bool:
    """Whether no line of the text is a fault, a fact or a sign, or of a traceback."""
    return not (
        PUNCTUATION.search(text)
        or _holds(text, _TELLING)
        or _holds(text, known.survived)
        or not known.has_no_sign(text)
    )


def _holds(text: str, literals: Iterable[str]) -> bool:
    # A loop is twice as fast as any() with a generator.
    for literal in literals:  # noqa: SIM110
        if literal in text:
            return True
    return False


_TELLING = tuple(
    literal
    for literal in (*firstfault.HINTS, *logfacts.LITERALS, *QUOTED)
    if not PUNCTUATION.search(literal)
)
_NOT_BARE = (*PREFIXES, *logfacts.LITERALS, *UNCLEAN, *QUOTED, "Warning: ")
