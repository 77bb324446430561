"""SLSA provenance: what an image was made from, by the lock, and what was measured in it.

https://slsa.dev/spec/v1.0/provenance. Pure; the same image gives the same bytes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import sparkimage
from sparkimage.config.plan import Plan, debs
from sparkimage.image.store import Image
from sparkimage.registry.tags import Measured
from sparkimage.verify.seal import STATEMENT, Verdict

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:dev.sparkimage:build:1"
BUILDER = "urn:dev.sparkimage:builder:1"
MEASURED = "measured"


def statement(kind: str, name: str, digest: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """An in-toto statement about the image ``digest``."""
    algorithm, _, value = digest.partition(":")
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {algorithm: value}}],
        "predicateType": kind,
        "predicate": predicate,
    }


def predicate(plan: Plan, image: Image, measured: Measured, verdict: Verdict) -> dict[str, Any]:
    """The provenance of ``image``."""
    said = verdict.statement["predicate"]
    labels = image.settings.labels
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "variant": plan.variant,
                "image": plan.image,
                "platform": plan.platform,
                "source": labels.get("org.opencontainers.image.source", ""),
                "revision": labels.get("org.opencontainers.image.revision", ""),
            },
            "internalParameters": {
                "lock": {"sha256": plan.lock_checksum},
                "plan": {"sha256": verdict.statements[-1].plan},
            },
            "resolvedDependencies": list(materials(plan)),
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"sparkimage": sparkimage.__version__}},
            "metadata": {"finishedOn": image.config.get("created") or said["finished"]},
            "byproducts": [{"name": MEASURED, "annotations": measured.to_dict()}],
        },
    }


def materials(plan: Plan) -> Iterator[dict[str, Any]]:
    """What the lock holds of this image, once each, in the order of the layers."""
    seen = set()
    for one in _materials(plan):
        key = (one["uri"], tuple(sorted(one["digest"].items())))
        if key not in seen:
            seen.add(key)
            yield one


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
        if layer.source is not None:
            yield {
                "uri": f"git+{layer.source.repository}@{layer.source.commit}",
                "digest": {"gitCommit": layer.source.commit, "gitTree": layer.source.tree},
            }
        for patch in layer.patches:
            where = f"git+{patch.repository}@{patch.commit}" if patch.repository else "file:patches"
            yield {
                "uri": f"{where}#{patch.path}",
                "digest": {"sha256": patch.sha256},
                "name": patch.name,
            }


def measured_of(said: Mapping[str, Any]) -> Measured:
    """What a provenance says was measured."""
    for one in said["runDetails"]["byproducts"]:
        if one["name"] == MEASURED:
            return Measured.of_dict(one["annotations"])
    return Measured()
