"""What an image of the store is, in the words of ``inspect``, and the parts that a published one
has, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparkimage.config.plan import REVISION_LABEL, SOURCE_LABEL
from sparkimage.config.tier import Tier
from sparkimage.image.store import Image
from sparkimage.verify.plan_record import PlanRecord
from sparkimage.verify.seal import NCCL_BUILDS, Verdict


def stored(image: Image, record: PlanRecord, verdict: Verdict | None) -> dict[str, Any]:
    """An image of the store, in the words of a published one."""
    plan, results = record.plan, verdict.results if verdict is not None else ()
    return {
        "names": list(image.names),
        "digest": image.digest,
        "platform": plan.platform,
        "variant": plan.variant,
        "created": image.config.get("created"),
        "source": plan.labels.get(SOURCE_LABEL),
        "revision": plan.labels.get(REVISION_LABEL),
        "lock": plan.lock_checksum,
        "versions": dict(plan.versions),
        "nccl": nccl([one.predicate for one in results]),
        "entrypoint": list(image.settings.entrypoint),
        "layers": len(image.layers),
        "size": image.size,
        "seal": [result(one.predicate, verified=True) for one in results],
    }


def nccl(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Path, version, Build ID and sha256 of every libnccl that was measured."""
    return next(
        (
            check["seen"]
            for predicate in results
            for check in predicate.get("evidence", ())
            if check["id"] == f"{Tier.STATIC}/{NCCL_BUILDS}"
        ),
        [],
    )


def result(predicate: Mapping[str, Any], *, verified: bool) -> dict[str, Any]:
    """What a test result says; ``verified``: whether its signature is trusted."""
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
