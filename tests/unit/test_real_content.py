"""The static tier over real content: no false alarm, and what is wrong in it is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparkimage.config.plan import Plan
from sparkimage.core.arch import ARCHES
from sparkimage.image.store import Store
from sparkimage.verify import static
from sparkimage.verify.seal import Check
from tests.real import images
from tests.real.images import OURS, PINNED, SITE, Layer, file
from tests.real.inventory import Row

ARM, AMD = "arm64", "amd64"
NCCL = f"/usr/lib/aarch64-linux-gnu/libnccl.so.{PINNED}"
VLLM = file("usr/local/bin/vllm", {"text": "#!/usr/bin/python3\n"}, 0o755)


def base(arch: str) -> Layer:
    """NVIDIA's CUDA image, with what else a ready image has to have."""
    return Layer(rows=[*images.cuda(arch), VLLM])


def examined(
    folder: Path, arch: str, layers: Sequence[Layer], plan: Plan | None = None
) -> dict[str, Check]:
    store = Store.open(folder)
    plan = plan or images.plan(arch)
    preload = f"/usr/lib/{ARCHES[arch].triplet}/libnccl.so.{PINNED}"
    pinned = {"LD_PRELOAD": preload} if plan.expect.nccl else {}
    image = images.put(store, arch, layers, plan, **pinned)
    return {one.id: one for one in static.examine(plan, image, store, None)}


def failed(found: dict[str, Check]) -> list[str]:
    return [name.removeprefix("static/") for name, one in found.items() if not one.passed]


def with_sudo(arch: str) -> list[Layer]:
    """The base, and a layer of vLLM's Dockerfile with sudo and polkit."""
    packages = images.status(images.cuda(arch), sudo="1.9.15", polkitd="124", dbus="1.14")
    return [base(arch), Layer(rows=[*images.sudo(arch), packages])]


@pytest.mark.parametrize("arch", [AMD, ARM])
def test_nvidias_image_as_it_is(tmp_path: Path, arch: str) -> None:
    found = examined(tmp_path, arch, [base(arch)], images.plan(arch, pinned=False))
    assert failed(found) == []
    # Reported: tools for other processors, a setgid program, the held NCCL.
    assert any("cuda-sanitizer-13-0" in one for one in found["static/architecture"].seen)
    utempter = f"usr/lib/{ARCHES[arch].triplet}/utempter/utempter 2755"
    assert found["static/setuid"].seen == [f"{utempter} (of the base's package libutempter0)"]
    (nccl,) = found["static/nccl-builds"].seen
    assert (nccl["version"], len(nccl["build_id"]), len(nccl["sha256"])) == ("2.28.3", 40, 64)
    assert nccl["build_id"] in found["static/nccl-builds"].title


@pytest.mark.parametrize("arch", [AMD, ARM])
def test_the_overlay_on_it(tmp_path: Path, arch: str) -> None:
    found = examined(tmp_path, arch, [*with_sudo(arch), *images.overlay(arch)])
    assert failed(found) == []
    assert "usr/bin/sudo 4755 (of the base's package sudo)" in found["static/setuid"].seen
    versions = [(one["version"], one["visible"]) for one in found["static/nccl-every-layer"].seen]
    assert versions == [("2.28.3", False), (PINNED, True)]


def test_a_ready_image_that_has_the_pinned_nccl_already(tmp_path: Path) -> None:
    """As hazyumps' one: another ENTRYPOINT, which a layer without a step sets anew."""
    rows = [*images.without_nccl(images.cuda(ARM)), VLLM]
    rows += images.overlay(ARM)[0].rows[:3]
    plan = dataclasses.replace(images.plan(ARM, pinned=False), entrypoint=(), cmd=("bash",))
    rows.append(file("usr/bin/bash", images.elf(ARM), 0o755))
    assert failed(examined(tmp_path / "ready", ARM, [Layer(rows=rows)], plan)) == []
    served = [Layer(rows=rows), images.overlay(ARM)[1]]
    assert failed(examined(tmp_path / "served", ARM, served)) == []


@pytest.mark.parametrize(
    ("check", "rows"),
    [
        ("setuid", [file("usr/bin/sudo", {**images.elf(ARM), "package": "sudo"}, 0o4755)]),
        ("architecture", [file("opt/x86", images.elf(AMD))]),
        ("needed", [file("opt/lib.so", images.elf(ARM, needed=["libnone.so.1"]))]),
        # What a program of the base needs.
        ("needed", [file("usr/lib/aarch64-linux-gnu/.wh.libcurl.so.4.8.0", {})]),
        ("nccl-builds", [images.nccl(ARM, build_id="0f" * 20, folder="opt")]),
        ("apt-lists", [file("var/lib/apt/lists/x_Packages", {})]),
    ],
)
def test_a_layer_of_ours_is_held_to_the_rules(tmp_path: Path, check: str, rows: list[Row]) -> None:
    layers = [*with_sudo(ARM), *images.overlay(ARM), Layer(rows=rows, step=OURS)]
    assert check in failed(examined(tmp_path, ARM, layers))


