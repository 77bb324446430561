"""One reading of the store for many nodes.

Every node goes at its own pace; whoever is first at a piece reads it from the disk, and those
close behind get it from memory. Only a node that has fallen further behind than the window reads
for itself, so that none has to wait for another.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from sparkimage.errors import StoreError
from sparkimage.store import CHUNK, Store

WINDOW = 128
"""Pieces of 1 MiB that are kept."""


@dataclass
class _Proof:
    """How far a blob has been hashed, in order, and whether it is what its digest says."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    hashed: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    damaged: StoreError | None = None


class Shared:
    """Blobs of a store, read by several threads at once."""

    def __init__(self, store: Store, *, window: int = WINDOW) -> None:
        self.store = store
        self.window = window
        self.read_bytes = 0
        """Bytes that came from the disk (or the page cache) so far."""
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._proofs: dict[str, _Proof] = {}
        self._lock = threading.Lock()

    def blob(self, digest: str) -> Iterator[bytes]:
        """The bytes of a blob. Raises ``StoreError`` before the end of one that is damaged."""
        with self._lock:
            proof = self._proofs.setdefault(digest, _Proof())
        try:
            size = self.store.path(digest).stat().st_size
        except FileNotFoundError:
            raise self.store.damage(digest, "is missing") from None
        count = max(1, -(-size // CHUNK))
        for place in range(count):
            piece = self._piece(digest, place, proof, last=place == count - 1)
            if place == count - 1 and proof.damaged is not None:
                # The last piece never leaves: what was sent cannot be taken for whole.
                raise proof.damaged
            yield piece

    def _piece(self, digest: str, place: int, proof: _Proof, *, last: bool) -> bytes:
        # One at a time for each blob: the second one finds what the first has read.
        with proof.lock:
            with self._lock:
                held = self._held.get((digest, place))
                if held is not None:
                    self._held.move_to_end((digest, place))
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
            with self._lock:
                self.read_bytes += len(piece)
                self._held[(digest, place)] = piece
                while len(self._held) > self.window:
                    self._held.popitem(last=False)
            return piece
