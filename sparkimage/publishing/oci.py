"""A small client of the OCI distribution protocol, for what publishing needs.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md. What can pass is tried
again (a cut connection, 5xx, 429 after the time that the registry names), what is definite never.
What comes is proven against its digest.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urljoin, urlsplit

import requests
from requests.utils import parse_dict_header

from sparkimage.address import DEFAULT_REGISTRY, image_name
from sparkimage.errors import NetworkError, PublishedError, RegistryError
from sparkimage.progress import Moved
from sparkimage.publishing import logins
from sparkimage.publishing.oci_http import (
    READ,
    TIMEOUT_S,
    Body,
    nobody,
    plain,
    reading,
    retry_after,
    said_by,
    session,
    whole,
)
from sparkimage.storage.store import INDEX, MANIFEST, Store, digest_of
from sparkimage.units import human

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = f"{MANIFEST}, {INDEX}, {DOCKER_MANIFEST}, {DOCKER_INDEX}"
HUB = "registry-1.docker.io"
"""Where Docker Hub speaks the protocol."""
ATTEMPTS = 5
WAIT_MAX_S = 120.0
"""The longest that a registry may ask us to wait."""
PART = 32 << 20
"""Bytes that go out at once; after a cut connection no more than these go again."""
SMALL_MAX = 64 << 20
"""Bytes of a document that is read into memory: manifests, attestations."""
BEGUN = "uploads"
"""The kind of fact that says where an upload that was begun goes on."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository of a registry: ``registry.example:5000`` and ``team/image``."""

    registry: str
    repository: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read REGISTRY/REPOSITORY as the Docker CLI does."""
        registry, _, repository = image_name(text).repository.partition("/")
        return cls(registry=registry, repository=repository)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, where alone plain HTTP is spoken."""
        host = urlsplit(f"//{self.registry}").hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest as the registry has it, byte for byte."""

    data: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return digest_of(self.data)


class SessionLostError(Exception):
    """An upload that the registry does not go on with: it begins anew."""


@dataclass
class Repository:
    """One repository, talked to by several threads."""

    place: Place
    writes: bool = False
    pause: Callable[[float], None] = time.sleep
    part: int = PART
    sent: int = 0
    """Bytes of blobs that went out, those that went again counted again."""
    _token: dict[str, str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _mount: tuple[str, ...] = ()

    # Requests

    @cached_property
    def login(self) -> logins.Login:
        """What Docker's credential store has for this registry."""
        return logins.of(self.place.registry)

    @cached_property
    def session(self) -> requests.Session:
        """Connections that are kept."""
        # No proxy stands before this machine itself, whatever the environment says of others.
        return session(self.place.registry, proxies=not self.place.is_loopback)

    @cached_property
    def base(self) -> str:
        """The registry's address; plain HTTP only where it is on this machine."""
        host = HUB if self.place.registry == DEFAULT_REGISTRY else self.place.registry
        if self.place.is_loopback:
            try:
                self.session.get(f"https://{host}/v2/", timeout=TIMEOUT_S, auth=nobody)
            except requests.exceptions.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                    return f"http://{host}/"
            except requests.RequestException:
                pass
        return f"https://{host}/"

    @property
    def root(self) -> str:
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

        Raises ``RegistryError`` for a definite refusal, ``NetworkError`` when what could pass did
        not, after ``attempts``.
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
                    auth=self._authorize,
                    stream=stream,
                    timeout=TIMEOUT_S,
                )
            except requests.exceptions.SSLError as error:
                raise self._untrusted(error) from None
            except (requests.ConnectionError, requests.Timeout) as error:
                problem, detail = "does not answer", plain(error)
            except requests.exceptions.ChunkedEncodingError as error:
                problem, detail = "broke off its answer", plain(error)
            else:
                if answer.status_code == 401 and not renewed and self._renew(answer):
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

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Show the login to the registry itself, and to nobody else."""
        if urlsplit(str(request.url)).netloc == urlsplit(self.base).netloc:
            with self._lock:
                request.headers.update(self._token)
        return request

    def _renew(self, answer: requests.Response) -> bool:
        """Get what the registry's challenge asks for; False where we have nothing to show."""
        kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        with self._lock:
            if kind.lower() == "basic" and self.login.user:
                header = requests.auth._basic_auth_str(self.login.user, self.login.password)
            elif kind.lower() == "bearer":
                header = f"Bearer {self._bearer(parse_dict_header(rest))}"  # type: ignore[no-untyped-call]
            else:
                return False
            self._token = {"Authorization": header}
            return True

    def _bearer(self, challenge: Mapping[str, str | None]) -> str:
        """https://distribution.github.io/distribution/spec/auth/token/"""
        realm, service = str(challenge.get("realm", "")), challenge.get("service") or ""
        parts = urlsplit(realm)
        loopback = Place(registry=parts.netloc, repository="").is_loopback
        if parts.scheme != "https" and not loopback:
            raise RegistryError(
                f"{self.place.registry} sends logins to {parts.scheme}://{parts.netloc}, which is "
                "not safe",
                hint="its operator must give its token service TLS",
            )
        actions = "pull,push" if self.writes else "pull"
        scopes = [f"repository:{self.place.repository}:{actions}"]
        scopes += [f"repository:{other}:pull" for other in self._mount]
        try:
            if self.login.identity_token:
                form = {
                    "grant_type": "refresh_token", "service": service, "client_id": "sparkimage",
                    "scope": " ".join(scopes), "refresh_token": self.login.identity_token,
                }  # fmt: skip
                answer = self.session.post(realm, data=form, timeout=TIMEOUT_S, auth=nobody)
            else:
                pair = (self.login.user, self.login.password) if self.login.user else nobody
                asked = {"service": service, "scope": scopes}
                answer = self.session.get(realm, params=asked, timeout=TIMEOUT_S, auth=pair)
        except requests.RequestException as error:
            raise NetworkError(
                f"the token service of {self.place.registry} does not answer",
                hint="run the same command again",
                detail=plain(error),
            ) from None
        if answer.status_code != 200:
            raise self._no_login(f"its token service answers {answer.status_code}")
        said = answer.json()
        return str(said.get("token") or said.get("access_token") or "")

    def _definite(self, answer: requests.Response, said: str, what: str) -> None:
        """Raise for what will not pass by itself."""
        code = answer.status_code
        # What a token that was granted does not cover is a matter of rights:
        # https://distribution.github.io/distribution/spec/auth/token/
        if "insufficient_scope" in answer.headers.get("WWW-Authenticate", ""):
            code = 403
        if code == 401:
            raise self._no_login("it answers 401")
        if code == 403:
            raise RegistryError(
                f"{self.place.registry} does not let this login "
                f"{'write to' if self.writes else 'read'} {self.place.repository}"
                + (f" ({what})" if what else ""),
                hint="ask its operator for the right, or `docker login "
                f"{self.place.registry}` as somebody who has it",
                detail=said,
            )
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

    def _no_login(self, why: str) -> RegistryError:
        held = self.login.there
        return RegistryError(
            f"{self.place.registry} "
            + (f"refuses the login of {self.login.user or 'the token'}" if held
               else "wants a login, and Docker's credential store has none")
            + f": {why}",
            hint=f"docker login {self.place.registry}",
        )  # fmt: skip

    def _untrusted(self, error: Exception) -> RegistryError:
        folder = logins.CERTIFICATES[0] / self.place.registry
        return RegistryError(
            f"the certificate of {self.place.registry} is not trusted here",
            hint=f"put its CA into {folder}/ca.crt, or name a bundle with SSL_CERT_FILE",
            detail=plain(error),
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

    def mount(self, digest: str, repositories: tuple[str, ...]) -> str | None:
        """Take a blob over from another repository of this registry, without its bytes.

        Returns where to upload to instead, where that was offered; "" where it is mounted.
        """
        location = None
        for other in repositories:
            with self._lock:
                if other not in self._mount:
                    self._mount += (other,)
                    self._token = {} if "Bearer" in str(self._token) else self._token
            where = f"{self.root}blobs/uploads/?mount={digest}&from={other}"
            answer = self.ask(
                "POST", where, ok=(201, 202, 401, 403, 404), what="taking a blob over"
            )
            if answer.status_code == 201:
                return ""
            if answer.status_code == 202:
                location = answer.headers["Location"]
                break
        return location

    def upload(
        self, store: Store, digest: str, size: int, moved: Moved, location: str = ""
    ) -> None:
        """Bring a blob from the store, proven while it is read; what an earlier run began goes on.

        Raises ``StoreError`` when it is damaged here; then nothing of that digest is there.
        """
        key = hashlib.sha256(f"{self.place} {digest}".encode()).hexdigest()
        begun = "" if location else str(store.get_fact(BEGUN, key) or "")
        for _ in range(ATTEMPTS):
            tally = _Tally(moved)
            try:
                self._upload(store, digest, size, tally.moved, location, begun, key)
            except SessionLostError:
                # What had arrived is gone with the session.
                moved(-tally.count)
                location = begun = ""
            else:
                store.forget_fact(BEGUN, key)
                return
        raise NetworkError(
            f"{self.place.registry} loses the upload of {digest[:19]} again and again",
            hint="run the same command again when the way there is well",
        )

    def put_blob(self, data: bytes) -> None:
        """Bring a small blob from memory, where it is not there."""
        digest = digest_of(data)
        if self.blob_size(digest) == len(data):
            return
        what = f"the blob {digest[:19]}"
        for _ in range(ATTEMPTS):
            answer = self.ask("POST", f"{self.root}blobs/uploads/", ok=(202,), what=what)
            try:
                self._finish(answer.headers["Location"], digest, data, lambda _: None, what)
            except SessionLostError:
                continue
            return
        raise NetworkError(
            f"{self.place.registry} loses the upload of {digest[:19]} again and again",
            hint="run the same command again when the way there is well",
        )

    def _upload(
        self,
        store: Store,
        digest: str,
        size: int,
        moved: Moved,
        location: str,
        begun: str,
        key: str,
    ) -> None:
        what = f"the blob {digest[:19]}, {human(size)}"
        part, offset = self.part, 0
        if begun:
            offset, location = self._held(begun)
        elif not location:
            answer = self.ask("POST", f"{self.root}blobs/uploads/", ok=(202,), what=what)
            location = answer.headers["Location"]
            part = max(part, int(answer.headers.get("OCI-Chunk-Min-Length") or 0))
        proof, last = hashlib.sha256(), b""
        try:
            source = store.path(digest).open("rb")
        except FileNotFoundError:
            raise store.damage(digest, "is missing") from None
        with source:
            for _ in range(0, offset, READ):
                proof.update(source.read(min(READ, offset - source.tell())))
            moved(offset)
            while True:
                piece = source.read(part)
                proof.update(piece)
                if offset + len(piece) >= size or not piece:
                    if f"sha256:{proof.hexdigest()}" != digest:
                        # The last piece never leaves: nobody can take what was sent for whole.
                        raise store.damage(digest, f"holds other bytes: sha256:{proof.hexdigest()}")
                    if offset == 0:
                        last = piece
                    elif piece:
                        location = self._piece(location, piece, offset, moved, what)
                    break
                location = self._piece(location, piece, offset, moved, what)
                offset += len(piece)
                store.put_fact(BEGUN, key, location)
        self._finish(location, digest, last, moved, what)

    def _piece(self, location: str, piece: bytes, offset: int, moved: Moved, what: str) -> str:
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
                answer = self.ask(
                    "PATCH", location, ok=(202, 204, 400, 404, 416), headers=headers, body=part,
                    moved=moved, attempts=1, what=what,
                )  # fmt: skip
            except NetworkError:
                if attempt == ATTEMPTS - 1:
                    raise
                self.pause(min(2.0**attempt, 30.0))
            else:
                if answer.status_code in (202, 204):
                    return str(answer.headers["Location"])
                moved(-len(part))
            held, location = self._held(location)
            if not offset <= held <= offset + len(piece):
                raise SessionLostError
            moved(held - begin)
            begin = held
            if held == offset + len(piece):
                return location
        raise SessionLostError

    def _held(self, location: str) -> tuple[int, str]:
        """How many bytes of an upload the registry has, and where it goes on."""
        # 500: CNCF's registry on a full disk cannot read what it kept of an upload.
        answer = self.ask("GET", location, ok=(200, 204, 400, 404, 416, 500), what="an upload")
        if answer.status_code not in (200, 204):
            raise SessionLostError
        last = answer.headers.get("Range", "0-0").rpartition("-")[2]
        held = int(last) + 1 if last.isdecimal() and int(last) else 0
        return held, str(answer.headers.get("Location", location))

    def _finish(self, location: str, digest: str, last: bytes, moved: Moved, what: str) -> None:
        glue = "&" if urlsplit(location).query else "?"
        try:
            answer = self.ask(
                "PUT", f"{location}{glue}digest={digest}", ok=(201, 204, 400, 404, 416), body=last,
                headers={"Content-Type": "application/octet-stream"}, moved=moved, what=what,
                attempts=1,
            )  # fmt: skip
        except NetworkError:
            # Its answer may be lost, and not the blob.
            if self.blob_size(digest) is None:
                raise SessionLostError from None
            return
        if answer.status_code not in (201, 204):
            moved(-len(last))
            raise SessionLostError


class _Tally:
    """Counts what moved."""

    def __init__(self, moved: Moved) -> None:
        self.tell, self.count = moved, 0

    def moved(self, count: int) -> None:
        self.count += count
        self.tell(count)
