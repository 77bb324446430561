"""What a published image is, for people and for machines: from the registry alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparkimage.config.plan import LABEL
from sparkimage.core.errors import PublishedError
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.cosign import Statement
from sparkimage.registry.remote import Reading, RemoteImage
from sparkimage.verify import seal
from sparkimage.verify.policy import Required


def describe(whole: RemoteImage, required: Callable[[Reading], Required]) -> dict[str, Any]:
    """All that is known of what a reference stands for, and whether it may be believed."""
    try:
        remote.judge(whole, required)
        why = None
    except PublishedError as error:
        why = error.message
    return {
        "reference": str(whole.reference),
        "digest": whole.digest,
        "index": whole.is_index,
        "believed": why is None,
        "why": why,
        "signature": _signature(whole),
        "platforms": {one.platform: image(one) for one in whole.images},
    }


def image(one: Reading) -> dict[str, Any]:
    """Of one platform. What its label says is said to be its label's."""
    made = _predicate(one, provenance.PREDICATE)
    parameters = made.get("buildDefinition", {}).get("externalParameters", {})
    versions = provenance.measured_of(made).to_dict() if "runDetails" in made else {}
    return {
        "digest": one.digest,
        "variant": parameters.get("variant") or one.labels.get(f"{LABEL}variant"),
        "created": one.config.get("created"),
        "source": parameters.get("source"),
        "revision": parameters.get("revision"),
        "lock": one.lock,
        "versions": versions,
        "labels": {
            name.removeprefix(f"{LABEL}version."): value
            for name, value in sorted(one.labels.items())
            if name.startswith(f"{LABEL}version.")
        },
        "entrypoint": list(one.settings.entrypoint),
        "layers": len(one.manifest["layers"]),
        "size": one.size,
        "materials": len(made.get("buildDefinition", {}).get("resolvedDependencies", ())),
        "seal": [_result(statement) for statement in one.of(seal.TEST_RESULT)],
        "sbom": sbom.summary(_predicate(one, sbom.PREDICATE)),
        "attached": sorted({statement.kind for statement in one.statements}),
    }


def _predicate(one: Reading, kind: str) -> Mapping[str, Any]:
    """The predicate of a kind, the one that is believed before others."""
    found = sorted(one.of(kind), key=lambda statement: not statement.verified)
    return found[0].predicate if found else {}


def _result(statement: Statement) -> dict[str, Any]:
    said = statement.predicate
    return {
        "believed": statement.verified,
        "result": said.get("result"),
        "tiers": said.get("tiers") or [],
        "passed": len(said.get("passedTests") or ()),
        "failed": said.get("failedTests") or [],
        "not run": said.get("notRun") or {},
        "where": said.get("host"),
        "when": said.get("finished"),
    }


def _signature(whole: RemoteImage) -> dict[str, Any]:
    mine = [one for one in whole.signatures or () if one.digest == whole.digest]
    if whole.signatures is None:
        state = "unsigned"
    else:
        state = "signed" if mine else "signed by a key that is not trusted here"
    return {
        "state": state,
        "tags": sorted({tag for one in mine for tag in one.tags}),
    }
