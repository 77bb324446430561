"""Text with styles, for a terminal: ``[red]…[/]``, with the few styles that this program has.

rich has all of this and much more, and takes 30 ms of a command's start; it draws the progress of
long work only.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from typing import IO

STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "cyan": 36}
"""https://en.wikipedia.org/wiki/ANSI_escape_code#Select_Graphic_Rendition_parameters"""
GLUE = "\N{NO-BREAK SPACE}"
"""A space at which no line breaks; it is printed as any other."""
_TAG = re.compile(rf"(\\?)\[({'|'.join(STYLES)}|/)\]")


def plain(text: object) -> str:
    """Text of others: what looks like a style in it is none, and control characters are shown."""
    safe = "".join(
        letter if letter.isprintable() or letter == "\n" else f"\\x{ord(letter):02x}"
        for letter in str(text)
    )
    return _TAG.sub(r"\\\g<0>", safe)


def has_colour(stream: IO[str]) -> bool:
    """Whether this stream takes styles: a terminal, where NO_COLOR (https://no-color.org) is not
    set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def render(text: str, *, colour: bool) -> str:
    """The text for a terminal, or without any styles."""
    open_: list[int] = []

    def code(match: re.Match[str]) -> str:
        escaped, tag = match.groups()
        if escaped:
            return match[0][1:]
        if tag == "/":
            del open_[-1:]
            codes = [0, *open_]
        else:
            open_.append(STYLES[tag])
            codes = open_[-1:]
        return f"\x1b[{';'.join(map(str, codes))}m" if colour else ""

    return _TAG.sub(code, text).replace(GLUE, " ")


def width(text: str) -> int:
    """The columns of a terminal that the text takes."""
    shown = render(text, colour=False)
    if shown.isascii():
        return len(shown)
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown)


def fill(text: str, columns: int, *, first: str = "", rest: str = "") -> str:
    """The text in lines of at most ``columns``, begun with ``first`` and ``rest``. A word is never
    broken, so that names, paths and digests can be copied."""
    return "\n".join(
        line for part in text.split("\n") for line in _lines(part, columns, first, rest)
    )


def _lines(text: str, columns: int, first: str, rest: str) -> Iterator[str]:
    line, used, empty = first, width(first), True
    open_: list[str] = []
    for word in text.split(" "):
        size = width(word)
        if not empty and used + 1 + size > columns:
            # Styles hold for the words, not for what a table has beside them.
            yield line + "[/]" * len(open_)
            line, used, empty = rest + "".join(f"[{tag}]" for tag in open_), width(rest), True
        line += word if empty else f" {word}"
        used += size + (not empty)
        empty = False
        for escaped, tag in _TAG.findall(word):
            if tag == "/" and not escaped:
                del open_[-1:]
            elif not escaped:
                open_.append(tag)
    yield line
