"""A small client of the OCI distribution protocol, for what publishing needs.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. What can pass is tried
again (a cut connection, 5xx, 429 after the time that the registry names), what is definite never.
What comes is proven against its digest.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urljoin

import requests

from sparkimage.config.address import DEFAULT_REGISTRY, Place
from sparkimage.core.errors import NetworkError, PublishedError, RegistryError
from sparkimage.core.progress import Moved
from sparkimage.image.store import INDEX, MANIFEST, digest_of
from sparkimage.registry.oci_auth import Authorizer
from sparkimage.registry.oci_http import (
    READ,
    TIMEOUT_S,
    Body,
    nobody,
    plain,
    reading,
    retry_after,
    said_by,
    session,
    untrusted,
    whole,
)

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = f"{MANIFEST}, {INDEX}, {DOCKER_MANIFEST}, {DOCKER_INDEX}"
HUB = "registry-1.docker.io"
"""Where Docker Hub speaks the protocol."""
ATTEMPTS = 5
WAIT_MAX_S = 120.0
"""The longest that a registry may ask us to wait."""
SMALL_MAX = 64 << 20
"""Bytes of a document that is read into memory: manifests, attestations."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest as the registry has it, byte for byte."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.data)


@dataclass
class Repository:
    """One repository, talked to by several threads."""

    place: Place
    writes: bool = False
    """Whether we ask for the right to write to it, too."""
    pause: Callable[[float], None] = time.sleep
    """Waits for so many seconds before something is tried again."""
    sent: int = 0
    """Bytes of blobs that went out, those that went again counted again."""
    auth: Authorizer = field(init=False)
    """What the registry is shown."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.auth = Authorizer(place=self.place, host=self.host, writes=self.writes)

    # Requests

    @cached_property
    def session(self) -> requests.Session:
        """Connections that are kept."""
        # No proxy stands before this machine itself, whatever the environment says of others.
        return session(self.place.registry, proxies=not self.place.is_loopback)

    @property
    def host(self) -> str:
        """Where the registry speaks the protocol: its name, and its port if it says one."""
        return HUB if self.place.registry == DEFAULT_REGISTRY else self.place.registry

    @cached_property
    def base(self) -> str:
        """The registry's address; plain HTTP only where it is on this machine."""
        if self.place.is_loopback:
            try:
                self.session.get(f"https://{self.host}/v2/", timeout=TIMEOUT_S, auth=nobody)
            except requests.exceptions.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                    return f"http://{self.host}/"
            except requests.RequestException:
                pass
        return f"https://{self.host}/"

    @property
    def root(self) -> str:
        """What the paths of this repository begin with, as ``ask`` takes them."""
        return f"v2/{self.place.repository}/"

    def ask(
        self,
        method: str,
        where: str,
        *,
        ok: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        moved: Moved | None = None,
        stream: bool = False,
        attempts: int = ATTEMPTS,
        what: str = "",
    ) -> requests.Response:
        """The answer, whose status is one of ``ok``.

        ``where`` is a path below the registry's address, or the whole address that the registry
        named. ``moved`` is told how many bytes of ``body`` go out, and what of them did not arrive.
        With ``stream``, the caller reads the answer's body and closes it. ``what`` says in errors
        what was asked for. Raises ``RegistryError`` for a definite refusal, ``NetworkError`` when
        what could pass did not, after ``attempts``.
        """
        with self._lock:
            url = urljoin(self.base, where)
        renewed, problem, detail = False, "", ""
        attempt = 0
        while attempt < attempts:
            wait = min(2.0**attempt, 30.0)
            attempt += 1
            sending = Body(body, moved) if body is not None else None
            try:
                answer = self.session.request(
                    method,
                    url,
                    data=sending,
                    headers=dict(headers or {}),
                    auth=self.auth.show,
                    stream=stream,
                    timeout=TIMEOUT_S,
                )
            except requests.exceptions.SSLError as error:
                raise untrusted(self.place.registry, error) from None
            except (requests.ConnectionError, requests.Timeout) as error:
                problem, detail = "does not answer", plain(error)
            except requests.exceptions.ChunkedEncodingError as error:
                problem, detail = "broke off its answer", plain(error)
            else:
                refused = answer.status_code == 401
                if refused and not renewed and self.auth.renew(answer, self.session):
                    renewed, attempt = True, attempt - 1
                    answer.close()
                    if sending is not None:
                        sending.undo()
                    continue
                if answer.status_code in ok:
                    if sending is not None:
                        with self._lock:
                            self.sent += sending.done
                    return answer
                said = said_by(answer)
                self._definite(answer, said, what)
                problem, detail = f"answers {answer.status_code}", said
                wait = retry_after(answer, wait)
            if sending is not None:
                with self._lock:
                    self.sent += sending.done
                sending.undo()
            if wait > WAIT_MAX_S:
                problem += f" and asks to wait for {wait:.0f} s"
                break
            if attempt < attempts:
                self.pause(wait)
        raise NetworkError(
            f"{self.place.registry} {problem}{f' ({what})' if what else ''}",
            hint="run the same command again when it is well: what has arrived there stays",
            detail=detail,
        )

    def ready(self) -> None:
        """See that the registry answers and takes the login, before anything else is asked."""
        self.ask("GET", "v2/", ok=(200, 404))

    def _definite(self, answer: requests.Response, said: str, what: str) -> None:
        """Raise for what will not pass by itself."""
        code, refusal = answer.status_code, self.auth.refusal(answer, said, what)
        if refusal is not None:
            raise refusal
        if code == 507 or "no space left" in said or "disk quota" in said.lower():
            raise RegistryError(
                f"{self.place.registry} has no room left" + (f" ({what})" if what else ""),
                hint="its operator must free some; what has arrived stays, and no tag was moved",
                detail=said,
            )
        if code != 429 and code < 500:
            raise RegistryError(
                f"{self.place.registry} answers {code}" + (f" to {what}" if what else ""),
                hint="look at what it says below",
                detail=said,
            )

    # Documents

    def manifest(self, reference: str) -> Document | None:
        """What a tag or a digest stands for; None where there is nothing.

        Raises ``PublishedError`` when it is not what the digest says.
        """
        answer = self.ask(
            "GET", f"{self.root}manifests/{reference}", ok=(200, 404), headers={"Accept": ACCEPT},
            stream=True, what=f"the manifest {reference}",
        )  # fmt: skip
        with answer:
            if answer.status_code == 404:
                return None
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            found = Document(data=whole(answer, SMALL_MAX), media_type=kind)
        if ":" in reference and found.digest != reference:
            raise PublishedError(
                f"{self.place} answers {found.digest[:19]} for the manifest {reference[:19]}",
                hint="its storage is damaged, or somebody stands between: publish it again",
            )
        return found

    def digest_of(self, tag: str) -> str | None:
        """The digest that a tag stands for now."""
        found = self.manifest(tag)
        return None if found is None else found.digest

    def put_manifest(self, reference: str, document: Document) -> bool:
        """Put a manifest, and read back that it is there bit for bit; whether the registry knows
        the referrers API of what it names as its subject. Raises as ``ask``."""
        answer = self.ask(
            "PUT", f"{self.root}manifests/{reference}", ok=(200, 201, 202), body=document.data,
            headers={"Content-Type": document.media_type}, what=f"the manifest {reference}",
        )  # fmt: skip
        found = self.manifest(document.digest)
        if found is None or found.data != document.data:
            seen = "nothing" if found is None else found.digest[:19]
            raise RegistryError(
                f"{self.place.registry} has {seen} for {document.digest[:19]}, which it has taken",
                hint="it changes manifests: publish to a registry that keeps them as they are",
            )
        return "OCI-Subject" in answer.headers

    def tags(self) -> list[str]:
        """The first thousand tags of the repository."""
        answer = self.ask("GET", f"{self.root}tags/list?n=1000", ok=(200, 404), what="its tags")
        return list(answer.json().get("tags") or ()) if answer.status_code == 200 else []

    # Blobs

    def blob_size(self, digest: str) -> int | None:
        """The size of a blob that is there, -1 where it is not said; None where it is not."""
        answer = self.ask(
            "HEAD", f"{self.root}blobs/{digest}", ok=(200, 404), what=f"the blob {digest[:19]}"
        )
        if answer.status_code == 404:
            return None
        return int(answer.headers.get("Content-Length", "-1"))

    def blob(self, digest: str, size: int) -> bytes:
        """A small blob, proven. Raises ``PublishedError``."""
        answer = self.ask(
            "GET", f"{self.root}blobs/{digest}", ok=(200, 404), stream=True,
            what=f"the blob {digest[:19]}",
        )  # fmt: skip
        with answer:
            data = whole(answer, min(size, SMALL_MAX)) if answer.status_code == 200 else None
        if data is None:
            raise PublishedError(
                f"{self.place} lacks the blob {digest[:19]}", hint="publish the image again"
            )
        if digest_of(data) != digest:
            raise self.damaged(digest, len(data), size)
        return data

    def prove(self, digest: str, size: int, moved: Moved) -> None:
        """Read a whole blob and see that it is what it is called. Raises ``PublishedError``."""
        answer = self.ask(
            "GET", f"{self.root}blobs/{digest}", ok=(200, 404), stream=True,
            what=f"the blob {digest[:19]}",
        )  # fmt: skip
        found, count = hashlib.sha256(), 0
        with answer, reading(self.place.registry):
            for piece in answer.iter_content(READ):
                found.update(piece)
                count += len(piece)
                moved(len(piece))
        if answer.status_code == 404 or f"sha256:{found.hexdigest()}" != digest:
            raise self.damaged(digest, count, size)

    def damaged(self, digest: str, seen: int, size: int) -> PublishedError:
        """The error for a blob that is not what its digest says."""
        return PublishedError(
            f"the blob {digest[:19]} is damaged in {self.place}: {seen} bytes of {size}"
            if seen != size
            else f"the blob {digest[:19]} is damaged in {self.place}: it holds other bytes",
            hint="its operator must remove that blob from its storage; then publish again",
        )
