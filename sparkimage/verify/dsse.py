"""DSSE envelopes: a payload with signatures over exactly its bytes and its type.

https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
ECDSA = ec.ECDSA(hashes.SHA256())
CURVE = "secp256r1"
"""OpenSSL's prime256v1, NIST's P-256."""


class BadEnvelopeError(Exception):
    """Why an envelope is not believed."""


def key_id(key: PublicKey) -> str:
    """sha256 over the public key's DER (SubjectPublicKeyInfo)."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def private_key(pem: bytes) -> PrivateKey:
    """An ed25519 or ECDSA P-256 key without a passphrase. Raises ``ValueError`` for others."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == CURVE:
        return key
    raise ValueError("neither an ed25519 nor an ECDSA P-256 key")


def public_key(pem: bytes) -> PublicKey:
    """The public half, as ``private_key`` takes them. Raises ``ValueError``."""
    try:
        key = serialization.load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == CURVE:
        return key
    raise ValueError("neither an ed25519 nor an ECDSA P-256 key")


def sign(payload: bytes, payload_type: str, key: PrivateKey) -> dict[str, Any]:
    """The envelope of ``payload``, signed with ``key``."""
    made = signature(encoded(payload_type, payload), key)
    return envelope(payload, payload_type, made, key_id(key.public_key()))


def signature(data: bytes, key: PrivateKey) -> bytes:
    """The bare signature over ``data``."""
    return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, ECDSA)


def believes(key: PublicKey, made: bytes, data: bytes) -> bool:
    """Whether ``made`` is this key's signature over ``data``."""
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(made, data)
        else:
            key.verify(made, data, ECDSA)
    except InvalidSignature:
        return False
    return True


def envelope(payload: bytes, payload_type: str, made: bytes, keyid: str) -> dict[str, Any]:
    """The envelope of ``payload`` with the signature ``made``."""
    return {
        "payload": _base64(payload),
        "payloadType": payload_type,
        "signatures": [{"keyid": keyid, "sig": _base64(made)}],
    }


def opened(
    envelope: Mapping[str, Any], payload_type: str, trusted: Mapping[str, PublicKey]
) -> tuple[bytes, str]:
    """The payload and the id of the key that signed it.

    Strict beyond the protocol: every byte of an envelope means something. Raises
    ``BadEnvelopeError`` for one that is edited, of another type, or of a key that is not trusted.
    """
    try:
        (signature,) = envelope["signatures"]
        if set(envelope) != {"payload", "payloadType", "signatures"} or set(signature) != {
            "keyid", "sig",
        }:  # fmt: skip
            raise BadEnvelopeError("is no envelope with one signature")
        payload, made = _bytes(envelope["payload"]), _bytes(signature["sig"])
        if envelope["payloadType"] != payload_type:
            raise BadEnvelopeError(f"is of the type {envelope['payloadType']!r}")
        known = str(signature["keyid"])
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise BadEnvelopeError("is no envelope with one signature") from None
    key = trusted.get(known)
    if key is None:
        raise BadEnvelopeError(f"is signed with the key {known[:16]}, which is not trusted here")
    if not believes(key, made, encoded(payload_type, payload)):
        raise BadEnvelopeError(
            f"was edited: its signature by the key {known[:16]} is of other content"
        )
    return payload, known


def encoded(payload_type: str, payload: bytes) -> bytes:
    """The protocol's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    data = base64.b64decode(text, validate=True)
    if _base64(data) != text:
        raise ValueError("not canonical")
    return data
