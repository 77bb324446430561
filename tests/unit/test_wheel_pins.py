"""Wheels pins resolved by a real uv from real small indexes: what is taken, and what is said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.build import bake
from sparkimage.config import lockfile, planning
from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.lock_items import Wheel
from sparkimage.config.lockfile import Lock
from sparkimage.config.matrix import Matrix
from sparkimage.core.errors import ConfigError, LockError, NetworkError, SparkError
from sparkimage.core.process import Local
from sparkimage.image.layerindex import STEP
from sparkimage.image.store import Store
from sparkimage.resolve import resolver
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.resolver import Outcome, Update
from sparkimage.verify import static
from tests.unit import good_maker, index_maker
from tests.unit import project_maker as maker
from tests.unit.index_maker import PASSWORD, USER, Index

AMD = "linux/amd64"
DEAD = "http://127.0.0.1:9/simple"
"""Nobody listens there."""


def wheels(*require: str, **more: Any) -> dict[str, Any]:
    return {"kind": "wheels", "require": list(require), "python": "3.12", **more}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UV_NO_CACHE", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path


@pytest.fixture
def index(home: Path) -> Iterator[tuple[Index, str]]:
    with index_maker.serve(home / "index") as served:
        yield served


def project(home: Path, pins: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Matrix:
    """A matrix with a layer for each of the wheels pins, in order, on a base."""
    layers: dict[str, Any] = {"low": {"base": "os"}}
    layers |= {f"of-{name}": {"wheels": {"pin": name}} for name in pins}
    values = {name: {"1.0.0": pin} for name, pin in pins.items()}
    every = {"os": {"1.0.0": base or {"kind": "debian", "suite": "trixie"}}, **values}
    variant = maker.include("v", *layers, platform=AMD, **dict.fromkeys(every, "1.0.0"))
    return maker.write(home, maker.document(every, layers, [variant]))


def resolve(
    read: Matrix, default: str, lock: Lock | None = None, update: Update | None = None
) -> Outcome:
    """Lock the wheels of the matrix; the base is locked already."""
    mirrors = Mirrors(rules={WHEELS: default, **read.mirrors}, logins=read.logins)
    context = ResolveContext(home=read.root, runner=Local(), mirrors=mirrors, say=lambda _: None)
    if lock is None:
        made = maker.locked(read)
        base = {key: entry for key, entry in made.entries.items() if key[0] == "os"}
        lock = replace(made, entries=base)
    return resolver.resolve(read, lock, context, update or Update())


def files(outcome: Outcome, pin: str) -> list[str]:
    assert outcome.failures == {}
    items = outcome.lock.items(pin, "1.0.0", AMD)
    return [item.file for item in items if isinstance(item, Wheel)]


def failure(outcome: Outcome) -> SparkError:
    ((_, error),) = outcome.failures.items()
    return error


def test_extras_bring_their_own(home: Path, index: tuple[Index, str]) -> None:
    made, address = index
    made.add("Ray.Core", "2.0", "extra client: grpc==1.0", "extra default: web==3.0", "base==1.0")
    for name, version in (("grpc", "1.0"), ("web", "3.0"), ("base", "1.0")):
        made.add(name, version)
    (made.folder / "ray.core").rename(made.folder / "ray-core")
    read = project(home, {"ray": wheels("ray-core[client,default]==2.0")})
    outcome = resolve(read, address)
    assert [name.split("-")[0] for name in files(outcome, "ray")] == [
        "base", "grpc", "ray.core", "web",
    ]  # fmt: skip
    assert outcome.lock.entries["ray", "1.0.0"].requested["require"] == [
        "ray-core[client,default]==2.0"
    ]
    # Through the file, as the next command reads it, to the plan.
    (home / "matrix.lock").write_text(lockfile.dump(outcome.lock))
    held = lockfile.load(home / "matrix.lock")
    assert lockfile.check(read, held) == []
    plan = planning.make(read, read.variants[0], held, maker.ORIGIN)
    assert "ray-core==2.0 --hash=sha256:" in plan.layers[1].requirements
    assert "[" not in plan.layers[1].requirements


def test_without_its_dependencies(home: Path, index: tuple[Index, str]) -> None:
    made, address = index
    made.add("app", "1.0", "lib>=1")
    made.add("lib", "1.5")
    alone, whole = (project(home, {"app": wheels("app==1.0", deps=deps)}) for deps in (False, True))
    assert files(resolve(alone, address), "app") == ["app-1.0-py3-none-any.whl"]
    assert len(files(resolve(whole, address), "app")) == 2
    requests = [lockfile.requests(read)["app", "1.0.0"][0] for read in (alone, whole)]
    assert [request.get("deps") for request in requests] == [False, None]


def test_what_a_project_needs_without_itself(home: Path, index: tuple[Index, str]) -> None:
    made, address = index
    made.add("My.Engine", "1.0", "lib>=1", "other")
    (made.folder / "my.engine").rename(made.folder / "my-engine")
    made.add("lib", "1.5", "other", "my-engine")
    read = project(home, {"app": wheels("my-engine==1.0", exclude=["my_engine", "Other"])})
    assert files(resolve(read, address), "app") == ["lib-1.5-py3-none-any.whl"]


def test_an_index_of_the_pin_goes_before_the_default_one(
    home: Path, index: tuple[Index, str]
) -> None:
    made, default = index
    made.add("app", "1.0", "lib", "shared")
    made.add("lib", "9.0")
    made.add("shared", "1.0")
    with index_maker.serve_with_login(home / "own") as (own, address):
        own.add("lib", "2.0")
        full = address.replace("://", f"://{USER}:{PASSWORD}@")
        read = project(home, {"app": wheels("app==1.0", index=[full])})
        outcome = resolve(read, default)
        assert [name.split("-py3")[0] for name in files(outcome, "app")] == [
            "app-1.0", "lib-2.0", "shared-1.0",
        ]  # fmt: skip
        # Neither the lock nor the plan has the login; the build gets it, as a secret.
        text = lockfile.dump(outcome.lock)
        plan = planning.make(read, read.variants[0], outcome.lock, maker.ORIGIN)
        assert address in text
        assert plan.layers[1].index == (address,)
        assert PASSWORD not in text + json.dumps(plan.to_dict())
        mirrors = Mirrors(rules={WHEELS: default}, logins=read.logins)
        assert list(bake.index_variables(plan.layers, mirrors).values()) == [f"{default}\n{full}"]
        # Another password is no other pin.
        other = project(home, {"app": wheels("app==1.0", index=[full.replace(PASSWORD, "new")])})
        assert lockfile.check(other, outcome.lock) == []
        # A mirror of the user goes before what the matrix says.
        rules = {address: "http://mirror.example/simple"}
        assert Mirrors(rules=rules, logins=read.logins).of(address) == rules[address]


def test_an_index_that_wants_a_login(home: Path, index: tuple[Index, str]) -> None:
    with index_maker.serve_with_login(home / "own") as (own, address):
        own.add("lib", "2.0")
        wrong = address.replace("://", "://team:guess@")
        read = project(home, {"lib": wheels("lib==2.0", index=[wrong])})
        error = failure(resolve(read, index[1]))
    assert isinstance(error, LockError)
    assert f"the wheel index {address} refuses: 401 Unauthorized" in error.message
    assert "guess" not in str(error) + error.detail + error.hint


def test_an_index_that_is_not_reachable(home: Path, index: tuple[Index, str]) -> None:
    index[0].add("lib", "2.0")
    full = DEAD.replace("://", f"://{USER}:{PASSWORD}@")
    error = failure(resolve(project(home, {"lib": wheels("lib==2.0", index=[full])}), index[1]))
    assert isinstance(error, NetworkError)
    assert error.message == (f"pin lib 1.0.0 on {AMD}: the wheel index {DEAD} cannot be reached")
    assert PASSWORD not in str(error) + error.detail


@pytest.mark.parametrize(
    ("base", "taken"),
    [
        ({"kind": "debian", "suite": "trixie"}, "2_40"),
        ({"kind": "debian", "suite": "bookworm"}, "2_34"),
        ({"kind": "image", "image": "a/b:1", "glibc": "2.35"}, "2_34"),
        ({"kind": "image", "image": "a/b:1", "glibc": "2.31"}, "2_17"),
        ({"kind": "image", "image": "a/b:1"}, "2_39"),
    ],
)
def test_a_wheel_needs_no_newer_glibc_than_the_base_has(
    home: Path, index: tuple[Index, str], base: dict[str, str], taken: str
) -> None:
    made, address = index
    for glibc in ("2_17", "2_34", "2_39", "2_40"):
        made.add("lib", "1.0", platform=f"manylinux_{glibc}_x86_64")
    outcome = resolve(project(home, {"lib": wheels("lib==1.0")}, base), address)
    assert files(outcome, "lib") == [f"lib-1.0-py3-none-manylinux_{taken}_x86_64.whl"]
    assert outcome.lock.entries["lib", "1.0.0"].requested["glibc"] == (
        base.get("glibc")
        or {"trixie": "2.41", "bookworm": "2.36"}.get(base.get("suite", ""), "2.39")
    )


def test_of_several_bases_the_oldest_counts(tmp_path: Path) -> None:
    bases = {
        "new": {"kind": "image", "image": "a/b:2", "version": "2.0.0"},
        "old": {"kind": "image", "image": "a/b:1", "version": "1.0.0", "glibc": "2.35"},
    }
    pins = {"os": bases, "lib": {"1.0.0": wheels("lib==1.0")}}
    layers = {"low": {"base": "os"}, "lib": {"wheels": {"pin": "lib"}}}
    variants = [maker.include(n, *layers, platform=AMD, os=n, lib="1.0.0") for n in bases]
    read = maker.write(tmp_path, maker.document(pins, layers, variants))
    assert lockfile.requests(read)["lib", "1.0.0"][0]["glibc"] == "2.35"
    plans = planning.make_all(read, read.variants, maker.locked(read), maker.ORIGIN)
    # Each step installs for its own base, where the older wheels run too.
    assert [plan.layers[1].args["PYTHON_PLATFORM"] for plan in plans] == [
        "x86_64-manylinux_2_39", "x86_64-manylinux_2_35",
    ]  # fmt: skip


def test_a_project_without_a_wheel_is_told_the_way_out(
    home: Path, index: tuple[Index, str]
) -> None:
    made, address = index
    made.add_sdist("old", "1.0")
    made.add("new", "1.0", platform="manylinux_2_40_x86_64")
    made.add("app", "1.0", "old==1.0")
    for require in ("old==1.0", "app==1.0"):
        error = failure(resolve(project(home, {"lib": wheels(require)}), address))
        assert error.message == f"pin lib 1.0.0 on {AMD}: old 1.0 has no wheel for it"
        assert "`file` pin of its sdist under `inputs`" in error.hint
    base = {"kind": "image", "image": "a/b:1", "glibc": "2.35"}
    error = failure(resolve(project(home, {"lib": wheels("new==1.0")}, base), address))
    assert "new 1.0 has no wheel for it" in error.message


def test_one_project_in_two_versions_is_told_from_the_lock(
    home: Path, index: tuple[Index, str]
) -> None:
    made, address = index
    made.add("audio", "1.0", "My.Lib<2", "other<2")
    made.add("ray", "1.0", "my-lib[fast]", "other", "third")
    for version in ("1.0", "2.0"):
        made.add("my-lib", version, "extra fast: third")
        made.add("other", version)
    made.add("third", "1.0")
    pins = {"audio": wheels("audio==1.0"), "ray": wheels("ray==1.0")}
    read = project(home, pins)
    lock = resolve(read, address).lock
    with pytest.raises(LockError) as caught:
        planning.make(read, read.variants[0], lock, maker.ORIGIN)
    assert caught.value.message == (
        "variant v: pins audio 1.0.0 and ray 1.0.0 both install my-lib (1.0 and 2.0)"
    )
    assert caught.value.detail == "pins audio and ray both install other (1.0 and 2.0)"
    assert "`constraints: [audio]` to pin ray" in caught.value.hint
    assert "`exclude: [my-lib]`" in caught.value.hint
    # And the way that it names works: one file in both pins goes to the lower layer.
    read = project(home, pins | {"ray": wheels("ray==1.0", constraints=["audio"])})
    outcome = resolve(read, address, lock)
    assert [f.split("-py3")[0] for f in files(outcome, "ray")] == [
        "my_lib-1.0", "other-1.0", "ray-1.0", "third-1.0",
    ]  # fmt: skip
    assert outcome.lock.entries["audio", "1.0.0"] == lock.entries["audio", "1.0.0"]
    assert outcome.lock.entries["ray", "1.0.0"].requested["constraints"] == ["audio 1.0.0"]
    plan = planning.make(read, read.variants[0], outcome.lock, maker.ORIGIN)
    assert [[w.name for w in layer.wheels] for layer in plan.layers] == [
        [], ["audio", "my-lib", "other"], ["ray", "third"],
    ]  # fmt: skip
    # What it was resolved against moves: so does it.
    made.add("my-lib", "1.9", "extra fast: third")
    moved = resolve(read, address, outcome.lock, Update(projects={"my-lib": None}))
    assert {
        pin: [w.version for w in moved.lock.items(pin, "1.0.0", AMD)
              if isinstance(w, Wheel) and w.name == "my-lib"]
        for pin in pins
    } == {"audio": ["1.9"], "ray": ["1.9"]}  # fmt: skip


def test_a_layer_that_would_be_left_without_wheels(tmp_path: Path) -> None:
    read = project(tmp_path, {"a": maker.APP, "b": maker.APP})
    with pytest.raises(LockError, match="variant v: layer of-b gets no wheel") as caught:
        planning.make(read, read.variants[0], maker.locked(read), maker.ORIGIN)
    assert "take the layer out" in caught.value.hint


def test_what_it_is_resolved_against_is_not_resolved(home: Path, index: tuple[Index, str]) -> None:
    made, address = index
    made.add("ray", "1.0")
    pins = {"audio": wheels("gone==1.0"), "ray": wheels("ray==1.0", constraints=["audio"])}
    failures = resolve(project(home, pins), address).failures
    assert "gone" in failures["audio", "1.0.0"].message
    assert "pin audio 1.0.0, which it is resolved against" in failures["ray", "1.0.0"].message


def test_a_constraint_that_nothing_meets(home: Path, index: tuple[Index, str]) -> None:
    made, address = index
    made.add("audio", "1.0", "lib<2")
    made.add("ray", "1.0", "lib>=2")
    for version in ("1.0", "2.0"):
        made.add("lib", version)
    pins = {"audio": wheels("audio==1.0"), "ray": wheels("ray==1.0", constraints=["audio"])}
    error = failure(resolve(project(home, pins), address))
    assert "pin ray 1.0.0 on linux/amd64 cannot be resolved" in error.message
    assert "`constraints`" in error.hint
    assert "lib==1.0" in error.detail


@pytest.mark.parametrize(
    ("pins", "what", "todo"),
    [
        ({"a": wheels("a==1", constraints=["bb"]), "b": wheels("b==1")},
         "pin a 1.0.0 is constrained by 'bb', which is not in pins", "did you mean 'b'?"),
        ({"a": wheels("a==1", constraints=["b"]), "b": wheels("b==1", constraints=["a"])},
         "pin a 1.0.0 is constrained by 'b', and that one by a", "remove one of the two"),
        ({"a": wheels("a==1", constraints=["a"])},
         "pin a 1.0.0 is constrained by 'a', and that one by a", "remove one of the two"),
        ({"a": wheels("a==1", constraints=["os"])},
         "pin a 1.0.0 is constrained by os, a debian pin", "name a pin of kind wheels"),
    ],
)  # fmt: skip
def test_wrong_constraints(tmp_path: Path, pins: dict[str, Any], what: str, todo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        project(tmp_path, pins)
    first = caught.value.problems[0]
    assert (first.what, first.todo) == (what, todo)


def test_a_constraint_of_several_values_or_of_none(tmp_path: Path) -> None:
    pins = {
        "os": {"trixie": maker.OS},
        "a": {"1.0.0": wheels("a==1", constraints=["b"])},
        "b": {"1.0.0": wheels("b==1"), "2.0.0": wheels("b==2")},
    }
    layers = {"low": {"base": "os"}, "a": {"wheels": {"pin": "a"}}, "b": {"wheels": {"pin": "b"}}}
    variants = [
        maker.include("one", *layers, os="trixie", a="1.0.0", b="1.0.0"),
        maker.include("two", *layers, os="trixie", a="1.0.0", b="2.0.0"),
        maker.include("none", "low", "a", os="trixie", a="1.0.0"),
    ]
    with pytest.raises(ConfigError) as caught:
        maker.write(tmp_path, maker.document(pins, layers, variants))
    problems = {problem.what: problem.todo for problem in caught.value.problems}
    assert problems == {
        "pin a 1.0.0 is constrained by b, and no layer of variant none uses that":
            "add a layer with the wheels of b, or remove the constraint",
        "pin a 1.0.0 is constrained by b, which has 2 values in the variants that use both: "
        "1.0.0, 2.0.0": "give each of them its own value of a, with a `version:`",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("index", "https://a.example/simple", "pins.a.1.0.0.index must be a list"),
        ("index", ["ftp://a.example"], "does not have the right form"),
        ("index", ["https://a.example/simple https://b.example"], "does not have the right form"),
        ("index", ["https://me:secret@a.example/s x"], "'https://a.example/s x' does not have"),
        ("deps", "no", "pins.a.1.0.0.deps must be true or false"),
        ("constraints", "b", "pins.a.1.0.0.constraints must be a list"),
    ],
)
def test_wrong_values(tmp_path: Path, key: str, value: Any, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        project(tmp_path, {"a": wheels("a==1", **{key: value})})
    assert what in caught.value.problems[0].what
    assert caught.value.problems[0].line == 1
    assert "secret" not in caught.value.detail


METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n"


@pytest.mark.parametrize(
    ("into", "version", "other"),
    [
        (None, "2.30.4", {}),
        ("/opt/venv", "2.30.4", {}),
        # It is there, and not where it belongs; or in another version.
        ("/opt/conda", "2.30.4", {"nvidia-nccl-cu13 in /opt/conda": []}),
        ("/opt/venv", "2.30.3", {"nvidia-nccl-cu13 in /opt/venv": ["2.30.3"]}),
    ],
)
def test_wheels_are_looked_for_where_they_belong(
    tmp_path: Path, into: str | None, version: str, other: dict[str, list[str]]
) -> None:
    place = "opt/venv/lib/python3.13/site-packages" if into else good_maker.DIST
    path = f"{place}/nvidia_nccl_cu13-{version}.dist-info/METADATA"
    files = {path: METADATA.format("nvidia-nccl-cu13", version).encode()}
    store = Store.open(tmp_path)
    stack = [*good_maker.stack(), files]
    made = [good_maker.put_layer(store, layer) for layer in stack]
    config = good_maker.config([diff_id for _, diff_id in made])
    config["history"] = [*config["history"], {"created_by": STEP}]
    image = good_maker.put_image(store, config, [one for one, _ in made])
    plan = good_maker.plan()
    layers = tuple(replace(layer, into=into) if layer.wheels else layer for layer in plan.layers)
    checks = static.examine(replace(plan, layers=layers), image, store, None)
    (found,) = [check for check in checks if check.id == "static/wheels"]
    assert found.seen == other
    assert found.result == ("FAILED" if other else "PASSED")


def test_the_place_of_wheels_is_an_absolute_path(tmp_path: Path) -> None:
    pins = {"os": {"1.0.0": {"kind": "debian", "suite": "trixie"}}, "a": {"1.0.0": wheels("a==1")}}
    for wrong in ("opt/venv", "/opt/../etc", "/", "/opt/venv/", "/opt/a b"):
        layers = {"low": {"base": "os"}, "a": {"wheels": {"pin": "a", "into": wrong}}}
        variant = maker.include("v", *layers, os="1.0.0", a="1.0.0")
        with pytest.raises(ConfigError) as caught:
            maker.write(tmp_path, maker.document(pins, layers, [variant]))
        (problem,) = caught.value.problems
        assert f"layers.a.wheels.into: {wrong!r} does not have the right form" in problem.what
        assert "a venv or conda prefix, such as /opt/venv" in problem.todo
