"""The lines of a log whatever tool wrote it: what stands before a message, and the message."""

from __future__ import annotations

import bz2
import codecs
import gzip
import html
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import IO, Any, BinaryIO, NamedTuple

LONGEST = 16_384
"""Characters of a line that are read. vLLM prints its whole configuration in one line."""
REFILL = 1 << 16
ARCHIVES: Mapping[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""What unpacks a log that begins so."""
OTHER_ARCHIVES = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
"""The programs that unpack what Python does not, by the first bytes."""
TAIL = re.compile(r"==> (?P<file>.+) <==\r?")
"""What `tail` says before the lines of each of several files."""
SHORT = 400
"""Characters of a line that is remembered."""

_CRI = re.compile(r"\d{4}-\d\d-\d\dT\S+ (?P<stream>stdout|stderr) (?P<tag>[PF]) ")
"""What containerd writes before a line on a node of Kubernetes; of one that it cut, all pieces but
the last are tagged P:
https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md"""

_COLOUR = re.compile(r"(?:\x1b|\\u001b|\^\[|ESC)\[[0-9;?]*[ -/]*[@-~]")
_ENTITY = re.compile(r"&(?:lt|gt|quot|amp|apos|#\d{1,6}|#x[0-9a-fA-F]{1,6});")
_ESCAPED = re.compile(r"""\\(["'])""")
_PREFIX = re.compile(
    r"""
    \((?P<process>[A-Za-z][\w ,.()-]*pid=\d+)[^)]*\)[ \t]?
    | (?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)[ ]
        (?P<clock_>\d\d-\d\d[ ]\d\d:\d\d:\d\d)(?:[ ]\[?[^\]\s]+:\d+\])?[ ]?
    | (?P<plain>DEBUG|INFO|WARNING|ERROR|CRITICAL):[ \t]+
    | (?P<name>[A-Za-z0-9][\w.-]{0,62})[ \t]*\|[ \t]?
    | \[?(?:\d{4}-)?(?P<date>\d\d-\d\d)[T ](?P<clock>\d\d:\d\d:\d\d)
        [\d.,]*(?:Z|[+-]\d\d:?\d\d)?\]?[ \t](?:\|[ ]|std(?:out|err)[ ][PF][ ])?
    | [A-Z]+[ ]\d{4}-\d\d-\d\dT[\d:.]+Z?[ ](?P<shipper>\[[^\]]*\][ ]?)
    | (?P<ray>DEBUG|INFO|WARNING|ERROR|CRITICAL)[ \t]+\S+\.py:\d+[ ]--[ ]
    | \[(?P<rank>rank\d+)\]:?[ \t]?
    | \[?(?P<glog>[DIWEF])(?P<month>\d{1,2})(?P<day>\d\d)[ ](?P<clock__>\d\d:\d\d:\d\d)[^\]]*\][ ]?
    | (?P<host>[\w.<>-]+):(?P<pid>\d+):\d+[ ]\[-?\d+\][ ](?P<file>\S+[: ]\d+[ ](?:\(\S+\)[ ])?)?
        NCCL[ ](?P<nccl>[A-Z]+)[ ]?
    | \[\d{4}-(?P<date__>\d\d-\d\d)[ ](?P<clock____>\d\d:\d\d:\d\d),\d+[ ]
        (?P<raylet>[DIWEC])[^\]]*\]
        (?:[ ]\(\w+\))?[ ]?
    | (?P<mon>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[ ]+(?P<dom>\d\d?)[ ]
        (?P<clock___>\d\d:\d\d:\d\d)[ ](?:(?P<machine>\S+)[ ])?[\w./-]+(?:\[\d+\])?:[ ]
    | time="[^"]*"[ ]level=(?P<logfmt>\w+)[ ]msg="?
    | \[[ ]*\d+\.\d{3,6}\][ ]
    """,
    re.VERBOSE,
)
"""What stands before a message, the commonest first; a line may have several, in any order."""
_OF_VLLM = re.compile(
    r"""
    \((?P<process>[A-Za-z][\w ,.()-]*pid=\d+)[^)]*\)[ ]
    (?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)
    (?:[ ](?P<clock>\d\d-\d\d[ ]\d\d:\d\d:\d\d)[ ]\[[^\]\s]+:\d+\][ ]?|:[ \t]+)
    """,
    re.VERBOSE,
)
"""The same of vLLM's own lines, all at once: most lines are such, and speed counts."""
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_LEVELS = {
    "D": "DEBUG",
    "I": "INFO",
    "W": "WARNING",
    "WARN": "WARNING",
    "E": "ERROR",
    "C": "CRITICAL",
}
QUIET = frozenset({"INFO", "DEBUG", "TRACE"})
"""Levels at which no failure is told."""
MAX_PREFIXES = 6


class Line(NamedTuple):
    """One line, taken apart."""

    text: str
    """All of it, cleaned."""
    body: str
    """The message alone."""
    node: str = ""
    process: str = ""
    """What tells a process from others: ``Worker_TP1 pid=2220``, or NCCL's host and pid."""
    level: str = ""
    """DEBUG, INFO, WARNING, ERROR, CRITICAL; empty: the line has none."""
    time: str = ""
    """``11-29 17:20:45``: without the year, which most tools leave out."""
    nccl: bool = False
    file: str = ""
    """Of a warning of NCCL: its source file."""


def read(line: str | bytes) -> Line:
    """A line, cleaned and taken apart; short ones are remembered: tracebacks repeat themselves."""
    return _read_short(line) if len(line) < SHORT else parse(clean(line))


@lru_cache(maxsize=1024)
def _read_short(line: str | bytes) -> Line:
    return parse(clean(line))


def parse(text: str) -> Line:
    """Take a cleaned line apart."""
    if common := _OF_VLLM.match(text):
        process, level, clock = common.groups("")
        return Line(text, text[common.end() :], "", process, level, clock)
    node = process = level = time = file = ""
    nccl, at = False, 0
    if text.startswith(" "):
        # What was pasted may be indented.
        start = len(text) - len(text.lstrip(" "))
        match = _PREFIX.match(text, start)
        at = start if match and match.lastgroup in ("process", "clock_", "nccl") else 0
    for _ in range(MAX_PREFIXES):
        # None begins with a space, as source code of a traceback does.
        match = None if text.startswith(" ", at) else _PREFIX.match(text, at)
        if match is None:
            break
        at = match.end()
        kind = match.lastgroup
        if kind == "process":
            process = match["process"]
        elif kind == "clock_":
            level, time = match.group("level", "clock_")
            break
        elif kind == "nccl":
            level, nccl, file = match["nccl"], True, f"nccl/{match['file'] or ''}"
            process = process or f"{match['host']}:{match['pid']}"
            break
        elif kind == "name":
            node = node or match["name"]
        elif kind == "clock":
            time = f"{match['date']} {match['clock']}"
        elif kind in ("plain", "ray"):
            level = match[kind]
        elif kind == "rank":
            process = process or match["rank"]
        elif kind == "clock__":
            level = match["glog"]
            time = f"{int(match['month']):02}-{match['day']} {match['clock__']}"
        elif kind == "raylet":
            level, time = match["raylet"], f"{match['date__']} {match['clock____']}"
        elif kind in ("machine", "clock___"):
            month = _MONTHS.index(match["mon"]) + 1
            node = node or match["machine"] or ""
            time = f"{month:02}-{int(match['dom']):02} {match['clock___']}"
        elif kind == "logfmt":
            level = match["logfmt"].upper()
    return Line(text, text[at:], node, process, _LEVELS.get(level, level), time, nccl, file)


def clean(line: str | bytes) -> str:
    """A line's own text, without colours and NUL; invalid UTF-8 is replaced.

    A line of docker's json-file driver is decoded (``{"log":"…\\n","stream":…}``), so are HTML's
    entities, and the quotation marks that logfmt (dockerd's journal) escapes.
    """
    text = line.decode("utf-8", "replace") if isinstance(line, bytes | bytearray) else line
    if "\x00" in text:
        text = text.replace("\x00", "")
    text = text[: 2 * LONGEST]
    if text.startswith('{"log":'):
        try:
            packed = json.loads(text)
        except ValueError:
            packed = None
        if isinstance(packed, dict) and isinstance(packed.get("log"), str):
            text = packed["log"].replace("\x00", "")
    text = plain(text[:LONGEST])
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if "\\" in text and 'msg="' in text:
        text = _ESCAPED.sub(r"\1", text)
    return text.strip("\r\n").replace("\r", " ")


def plain(text: str) -> str:
    """The text without colours."""
    if "\x1b" in text or "^[" in text or "u001b" in text or "ESC[" in text:
        return _COLOUR.sub("", text)
    return text


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """As ``blocks_of``, one after the other."""
    return chain.from_iterable(blocks_of(stream))


def blocks_of(stream: BinaryIO) -> Iterator[list[str]]:
    """The lines of a stream, many at once; of an endless line the beginning.

    UTF-16 with a byte order mark is decoded, too: a redirection in PowerShell writes it; and gzip,
    bzip2 and xz, which logrotate leaves, as far as they are whole. Of several files of `tail` each
    line has its file before it.
    """
    return _of_files(_split(_texts(_blocks(stream))))


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    head = stream.read(REFILL)
    source: IO[bytes] = stream
    for magic, unpack in ARCHIVES.items():
        if head.startswith(magic):
            source, head = unpack(_Joined(head, stream)), b""
            break
    count = 0
    try:
        while head or (head := source.read(REFILL)):
            count += len(head)
            yield head
            head = b""
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # The rest of an archive that was cut off, or is damaged, cannot be read.
        if not count:
            raise EmptyArchiveError from error


class EmptyArchiveError(Exception):
    """An archive was cut off, or is damaged, before anything of it can be unpacked."""


class _Joined:
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1, /) -> bytes:
        if not self._head:
            return self._rest.read(size)
        count = len(self._head) if size < 0 else size
        taken, self._head = self._head[:count], self._head[count:]
        return taken


def _texts(blocks: Iterator[bytes]) -> Iterator[str]:
    head = next(blocks, b"")
    kind = "utf-8"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        kind = "utf-16"
    elif head.startswith(codecs.BOM_UTF8):
        kind = "utf-8-sig"
    decoder = codecs.getincrementaldecoder(kind)(errors="replace")
    yield decoder.decode(head)
    for block in blocks:
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _of_files(blocks: Iterable[list[str]]) -> Iterator[list[str]]:
    """The lines; those below a heading of `tail` with its file, as compose writes a container."""
    file = ""
    for lines in blocks:
        if not file and not any(line.startswith("==> ") for line in lines):
            yield lines
            continue
        named = []
        for line in lines:
            if (heading := TAIL.fullmatch(line)) is not None:
                file = re.sub(r"[^\w.-]+", "-", heading["file"]).strip("-.")[:60]
                named.append("")
            else:
                named.append(f"{file} | {line}" if file and line else line)
        yield named


def _split(texts: Iterable[str]) -> Iterator[list[str]]:
    held = ""
    cut: dict[str, str] = {}
    for text in texts:
        *whole, rest = text.replace("\x00", "").split("\n")
        if whole:
            whole[0] = held + whole[0]
            held = ""
            yield _rejoined(whole, cut) if cut or " P " in text or " P " in whole[0] else whole
        held = (held + rest)[: 2 * LONGEST]
    if last := [*_rejoined(filter(None, [held]), cut), *cut.values()]:
        yield last


def _rejoined(lines: Iterable[str], cut: dict[str, str]) -> list[str]:
    """The lines; pieces of one that containerd cut are empty, and the last one is all of it.

    ``cut``: stream → the pieces of a line that is not at its end.
    """
    whole = []
    for line in lines:
        piece = _CRI.match(line)
        if piece is None:
            whole.append(line)
            continue
        before = cut.pop(piece["stream"], "")
        joined = (before + line[piece.end() :])[: 2 * LONGEST] if before else line
        if piece["tag"] == "P":
            cut[piece["stream"]] = joined.rstrip("\r")
            joined = ""
        whole.append(joined)
    return whole
