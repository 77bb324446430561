"""What a layer installs is its own, and not older than what lies below, unless the matrix allows
it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.config import planning
from sparkimage.config.lock_items import Deb, Wheel
from sparkimage.config.plan import Debs, LayerPlan, Plan
from sparkimage.core import debian_version
from sparkimage.core.errors import LockError
from sparkimage.core.process import Local
from sparkimage.image.store import Store
from sparkimage.verify import static
from sparkimage.verify.seal import Check
from tests.unit import elf_maker, good_maker
from tests.unit import project_maker as maker
from tests.unit.good_maker import DIST, Files


def order(tmp_path: Path, below: Files, *, downgrade: bool = False) -> Check:
    """The check's result for a good image on top of ``below``."""
    store = Store.open(tmp_path)
    layers = [good_maker.put_layer(store, files) for files in (below, *good_maker.stack())]
    image = good_maker.put_image(
        store, good_maker.config([one for _, one in layers]), [one for one, _ in layers]
    )
    plan = good_maker.plan()
    deb = Deb(name="libc6", version="2.41", part="more", size=1, sha256="0" * 64, file="c.deb")
    debs = Debs(
        pin="nccl", value="1", arch="arm64", debs=(deb,), names=(), suite=None, repository=None
    )
    nccl = dataclasses.replace(plan.layers[2], debs=debs, downgrade=downgrade)
    plan = dataclasses.replace(plan, layers=(*plan.layers[:2], nccl, plan.layers[3]))
    found = {one.id: one for one in static.examine(plan, image, store, None)}
    return found["static/overlay-order"]


METADATA = f"{DIST}/nvidia_nccl_cu13-1.dist-info/METADATA"


@pytest.mark.parametrize(
    ("below", "faults"),
    [
        ({}, []),
        ({"var/lib/dpkg/status": good_maker.package("libc6", "2.41")}, []),
        ({"var/lib/dpkg/status": good_maker.package("libc6", "2.41~rc1")}, []),
        ({"var/lib/dpkg/status": good_maker.package("other", "9")}, []),
        (
            {"var/lib/dpkg/status": good_maker.package("libc6", "2.41-1")},
            ["libc6 2.41: layer 0 has 2.41-1"],
        ),
        ({METADATA: b"Name: nvidia-nccl-cu13\nVersion: 2.28.9\n"}, []),
        (
            {METADATA: b"Name: nvidia-nccl-cu13\nVersion: 2.31.2\n"},
            ["nvidia-nccl-cu13 2.30.4: layer 0 has 2.31.2"],
        ),
        ({"opt/libnccl.so.2": elf_maker.nccl("arm64", "2.30.4")}, []),
        (
            {"opt/libnccl.so.2": elf_maker.nccl("arm64", "2.31.2")},
            ["NCCL 2.30.4: opt/libnccl.so.2 (layer 0) is 2.31.2"],
        ),
    ],
)
def test_an_older_overlay_is_refused(tmp_path: Path, below: Files, faults: list[str]) -> None:
    check = order(tmp_path, below)
    assert check.seen == faults
    assert (check.result == "PASSED") is (not faults)
    assert order(tmp_path, below, downgrade=True).result == "PASSED"


def mixed(tmp_path: Path, *layers: list[str]) -> Check:
    """The check's result for the good image below layers which have these wheels, where the plan
    has `cuda` with a and b, and `torch` with c, in a venv."""
    store = Store.open(tmp_path)
    site = "opt/venv/lib/python3.13/site-packages"
    tops = [
        {f"{site}/{name}-1.dist-info/METADATA": f"Name: {name}\nVersion: 1\n".encode()
         for name in names}
        for names in layers
    ]  # fmt: skip
    made = [good_maker.put_layer(store, files) for files in (*good_maker.stack(), *tops)]
    config = good_maker.config([diff_id for _, diff_id in made])
    config["history"] += config["history"][:1] * len(tops)
    image = good_maker.put_image(store, config, [layer for layer, _ in made])
    plan = good_maker.plan()
    planned = tuple(
        LayerPlan(name=name, dockerfile="", args={}, into="/opt/venv", wheels=tuple(
            Wheel(name=one, version="1", size=1, sha256="0" * 64, file="w.whl") for one in wheels
        ))
        for name, wheels in (("cuda", "ab"), ("torch", "c"))
    )  # fmt: skip
    plan = dataclasses.replace(plan, layers=(*plan.layers, *planned))
    found = {one.id: one for one in static.examine(plan, image, store, None)}
    return found["static/wheel-layers"]


