"""What is attached to an image in a registry: signatures and signed statements, as cosign has them.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md and ATTESTATION_SPEC.md: a
manifest under the tag ``sha256-<hex>.sig`` or ``.att``, a layer for each of them. It names its
subject too, so that registries with the referrers API list it; for those without one, the fallback
tag ``sha256-<hex>`` of the distribution spec does.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparkimage.core.errors import PublishedError
from sparkimage.image.store import INDEX, MANIFEST, digest_of
from sparkimage.registry import signing, uploading
from sparkimage.registry.oci import Document, Repository
from sparkimage.registry.signing import Signer
from sparkimage.verify import dsse
from sparkimage.verify.seal import PAYLOAD_TYPE, STATEMENT

SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
SIGNED_BY = "dev.cosignproject.cosign/signature"
TYPE = "predicateType"
KIND = "cosign container image signature"
ARTIFACT = {
    "sig": "application/vnd.dev.cosign.artifact.sig.v1+json",
    "att": "application/vnd.dev.cosign.artifact.att.v1+json",
}


@dataclass(frozen=True, kw_only=True)
class Attached:
    """One layer of what is attached: its descriptor as it is listed, and its bytes."""

    listed: Mapping[str, Any]
    data: bytes

    @property
    def annotations(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.listed.get("annotations") or {}
        return found


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A signature over the image's digest, and the tags that it was signed for."""

    digest: str
    tags: tuple[str, ...]
    believed: bool
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement about an image: ``why`` it is not believed, empty where it is."""

    said: Mapping[str, Any]
    envelope: Mapping[str, Any]
    key: str
    why: str = ""
    foreign: bool = False
    """Not signed with a key that is trusted here."""

    @property
    def kind(self) -> str:
        return str(self.said.get("predicateType", ""))

    @property
    def subject(self) -> str:
        """The digest that it is about."""
        try:
            (subject,) = self.said["subject"]
            return f"sha256:{subject['digest']['sha256']}"
        except (KeyError, TypeError, ValueError):
            return ""


def tag(digest: str, kind: str) -> str:
    """Where ``sig`` or ``att`` of an image are."""
    return f"{digest.replace(':', '-')}.{kind}"


def read(repository: Repository, digest: str, kind: str) -> tuple[Attached, ...]:
    """What is attached, each blob proven. Raises ``PublishedError`` for a damaged one."""
    found = repository.manifest(tag(digest, kind))
    if found is None:
        return ()
    try:
        listed = json.loads(found.data)["layers"]
        return tuple(
            Attached(listed=one, data=repository.blob(str(one["digest"]), int(one["size"])))
            for one in listed
        )
    except (KeyError, TypeError, ValueError):
        raise PublishedError(
            f"what is attached to {digest[:19]} in {repository.place} cannot be read",
            hint="publish the image again",
        ) from None


def signature_of(one: Attached, trusted: Mapping[str, dsse.PublicKey]) -> Signature:
    """What a signature says, and whether a trusted key made it."""
    try:
        made = base64.b64decode(str(one.annotations.get(SIGNED_BY, "")), validate=True)
        said = json.loads(one.data)["critical"]
        digest = str(said["image"]["docker-manifest-digest"]) if said["type"] == KIND else ""
        tags = _tags(json.loads(one.data))
    except (binascii.Error, KeyError, TypeError, ValueError, AttributeError):
        return Signature(digest="", tags=(), believed=False)
    for name, key in trusted.items():
        if dsse.believes(key, made, one.data):
            return Signature(digest=digest, tags=tags, believed=True, key=name)
    return Signature(digest=digest, tags=tags, believed=False)


def signature_by(one: Attached, believed: Sequence[Mapping[str, Any]]) -> Signature:
    """As ``signature_of``, where cosign says which payloads it believes."""
    bare = signature_of(one, {})
    for said in believed:
        found = said.get("critical", {}).get("image", {}).get("docker-manifest-digest")
        if bare.digest and found == bare.digest and _tags(said) == bare.tags:
            return replace(bare, believed=True, key="keyless")
    return bare


def statement_by(one: Attached, believed: Mapping[str, set[str]]) -> Statement | None:
    """As ``statement_of``, where cosign says which payloads of a kind it believes."""
    bare = statement_of(one, {})
    if bare is None:
        return None
    if bare.envelope.get("payload") in believed.get(bare.kind, ()):
        # cosign writes version 0.1 of the statement, whose fields are the same.
        said = {**bare.said, "_type": STATEMENT}
        return replace(bare, said=said, why="", foreign=False, key="keyless")
    return replace(bare, why="is not of the identity that is trusted", foreign=True)


def _tags(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The tags of a signature; cosign's own annotations are text."""
    tags = (said.get("optional") or {}).get("tags") or ()
    return tuple(tags.split(",") if isinstance(tags, str) else (str(name) for name in tags))


