"""Blobs on their way into a repository: taken over from another one, or uploaded in parts.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. The store keeps where an
upload goes on: what one run began, the next one ends.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from sparkimage.core.errors import NetworkError
from sparkimage.core.progress import Moved
from sparkimage.core.units import human
from sparkimage.image.store import Store, digest_of
from sparkimage.registry.oci import ATTEMPTS, Repository
from sparkimage.registry.oci_http import READ

PART = 32 << 20
"""Bytes that go out at once; after a cut connection no more than these go again."""
BEGUN = "uploads"
"""The kind of fact that says where an upload that was begun goes on."""


class SessionLostError(Exception):
    """An upload that the registry does not go on with: it begins anew."""


def mount(repository: Repository, digest: str, others: tuple[str, ...]) -> str | None:
    """Take a blob over from another repository of this registry, without its bytes.

    ``others`` are asked in turn. Returns where to upload to instead, where that was offered; ""
    where it is mounted; None where neither is. Raises as ``Repository.ask``.
    """
    for other in others:
        repository.auth.read_too(other)
        where = f"{repository.root}blobs/uploads/?mount={digest}&from={other}"
        answer = repository.ask(
            "POST", where, ok=(201, 202, 401, 403, 404), what="taking a blob over"
        )
        if answer.status_code == 201:
            return ""
        if answer.status_code == 202:
            return str(answer.headers["Location"])
    return None


def upload(
    repository: Repository,
    store: Store,
    digest: str,
    size: int,
    moved: Moved,
    *,
    location: str = "",
    part: int = PART,
) -> None:
    """Bring a blob from the store, proven while it is read; what an earlier run began goes on.

    ``size`` is the blob's, ``part`` that of what goes out at once, both in bytes. ``location`` is
    where ``mount`` said to upload to. Raises ``StoreError`` when it is damaged here; then nothing
    of that digest is there. Raises as ``Repository.ask``, too, and ``NetworkError`` when the
    registry loses it again and again.
    """
    key = hashlib.sha256(f"{repository.place} {digest}".encode()).hexdigest()
    begun = "" if location else str(store.get_fact(BEGUN, key) or "")
    what = f"the blob {digest[:19]}, {human(size)}"
    for _ in range(ATTEMPTS):
        blob = _Upload(repository=repository, digest=digest, what=what, tell=moved)
        try:
            blob.send(store, size, part, location=location, begun=begun, key=key)
        except SessionLostError:
            # What had arrived is gone with the session.
            moved(-blob.count)
            location = begun = ""
        else:
            store.forget_fact(BEGUN, key)
            return
    raise _lost(repository, digest)


def put_blob(repository: Repository, data: bytes) -> None:
    """Bring a small blob from memory, where it is not there.

    Raises as ``Repository.ask``, and ``NetworkError`` when the registry loses it again and again.
    """
    digest = digest_of(data)
    if repository.blob_size(digest) == len(data):
        return
    what = f"the blob {digest[:19]}"
    for _ in range(ATTEMPTS):
        blob = _Upload(repository=repository, digest=digest, what=what, tell=lambda _: None)
        answer = blob.begin()
        try:
            blob.finish(answer.headers["Location"], data)
        except SessionLostError:
            continue
        return
    raise _lost(repository, digest)


def _lost(repository: Repository, digest: str) -> NetworkError:
    return NetworkError(
        f"{repository.place.registry} loses the upload of {digest[:19]} again and again",
        hint="run the same command again when the way there is well",
    )


@dataclass(kw_only=True)
class _Upload:
    """One try to bring a blob, which counts what moved."""

    repository: Repository
    digest: str
    what: str
    """The blob in an error's words."""
    tell: Moved
    count: int = 0
    """Bytes that ``tell`` was told of."""

    def moved(self, count: int) -> None:
        self.count += count
        self.tell(count)

    def begin(self) -> requests.Response:
        """The registry's answer that says where a new upload goes."""
        where = f"{self.repository.root}blobs/uploads/"
        return self.repository.ask("POST", where, ok=(202,), what=self.what)

    def send(
        self, store: Store, size: int, part: int, *, location: str, begun: str, key: str
    ) -> None:
        """Send the store's blob in parts: on from ``begun``, or to ``location``, or anew."""
        offset = 0
        if begun:
            offset, location = self.held(begun)
        elif not location:
            answer = self.begin()
            location = answer.headers["Location"]
            part = max(part, int(answer.headers.get("OCI-Chunk-Min-Length") or 0))
        proof, last = hashlib.sha256(), b""
        try:
            source = store.path(self.digest).open("rb")
        except FileNotFoundError:
            raise store.damage(self.digest, "is missing") from None
        with source:
            for _ in range(0, offset, READ):
                proof.update(source.read(min(READ, offset - source.tell())))
            self.moved(offset)
            while True:
                piece = source.read(part)
                proof.update(piece)
                if offset + len(piece) >= size or not piece:
                    found = f"sha256:{proof.hexdigest()}"
                    if found != self.digest:
                        # The last piece never leaves: nobody can take what was sent for whole.
                        raise store.damage(self.digest, f"holds other bytes: {found}")
                    if offset == 0:
                        last = piece
                    elif piece:
                        location = self.piece(location, piece, offset)
                    break
                location = self.piece(location, piece, offset)
                offset += len(piece)
                store.put_fact(BEGUN, key, location)
        self.finish(location, last)

    def piece(self, location: str, piece: bytes, offset: int) -> str:
        """Send one piece, or what of it the registry says it lacks; where the next one goes."""
        begin = offset
        for attempt in range(ATTEMPTS):
            part = piece[begin - offset :]
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{begin}-{begin + len(part) - 1}",
            }
            try:
                # Once: what came of it must be asked before it is sent again.
                answer = self.repository.ask(
                    "PATCH", location, ok=(202, 204, 400, 404, 416), headers=headers, body=part,
                    moved=self.moved, attempts=1, what=self.what,
                )  # fmt: skip
            except NetworkError:
                if attempt == ATTEMPTS - 1:
                    raise
                self.repository.pause(min(2.0**attempt, 30.0))
            else:
                if answer.status_code in (202, 204):
                    return str(answer.headers["Location"])
                self.moved(-len(part))
            held, location = self.held(location)
            if not offset <= held <= offset + len(piece):
                raise SessionLostError
            self.moved(held - begin)
            begin = held
            if held == offset + len(piece):
                return location
        raise SessionLostError

    def held(self, location: str) -> tuple[int, str]:
        """How many bytes of an upload the registry has, and where it goes on."""
        # 500: CNCF's registry on a full disk cannot read what it kept of an upload.
        answer = self.repository.ask(
            "GET", location, ok=(200, 204, 400, 404, 416, 500), what="an upload"
        )
        if answer.status_code not in (200, 204):
            raise SessionLostError
        last = answer.headers.get("Range", "0-0").rpartition("-")[2]
        held = int(last) + 1 if last.isdecimal() and int(last) else 0
        return held, str(answer.headers.get("Location", location))

    def finish(self, location: str, last: bytes) -> None:
        """Send the last bytes, and let the registry prove and keep the blob."""
        glue = "&" if urlsplit(location).query else "?"
        try:
            answer = self.repository.ask(
                "PUT", f"{location}{glue}digest={self.digest}", ok=(201, 204, 400, 404, 416),
                body=last, headers={"Content-Type": "application/octet-stream"}, moved=self.moved,
                what=self.what, attempts=1,
            )  # fmt: skip
        except NetworkError:
            # Its answer may be lost, and not the blob.
            if self.repository.blob_size(self.digest) is None:
                raise SessionLostError from None
            return
        if answer.status_code not in (201, 204):
            self.moved(-len(last))
            raise SessionLostError
