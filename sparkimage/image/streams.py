"""Streams of bytes, and their digests."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 1 << 20
"""Bytes that are read at once."""
EMPTY_SHA256 = hashlib.sha256().hexdigest()
"""Of no bytes at all."""


def digest_of(data: bytes) -> str:
    """The digest of ``data``: ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class HashingReader:
    """A stream that hashes what is read of it."""

    def __init__(self, raw: Readable) -> None:
        self.raw = raw
        self.sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The digest of what was read until now."""
        return f"sha256:{self.sha256.hexdigest()}"

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes."""
        data = self.raw.read(size)
        self.sha256.update(data)
        return data

    def drain(self) -> None:
        """Read to the end."""
        while self.read(CHUNK):
            pass


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while not self.rest and (piece := next(self.pieces, None)) is not None:
            self.rest = memoryview(piece)
        count = min(len(view), len(self.rest))
        view[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def stream(pieces: Iterator[bytes]) -> io.BufferedReader:
    """The bytes of pieces of any size, to read from."""
    return io.BufferedReader(_Pieces(pieces), CHUNK)
