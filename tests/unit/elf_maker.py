"""Makes small ELF libraries: real heads and a real dynamic section, nothing to execute."""

from __future__ import annotations

import struct
from collections.abc import Sequence

MACHINES = {"amd64": 62, "arm64": 183}
BASE = 0x10000


def library(
    arch: str,
    *,
    soname: str | None = None,
    needed: Sequence[str] = (),
    runpath: str | None = None,
    interpreter: str | None = None,
    text: bytes = b"",
    build_id: str = "",
    strings_last: bool = False,
) -> bytes:
    """A 64-bit shared object; ``text`` lies in it as a string of a program does.

    ``strings_last``: behind the dynamic section, where patchelf puts them.
    """
    strings = b"\0"
    tags: list[tuple[int, int]] = []
    for tag, value in (
        *((1, name) for name in needed),
        *([(14, soname)] if soname is not None else []),
        *([(29, runpath)] if runpath is not None else []),
    ):
        tags.append((tag, len(strings)))
        strings += value.encode() + b"\0"
    notes = b""
    if build_id:
        identity = bytes.fromhex(build_id)
        notes = struct.pack("<III4s", 4, len(identity), 3, b"GNU") + identity
    count = 2 + bool(interpreter) + bool(notes)
    start = 64 + 56 * count
    inter = (interpreter or "").encode() + b"\0"
    begin = start + len(inter) + len(notes) + len(text)
    size = 16 * (len(tags) + 3)
    dynstr = begin + size if strings_last else begin
    dynamic = begin if strings_last else begin + len(strings)
    tags += [(5, BASE + dynstr), (10, len(strings)), (0, 0)]
    section = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    tail = section + strings if strings_last else strings + section
    total = begin + len(tail)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 3, MACHINES[arch], 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0
    )
    headers = [(1, 0, total), (2, dynamic, size)]
    if interpreter:
        headers.append((3, start, len(inter)))
    if notes:
        headers.append((4, start + len(inter), len(notes)))
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, 5, at, BASE + at, BASE + at, length, length, 0x1000)
        for kind, at, length in headers
    )
    return head + table + inter + notes + text + tail


def nccl(
    arch: str, version: str = "2.30.4", soname: str = "libnccl.so.2", build_id: str = "ab" * 20
) -> bytes:
    """What of NCCL can be seen from outside."""
    text = f"\0NCCL version {version} compiled with CUDA 13.2\0".encode()
    return library(arch, soname=soname, needed=["libc.so.6"], text=text, build_id=build_id)
