"""Signatures and signed statements as cosign has them, without a registry."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from sparkimage.config.address import Mirrors
from sparkimage.core.errors import PreflightError
from sparkimage.core.process import Local
from sparkimage.registry import attachments, provenance, signing
from sparkimage.registry.attachments import Attached
from sparkimage.registry.signing import OwnSigner
from sparkimage.resolve.context import Outside
from sparkimage.verify import dsse
from sparkimage.verify.keys import Keyring

DIGEST = f"sha256:{'a' * 64}"
KEYS: list[dsse.PrivateKey] = [
    ed25519.Ed25519PrivateKey.generate(),
    ec.generate_private_key(ec.SECP256R1()),
]


def trusted(key: dsse.PrivateKey) -> dict[str, dsse.PublicKey]:
    return {dsse.key_id(key.public_key()): key.public_key()}


def attached(layer: tuple[dict[str, Any], bytes]) -> Attached:
    return Attached(listed=layer[0], data=layer[1])


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ecdsa"])
def test_a_signature_is_over_the_digest_and_the_tags(key: dsse.PrivateKey) -> None:
    layer = attachments.signature_layer(DIGEST, "r.example/x", ["b", "a"], OwnSigner(key=key))
    seen = attachments.signature_of(attached(layer), trusted(key))
    assert (seen.believed, seen.digest, seen.tags) == (True, DIGEST, ("a", "b"))
    assert seen.key == dsse.key_id(key.public_key())
    other = attachments.signature_of(attached(layer), {})
    assert (other.believed, other.digest) == (False, DIGEST)
    edited = attached((layer[0], layer[1].replace(b'"a"', b'"c"')))
    assert not attachments.signature_of(edited, trusted(key)).believed


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"no json", b'{"critical": 1}'])
def test_what_is_no_signature_is_not_believed(data: bytes) -> None:
    key = KEYS[0]
    made = base64.b64encode(OwnSigner(key=key).sign(data)).decode()
    one = Attached(listed={"annotations": {attachments.SIGNED_BY: made}}, data=data)
    assert not attachments.signature_of(one, trusted(key)).believed


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ecdsa"])
def test_a_statement_is_believed_of_its_key_alone(key: dsse.PrivateKey) -> None:
    said = provenance.statement("https://example.org/x", "name", DIGEST, {"a": 1})
    layer = attachments.statement_layer(said, OwnSigner(key=key))
    assert layer[0]["annotations"]["predicateType"] == "https://example.org/x"
    seen = attachments.statement_of(attached(layer), trusted(key))
    assert seen is not None
    assert (seen.why, seen.said, seen.subject) == ("", said, DIGEST)
    foreign = attachments.statement_of(attached(layer), {})
    assert foreign is not None
    assert foreign.foreign
    envelope = json.loads(layer[1])
    envelope["payload"] = base64.b64encode(attachments.payload({**said, "x": 1})).decode()
    edited = attachments.statement_of(
        attached(attachments.envelope_layer(envelope, said)), trusted(key)
    )
    assert edited is not None
    assert not edited.foreign
    assert "was edited" in edited.why


def test_what_is_no_statement_is_left_aside() -> None:
    for data in (b"", b"{}", b"[]", b'{"payload": "e30=", "signatures": []}'):
        assert attachments.statement_of(
            Attached(listed={"mediaType": attachments.ENVELOPE}, data=data), {}
        ) is None  # fmt: skip
    assert attachments.statement_of(Attached(listed={"mediaType": "x"}, data=b""), {}) is None


def test_a_subject_of_several_is_none() -> None:
    said = provenance.statement("t", "n", DIGEST, {})
    said["subject"] *= 2
    one = attachments.Statement(said=said, envelope={}, key="")
    assert one.subject == ""


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(home=tmp_path, runner=Local(), mirrors=Mirrors(), say=print)


def test_the_key_of_the_seals_signs_where_none_is_named(tmp_path: Path, outside: Outside) -> None:
    keys = Keyring(folder=tmp_path / "keys")
    by = signing.signer(None, keys, outside)
    assert dsse.key_id(by.public) in signing.trusted(None, keys)


def test_a_pem_key_signs_and_its_public_half_believes(tmp_path: Path, outside: Outside) -> None:
    key = KEYS[1]
    private, public = tmp_path / "key", tmp_path / "pub"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    keys = Keyring(folder=tmp_path / "keys")
    by = signing.signer(str(private), keys, outside)
    assert signing.trusted(str(public), keys) == {dsse.key_id(by.public): by.public}


@pytest.mark.parametrize("content", [None, "no key"])
def test_what_is_no_key_is_refused(tmp_path: Path, outside: Outside, content: str | None) -> None:
    file, keys = tmp_path / "file", Keyring(folder=tmp_path / "keys")
    if content is not None:
        file.write_text(content)
    with pytest.raises(PreflightError, match="is no key to sign with"):
        signing.signer(str(file), keys, outside)
    with pytest.raises(PreflightError, match="is no public key"):
        signing.trusted(str(file), keys)
