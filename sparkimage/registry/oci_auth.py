"""How a registry lets a request pass: its challenge, what answers it, and what a refusal means.

https://distribution.github.io/distribution/spec/auth/token/. A login is shown to the registry and
to the token service that it names, and to nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

import requests
from requests.utils import parse_dict_header

from sparkimage.config.address import Place, is_loopback
from sparkimage.core.errors import NetworkError, RegistryError
from sparkimage.registry import auth
from sparkimage.registry.oci_http import TIMEOUT_S, nobody, plain


@dataclass(kw_only=True)
class Authorizer:
    """What one registry is shown for one repository, in the requests of several threads."""

    place: Place
    host: str
    """Where the registry speaks the protocol, HOST[:PORT]."""
    writes: bool
    """Whether the right to write is asked for, too."""
    header: str = field(default="", repr=False)
    """What goes into ``Authorization``; empty until the registry has asked for it."""
    _sources: tuple[str, ...] = ()
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @cached_property
    def login(self) -> auth.Login:
        """What Docker's credential store has for this registry. Raises ``RegistryError``."""
        return auth.of(self.place.registry)

    def show(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Show the login to the registry itself, and to nobody else.

        This is what requests takes as ``auth``.
        """
        if urlsplit(str(request.url)).netloc == self.host:
            with self._lock:
                if self.header:
                    request.headers["Authorization"] = self.header
        return request

    def renew(self, answer: requests.Response, session: requests.Session) -> bool:
        """Get what the registry's challenge asks for; False where we have nothing to show.

        ``session`` reaches the token service. Raises ``RegistryError`` when that refuses the login
        or is not safe to show it to, ``NetworkError`` when it does not answer.
        """
        kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
        with self._lock:
            if kind.lower() == "basic" and self.login.user:
                self.header = requests.auth._basic_auth_str(self.login.user, self.login.password)
            elif kind.lower() == "bearer":
                challenge = parse_dict_header(rest)  # type: ignore[no-untyped-call]
                self.header = f"Bearer {self._bearer(challenge, session)}"
            else:
                return False
            return True

    def read_too(self, repository: str) -> None:
        """Ask for the right to read another repository of this registry, too, from now on."""
        with self._lock:
            if repository not in self._sources:
                self._sources += (repository,)
                # A token holds for what it was asked for: the next challenge brings one for both.
                if self.header.startswith("Bearer "):
                    self.header = ""

    def refusal(self, answer: requests.Response, said: str, what: str) -> RegistryError | None:
        """The error for an answer that wants another login or more rights; None for any other.

        ``said`` is the answer's text, ``what`` the words for what was asked for.
        """
        code = answer.status_code
        # What a token that was granted does not cover is a matter of rights:
        # https://distribution.github.io/distribution/spec/auth/token/
        if "insufficient_scope" in answer.headers.get("WWW-Authenticate", ""):
            code = 403
        if code == 401:
            return self._no_login("it answers 401")
        if code == 403:
            return RegistryError(
                f"{self.place.registry} does not let this login "
                f"{'write to' if self.writes else 'read'} {self.place.repository}"
                + (f" ({what})" if what else ""),
                hint="ask its operator for the right, or `docker login "
                f"{self.place.registry}` as somebody who has it",
                detail=said,
            )
        return None

    def _bearer(self, challenge: Mapping[str, str | None], session: requests.Session) -> str:
        """https://distribution.github.io/distribution/spec/auth/token/"""
        realm, service = str(challenge.get("realm", "")), challenge.get("service") or ""
        parts = urlsplit(realm)
        if parts.scheme != "https" and not is_loopback(parts.netloc):
            raise RegistryError(
                f"{self.place.registry} sends logins to {parts.scheme}://{parts.netloc}, which is "
                "not safe",
                hint="its operator must give its token service TLS",
            )
        actions = "pull,push" if self.writes else "pull"
        scopes = [f"repository:{self.place.repository}:{actions}"]
        scopes += [f"repository:{other}:pull" for other in self._sources]
        try:
            if self.login.identity_token:
                form = {
                    "grant_type": "refresh_token", "service": service, "client_id": "sparkimage",
                    "scope": " ".join(scopes), "refresh_token": self.login.identity_token,
                }  # fmt: skip
                answer = session.post(realm, data=form, timeout=TIMEOUT_S, auth=nobody)
            else:
                pair = (self.login.user, self.login.password) if self.login.user else nobody
                asked = {"service": service, "scope": scopes}
                answer = session.get(realm, params=asked, timeout=TIMEOUT_S, auth=pair)
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

    def _no_login(self, why: str) -> RegistryError:
        held = self.login.there
        return RegistryError(
            f"{self.place.registry} "
            + (f"refuses the login of {self.login.user or 'the token'}" if held
               else "wants a login, and Docker's credential store has none")
            + f": {why}",
            hint=f"docker login {self.place.registry}",
        )  # fmt: skip
