"""SLSA provenance: the locked inputs of an image, and the versions measured in it.

https://slsa.dev/spec/v1.0/provenance. Pure; the same image gives the same bytes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import sparkimage
from sparkimage.config.plan import REVISION_LABEL, SOURCE_LABEL, Plan, debs
from sparkimage.image.store import Image
from sparkimage.registry.tags import Measured
from sparkimage.verify.seal import Verdict

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:dev.sparkimage:build:1"
BUILDER = "urn:dev.sparkimage:builder:1"
MEASURED = "measured"


def predicate(plan: Plan, image: Image, measured: Measured, verdict: Verdict) -> dict[str, Any]:
    """The provenance of ``image``."""
    labels = image.settings.labels
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "variant": plan.variant,
                "image": plan.image,
                "platform": plan.platform,
                "source": labels.get(SOURCE_LABEL, ""),
                "revision": labels.get(REVISION_LABEL, ""),
            },
            "internalParameters": {
                "lock": {"sha256": plan.lock_checksum},
                "plan": {"sha256": verdict.newest.checksum("plan")},
            },
            "resolvedDependencies": materials(plan),
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"sparkimage": sparkimage.__version__}},
            "metadata": {"finishedOn": image.config.get("created") or verdict.newest.finished},
            "byproducts": [{"name": MEASURED, "annotations": measured.to_dict()}],
        },
    }


def materials(plan: Plan) -> list[dict[str, Any]]:
    """The locked inputs of this image, each once, in the order of the layers."""
    unique: dict[tuple[str, ...], dict[str, Any]] = {}
    for material in _materials(plan):
        unique.setdefault((material["uri"], *material["digest"].values()), material)
    return list(unique.values())


def _materials(plan: Plan) -> Iterator[dict[str, Any]]:
    for layer in plan.layers:
        for image in layer.images:
            yield {
                "uri": f"pkg:oci/{posixpath.basename(image.name)}@{quote(image.digest)}"
                f"?repository_url={quote(image.name)}",
                "digest": {"sha256": image.digest.removeprefix("sha256:")},
            }
        for deb in debs(layer):
            yield {
                "uri": f"pkg:deb/debian/{quote(deb.name)}@{quote(deb.version)}?arch={plan.arch}",
                "digest": {"sha256": deb.sha256},
                "name": deb.file,
            }
        for wheel in layer.wheels:
            yield {
                "uri": f"pkg:pypi/{quote(wheel.name)}@{quote(wheel.version)}",
                "digest": {"sha256": wheel.sha256},
                "name": wheel.file,
            }
        for tree in layer.trees:
            yield {
                "uri": f"git+{tree.repository}@{tree.commit}",
                "digest": {"gitCommit": tree.commit, "gitTree": tree.tree},
            }
        for file in layer.files:
            yield {"uri": file.url, "digest": {"sha256": file.sha256}, "name": file.name}
        for patch in (patch for series in layer.patches for patch in series.patches):
            yield {"uri": patch.uri, "digest": {"sha256": patch.sha256}, "name": patch.name}


def measured_of(predicate: Mapping[str, Any]) -> Measured:
    """The versions that a provenance records. Raises ``KeyError``, ``TypeError``,
    ``AttributeError``, ``ValueError`` for none."""
    for byproduct in predicate["runDetails"]["byproducts"]:
        if byproduct["name"] == MEASURED:
            return Measured.from_dict(byproduct["annotations"])
    return Measured()
