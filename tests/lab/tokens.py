"""A token service as registries of this size have them, in front of the CNCF registry.

https://distribution.github.io/distribution/spec/auth/jwt/
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import load_pem_x509_certificate

from tests.lab.servers import LOOPBACK, PASSWORD, USER, answering

ISSUER, SERVICE = "lab-issuer", "lab-registry"
IDENTITY = "an identity token of the lab"


@dataclass(kw_only=True)
class Tokens:
    """Where it is, what was asked of it, and how long its tokens live."""

    realm: str = ""
    scopes: list[list[str]] = field(default_factory=list)
    seconds: int = 300
    writes: bool = True


@contextmanager
def service(folder: Path) -> Iterator[Tokens]:
    """``folder`` holds what ``servers.certify`` makes; its server's key signs."""
    made = Tokens()
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = load_pem_x509_certificate((folder / "server.crt").read_bytes())
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]

    def token(scopes: list[str]) -> str:
        now = int(time.time())
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [one for one in actions.split(",") if made.writes or one == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        claims = {
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": str(time.time()),
            "iat": now, "nbf": now - 5, "exp": now + made.seconds, "access": access,
        }  # fmt: skip
        parts = [_part({"typ": "JWT", "alg": "ES256", "x5c": chain}), _part(claims)]
        r, s = decode_dss_signature(key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
        return ".".join([*parts, _text(r.to_bytes(32, "big") + s.to_bytes(32, "big"))])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            asked = parse_qs(urlsplit(self.path).query).get("scope", [])
            self._answer(asked, good=self.headers.get("Authorization") == f"Basic {pair}")

        def do_POST(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers["Content-Length"]))
            form = parse_qs(data.decode())
            good = form["refresh_token"] == [IDENTITY] and form["grant_type"] == ["refresh_token"]
            self._answer(form.get("scope", [""])[0].split(), good=good)

        def _answer(self, scopes: list[str], *, good: bool) -> None:
            made.scopes.append(scopes)
            body = json.dumps({"token": token(scopes)} if good else {}).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with answering(Handler) as port:
        made.realm = f"http://{LOOPBACK}:{port}/token"
        yield made


def _part(data: dict[str, Any]) -> str:
    return _text(json.dumps(data).encode())


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
