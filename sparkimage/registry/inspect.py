"""What a published image is, by its registry alone: for ``inspect``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparkimage.config.defaults import LABEL
from sparkimage.core.errors import PublishedError
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.remote import PlatformImage, RemoteImage
from sparkimage.verify import seal, summary
from sparkimage.verify.policy import Required


def describe(image: RemoteImage, required: Callable[[PlatformImage], Required]) -> dict[str, Any]:
    """The target of a reference, and whether it is verified (with the reason where it is not)."""
    try:
        remote.judge(image, required)
        why = None
    except PublishedError as error:
        why = error.message
    return {
        "reference": str(image.reference),
        "digest": image.digest,
        "index": image.document.is_index,
        "verified": why is None,
        "why": why,
        "signature": _signature(image),
        "platforms": {platform.platform: _readable(platform) for platform in image.images},
    }


def _readable(image: PlatformImage) -> dict[str, Any]:
    try:
        return _platform(image)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PublishedError(
            f"the attestations of {image.digest[:19]} are malformed", hint=remote.REPUBLISH
        ) from None


def _platform(image: PlatformImage) -> dict[str, Any]:
    """One platform; what comes from labels is under ``labels``."""
    source = _predicate(image, provenance.PREDICATE)
    parameters = source.get("buildDefinition", {}).get("externalParameters", {})
    version_label = f"{LABEL}version."
    return {
        "digest": image.digest,
        "variant": parameters.get("variant") or image.labels.get(f"{LABEL}variant"),
        "created": image.config.get("created"),
        "source": parameters.get("source"),
        "revision": parameters.get("revision"),
        "lock": image.lock,
        "versions": provenance.measured_of(source).to_dict() if "runDetails" in source else {},
        "labels": {
            name.removeprefix(version_label): value
            for name, value in sorted(image.labels.items())
            if name.startswith(version_label)
        },
        "nccl": summary.nccl([one.predicate for one in image.of_type(seal.TEST_RESULT)]),
        "entrypoint": list(image.settings.entrypoint),
        "layers": len(image.manifest["layers"]),
        "size": image.size,
        "materials": len(source.get("buildDefinition", {}).get("resolvedDependencies", ())),
        "seal": [
            summary.result(one.predicate, verified=one.verified)
            for one in image.of_type(seal.TEST_RESULT)
        ],
        "sbom": sbom.summary(_predicate(image, sbom.PREDICATE)),
        "attached": sorted({attestation.predicate_type for attestation in image.attestations}),
    }


def _predicate(image: PlatformImage, predicate_type: str) -> Mapping[str, Any]:
    """The predicate of a type, preferably a verified one."""
    attestations = [*image.verified(predicate_type), *image.of_type(predicate_type)]
    return attestations[0].predicate if attestations else {}


def _signature(image: RemoteImage) -> dict[str, Any]:
    own = [s for s in image.signatures or () if s.digest == image.digest]
    if image.signatures is None:
        state = "unsigned"
    else:
        state = "signed" if own else "signed by a key that is not trusted here"
    return {"state": state, "tags": sorted({tag for s in own for tag in s.tags})}