@pytest.mark.parametrize(
    ("check", "row"),
    [
        ("setuid", file("usr/bin/rootme", {}, 0o4755)),
        # A package that is gone, or never was.
        ("setuid", file("usr/bin/rootme", {"package": "none"}, 0o4755)),
        ("architecture", file("opt/x86", images.elf(AMD))),
        ("needed", file(f"{SITE}/x.so", images.elf(ARM, needed=["libnone.so.1"]))),
    ],
)
def test_what_no_package_of_a_base_accounts_for_is_refused(
    tmp_path: Path, check: str, row: Row
) -> None:
    layers = [base(ARM), Layer(rows=[row])]
    assert failed(examined(tmp_path, ARM, layers, images.plan(ARM, pinned=False))) == [check]


THOROUGH = pytest.mark.thorough
REAL = ("vllm0.23.0-arm64", "vllm0.33.0-arm64", "vllm0.33.0-amd64")


def wheels_of(name: str) -> list[Row]:
    """The wheels of an inventory, on which the overlay puts another NCCL."""
    return images.without_nccl(images.wheels(name))


@pytest.mark.parametrize("name", REAL)
def test_real_wheels_as_a_sources_dockerfile_installs_them(tmp_path: Path, name: str) -> None:
    arch = name.rpartition("-")[2]
    below, packages = with_sudo(arch)
    installed = Layer(rows=[*packages.rows, images.deep_ep(arch), *wheels_of(name)])
    layers = [Layer(rows=bare(below.rows)), installed, *images.overlay(arch)]
    found = examined(tmp_path, arch, layers, images.plan(arch, source=True))
    assert failed(found) == []
    assert "usr/bin/sudo 4755 (of the base's package sudo)" in found["static/setuid"].seen


@pytest.mark.parametrize("name", [REAL[1], *(pytest.param(n, marks=THOROUGH) for n in REAL[::2])])
def test_real_wheels_in_a_layer_of_ours(tmp_path: Path, name: str) -> None:
    arch = name.rpartition("-")[2]
    below = Layer(rows=[*bare(images.cuda(arch)), VLLM])
    layers = [below, Layer(rows=wheels_of(name), step=OURS), *images.overlay(arch)]
    # All of them in one layer, which the matrix has in three.
    assert failed(examined(tmp_path, arch, layers)) == ["layer-unpacked"]


def bare(rows: Sequence[Row]) -> list[Row]:
    """NVIDIA's base image: the development image without what only that has."""
    return [
        row
        for row in rows
        if not row[0].startswith(("opt/", "usr/local/cuda"))
        or row[1] != "0"
        or "/libcudart" in row[0]
        or "/compat/" in row[0]
    ]


def test_what_wheels_have_for_another_cuda_is_unused_by_its_name_only(tmp_path: Path) -> None:
    needs = images.elf(ARM, needed=["libcudart.so.12"])
    rows = [
        file(f"{SITE}/torch/version.py", {"cuda": "13.0"}),
        file(f"{SITE}/bitsandbytes/libbitsandbytes_cuda128.so", needs),
        file(f"{SITE}/nixl_cu12.libs/x.so", needs),
    ]
    layers = [base(ARM), Layer(rows=rows)]
    plan = images.plan(ARM, pinned=False)
    assert failed(examined(tmp_path / "marked", ARM, layers, plan)) == []
    main = Layer(rows=[*rows, file(f"{SITE}/vllm/_C.abi3.so", needs)])
    found = examined(tmp_path / "main", ARM, [base(ARM), main], plan)
    assert failed(found) == ["needed"]
    assert found["static/needed"].seen[0] == f"{SITE}/vllm/_C.abi3.so needs libcudart.so.12"


def test_torchs_place_of_nccl_is_beside_torch(tmp_path: Path) -> None:
    """In a venv, too."""
    venv = "opt/venv/lib/python3.12/site-packages"
    torch = file(f"{venv}/torch/version.py", {"cuda": "13.0"})
    system, pip = images.overlay(ARM)
    beside = Layer(rows=[images.link(f"{venv}/nvidia/nccl/lib/libnccl.so.2", NCCL)], step=OURS)
    layers = [base(ARM), Layer(rows=[torch]), system]
    assert failed(examined(tmp_path / "beside", ARM, [*layers, beside])) == []
    assert failed(examined(tmp_path / "elsewhere", ARM, [*layers, pip])) == ["nccl-places"]


def test_code_for_gpus_is_no_foreign_program(tmp_path: Path) -> None:
    rows = [
        file(f"{SITE}/flashinfer_cubin/cubins/{number}.cubin", {"elf": {"machine": 190, "type": 2}})
        for number in range(3)
    ]
    rows.append(file(f"{SITE}/x.hsaco", {"elf": {"machine": 224, "type": 3}}))
    found = examined(tmp_path, ARM, [base(ARM), Layer(rows=rows)], images.plan(ARM, pinned=False))
    assert failed(found) == []
    assert "(4) for GPUs" in found["static/architecture"].title