def statement_of(one: Attached, trusted: Mapping[str, dsse.PublicKey]) -> Statement | None:
    """What an attestation says, and whether it is believed; None for what is none."""
    if one.listed.get("mediaType") != ENVELOPE:
        return None
    try:
        envelope = json.loads(one.data)
        said = json.loads(base64.b64decode(envelope["payload"]))
        key = str(envelope["signatures"][0].get("keyid", ""))
    except (binascii.Error, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    if not isinstance(said, dict):
        return None
    try:
        dsse.opened(envelope, PAYLOAD_TYPE, trusted)
    except dsse.BadEnvelopeError as error:
        foreign = key not in trusted
        return Statement(said=said, envelope=envelope, key=key, why=str(error), foreign=foreign)
    return Statement(said=said, envelope=envelope, key=key)


def signature_layer(
    digest: str, place: str, tags: Sequence[str], by: Signer
) -> tuple[dict[str, Any], bytes]:
    """A signature over the digest, and over the tags that the image may have."""
    said = {
        "critical": {
            "identity": {"docker-reference": place},
            "image": {"docker-manifest-digest": digest},
            "type": KIND,
        },
        "optional": {"tags": sorted(tags)},
    }
    data = json.dumps(said, separators=(",", ":")).encode()
    made = base64.b64encode(by.sign(data)).decode()
    return _layer(SIGNATURE, data, {SIGNED_BY: made}), data


def statement_layer(said: Mapping[str, Any], by: Signer) -> tuple[dict[str, Any], bytes]:
    """A signed statement."""
    return envelope_layer(signing.envelope(payload(said), PAYLOAD_TYPE, by), said)


def envelope_layer(
    envelope: Mapping[str, Any], said: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """A statement that is signed already."""
    data = json.dumps(envelope, separators=(",", ":")).encode()
    return _layer(ENVELOPE, data, {SIGNED_BY: "", TYPE: str(said["predicateType"])}), data


def payload(said: Mapping[str, Any]) -> bytes:
    """The bytes of a statement that are signed."""
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _layer(kind: str, data: bytes, annotations: Mapping[str, str]) -> dict[str, Any]:
    digest = digest_of(data)
    return {"mediaType": kind, "digest": digest, "size": len(data), "annotations": annotations}


def write(
    repository: Repository,
    subject: Document,
    kind: str,
    layers: Sequence[tuple[Mapping[str, Any], bytes]],
) -> bool:
    """Let these layers, and no others, be attached; False where they are already."""
    listed = [dict(one) for one, _ in layers]
    config = {
        "architecture": "", "os": "", "created": "0001-01-01T00:00:00Z", "config": {},
        "history": [{"created": "0001-01-01T00:00:00Z"} for _ in listed],
        "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in listed]},
    }  # fmt: skip
    configured = json.dumps(config, separators=(",", ":")).encode()
    made = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT[kind],
        "config": {k: v for k, v in _layer(CONFIG, configured, {}).items() if k != "annotations"},
        "layers": listed,
        "subject": _descriptor(subject),
    }
    document = Document(data=json.dumps(made, separators=(",", ":")).encode(), media_type=MANIFEST)
    name = tag(subject.digest, kind)
    before = repository.manifest(name)
    if before is not None and before.data == document.data:
        return False
    for data in (configured, *(data for _, data in layers)):
        uploading.put_blob(repository, data)
    knows = repository.put_manifest(document.digest, document)
    repository.put_manifest(name, document)
    if not knows:
        _refer(repository, subject, document, kind, before)
    return True


def _refer(
    repository: Repository, subject: Document, made: Document, kind: str, before: Document | None
) -> None:
    """https://github.com/opencontainers/distribution-spec/blob/main/spec.md#referrers-tag-schema"""
    name = subject.digest.replace(":", "-")
    held = repository.manifest(name)
    try:
        listed = json.loads(held.data)["manifests"] if held is not None else []
    except (KeyError, TypeError, ValueError):
        listed = []
    gone = {made.digest, before.digest if before is not None else ""}
    listed = [one for one in listed if one.get("digest") not in gone]
    listed.append({**_descriptor(made), "artifactType": ARTIFACT[kind]})
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed})
    repository.put_manifest(name, Document(data=data.encode(), media_type=INDEX))


def _descriptor(document: Document) -> dict[str, Any]:
    return {
        "mediaType": document.media_type,
        "digest": document.digest,
        "size": len(document.data),
    }
