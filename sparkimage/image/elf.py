"""What the dynamic linker reads of an ELF file, taken from a stream that is read once, forward.

https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html: the program headers say where the
dynamic section lies, that says where its strings are. The strings mostly lie before it, so the
beginning of a file is kept until they are found; never more than ``KEPT`` bytes of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from sparkimage.core.arch import ARCHES

MAGIC = b"\x7fELF"
KEPT = 64 << 20
MOST_DYNAMIC = 1 << 20
LONGEST = 4096
MACHINES = {one.elf_machine: one.name for one in ARCHES.values()}
"""e_machine of what we build for; https://www.sco.com/developers/gabi/latest/ch4.eheader.html"""
RELOCATABLE, PROGRAM, SHARED = 1, 2, 3

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
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
    problem: str | None = None
    """Why the rest of it could not be read."""

    @property
    def arch(self) -> str:
        """``arm64``, ``amd64``, or a description of any other."""
        if self.wide and self.machine in MACHINES:
            return MACHINES[self.machine]
        return f"machine {self.machine}" + ("" if self.wide else ", not 64-bit little-endian")

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


def parse(data: bytes) -> Elf | None:
    """Read a whole file that is in memory; None when it is no ELF."""
    reader = Reader()
    reader.feed(data)
    return reader.result()


@dataclass
class _Span:
    """A range of the file that is being gathered."""

    start: int
    size: int
    data: bytearray = field(default_factory=bytearray)
    lost: bool = False

    @property
    def whole(self) -> bool:
        return len(self.data) >= self.size

    def feed(self, position: int, data: bytes | bytearray) -> None:
        """Take what of ``data``, which lies at ``position``, follows on what is held."""
        at = self.start + len(self.data)
        if not self.whole and position <= at < position + len(data):
            begin = at - position
            self.data += data[begin : begin + self.size - len(self.data)]


class Reader:
    """Takes a file piece by piece, and gives its ``Elf`` at the end."""

    def __init__(self) -> None:
        self.position = 0
        self._head = bytearray()
        self._last: tuple[int, bytes] = (0, b"")
        self._spans: list[_Span] = []
        self._steps = self._read()
        self._result: Elf | None = None
        self._known: dict[str, Any] = {}
        self._done = False
        next(self._steps)

    def feed(self, data: bytes) -> None:
        """The next piece of the file."""
        if self._done:
            return
        if self.position < KEPT:
            self._head += data[: KEPT - self.position]
        for span in self._spans:
            span.feed(self.position, data)
        self._last = (self.position, data)
        self.position += len(data)
        while all(span.whole for span in self._spans) and self._step():
            pass

    def _step(self) -> bool:
        """Whether there are more."""
        try:
            next(self._steps)
        except StopIteration:
            self._finish(None)
        except (struct.error, ValueError) as error:
            self._finish(str(error))
        return not self._done

    def _finish(self, problem: str | None) -> None:
        self._done = True
        if "machine" in self._known:
            self._result = Elf(**self._known, problem=problem)
        self._head, self._last, self._spans = bytearray(), (0, b""), []

    def result(self) -> Elf | None:
        """What was found; None when it is no ELF. Ends the reading."""
        if not self._done:
            self._finish(f"the file ends at {self.position}, within what its headers name")
        return self._result

    def _want(self, start: int, size: int) -> _Span:
        span = _Span(start, size)
        span.feed(0, self._head)
        span.feed(*self._last)
        if not span.whole and start + len(span.data) < self.position:
            raise ValueError(f"{size} bytes at {start} lie further back than {KEPT} bytes")
        self._spans.append(span)
        return span

    def _read(self) -> Any:
        """The steps of the reading: each yields until the spans that it wants are whole."""
        head = self._want(0, 64)
        yield
        if head.data[:4] != MAGIC:
            return
        wide = head.data[4:6] == b"\x02\x01"
        order = ">" if head.data[5] == 2 else "<"
        kind, machine = struct.unpack_from(f"{order}HH", head.data, 16)
        self._known = {"machine": machine, "type": kind, "wide": wide}
        if not wide or kind not in (PROGRAM, SHARED):
            return
        (offset,) = struct.unpack_from("<Q", head.data, 32)
        size, count = struct.unpack_from("<HH", head.data, 54)
        if not count:
            return
        if size < 56:
            raise ValueError(f"program headers of {size} bytes")
        table = self._want(offset, size * count)
        yield
        segments = [struct.unpack_from("<IIQQQQQQ", table.data, i * size) for i in range(count)]
        loads = [(s[3], s[2], s[5]) for s in segments if s[0] == _LOAD]
        interp = next((s for s in segments if s[0] == _INTERP), None)
        dynamic = next((s for s in segments if s[0] == _DYNAMIC), None)
        if interp is not None:
            name = self._want(interp[2], min(interp[5], LONGEST))
            yield
            self._known["interpreter"] = _text(name)
        # A library that was stripped to its debug information has the header and no bytes.
        if dynamic is None or not 0 < dynamic[5] <= MOST_DYNAMIC:
            return
        section = self._want(dynamic[2], dynamic[5] // 16 * 16)
        yield
        tags: list[tuple[int, int]] = []
        for tag, value in struct.iter_unpack("<qQ", section.data):
            if tag == 0:
                break
            tags.append((tag, value))
        single = dict(tags)
        if _STRTAB not in single:
            return
        begin = _offset(single[_STRTAB], loads)
        length = single.get(_STRSZ, LONGEST)
        wanted = (_NEEDED, _SONAME, _RPATH, _RUNPATH)
        spans = [
            (tag, self._want(begin + value, max(0, min(length - value, LONGEST))))
            for tag, value in tags
            if tag in wanted
        ]
        yield
        texts = [(tag, _text(span)) for tag, span in spans]
        self._known["needed"] = tuple(text for tag, text in texts if tag == _NEEDED)
        self._known["soname"] = next((text for tag, text in texts if tag == _SONAME), None)
        for key, wanted_tag in (("rpath", _RPATH), ("runpath", _RUNPATH)):
            found = [part for tag, text in texts if tag == wanted_tag for part in text.split(":")]
            self._known[key] = tuple(part for part in found if part)


def _offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    for virtual, offset, size in loads:
        if virtual <= address < virtual + size:
            return address - virtual + offset
    raise ValueError(f"no segment holds the address {address:#x}")


def _text(span: _Span) -> str:
    return bytes(span.data).split(b"\0")[0].decode("utf-8", "surrogateescape")
