"""The SBOM of an image: what syft finds, and what no package database knows.

SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3/), the same bytes for the same image: syft's random
namespace and its clock are replaced, and its lists are sorted. Offline: syft reads the store.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sparkimage.config.patch_specs import in_image
from sparkimage.config.plan import Plan
from sparkimage.core.errors import VerifyError
from sparkimage.core.process import Runner
from sparkimage.image.layerindex import ImageFiles
from sparkimage.image.store import Image, Store
from sparkimage.verify import static_nccl

PREDICATE = "https://spdx.dev/Document"
FORM = 1
"""Counts up with every change of what is made of syft's words."""
KEPT = ("SPDXID", "spdxVersion", "dataLicense")
IMAGE = "SPDXRef-image"


def make(
    plan: Plan, image: Image, files: ImageFiles, store: Store, runner: Runner
) -> dict[str, Any]:
    """The SBOM; syft's part of it is kept in the store, since it takes a while."""
    kind = f"sbom-{FORM}-{version(runner)}"
    found = store.get_fact(kind, image.digest)
    if found is None:
        found = normal(scan(image, store, runner), image)
        store.put_fact(kind, image.digest, found)
    return with_more(found, [*nccl(plan, files), *patched(plan, files)])


def version(runner: Runner) -> str:
    """The version of the syft in use."""
    return str(json.loads(runner.run([*_syft(), "version", "-o", "json"]).stdout)["version"])


def scan(image: Image, store: Store, runner: Runner) -> dict[str, Any]:
    """What syft says of the image in the store."""
    with TemporaryDirectory(prefix=".sbom-", dir=store.root) as name:
        folder = Path(name)
        (folder / "blobs").symlink_to(store.root.absolute() / "blobs")
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = store.descriptor(image.digest).to_dict()
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (folder / "tmp").mkdir()
        argv = [
            *_syft(), "scan", "--quiet", "--source-name", "image",
            "--source-version", image.digest, "--output", "spdx-json", f"oci-dir:{folder}",
        ]  # fmt: skip
        environment = {
            "SYFT_CHECK_FOR_APP_UPDATE": "false",
            "SYFT_FILE_METADATA_SELECTION": "none",
            # Layers are unpacked there: on the store's disk, which is large.
            "TMPDIR": str(folder / "tmp"),
        }
        said: dict[str, Any] = json.loads(runner.run(argv, env=environment).stdout)
        return said


def _syft() -> list[str]:
    return [str(Path(sys.executable).with_name("syft"))]


def normal(said: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """Syft's document without what differs from one run to the next, and without the single
    files: their packages are what is asked about. Pure."""
    packages = [_package(one) for one in said["packages"]]
    root = next(one for one in packages if one.get("primaryPackagePurpose") == "CONTAINER")
    names = {one["SPDXID"]: one["SPDXID"] for one in packages} | {
        root["SPDXID"]: IMAGE,
        "SPDXRef-DOCUMENT": "SPDXRef-DOCUMENT",
    }
    root["SPDXID"] = IMAGE
    relations = {
        (names[one["spdxElementId"]], one["relationshipType"], names[one["relatedSpdxElement"]])
        for one in said["relationships"]
        if one["spdxElementId"] in names and one["relatedSpdxElement"] in names
    }
    licences = said.get("hasExtractedLicensingInfos") or []
    return {
        **{key: said[key] for key in KEPT},
        "name": image.digest,
        "documentNamespace": f"urn:dev.sparkimage:sbom:{image.digest}",
        "creationInfo": {
            "created": str(image.config.get("created") or "1970-01-01T00:00:00Z"),
            "creators": sorted(said["creationInfo"]["creators"]),
        },
        "packages": sorted(packages, key=lambda one: str(one["SPDXID"])),
        "relationships": [_relation(*one) for one in sorted(relations)],
        **(
            {"hasExtractedLicensingInfos": sorted(licences, key=lambda one: str(one["licenseId"]))}
            if licences
            else {}
        ),
    }


def _package(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, "externalRefs": sorted(one.get("externalRefs") or [], key=json.dumps)}


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def with_more(document: Mapping[str, Any], more: list[dict[str, Any]]) -> dict[str, Any]:
    """The document with these packages in the image, too. Pure."""
    relations = [_relation(IMAGE, "CONTAINS", str(one["SPDXID"])) for one in more]
    return {
        **document,
        "packages": [*document["packages"], *more],
        "relationships": [*document["relationships"], *relations],
    }


def nccl(plan: Plan, files: ImageFiles) -> Iterator[dict[str, Any]]:
    """Every libnccl that a container sees, with the package of the lock that it came in."""
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
    return "an image below, or a source's own Dockerfile"


def patched(plan: Plan, files: ImageFiles) -> Iterator[dict[str, Any]]:
    """Every file that a patch made. Raises ``VerifyError`` for one that is not in the image."""
    for layer in plan.layers:
        for patch in layer.patches:
            for target in patch.targets:
                path = in_image(patch.root, target.path).lstrip("/")
                entry = files.final.get(path)
                if entry is None or entry.seen.get("sha256") != target.after:
                    raise VerifyError(
                        f"the image's {path} is not what patch {patch.name} makes of it",
                        hint="build it again: python build.py image " + plan.variant,
                    )
                where = (
                    f"git+{patch.repository}@{patch.commit}#{patch.path}"
                    if patch.repository
                    else f"patches/{patch.path}"
                )
                yield _file(
                    f"patch-{patch.name}", path, (patch.commit or patch.sha256)[:12],
                    target.after, f"{where} (sha256 {patch.sha256})",
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
        "sourceInfo": f"came from {origin}",
        "checksums": [{"algorithm": "SHA256", "checksumValue": sha256}],
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }


def summary(said: Mapping[str, Any]) -> dict[str, Any]:
    """How many packages of which kind, and the files beside them."""
    kinds: dict[str, int] = {}
    files = []
    for one in said.get("packages") or ():
        if one.get("primaryPackagePurpose") == "FILE":
            place, checks = str(one.get("packageFileName")), one.get("checksums") or [{}]
            files.append({
                "path": place, "version": one.get("versionInfo"),
                "sha256": checks[0].get("checksumValue"), "origin": one.get("sourceInfo"),
            })  # fmt: skip
        for ref in one.get("externalRefs") or ():
            if ref.get("referenceType") == "purl":
                kind = str(ref["referenceLocator"]).partition(":")[2].partition("/")[0]
                kinds[kind] = kinds.get(kind, 0) + 1
    return {"packages": dict(sorted(kinds.items())), "files": files}
