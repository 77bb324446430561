"""HTTP as a registry's client needs it: kept connections with Docker's certificates, bodies that
say how far they are, and answers that can break off.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from sparkimage.core.errors import NetworkError, RegistryError
from sparkimage.core.progress import Moved
from sparkimage.registry import auth

READ = 1 << 20
TIMEOUT_S = (10.0, 90.0)
"""To connect, and between two signs of life."""


def session(registry: str, *, proxies: bool) -> requests.Session:
    """Connections to ``registry`` that are kept; ``proxies``: those of the environment hold."""
    context, bundle = auth.tls(registry)
    made = Session()
    made.verify = bundle
    made.headers["User-Agent"] = "sparkimage"
    # Bytes as they are stored: their digest is of these.
    made.headers["Accept-Encoding"] = "identity"
    made.trust_env = proxies
    made.mount("https://", Adapter(context))
    made.mount("http://", HTTPAdapter(pool_maxsize=8))
    return made


class Session(requests.Session):
    """As requests has it, but for logins."""

    def rebuild_auth(self, prepared_request: Any, response: Any) -> None:
        """A redirect to elsewhere gets no login, and ~/.netrc is nobody's login here."""
        headers = prepared_request.headers
        if "Authorization" in headers and self.should_strip_auth(  # type: ignore[no-untyped-call]
            response.request.url, prepared_request.url
        ):
            del headers["Authorization"]


class Adapter(HTTPAdapter):
    """HTTPS with a context of our own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__(pool_maxsize=8)

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more, ssl_context=self.context)

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        return super().proxy_manager_for(proxy, **more, ssl_context=self.context)


class Body:
    """Bytes to send, that say how far they are."""

    def __init__(self, data: bytes, moved: Moved | None) -> None:
        self.data, self.tell_, self.done = memoryview(data), moved, 0

    def __len__(self) -> int:
        return len(self.data)

    def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size < 0 else min(len(self.data), self.done + max(size, 1 << 18))
        piece = bytes(self.data[self.done : end])
        self.done = end
        if self.tell_ is not None and piece:
            self.tell_(len(piece))
        return piece

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.read(1 << 18):
            yield piece

    def undo(self) -> None:
        """It did not arrive."""
        if self.tell_ is not None:
            self.tell_(-self.done)


def nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Without this, requests looks into ~/.netrc."""
    return request


def retry_after(answer: requests.Response, otherwise: float) -> float:
    """Seconds that the registry asks us to wait."""
    said = answer.headers.get("Retry-After", "")
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):
        return otherwise


def said_by(answer: requests.Response) -> str:
    """What the registry says of an error, without an end to its length."""
    try:
        with answer:
            return answer.content[:2000].decode("utf-8", "replace").strip()
    except requests.RequestException:
        return ""


def plain(error: Exception) -> str:
    """The reason in an exception's words; addresses of uploads say nothing to people."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None)
    return f"{type(inner).__name__}: {reason or inner}"[:500]


def untrusted(registry: str, error: Exception) -> RegistryError:
    """The error for a registry whose certificate no CA that is believed here has signed."""
    folder = auth.CERTIFICATES[0] / registry
    return RegistryError(
        f"the certificate of {registry} is not trusted here",
        hint=f"put its CA into {folder}/ca.crt, or name a bundle with SSL_CERT_FILE",
        detail=plain(error),
    )


@contextmanager
def reading(registry: str) -> Iterator[None]:
    """An answer that breaks off within is a ``NetworkError``."""
    try:
        yield
    except requests.RequestException as error:
        raise NetworkError(
            f"{registry} broke off its answer", hint="run the same command again",
            detail=plain(error),
        ) from None  # fmt: skip


def whole(answer: requests.Response, most: int) -> bytes:
    """The body; of one that is longer than ``most`` a little more than that."""
    found = b""
    try:
        for piece in answer.iter_content(READ):
            found += piece
            if len(found) > most:
                break
    except requests.RequestException as error:
        raise NetworkError(
            "the registry broke off its answer", hint="run the same command again",
            detail=plain(error),
        ) from None  # fmt: skip
    return found
