"""What an image was made from, and the SBOM's part that is ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import lockfile, origin, planning
from sparkimage.config.plan import Plan
from sparkimage.core.errors import VerifyError
from sparkimage.core.process import Local
from sparkimage.image.layerindex import image_files
from sparkimage.image.store import Store
from sparkimage.registry import provenance, sbom
from sparkimage.registry.tags import Measured
from sparkimage.verify import seal
from sparkimage.verify.seal import Result
from tests.unit import good_maker, seal_maker
from tests.unit import project_maker as maker


def plan_of(tmp_path: Path) -> Plan:
    """Of a variant on an image, with debs and wheels."""
    data = maker.document(
        {
            "base": {"13.0.0": maker.CUDA},
            "nccl": {"2.30.0": maker.NCCL},
            "app": {"1.0.0": maker.APP},
        },
        {
            "bottom": {"base": "base"},
            "overlay": {"debs": "nccl"},
            "wheels": {"wheels": {"pin": "app"}},
        },
        [
            maker.include(
                "v", "bottom", "overlay", "wheels", base="13.0.0", nccl="2.30.0", app="1.0.0"
            )
        ],
    )
    read = maker.write(tmp_path, data)
    (tmp_path / "matrix.lock").write_text(lockfile.dump(maker.locked(read)))
    held = lockfile.load(tmp_path / "matrix.lock")
    return planning.make(read, read.variants[0], held, origin.of(tmp_path, None, Local()))


def test_materials_are_the_entries_of_the_lock(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    found = list(provenance.materials(plan))
    digests = {one["digest"]["sha256"] for one in found}
    wheels = {wheel.sha256 for layer in plan.layers for wheel in layer.wheels}
    debs = {deb.sha256 for la in plan.layers if la.debs is not None for deb in la.debs.debs}
    images = {one.digest[7:] for layer in plan.layers for one in layer.images}
    assert wheels
    assert debs
    assert images
    assert digests == wheels | debs | images
    assert {one["uri"].partition("/")[0] for one in found} == {"pkg:oci", "pkg:deb", "pkg:pypi"}


def test_provenance_is_the_same_each_time_and_says_what_was_measured(tmp_path: Path) -> None:
    image = good_maker.make(Store.open(tmp_path / "store"))
    plan, measured = plan_of(tmp_path), Measured(project="vllm", version="1.0", nccl="2.30.4")
    statement = Result(statement=seal_maker.made(digest=image.digest))
    verdict = seal.combine([statement])
    assert verdict is not None
    made = provenance.predicate(plan, image, measured, verdict)
    assert made == provenance.predicate(plan, image, measured, verdict)
    assert provenance.measured_of(made) == measured
    internal = made["buildDefinition"]["internalParameters"]
    assert internal["lock"] == {"sha256": plan.lock_checksum}


def said(namespace: str, *, turned: bool = False) -> dict[str, Any]:
    """As syft writes it: with a clock, a random namespace and no order to rely on."""
    packages = [
        {"SPDXID": "SPDXRef-Package-b", "name": "b", "externalRefs": [{"b": 1}, {"a": 1}]},
        {"SPDXID": "SPDXRef-Package-a", "name": "a"},
        {"SPDXID": "SPDXRef-Root-x", "name": "image", "primaryPackagePurpose": "CONTAINER"},
    ]
    relations = [
        {"spdxElementId": "SPDXRef-Root-x", "relationshipType": "CONTAINS",
         "relatedSpdxElement": "SPDXRef-Package-a"},
        {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES",
         "relatedSpdxElement": "SPDXRef-Root-x"},
        {"spdxElementId": "SPDXRef-Package-a", "relationshipType": "OTHER",
         "relatedSpdxElement": "SPDXRef-File-x"},
    ]  # fmt: skip
    return {
        "SPDXID": "SPDXRef-DOCUMENT", "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0",
        "documentNamespace": namespace, "name": "x",
        "creationInfo": {"created": namespace, "creators": ["Tool: syft"]},
        "packages": packages[::-1] if turned else packages,
        "relationships": relations[::-1] if turned else relations,
        "files": [{"SPDXID": "SPDXRef-File-x"}],
    }  # fmt: skip


def test_syft_is_made_to_say_the_same(tmp_path: Path) -> None:
    image = good_maker.make(Store.open(tmp_path))
    one = sbom.normalize(said("1"), image)
    assert one == sbom.normalize(said("2", turned=True), image)
    assert image.digest in one["documentNamespace"]
    assert len(one["relationships"]) == 2
    assert "files" not in one


def test_what_no_package_database_knows_is_in_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    image = good_maker.make(store)
    files = image_files(store, image)
    path = f"{good_maker.DIST}/vllm/__init__.py"
    sha256 = files.final[path].seen["sha256"]
    plan = good_maker.plan()
    layers = (
        *plan.layers[:-1],
        replace(plan.layers[-1], patches=(good_maker.patch(path, sha256),)),
    )
    plan = replace(plan, layers=layers)
    more = [*sbom.nccl(plan, files), *sbom.patched(plan, files)]
    nccl, patch = more
    assert nccl["versionInfo"] == "2.30.4"
    assert "pkg:pypi/nvidia-nccl-cu13@2.30.4" in nccl["sourceInfo"]
    assert patch["packageFileName"] == f"/{path}"
    assert patch["checksums"] == [{"algorithm": "SHA256", "checksumValue": sha256}]
    whole = sbom.with_packages(sbom.normalize(said("1"), image), more)
    assert sbom.summary(whole)["files"][0]["path"] == f"/{good_maker.SYSTEM}"
    ids = [one["SPDXID"] for one in whole["packages"]]
    assert len(ids) == len(set(ids))


def test_a_patched_file_that_is_another_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    files = image_files(store, good_maker.make(store))
    plan = good_maker.plan()
    patch = good_maker.patch(f"{good_maker.DIST}/vllm/__init__.py", "9" * 64)
    plan = replace(plan, layers=(replace(plan.layers[0], patches=(patch,)),))
    with pytest.raises(VerifyError, match="differs from what patch p makes of it"):
        list(sbom.patched(plan, files))
