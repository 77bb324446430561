"""Where in the software a failure began that no entry knows: it has a class, too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from sparkimage.config.validation import Name, Strict
from sparkimage.serve.explain.regex import Pattern

PACKAGES = re.compile(r"^.*/(?:site|dist)-packages/")
"""What stands before a package's own folders: a user's name may be that of a package."""
Text = Annotated[str, Field(min_length=1)]


class Place(Strict):
    """A part of the software, with what its failures have in common."""

    id: Name
    files: list[Pattern] = Field(default=[])
    """Source files of its frames in a traceback, and of NCCL's warnings."""
    says: list[Pattern] = Field(default=[])
    """Lines that name it without a traceback."""
    wide: bool = False
    """It counts where nothing narrower does: most tracebacks pass through it."""
    where: Text
    """After "it began"."""
    title: str = ""
    """Before an exception's message, where the messages of this part say all."""
    cause: Text
    fix: Text

    def has_file(self, name: str) -> bool:
        """Whether a source file is of this part."""
        return any(pattern.search(name) for pattern in self.files)

    def has_line(self, text: str) -> bool:
        """Whether a line is of this part."""
        return any(pattern.search(text) for pattern in self.says)


class Kind(Strict):
    """What exceptions of some types have in common, wherever they are raised."""

    id: Name
    says: Pattern
    """The types, as they are in the line."""
    title: Text
    """Before where it began, and the message."""
    titled: bool = False
    """A part's own title serves, where it has one."""
    cause: Text
    """Before the cause of where it began."""
    fix: Text
    """Where that is not known."""


def find(places: Iterable[Place], frames: Sequence[str], text: str) -> Place | None:
    """The part of the software that the deepest frame is of, else that which the line names."""
    places = list(places)
    frames = [PACKAGES.sub("/", frame) for frame in frames]
    narrow = [place for place in places if not place.wide]
    return (
        _deepest(narrow, frames)
        or next((place for place in places if place.has_line(text)), None)
        or _deepest(places, frames)
    )


def _deepest(places: Sequence[Place], frames: Sequence[str]) -> Place | None:
    of_frames = (place for frame in reversed(frames) for place in places if place.has_file(frame))
    return next(of_frames, None)
