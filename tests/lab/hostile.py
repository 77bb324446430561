"""What an attacker has: a registry's API by hand, and signatures in cosign's form by any key.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and ATTESTATION_SPEC.md,
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from sparkimage.image.store import INDEX, MANIFEST
from sparkimage.image.streams import digest_of
from tests.lab.node import READY_S

Layer = tuple[dict[str, Any], bytes]
KINDS = f"{MANIFEST}, {INDEX}"
INTOTO = "application/vnd.in-toto+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNED_BY = "dev.cosignproject.cosign/signature"


@dataclass(frozen=True, kw_only=True)
class Client:
    """A repository of a registry on the loopback that speaks plain HTTP."""

    address: str
    repository: str

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "", *, ok: int = 200
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=READY_S)
        headers = {"Accept": KINDS, **({"Content-Type": kind} if kind else {})}
        where = path if path.startswith("/") else f"/v2/{self.repository}/{path}"
        connection.request(method, where, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status in (ok, 404), (method, path, answer.status, data)
        return answer.status, dict(answer.getheaders()), data

    def manifest(self, reference: str) -> bytes | None:
        status, _, data = self.ask("GET", f"manifests/{reference}")
        return data if status == 200 else None

    def put_manifest(self, reference: str, data: bytes, kind: str = MANIFEST) -> None:
        self.ask("PUT", f"manifests/{reference}", data, kind, ok=201)

    def delete_manifest(self, reference: str) -> None:
        data = self.manifest(reference)
        assert data is not None
        self.ask("DELETE", f"manifests/{digest_of(data)}", ok=202)

    def blob(self, digest: str) -> bytes | None:
        status, _, data = self.ask("GET", f"blobs/{digest}")
        return data if status == 200 else None

    def put_blob(self, data: bytes) -> str:
        digest = digest_of(data)
        _, headers, _ = self.ask("POST", "blobs/uploads/", ok=202)
        path = headers["Location"].partition(self.address)[2]
        self.ask("PUT", f"{path}&digest={digest}", data, "application/octet-stream", ok=201)
        return digest

    def tags(self) -> list[str]:
        """Those that people see."""
        status, _, data = self.ask("GET", "tags/list")
        listed = json.loads(data)["tags"] or [] if status == 200 else []
        return [tag for tag in listed if not tag.startswith("sha256-")]

    # What cosign attaches

    def attached(self, digest: str, kind: str) -> list[Layer]:
        data = self.manifest(f"{digest.replace(':', '-')}.{kind}")
        if data is None:
            return []
        found = []
        for listed in json.loads(data)["layers"]:
            blob = self.blob(listed["digest"])
            assert blob is not None
            found.append((listed, blob))
        return found

    def attach(self, digest: str, kind: str, layers: Sequence[Layer]) -> None:
        """Let these layers, and no others, be attached."""
        listed = [one for one, _ in layers]
        ids = [one["digest"] for one in listed]
        config = json.dumps({
            "architecture": "", "os": "", "created": "0001-01-01T00:00:00Z", "config": {},
            "rootfs": {"type": "layers", "diff_ids": ids},
        }).encode()  # fmt: skip
        for data in (config, *(data for _, data in layers)):
            self.put_blob(data)
        about = "application/vnd.oci.image.config.v1+json"
        made = {
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": listed,
            "config": {"mediaType": about, "digest": digest_of(config), "size": len(config)},
        }  # fmt: skip
        self.put_manifest(f"{digest.replace(':', '-')}.{kind}", json.dumps(made).encode())


def make_key(file: Path) -> Path:
    """An ed25519 key as openssl makes them, and its public half."""
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    public(file).write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return file


def public(file: Path) -> Path:
    return file.with_suffix(".pub")


def _sign(data: bytes, file: Path) -> str:
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return base64.b64encode(key.sign(data)).decode()


def _layer(kind: str, data: bytes, annotations: Mapping[str, str]) -> Layer:
    about = {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
    return {**about, "annotations": dict(annotations)}, data


def signature(digest: str, tags: Sequence[str], key: Path) -> Layer:
    said = {
        "critical": {
            "identity": {"docker-reference": "x"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": {"tags": " ".join(tags)},
    }
    data = json.dumps(said).encode()
    return _layer(SIGNATURE, data, {SIGNED_BY: _sign(data, key)})


def payload(statement: Mapping[str, Any]) -> bytes:
    return json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()


def attestation(statement: Mapping[str, Any], key: Path) -> Layer:
    said = payload(statement)
    encoded = b"DSSEv1 %d %b %d %b" % (len(INTOTO), INTOTO.encode(), len(said), said)
    envelope = {
        "payload": base64.b64encode(said).decode(),
        "payloadType": INTOTO,
        "signatures": [{"keyid": "", "sig": _sign(encoded, key)}],
    }
    return enveloped(envelope, str(statement["predicateType"]))


def enveloped(envelope: Mapping[str, Any], kind: str) -> Layer:
    data = json.dumps(envelope, separators=(",", ":")).encode()
    return _layer(ENVELOPE, data, {SIGNED_BY: "", "predicateType": kind})