@pytest.mark.parametrize(
    ("layers", "faults"),
    [
        ([["a", "b"], ["c"]], []),
        # One step for each, and what nobody has planned, such as a tree that a step compiles.
        ([["a"], ["b"], ["c", "x", "y"]], []),
        ([["a", "b", "c"]], ["c of torch: image layer 4, which is cuda's"]),
        ([["a", "b", "c"], ["c"]], ["c of torch: image layer 4, which is cuda's"]),
        ([["c"], ["a", "b", "c"]], ["c of torch: image layer 5, which is cuda's"]),
    ],
)
def test_a_wheel_is_in_its_own_layer(
    tmp_path: Path, layers: list[list[str]], faults: list[str]
) -> None:
    check = mixed(tmp_path, *layers)
    assert check.seen == faults
    assert (check.result == "PASSED") is (not faults)


PART = st.text("0159az~+.", max_size=5)


@given(
    *[
        st.builds(
            lambda a, b, c: f"{a}1{b}{c}",
            st.sampled_from(["", "2:"]),
            PART,
            st.sampled_from(["", "-1", "-1~x"]),
        )
    ]
    * 2
)
def test_versions_sort_as_dpkg_sorts_them(one: str, two: str) -> None:
    argv = ["dpkg", "--compare-versions", one, "lt", two]
    lower = Local().run(argv, check=False).returncode == 0
    assert (debian_version.key(one) < debian_version.key(two)) is lower


def planned(folder: Path, *, below: str, above: str, downgrade: bool = False) -> Plan:
    """A variant whose base and upper layer both install libnccl2, in these versions."""
    pins = {
        "cuda": {"1": maker.CUDA},
        **{name: {"1": {**maker.NCCL, "version": "1.0.0"}} for name in ("low", "high")},
    }
    layers = {
        "base": {"base": "cuda"},
        "first": {"debs": "low"},
        "second": {"debs": "high", "downgrade": downgrade},
    }
    chosen = dict.fromkeys(pins, "1")
    read = maker.write(
        folder, maker.document(pins, layers, [maker.include("v", *layers, **chosen)])
    )
    held = maker.locked(read)
    entries = dict(held.entries)
    for pin, version in (("low", below), ("high", above)):
        deb = Deb(
            name="libnccl2", version=version, part="more", size=1, sha256="0" * 64, file="n.deb"
        )
        entry = entries[pin, "1"]
        entries[pin, "1"] = dataclasses.replace(
            entry, platforms=dict.fromkeys(entry.platforms, (deb,))
        )
    lock = dataclasses.replace(held, entries=entries)
    return planning.make(read, read.variants[0], lock, maker.ORIGIN)


def test_an_older_package_is_told_from_the_lock(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="variant v would install older packages") as refusal:
        planned(tmp_path, below="2.30.7-1", above="2.30.4-1")
    assert refusal.value.detail == (
        "layer second: libnccl2 2.30.4-1, where layer first has 2.30.7-1"
    )
    assert "downgrade: true" in refusal.value.hint
    assert planned(tmp_path, below="2.30.7-1", above="2.30.4-1", downgrade=True).layers
    assert planned(tmp_path, below="2.30.4-1", above="2.30.7-1").layers
    assert planned(tmp_path, below="2.30.4-1", above="2.30.4-1").layers
