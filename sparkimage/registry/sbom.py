"""The SBOM of an image: what syft finds, and the files that no package database lists.

SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3/), the same bytes for the same image: syft's random
namespace and its timestamps are replaced, and its lists are sorted. Offline: syft reads the store.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sparkimage.config.patch_specs import MISSING
from sparkimage.config.plan import Plan
from sparkimage.core.errors import VerifyError
from sparkimage.core.process import Runner
from sparkimage.core.program import program
from sparkimage.image.layerindex import ImageFiles
from sparkimage.image.linking import Root
from sparkimage.image.store import Image, Store
from sparkimage.verify import static_nccl

PREDICATE = "https://spdx.dev/Document"
FORM = 1
"""Raise it with every change of ``normalize``: older documents are made again."""
KEPT = ("SPDXID", "spdxVersion", "dataLicense")
IMAGE = "SPDXRef-image"


def create(
    plan: Plan, image: Image, files: ImageFiles, store: Store, runner: Runner
) -> dict[str, Any]:
    """The SBOM. syft's part takes a while and is kept in the store.

    Raises ``CommandError`` of syft, ``VerifyError`` for a patched file that differs.
    """
    version = json.loads(runner.run([*_syft(), "version", "-o", "json"]).stdout)["version"]
    kind = f"sbom-{FORM}-{version}"
    document = store.get_fact(kind, image.digest)
    if document is None:
        document = normalize(scan(image, store, runner), image)
        store.put_fact(kind, image.digest, document)
    return with_packages(document, [*nccl(plan, files), *patched(plan, files)])


def scan(image: Image, store: Store, runner: Runner) -> dict[str, Any]:
    """Syft's SPDX document of an image of the store."""
    with (
        store.layout(store.descriptor(image.digest)) as folder,
        # Layers are unpacked there: on the store's disk, which is large.
        TemporaryDirectory(prefix=".sbom-", dir=store.root) as temporary,
    ):
        argv = [
            *_syft(), "scan", "--quiet", "--source-name", "image",
            "--source-version", image.digest, "--output", "spdx-json", f"oci-dir:{folder}",
        ]  # fmt: skip
        environment = {
            "SYFT_CHECK_FOR_APP_UPDATE": "false",
            "SYFT_FILE_METADATA_SELECTION": "none",
            "TMPDIR": temporary,
        }
        document: dict[str, Any] = json.loads(runner.run(argv, env=environment).stdout)
        return document


def _syft() -> list[str]:
    return [str(Path(sys.executable).with_name("syft"))]


def normalize(document: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """Syft's document without single files and without what differs between runs. Pure."""
    packages = [
        {**package, "externalRefs": sorted(package.get("externalRefs") or [], key=json.dumps)}
        for package in document["packages"]
    ]
    root = next(p for p in packages if p.get("primaryPackagePurpose") == "CONTAINER")
    ids = {package["SPDXID"]: package["SPDXID"] for package in packages} | {
        root["SPDXID"]: IMAGE,
        "SPDXRef-DOCUMENT": "SPDXRef-DOCUMENT",
    }
    root["SPDXID"] = IMAGE
    relations = {
        (ids[relation["spdxElementId"]], relation["relationshipType"], ids[related])
        for relation in document["relationships"]
        if relation["spdxElementId"] in ids and (related := relation["relatedSpdxElement"]) in ids
    }
    licences = document.get("hasExtractedLicensingInfos") or []
    normal = {
        **{key: document[key] for key in KEPT},
        "name": image.digest,
        "documentNamespace": f"urn:dev.sparkimage:sbom:{image.digest}",
        "creationInfo": {
            "created": str(image.config.get("created") or "1970-01-01T00:00:00Z"),
            "creators": sorted(document["creationInfo"]["creators"]),
        },
        "packages": sorted(packages, key=lambda package: str(package["SPDXID"])),
        "relationships": [_relation(*relation) for relation in sorted(relations)],
    }
    if licences:
        key = "hasExtractedLicensingInfos"
        normal[key] = sorted(licences, key=lambda licence: str(licence["licenseId"]))
    return normal


def _relation(element: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": element, "relationshipType": kind, "relatedSpdxElement": related}


def with_packages(document: Mapping[str, Any], more: list[dict[str, Any]]) -> dict[str, Any]:
    """The document with more packages of the image. Pure."""
    relations = [_relation(IMAGE, "CONTAINS", str(package["SPDXID"])) for package in more]
    return {
        **document,
        "packages": [*document["packages"], *more],
        "relationships": [*document["relationships"], *relations],
    }


def nccl(plan: Plan, files: ImageFiles) -> Iterator[dict[str, Any]]:
    """Every libnccl visible in a container, with its package of the lock."""
    origin = _nccl_origin(plan)
    for path, entry in sorted(files.final.items()):
        if static_nccl.is_copy(entry) and entry.is_file:
            yield _file(
                "nccl", path, str(entry.seen.get("nccl") or "unknown"),
                str(entry.seen.get("sha256")), origin,
            )  # fmt: skip


def _nccl_origin(plan: Plan) -> str:
    for layer in plan.layers:
        for wheel in layer.wheels:
            if wheel.name.startswith("nvidia-nccl"):
                return f"pkg:pypi/{wheel.name}@{quote(wheel.version)} (sha256 {wheel.sha256})"
        for deb in layer.debs.debs if layer.debs is not None else ():
            if deb.name == "libnccl2":
                return f"pkg:deb/{deb.name}@{quote(deb.version)} (sha256 {deb.sha256})"
    return "the base image, or the Dockerfile of a source"


def patched(plan: Plan, files: ImageFiles) -> Iterator[dict[str, Any]]:
    """Every patched file. Raises ``VerifyError`` for one that differs in the image."""
    root = Root(files.final)
    for path, (series, target) in plan.patched_files.items():
        entry = root.file(path)
        if series.root is None and entry is None:
            continue
        names = ", ".join(patch.name for patch in series.patches)
        sha256 = entry.seen.get("sha256") if entry is not None else MISSING
        if sha256 != target.after:
            raise VerifyError(
                f"{path} of the image differs from what patch {names} makes of it",
                hint=f"build it again: {program()} image " + plan.variant,
            )
        if target.after != MISSING:
            origins = [f"{patch.uri} (sha256 {patch.sha256})" for patch in series.patches]
            last = series.patches[-1]
            yield _file(
                f"patch-{last.name}", path, (last.commit or last.sha256)[:12],
                target.after, ", then ".join(origins),
            )  # fmt: skip


def _file(kind: str, path: str, version: str, sha256: str, origin: str) -> dict[str, Any]:
    return {
        "SPDXID": "SPDXRef-" + quote(f"{kind}-{path}", safe="").replace("%", ".").replace("_", "."),
        "name": path.rpartition("/")[2],
        "versionInfo": version,
        "packageFileName": f"/{path}",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "FILE",
        "sourceInfo": f"from {origin}",
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The number of packages of each type, and the single files."""
    types: Counter[str] = Counter()
    files = []
    for package in document.get("packages") or ():
        if package.get("primaryPackagePurpose") == "FILE":
            checksums = package.get("checksums") or [{}]
            files.append({
                "path": str(package.get("packageFileName")), "version": package.get("versionInfo"),
                "sha256": checksums[0].get("checksumValue"), "origin": package.get("sourceInfo"),
            })  # fmt: skip
        for ref in package.get("externalRefs") or ():
            if ref.get("referenceType") == "purl":
                types[str(ref["referenceLocator"]).partition(":")[2].partition("/")[0]] += 1
    return {"packages": dict(sorted(types.items())), "files": files}
