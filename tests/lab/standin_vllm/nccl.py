"""A stand-in for libnccl: a library that can be loaded and answers ``ncclGetVersion``, no more.

Made by hand, so that no compiler is needed: one segment with a dynamic section, a symbol and a few
instructions. https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

from __future__ import annotations

import hashlib
import re
import struct

MACHINES = {"amd64": 62, "arm64": 183}
SYMBOL = b"ncclGetVersion"
SONAME = b"libnccl.so.2"


def code(arch: str, number: int) -> bytes:
    """``*version = number; return 0;``"""
    if arch == "amd64":
        # mov dword [rdi], number; xor eax, eax; ret
        return b"\xc7\x07" + struct.pack("<i", number) + b"\x31\xc0\xc3"
    words = (
        0x52800001 | (number & 0xFFFF) << 5,  # mov w1, low
        0x72A00001 | (number >> 16) << 5,  # movk w1, high, lsl 16
        0xB9000001,  # str w1, [x0]
        0x52800000,  # mov w0, 0
        0xD65F03C0,  # ret
    )
    return struct.pack("<5I", *words)


def number(library: bytes) -> int:
    """What a library answers: 23004 is 2.30.4, as NCCL's nccl.h has it."""
    found = re.search(rb"NCCL version (\d+)\.(\d+)\.(\d+)", library)
    assert found is not None
    major, minor, patch = map(int, found.groups())
    return major * 10_000 + minor * 100 + patch


def build_id(version: str, build: str = "") -> str:
    """That of a libnccl; ``build`` tells the builds of one version apart."""
    return hashlib.sha256(f"{version} {build}".encode()).hexdigest()[:40]


def library(arch: str, version: str, build: str = "") -> bytes:
    """The bytes of a libnccl of this version; see ``build_id``."""
    banner = f"\0NCCL version {version}+cuda13.2\0".encode()
    strings = b"\0" + SYMBOL + b"\0" + SONAME + b"\0"
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes.fromhex(build_id(version, build))
    text = code(arch, number(banner))
    place = 64 + 4 * 56
    parts: dict[str, tuple[int, bytes]] = {}
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    # The second one's place in memory is known only when the text has one.
    sizes = {
        "note": len(note), "text": len(text), "banner": len(banner), "strings": len(strings),
        "symbols": 48, "hash": 20, "dynamic": 16 * 7,
    }  # fmt: skip
    at: dict[str, int] = {}
    for name, size in sizes.items():
        at[name] = place = -(-place // 16) * 16
        place += size
    symbols += struct.pack("<IBBHQQ", 1, 0x12, 0, 1, at["text"], len(text))
    table = struct.pack("<5I", 1, 2, 1, 0, 0)
    dynamic = b"".join(
        struct.pack("<QQ", tag, value)
        for tag, value in (
            (14, 1 + len(SYMBOL) + 1), (4, at["hash"]), (5, at["strings"]), (6, at["symbols"]),
            (10, len(strings)), (11, 24), (0, 0),
        )
    )  # fmt: skip
    contents = {"note": note, "text": text, "banner": banner, "strings": strings,
                "symbols": symbols, "hash": table, "dynamic": dynamic}  # fmt: skip
    parts = {name: (at[name], contents[name]) for name in sizes}
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, MACHINES[arch], 1, 0, 64, 0, 0, 64, 56, 4, 64, 0, 0)
    # All in one segment, which the loader writes its addresses into.
    for kind, flags, offset, size in (
        (1, 7, 0, place), (2, 6, at["dynamic"], sizes["dynamic"]),
        (4, 4, at["note"], len(note)), (0x6474E551, 6, 0, 0),
    ):  # fmt: skip
        head += struct.pack("<IIQQQQQQ", kind, flags, offset, offset, offset, size, size, 0x1000)
    made = bytearray(place)
    made[: len(head)] = head
    for offset, content in parts.values():
        made[offset : offset + len(content)] = content
    return bytes(made)
