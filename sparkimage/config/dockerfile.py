"""Steps of a layer's Dockerfile that could fetch what is not in the lock. Pure."""

from __future__ import annotations

import itertools
import re

CLOSED = "--network=none"
"""Flag of a RUN step: https://docs.docker.com/reference/dockerfile/#run---networknone"""
WHEELS = re.compile(r"--mount=\S*\bfrom=uv(,|$)")
"""Mount of the step that installs the locked wheels, by hash."""


def open_steps(text: str) -> tuple[str, ...]:
    """The RUN steps that have a network and do not install the locked wheels."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    steps = [
        line.split() for line in joined.splitlines() if re.match(r"\s*RUN\s", line, re.IGNORECASE)
    ]
    return tuple(" ".join(words) for words in steps if not _closed(words[1:]))


def _closed(words: list[str]) -> bool:
    flags = list(itertools.takewhile(lambda word: word.startswith("--"), words))
    return CLOSED in flags or any(WHEELS.match(flag) for flag in flags)
