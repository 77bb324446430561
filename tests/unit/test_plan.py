"""Plans: many at once, what decides their checksums, and what decides a build's result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.build import preflight
from sparkimage.build.builder import fingerprint
from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.lock_items import Deb, Item, Wheel
from sparkimage.config.lockfile import Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Answer, Origin, Plan
from sparkimage.core.errors import LockError

ORIGIN = Origin(source="https://example.org/x", revision="0" * 40, epoch=7)
PLATFORMS = ("linux/amd64", "linux/arm64")
PROJECT = Path(__file__).parents[2]


def wheel(name: str, version: str = "1.0", size: int = 1) -> Wheel:
    digest = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    return Wheel(name=name, version=version, file=f"{name}.whl", size=size, sha256=digest)


def write(
    folder: Path,
    apps: list[str],
    libs: list[str],
    selects: dict[str, list[str]] | None = None,
    links: str | None = None,
) -> Matrix:
    """A project with two wheels pins: ``app``, divided among layers, and ``lib``."""
    selects = {"low": ["cuda-*"], "high": []} if selects is None else selects
    layers: dict[str, Any] = {"base": {"base": "debian"}}
    for name, select in selects.items():
        layers[name] = {"wheels": {"pin": "app", "select": select}}
    layers["lib"] = {"wheels": {"pin": "lib"}}
    for name in layers:
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / name / "Dockerfile").write_text(f"FROM layer AS {name}\n")
    wheels = {"kind": "wheels", "python": "3.13", **({"find_links": links} if links else {})}
    data = {
        "version": 1,
        "repository": "r",
        "pins": {
            "debian": {"trixie": {"kind": "debian", "suite": "trixie"}},
            "app": {v: {**wheels, "require": [f"app=={v}"]} for v in apps},
            "lib": {v: {**wheels, "require": [f"lib=={v}"]} for v in libs},
        },
        "layers": layers,
        "defaults": {"name": "a{app}-l{lib}-{arch}", "layers": list(layers)},
        "axes": {"platform": list(PLATFORMS), "debian": ["trixie"], "app": apps, "lib": libs},
        "groups": {"default": ["*"]},
    }
    (folder / "matrix.yaml").write_text(json.dumps(data))
    return matrix.load(folder / "matrix.yaml")


ROOT = Deb(name="apt", version="3", part="root", size=7, sha256="1" * 64, file="apt_3_all.deb")


def locked(read: Matrix, names: tuple[str, ...] = ("app", "cuda-x", "cuda-y", "other")) -> Lock:
    entries = {}
    for (pin, value), (request, platforms) in lockfile.requests(read).items():
        items: tuple[Item, ...] = (ROOT,)
        if pin != "debian":
            items = tuple(wheel(name, value) for name in (names if pin == "app" else ("lib",)))
        entries[pin, value] = Entry(requested=request, platforms=dict.fromkeys(platforms, items))
    return Lock(file="matrix.lock", request_digest=lockfile.request_digest(read), entries=entries)


def test_a_thousand_variants(tmp_path: Path) -> None:
    read = write(tmp_path, [f"1.{i}.0" for i in range(5)], [f"2.{i}.0" for i in range(100)])
    lock = locked(read)
    (tmp_path / "matrix.lock").write_text(lockfile.dump(lock))
    lock = lockfile.load(tmp_path / "matrix.lock")
    assert lockfile.check(read, lock) == []
    plans = planning.make_all(read, read.variants, lock, ORIGIN)
    assert len(plans) == 1000
    assert len({plan.variant for plan in plans}) == 1000
    assert len({plan.checksum() for plan in plans}) == 1000
    for variant, plan in zip(read.variants, plans, strict=True):
        assert plan.variant == variant.name
        assert plan.versions == {"app": variant.pins["app"], "lib": variant.pins["lib"]}
        for layer in plan.layers:
            assert {w.version for w in layer.wheels} <= set(plan.versions.values())
    # What many share is worked out once, and comes to the same as each by itself.
    for number in (0, 499, 999):
        assert planning.make(read, read.variants[number], lock, ORIGIN) == plans[number]


def test_the_lock_checksum_is_over_the_locked_items(tmp_path: Path) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0", "2.1.0"])
    lock = locked(read)
    for variant in read.variants:
        locked_items = {
            f"{pin}/{value}": [asdict(item) for item in lock.items(pin, value, variant.platform)]
            for pin, value in variant.pins.items()
        }
        text = json.dumps(locked_items, sort_keys=True, separators=(",", ":"))
        plan = planning.make(read, variant, lock, ORIGIN)
        assert plan.lock_checksum == hashlib.sha256(text.encode()).hexdigest()


def test_the_lock_checksum_is_of_the_variants_own_pins(tmp_path: Path) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0", "2.1.0"])
    lock = locked(read)
    moved = replace(
        lock,
        entries={
            **lock.entries,
            ("lib", "2.1.0"): replace(
                lock.entries["lib", "2.1.0"],
                platforms=dict.fromkeys(PLATFORMS, (wheel("lib", "2.1.9"),)),
            ),
        },
    )
    before = planning.make_all(read, read.variants, lock, ORIGIN)
    after = planning.make_all(read, read.variants, moved, ORIGIN)
    changed = {old.variant for old, new in zip(before, after, strict=True) if old != new}
    assert changed == {"a1.0.0-l2.1.0-amd64", "a1.0.0-l2.1.0-arm64"}


def test_labels(tmp_path: Path) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0"])
    plan = planning.make(read, read.variants[1], locked(read), ORIGIN)
    assert plan.labels == {
        "dev.sparkimage.lock": f"sha256:{plan.lock_checksum}",
        "dev.sparkimage.pin.app": "1.0.0",
        "dev.sparkimage.pin.debian": "trixie",
        "dev.sparkimage.pin.lib": "2.0.0",
        "dev.sparkimage.variant": "a1.0.0-l2.0.0-arm64",
        "dev.sparkimage.version.app": "1.0.0",
        "dev.sparkimage.version.lib": "2.0.0",
        "org.opencontainers.image.revision": "0" * 40,
        "org.opencontainers.image.source": "https://example.org/x",
        "org.opencontainers.image.title": "a1.0.0-l2.0.0-arm64",
    }
    assert (plan.arch, plan.triplet, plan.python) == ("arm64", "aarch64-linux-gnu", "3.13")
    assert plan.layers[1].args["APP_VERSION"] == "1.0.0"
    assert plan.download_bytes == 5 + ROOT.size


CHANGES: list[Callable[[Plan], Plan]] = [
    lambda p: replace(p, entrypoint=("other",)),
    lambda p: replace(p, cmd=("x",)),
    lambda p: replace(p, answer=Answer(args=(), says="x")),
    lambda p: replace(p, platform="linux/amd64"),
    lambda p: replace(p, image="r:other"),
    lambda p: replace(p, labels={**p.labels, "new": "1"}),
    lambda p: replace(p, layers=p.layers[:-1]),
    lambda p: replace(p, layers=tuple(reversed(p.layers))),
    lambda p: replace(p, layers=(replace(p.layers[0], args={"X": "1"}), *p.layers[1:])),
    lambda p: replace(p, layers=(*p.layers[:-1], replace(p.layers[-1], wheels=()))),
]


def test_every_part_is_in_the_checksum_and_the_order_of_keys_is_not(tmp_path: Path) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0"])
    plan = planning.make(read, read.variants[1], locked(read), ORIGIN)
    turned = replace(plan, labels=dict(reversed(list(plan.labels.items()))))
    assert turned.checksum() == plan.checksum()
    sums = {change(plan).checksum() for change in CHANGES}
    assert len(sums - {plan.checksum()}) == len(CHANGES)


def test_the_commit_of_a_recipe_makes_no_other_image(tmp_path: Path) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0"])
    later = Origin(source="https://example.org/fork", revision="1" * 40, epoch=9)
    one, other = (
        planning.make(read, read.variants[1], locked(read), origin) for origin in (ORIGIN, later)
    )
    assert one.labels != other.labels
    assert one.checksum() == other.checksum()


name = st.builds(str.__add__, st.sampled_from("ab"), st.text("abc-", max_size=3))
projects = st.lists(name, min_size=1, max_size=8, unique=True)
globs = st.lists(st.sampled_from(["a*", "b*", "a", "*c", "ab*", "*"]), min_size=1, max_size=2)


@settings(max_examples=60, deadline=None)
@given(names=projects, first=globs, second=globs)
def test_every_wheel_goes_to_exactly_one_layer(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], first: list[str], second: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "partition"
    folder.mkdir(exist_ok=True)
    # The layer that takes the rest stands first and still gets it last.
    read = write(folder, ["1.0.0"], ["2.0.0"], {"rest": [], "one": first, "two": second})
    left = [n for n in names if not any(fnmatchcase(n, g) for g in first)]
    last = [n for n in left if not any(fnmatchcase(n, g) for g in second)]
    lock = locked(read, tuple(names))
    if len(left) in (0, len(names)) or len(last) in (0, len(left)):
        with pytest.raises(LockError, match="gets no wheel"):
            planning.make(read, read.variants[0], lock, ORIGIN)
        return
    plan = planning.make(read, read.variants[0], lock, ORIGIN)
    assert [w.name for w in plan.layers[1].wheels] == last
    wheels_of_layers = [w.name for layer in plan.layers[1:4] for w in layer.wheels]
    assert sorted(wheels_of_layers) == sorted(names)
    assert all(layer.wheels for layer in plan.layers[1:])


GB = 10**9


@pytest.mark.parametrize(
    ("sizes", "advised"),
    [
        ((2.1, 0.1, 1.0), True),
        # No more than half; one wheel, which cannot be divided; too little to matter.
        ((1.0, 0.1, 1.5), False),
        ((2.1, 0, 1.0), False),
        ((0.8, 0.1, 0.1), False),
    ],
)
def test_a_layer_with_more_than_half_of_the_bytes_is_told(
    tmp_path: Path, sizes: tuple[float, float, float], advised: bool
) -> None:
    read = write(tmp_path, ["1.0.0"], ["2.0.0"])
    plan = planning.make(read, read.variants[0], locked(read, ("cuda-x", "app")), ORIGIN)
    cuda, second, rest = (wheel("w", size=int(size * GB)) for size in sizes)
    wheels = {"low": (cuda, second)[: 2 if second.size else 1], "high": (rest,)}
    layers = tuple(replace(la, wheels=wheels.get(la.name, la.wheels)) for la in plan.layers)
    advice = preflight.uneven(replace(plan, layers=layers))
    assert advice.startswith("layer low has 2.2 GB of 3.2 GB") == advised
    assert bool(advice) == advised


@pytest.mark.parametrize("project", [PROJECT, PROJECT / "sparkimage" / "data" / "project"])
def test_no_layer_of_the_product_has_more_than_a_quarter_of_the_bytes(
    project: Path, tmp_path: Path
) -> None:
    """Of the wheels and packages; also of what `init project` writes, with the same wheels."""
    for name in ("images", "patches"):
        (tmp_path / name).symlink_to(project / name)
    text = (project / "matrix.yaml").read_text().replace("{{ name }}", "r")
    (tmp_path / "matrix.yaml").write_text(text)
    read = matrix.load(tmp_path / "matrix.yaml")
    lock = lockfile.load(PROJECT / "matrix.lock")
    plans = [plan for plan in planning.make_all(read, read.variants, lock, ORIGIN)
             if not plan.unresolved]  # fmt: skip
    assert plans
    for plan in plans:
        sizes = {la.name: sum(w.size for w in la.wheels) for la in plan.layers}
        over = {name for name, size in sizes.items() if size > plan.download_bytes / 4}
        assert not over, plan.variant
        assert not preflight.uneven(plan)


def test_the_fingerprint_is_of_what_decides_the_result(tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "app.whl").write_bytes(b"one")
    (tmp_path / "images" / "_tools").mkdir(parents=True)
    tool = tmp_path / "images" / "_tools" / "step.sh"
    tool.write_text("one")
    read = write(tmp_path, ["1.0.0"], ["2.0.0"], links="links")
    plan = planning.make(read, read.variants[0], locked(read), ORIGIN)
    first = fingerprint(plan, tmp_path)
    # A layer's checks decide whether it is good, not what it is; other layers are not in it.
    (tmp_path / "images" / "low" / "test_low.py").write_text("")
    (tmp_path / "images" / "foreign").mkdir()
    (tmp_path / "images" / "foreign" / "Dockerfile").write_text("FROM layer\n")
    (tmp_path / "images" / "low" / "__pycache__").mkdir()
    (tmp_path / "images" / "low" / "__pycache__" / "test_low.pyc").write_text("")
    assert fingerprint(plan, tmp_path) == first
    seen = {first}
    # Python files that the Dockerfile copies are inputs, those called as checks are below the top.
    for name in ("helper.py", "overlay/vllm/a.py", "overlay/vllm/test_a.py", "overlay/a.pyc"):
        path = tmp_path / "images" / "low" / name
        for content in ("", "two"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            seen.add(fingerprint(plan, tmp_path))
    link = tmp_path / "images" / "low" / "link"
    for target in ("nowhere", "elsewhere"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        seen.add(fingerprint(plan, tmp_path))
    assert len(seen) == 11
    for path in (tool, links / "app.whl", tmp_path / "images" / "low" / "Dockerfile"):
        path.write_text("two")
        seen.add(fingerprint(plan, tmp_path))
    (tmp_path / "images" / "low" / "new").write_text("")
    seen.add(fingerprint(plan, tmp_path))
    seen.add(fingerprint(replace(plan, cmd=("x",)), tmp_path))
    (tmp_path / "images" / "low" / "new").chmod(0o755)
    seen.add(fingerprint(plan, tmp_path))
    assert len(seen) == 17
