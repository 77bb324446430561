"""What an image is, by its registry alone or by the store: for ``inspect``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparkimage.config.defaults import LABEL
from sparkimage.config.tier import Tier
from sparkimage.core.errors import PublishedError
from sparkimage.image.store import Image
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.remote import PlatformImage, RemoteImage
from sparkimage.verify import seal, static_nccl
from sparkimage.verify.plan_record import PlanRecord
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Verdict


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


def stored(image: Image, record: PlanRecord, verdict: Verdict | None) -> dict[str, Any]:
    """An image of the store, in the words of a published one."""
    plan, results = record.plan, verdict.results if verdict is not None else ()
    prefix = "org.opencontainers.image."
    return {
        "names": list(image.names),
        "digest": image.digest,
        "platform": plan.platform,
        "variant": plan.variant,
        "created": image.config.get("created"),
        "source": plan.labels.get(f"{prefix}source"),
        "revision": plan.labels.get(f"{prefix}revision"),
        "lock": plan.lock_checksum,
        "versions": dict(plan.versions),
        "nccl": _nccl([result.predicate for result in results]),
        "entrypoint": list(image.settings.entrypoint),
        "layers": len(image.layers),
        "size": image.size,
        "seal": [_result(result.predicate, verified=True) for result in results],
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
        "nccl": _nccl([one.predicate for one in image.of_type(seal.TEST_RESULT)]),
        "entrypoint": list(image.settings.entrypoint),
        "layers": len(image.manifest["layers"]),
        "size": image.size,
        "materials": len(source.get("buildDefinition", {}).get("resolvedDependencies", ())),
        "seal": [
            _result(one.predicate, verified=one.verified) for one in image.of_type(seal.TEST_RESULT)
        ],
        "sbom": sbom.summary(_predicate(image, sbom.PREDICATE)),
        "attached": sorted({attestation.predicate_type for attestation in image.attestations}),
    }


def _predicate(image: PlatformImage, predicate_type: str) -> Mapping[str, Any]:
    """The predicate of a type, preferably a verified one."""
    attestations = [*image.verified(predicate_type), *image.of_type(predicate_type)]
    return attestations[0].predicate if attestations else {}


def _nccl(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Path, version, Build ID and sha256 of every libnccl that was measured."""
    return next(
        (
            check["seen"]
            for predicate in results
            for check in predicate.get("evidence", ())
            if check["id"] == f"{Tier.STATIC}/{static_nccl.BUILDS}"
        ),
        [],
    )


def _result(predicate: Mapping[str, Any], *, verified: bool) -> dict[str, Any]:
    return {
        "verified": verified,
        "result": predicate.get("result"),
        "tiers": predicate.get("tiers") or [],
        "passed": len(predicate.get("passedTests") or ()),
        "failed": predicate.get("failedTests") or [],
        "not run": predicate.get("notRun") or {},
        "where": predicate.get("host"),
        "when": predicate.get("finished"),
    }


def _signature(image: RemoteImage) -> dict[str, Any]:
    own = [s for s in image.signatures or () if s.digest == image.digest]
    if image.signatures is None:
        state = "unsigned"
    else:
        state = "signed" if own else "signed by a key that is not trusted here"
    return {"state": state, "tags": sorted({tag for s in own for tag in s.tags})}
