"""One reading of the store for many nodes.

Whoever is first at a piece reads it from the disk, and those close behind get it from memory.
Who is a window ahead waits for those behind as long as they move on; for one that has stopped,
to unpack or for good, nobody waits longer than ``PATIENT_S``: it reads for itself later.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sparkimage.core.errors import StoreError
from sparkimage.image.store import CHUNK, Layer, Store

WINDOW = 64
"""Pieces of 1 MiB that are kept."""
PATIENT_S = 5.0


@dataclass
class _Proof:
    """How far a blob has been hashed, in order, and whether it is what its digest says."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    hashed: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    damaged: StoreError | None = None


class Shared:
    """The layers of an image, read from a store by several threads, each from the lowest up."""

    def __init__(self, store: Store, layers: Sequence[Layer], *, window: int = WINDOW) -> None:
        self.store = store
        self.window = window
        self.read_bytes = 0
        """Bytes that came from the disk (or the page cache) so far."""
        self._begins: dict[str, int] = {}
        """The number of each blob's first piece, counted through the image."""
        count = 0
        for layer in layers:
            self._begins.setdefault(layer.digest, count)
            count += _pieces(layer.size)
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._proofs: dict[str, _Proof] = {}
        self._at: dict[str, tuple[int, float]] = {}
        """How far each reader is, and since when."""
        self._moved = threading.Condition()

    def blob(self, digest: str, reader: str) -> Iterator[bytes]:
        """The bytes of a layer for the thread that is called ``reader``.

        Raises ``StoreError`` before the end of a blob that is damaged.
        """
        with self._moved:
            proof = self._proofs.setdefault(digest, _Proof())
        try:
            count = _pieces(self.store.path(digest).stat().st_size)
        except FileNotFoundError:
            raise self.store.damage(digest, "is missing") from None
        for place in range(count):
            self._keep_pace(digest, place, reader)
            piece = self._piece(digest, place, proof, last=place == count - 1)
            if place == count - 1 and proof.damaged is not None:
                # The last piece never leaves: what was sent cannot be taken for whole.
                raise proof.damaged
            yield piece

    def done(self, reader: str) -> None:
        """Nobody has to wait for this one any more."""
        with self._moved:
            self._at.pop(reader, None)
            self._moved.notify_all()

    def _keep_pace(self, digest: str, place: int, reader: str) -> None:
        number = self._begins[digest] + place
        with self._moved:
            self._at[reader] = (number, time.monotonic())
            self._moved.notify_all()
            while (digest, place) not in self._held and self._is_ahead(number):
                self._moved.wait(0.5)

    def _is_ahead(self, number: int) -> bool:
        since = time.monotonic() - PATIENT_S
        return any(at <= number - self.window and when > since for at, when in self._at.values())

    def _piece(self, digest: str, place: int, proof: _Proof, *, last: bool) -> bytes:
        # One at a time for each blob: the second one finds what the first has read.
        with proof.lock:
            with self._moved:
                held = self._held.get((digest, place))
                if held is not None:
                    return held
            with self.store.path(digest).open("rb") as file:
                file.seek(place * CHUNK)
                piece = file.read(CHUNK)
            if place == proof.hashed:
                proof.digest.update(piece)
                proof.hashed += 1
                if last and f"sha256:{proof.digest.hexdigest()}" != digest:
                    found = f"sha256:{proof.digest.hexdigest()}"
                    proof.damaged = self.store.damage(digest, f"holds other bytes: {found}")
            with self._moved:
                self.read_bytes += len(piece)
                self._held[(digest, place)] = piece
                while len(self._held) > self.window:
                    self._held.popitem(last=False)
            return piece


def _pieces(size: int) -> int:
    return max(1, -(-size // CHUNK))
