"""Files of web servers: fetched once, and kept in the home by their sha256."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.config.lock_items import File
from sparkimage.core.errors import Locked, LockError, NetworkError
from sparkimage.core.files import DATE, atomic_file
from sparkimage.resolve.context import ResolveContext, unreachable
from sparkimage.resolve.wheels import ca_bundle

if TYPE_CHECKING:
    import requests

RETRIES = 3
"""Of a request, and of a file whose transfer was cut short."""
BACKOFF_S = 0.5
"""Before the second retry of a request; it doubles with each further one."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that another request may not get."""
LOGIN = frozenset({401, 403, 407})
TIMEOUT_S = 60.0
"""For a connection, and between two parts of an answer."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Download:
    """The file of the pin ``locked``: at ``url``, and as ``name`` in the cache."""

    locked: Locked
    url: str
    name: str
    context: ResolveContext

    def resolve(self, sha256: str | None) -> File:
        """The file with its size and sha256, which must be the matrix's where that has one.

        Raises ``LockError`` for another content, or none; ``NetworkError``.
        """
        path = None if sha256 is None else self._path(sha256)
        if path is None or not _has(path, sha256):
            path = self._download(sha256, "matrix")
        return File(size=path.stat().st_size, sha256=path.parent.parent.name, name=self.name)

    def fetch(self, sha256: str) -> Path:
        """The folder with nothing but the locked file in it. Errors as ``resolve``."""
        path = self._path(sha256)
        if not _has(path, sha256):
            self.context.say(f"fetching {self.name}")
            self._download(sha256, "lock")
        return path.parent

    def _path(self, sha256: str) -> Path:
        return self.context.home / "files" / sha256 / self.name / self.name

    def _download(self, expected: str | None, expected_by: str) -> Path:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        retry = Retry(
            RETRIES, backoff_factor=BACKOFF_S, status_forcelist=PASSING, raise_on_status=False,
            # A server may ask for hours.
            respect_retry_after_header=False,
        )  # fmt: skip
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retry))
            session.verify = ca_bundle() or True
            cut = 0
            while True:
                try:
                    return self._read(session, expected, expected_by)
                except requests.exceptions.ChunkedEncodingError as error:
                    cut += 1
                    if cut > RETRIES:
                        raise unreachable(self.locked, self.url, str(error)) from None
                except requests.RequestException as error:
                    raise unreachable(self.locked, self.url, str(error)) from None

    def _read(self, session: requests.Session, expected: str | None, expected_by: str) -> Path:
        """Download the file into the cache. Raises ``requests.RequestException``, too."""
        cache = self.context.home / "files"
        cache.mkdir(parents=True, exist_ok=True)
        url, digest = self.context.mirrors.of(self.url), hashlib.sha256()
        with (
            session.get(url, stream=True, timeout=TIMEOUT_S) as answer,
            atomic_file(cache) as file,
        ):
            self._check_status(answer.status_code)
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.sink.write(chunk)
                digest.update(chunk)
            sha256 = digest.hexdigest()
            if expected not in (None, sha256):
                raise LockError(
                    f"{self.locked}: {self.url} has sha256 {sha256}, and the {expected_by} says "
                    f"{expected}",
                    hint="find out who changed the file; where the new one is right, correct its "
                    f"`sha256` in the matrix and run {self.locked.update}",
                )
            path = self._path(sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            file.sink.flush()
            os.utime(file.temporary, (DATE, DATE))
            file.rename_to(path)
        return path

    def _check_status(self, status: int) -> None:
        """Raises ``LockError`` or ``NetworkError`` for an answer that is not the file."""
        if status == HTTPStatus.OK:
            return
        name = HTTPStatus(status).phrase if status in set(HTTPStatus) else "no known status"
        answer = f"{self.locked}: {self.url} answers {status} ({name})"
        if status in PASSING:
            raise NetworkError(answer, hint="run the same command later, or name a mirror")
        if status in LOGIN:
            hint = "put the server's login into ~/.netrc, or name a mirror that needs none"
            raise LockError(answer, hint=hint)
        raise LockError(answer, hint="correct its `url` in the matrix, or name a mirror")


def _has(path: Path, sha256: str | None) -> bool:
    """Whether the file is in the cache, and has not been changed there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256
