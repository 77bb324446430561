"""The lines of a log whatever tool wrote it: without colours, and the name before a line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

LONGEST = 16_384
"""Characters of a line that are read. vLLM prints its whole configuration in one line."""
REFILL = 1 << 16

_COLOUR = re.compile(r"(?:\x1b|\\u001b|\^\[)\[[0-9;?]*[ -/]*[@-~]")
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)[ \t]")
_NAME = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]{0,62})[ \t]*\|[ \t]?")


def clean(line: str | bytes) -> str:
    """A line's own text, without colours and NUL; invalid UTF-8 is replaced.

    A line of docker's json-file driver is decoded (``{"log":"…\\n","stream":…}``).
    """
    text = line.decode("utf-8", "replace") if isinstance(line, bytes | bytearray) else line
    text = text[: 2 * LONGEST]
    if text.startswith('{"log":'):
        try:
            packed = json.loads(text)
        except ValueError:
            packed = None
        if isinstance(packed, dict) and isinstance(packed.get("log"), str):
            text = packed["log"]
    text = plain(text[:LONGEST])
    return text.replace("\x00", "").strip("\r\n").replace("\r", " ")


def plain(text: str) -> str:
    """The text without colours."""
    return _COLOUR.sub("", text)


def node_of(line: str) -> str:
    """The name that compose or ``logs`` put before a line (``spark-1  | …``); empty: none."""
    rest = _TIME.sub("", line, count=1)
    found = _NAME.match(rest)
    return found["name"] if found else ""


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """The lines of a stream; of an endless line the beginning.

    UTF-16 with a byte order mark is decoded, too: a redirection in PowerShell writes it.
    """
    head = stream.read(REFILL)
    kind = "utf-8"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        kind = "utf-16"
    elif head.startswith(codecs.BOM_UTF8):
        kind = "utf-8-sig"
    decoder = codecs.getincrementaldecoder(kind)(errors="replace")
    return _split(_texts(head, stream, decoder))


def _texts(head: bytes, stream: BinaryIO, decoder: codecs.IncrementalDecoder) -> Iterator[str]:
    while head:
        yield decoder.decode(head)
        head = stream.read(REFILL)
    yield decoder.decode(b"", final=True)


def _split(texts: Iterable[str]) -> Iterator[str]:
    held = ""
    for text in texts:
        *whole, rest = text.split("\n")
        for line in whole:
            yield held + line
            held = ""
        held = (held + rest)[: 2 * LONGEST]
    if held:
        yield held
