"""The order of Debian's package versions.

https://www.debian.org/doc/debian-policy/ch-controlfields.html#version
"""

from __future__ import annotations

import re

Key = tuple[int, tuple[object, ...], tuple[object, ...]]


def key(version: str) -> Key:
    """What sorts as dpkg does: epoch, upstream version, revision."""
    epoch, colon, rest = version.rpartition(":")
    upstream, dash, revision = rest.rpartition("-")
    number = int(epoch) if colon and epoch.isdigit() else 0
    return number, _part(upstream if dash else rest), _part(revision if dash else "")


def _part(text: str) -> tuple[object, ...]:
    """Alternating text, by the order of its characters, and numbers."""
    pieces = re.findall(r"([^0-9]*)([0-9]*)", text)
    return tuple(piece for word, digits in pieces for piece in (_word(word), int(digits or 0)))


def _word(text: str) -> tuple[int, ...]:
    """``~`` comes before the end, the end before letters, letters before all else."""
    orders = (-1 if c == "~" else ord(c) + 256 * (not c.isalpha()) for c in text)
    return (*orders, 0)
