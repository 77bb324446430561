"""What the dynamic linker reads of an ELF file, taken from a stream that is read once, forward.

https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html: the program headers say where the
dynamic section is, that says where its strings are. The strings are mostly in front of it, so the
beginning of a file is kept until they are read; never more than ``KEPT`` bytes of it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparkimage.core.arch import ARCHES, GPU_MACHINES

MAGIC = b"\x7fELF"
KEPT = 64 << 20
MOST_DYNAMIC = 1 << 20
"""Bytes of the longest table of program headers, and of the longest dynamic section."""
LONGEST = 4096
"""Bytes of the longest string."""
MACHINES = {arch.elf_machine: arch.name for arch in ARCHES.values()}
"""e_machine of what we build for; https://www.sco.com/developers/gabi/latest/ch4.eheader.html"""
RELOCATABLE, PROGRAM, SHARED = 1, 2, 3

_LOAD, _DYNAMIC, _INTERP, _NOTE = 1, 2, 3, 4
_GNU_BUILD_ID = 3
"""The type of a note by GNU: https://refspecs.linuxfoundation.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/noteabi.html"""
_NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH = 1, 5, 10, 14, 15, 29


@dataclass(frozen=True, kw_only=True)
class Elf:
    """One ELF file's head; of a 32-bit or big-endian one only ``machine`` and ``type``."""

    machine: int
    type: int
    wide: bool = True
    """64-bit and little-endian."""
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    interpreter: str | None = None
    build_id: str | None = None
    """In hex; the linker makes it of what it links, so that it tells two builds of one version
    apart: https://man7.org/linux/man-pages/man1/ld.1.html (--build-id)."""
    problem: str | None = None
    """Why the rest of it could not be read."""

    @property
    def arch(self) -> str:
        """``arm64``, ``amd64``, or a description of any other."""
        if self.wide and self.machine in MACHINES:
            return MACHINES[self.machine]
        return f"machine {self.machine}" + ("" if self.wide else ", not 64-bit little-endian")

    @property
    def is_gpu_code(self) -> bool:
        """Whether a GPU executes it, and no processor: it is loaded by a driver."""
        return self.machine in GPU_MACHINES

    def to_dict(self) -> dict[str, Any]:
        """As plain data that JSON keeps as it is, without what is empty."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self).items()
            if value is not None and value != () and value is not True
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Elf:
        """The reverse of ``to_dict``, from JSON too."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**fields)


def read(more: Callable[[], bytes], first: bytes = b"") -> Elf | None:
    """The head of an ELF file, or None for a file that is not ELF.

    ``more`` gives the next piece of the file, empty at its end, and is called as often as the head
    needs; ``first`` is the piece that was read before.
    """
    fields: dict[str, Any] = {}
    problem = None
    try:
        _parse(_Window(more, first), fields)
    except (struct.error, ValueError) as error:
        problem = str(error)
    return Elf(**fields, problem=problem) if fields else None


class _Window:
    """The part of a file that can be addressed: its first ``KEPT`` bytes, and those last read."""

    def __init__(self, more: Callable[[], bytes], first: bytes) -> None:
        self.more = more
        self.head = bytearray(first[:KEPT])
        self.tail = first
        self.position = len(first)

    def at(self, start: int, size: int) -> bytes:
        """``size`` bytes at ``start``. Raises ``ValueError`` where they cannot be had."""
        while self.position < start + size:
            piece = self.more()
            if not piece:
                raise ValueError(f"the file ends at {self.position}, within what its headers name")
            self.head += piece[: max(0, KEPT - self.position)]
            begin = self.position - len(self.tail)
            self.tail = self.tail[max(0, start - begin) :] + piece
            self.position += len(piece)
        if start + size <= len(self.head):
            return bytes(self.head[start : start + size])
        begin = start - self.position + len(self.tail)
        if size > 0 and begin < 0:
            raise ValueError(f"{size} bytes at {start} are further back than {KEPT} bytes")
        return self.tail[begin : begin + size]

    def text(self, start: int, size: int) -> str:
        """The string at ``start``, of at most ``size`` bytes."""
        data = self.at(start, max(0, min(size, LONGEST)))
        return data.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _parse(window: _Window, fields: dict[str, Any]) -> None:
    """Set the fields of ``Elf``, in the order of the file, as far as it goes."""
    head = window.at(0, 64)
    if head[:4] != MAGIC:
        return
    fields["wide"] = head[4:6] == b"\x02\x01"
    order = ">" if head[5] == 2 else "<"
    fields["type"], fields["machine"] = struct.unpack_from(f"{order}HH", head, 16)
    if not fields["wide"] or fields["type"] not in (PROGRAM, SHARED):
        return
    if fields["machine"] in GPU_MACHINES:
        return
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if not count:
        return
    if not 56 <= size <= MOST_DYNAMIC // count:
        raise ValueError(f"{count} program headers of {size} bytes")
    table = window.at(offset, size * count)
    segments = [struct.unpack_from("<IIQQQQQQ", table, i * size) for i in range(count)]
    loads = [(s[3], s[2], s[5]) for s in segments if s[0] == _LOAD]
    interp = next((s for s in segments if s[0] == _INTERP), None)
    dynamic = next((s for s in segments if s[0] == _DYNAMIC), None)
    # In the order of the file: it is only read forward.
    notes = sorted((s[2], s[5]) for s in segments if s[0] == _NOTE and s[5] <= MOST_DYNAMIC)
    for place, length in notes:
        if place + length <= KEPT or dynamic is None or place < dynamic[2]:
            fields["build_id"] = fields.get("build_id") or _build_id(window.at(place, length))
    if interp is not None:
        # A program that was stripped to its debug information has none.
        fields["interpreter"] = window.text(interp[2], interp[5]) or None
    # A library that was stripped to its debug information has the header and no bytes.
    if dynamic is None or not 0 < dynamic[5] <= MOST_DYNAMIC:
        return
    section = struct.iter_unpack("<qQ", window.at(dynamic[2], dynamic[5] // 16 * 16))
    tags = list(itertools.takewhile(lambda entry: entry[0] != 0, section))
    single = dict(tags)
    if _STRTAB not in single:
        return
    strings, length = _offset(single[_STRTAB], loads), single.get(_STRSZ, LONGEST)
    places = sorted({value for tag, value in tags if tag in (_NEEDED, _SONAME, _RPATH, _RUNPATH)})
    texts = {place: window.text(strings + place, length - place) for place in places}

    def values(wanted: int) -> list[str]:
        return [texts[value] for tag, value in tags if tag == wanted]

    fields["needed"] = tuple(values(_NEEDED))
    fields["soname"] = next(iter(values(_SONAME)), None)
    for name, tag in (("rpath", _RPATH), ("runpath", _RUNPATH)):
        folders = ":".join(values(tag)).split(":")
        fields[name] = tuple(folder for folder in folders if folder)


def _build_id(notes: bytes) -> str | None:
    """The Build ID of a segment of notes, which are name and descriptor, each padded to 4 bytes."""
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        begin = at + 12 + -(-name // 4) * 4
        if kind == _GNU_BUILD_ID and notes[at + 12 : at + 12 + name] == b"GNU\0":
            return notes[begin : begin + size].hex()
        at = begin + -(-size // 4) * 4
    return None


def _offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    for virtual, offset, size in loads:
        if virtual <= address < virtual + size:
            return address - virtual + offset
    raise ValueError(f"no segment holds the address {address:#x}")
