"""Patterns that are compiled when they are first searched for: most of a file's hundreds are for
no line of a log."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated

from pydantic import PlainValidator


class Regex:
    """A regular expression; its text is in ``pattern``."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """Raises ``re.error``."""
        return re.compile(self.pattern)

    def search(self, text: str) -> re.Match[str] | None:
        """See ``re.Pattern.search``."""
        return self.compiled.search(text)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """See ``re.Pattern.fullmatch``."""
        return self.compiled.fullmatch(text)


Pattern = Annotated[Regex, PlainValidator(Regex)]
"""A field of a model."""
