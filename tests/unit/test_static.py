"""The static tier's parts; its checks are proven by tests/lab/test_mutants.py."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import Expected, Plan, SourceBuild
from sparkimage.core.errors import ConfigError
from sparkimage.image import layerscan
from sparkimage.image.layerindex import FACT, STEP, Entry, image_files, own_layers
from sparkimage.image.linking import Linker, Root, configured
from sparkimage.image.store import TAR, Image, Store
from sparkimage.verify import rules, static
from sparkimage.verify.seal import Check
from tests.unit import elf_maker, good_maker
from tests.unit.good_maker import DIST, SYSTEM, Files, put_image, put_layer


def links(targets: Mapping[str, str]) -> Root:
    """Each path a link to its target; a file where that is empty."""
    return Root({p: Entry(0, p, "2" if to else "0", 0, 0o644, to) for p, to in targets.items()})


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/a/f", "a/f"),
        ("a//./b/../f", "a/f"),
        ("l/f", "a/f"),
        ("abs", "a/f"),
        ("deep/f", "a/f"),
        ("up", "a/f"),
        ("none", None),
        ("gone", None),
        ("round", None),
    ],
)
def test_links_are_followed_inside_the_image(path: str, real: str | None) -> None:
    root = links(
        {"a/f": "", "l": "a", "abs": "/l/f", "deep": "l/../l", "up": "../../a/f",
         "gone": "/nowhere", "round": "round"}
    )  # fmt: skip
    assert root.real(path) == real


@pytest.mark.parametrize(("release", "result"), [("13.0", "PASSED"), ("13.5", "FAILED")])
def test_a_compiler_is_of_the_release_of_its_headers(
    tmp_path: Path, release: str, result: str
) -> None:
    found = examined(Store.open(tmp_path), good_maker.toolkit(good_maker.ARCH, release, 13000))
    check = found["static/cuda-compiler"]
    assert (check.result, check.seen["opt/cuda/bin/nvcc"]) == (result, release)


def examined(store: Store, *layers: Files, **config: object) -> dict[str, Check]:
    """The good image with layers below and more config."""
    made = [put_layer(store, files) for files in (*layers, *good_maker.stack())]
    whole = good_maker.config([diff_id for _, diff_id in made])
    whole["history"] = [*[{"created_by": "base"}] * len(layers), *whole["history"]]
    image = put_image(store, whole | config, [one for one, _ in made])
    base = PinnedImage(name="b", digest="sha256:" + "0" * 64, tagged="sha256:" + "0" * 64)
    plan = good_maker.plan()
    lowest = dataclasses.replace(plan.layers[0], root=None, image=base)
    plan = dataclasses.replace(plan, layers=(lowest, *plan.layers[1:]))
    return {one.id: one for one in static.examine(plan, image, store, None)}


def test_an_older_nccl_of_a_base_image_is_listed_and_allowed(tmp_path: Path) -> None:
    old = elf_maker.nccl(good_maker.ARCH, "2.28.9")
    found = examined(
        Store.open(tmp_path),
        {"usr/lib/libnccl.so.2.28.9": old, "var/lib/apt/lists/x_Packages": b"x"},
        {"usr/lib/.wh.libnccl.so.2.28.9": b""},
    )
    assert [one.id for one in found.values() if one.result != "PASSED"] == []
    seen = found["static/nccl-every-layer"].seen
    assert [(e["layer"], e["version"], e["visible"]) for e in seen] == [
        (0, "2.28.9", False),
        (4, "2.30.4", True),
    ]
    assert seen[1]["path"] == SYSTEM


def test_an_older_nccl_of_a_base_image_must_not_be_visible(tmp_path: Path) -> None:
    old = elf_maker.nccl(good_maker.ARCH, "2.28.9")
    found = examined(Store.open(tmp_path), {"usr/lib/libnccl.so.2.28.9": old})
    assert found["static/nccl-root"].result == "FAILED"


def failed(plan: Plan, image: Image, store: Store) -> list[str]:
    return [one.id for one in static.examine(plan, image, store, None) if not one.passed]


def test_what_nothing_expects_is_not_looked_for(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    image, plan = good_maker.make(store), good_maker.plan()
    bare = dataclasses.replace(plan, expect=Expected())
    ids = {one.id for one in static.examine(plan, image, store, None)}
    gone = ids - {one.id for one in static.examine(bare, image, store, None)}
    assert gone == {
        "static/nccl-every-layer", "static/nccl-root", "static/nccl-version",
        "static/nccl-places", "static/nccl-bytes", "static/torch-cuda", "static/project",
    }  # fmt: skip
    # Whatever the image has of them.
    layers = [good_maker.put_layer(store, files) for files in good_maker.stack()[:1]]
    config = good_maker.config([diff_id for _, diff_id in layers])
    del config["config"]["Env"][1]
    plan = dataclasses.replace(bare, entrypoint=("su",), layers=bare.layers[:1])
    config["config"]["Entrypoint"] = ["su"]
    small = put_image(store, config | {"history": config["history"][:1]}, [layers[0][0]])
    assert failed(plan, small, store) == []
    # What is expected and not there is refused.
    for expect, ids_of in (
        (Expected(nccl="2.30.4"), {"nccl-root", "nccl-version", "nccl-places"}),
        (Expected(cuda="13"), {"torch-cuda"}),
        (Expected(project="vllm"), {"project"}),
    ):
        wanting = dataclasses.replace(plan, expect=expect)
        assert {id.removeprefix("static/") for id in failed(wanting, small, store)} == ids_of


@pytest.mark.parametrize(
    ("expect", "refused"),
    [
        (Expected(cuda="13"), []),
        (Expected(cuda="13.0"), []),
        (Expected(cuda="13.0.3"), []),
        (Expected(cuda="13.1"), ["static/torch-cuda"]),
        (Expected(cuda="12"), ["static/torch-cuda"]),
        (Expected(project="vllm"), []),
        (Expected(project="sglang"), ["static/project"]),
        (Expected(nccl="2.30.4"), []),
    ],
)
def test_expectations_are_held_against_the_files(
    tmp_path: Path, expect: Expected, refused: list[str]
) -> None:
    store = Store.open(tmp_path)
    image = good_maker.make(store)
    assert failed(dataclasses.replace(good_maker.plan(), expect=expect), image, store) == refused


@pytest.mark.parametrize(
    ("planned", "user", "passes"),
    [
        ("root", None, True), ("root", "0", True), ("root", "0:0", True), ("0", "root", True),
        ("root", "app", False), ("1000", "1000", True), ("1000", "1000:1000", False),
        ("1000", None, False), ("app", "app", True),
    ],
)  # fmt: skip
def test_the_user_is_the_planned_one(
    tmp_path: Path, planned: str, user: str | None, passes: bool
) -> None:
    store = Store.open(tmp_path)
    layers = [good_maker.put_layer(store, files) for files in good_maker.stack()]
    config = good_maker.config([diff_id for _, diff_id in layers])
    config["config"] |= {"User": user} if user is not None else {}
    image = put_image(store, config, [blob for blob, _ in layers])
    plan = dataclasses.replace(good_maker.plan(), user=planned)
    assert failed(plan, image, store) == ([] if passes else ["static/user"])


def test_a_hard_link_is_what_it_links_to(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = elf_maker.nccl("arm64")
        member = tarfile.TarInfo("./a/libnccl.so.2")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        member = tarfile.TarInfo("./b/libnccl.so.2")
        member.type, member.linkname = tarfile.LNKTYPE, "./a/libnccl.so.2"
        archive.addfile(member)
    blob = store.put_bytes(buffer.getvalue(), TAR)
    image = put_image(store, good_maker.config([blob.digest]), [blob.to_dict()])
    files = image_files(store, image)
    assert [e.seen["nccl"] for e in files.layers[0]] == ["2.30.4"] * 2
    assert files.layers[0][1].elf == files.layers[0][0].elf
    # From the store's facts it reads the same.
    assert store.get_fact(FACT, image.layers[0].diff_id) is not None
    assert image_files(store, image).layers == files.layers


def test_where_the_linker_looks(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    root = Root(image_files(store, good_maker.make(store)).final)
    assert configured(root) == ("/usr/lib/aarch64-linux-gnu",)
    linker = Linker.of(root, "arm64", "aarch64-linux-gnu", f"/x:/{DIST}/torch/lib")
    found = linker.find("libtorch.so")
    assert found is not None
    assert found.path == f"{DIST}/torch/lib/libtorch.so"
    assert linker.find("libown.so.1") is None
    assert linker.find("libown.so.1", root.file(f"{DIST}/vllm/_C.abi3.so")) is not None


def elves(files: Mapping[str, dict[str, Any]]) -> Root:
    """Libraries of arm64 by their paths."""
    return Root(
        {
            path: Entry(0, path, "0", 1, 0o644, "", {"elf": {"machine": 183, "type": 3, **fields}})
            for path, fields in files.items()
        }
    )


@pytest.mark.parametrize(
    ("module", "between", "unresolved"),
    [
        # The RPATH of what loads a library counts for what that needs; a RUNPATH does not.
        ({"rpath": ("$ORIGIN/libs",)}, {}, []),
        ({"runpath": ("$ORIGIN/libs",)}, {}, ["c.so"]),
        # A file with a RUNPATH looks at no RPATH.
        ({"rpath": ("$ORIGIN/libs",)}, {"runpath": ("/none",)}, ["c.so"]),
    ],
)
def test_an_rpath_is_inherited(
    module: dict[str, Any], between: dict[str, Any], unresolved: list[str]
) -> None:
    root = elves(
        {
            "module.so": {"needed": ("b.so",), **module},
            "libs/b.so": {"needed": ("c.so",), **between},
            "libs/c.so": {},
        }
    )
    linker = Linker.of(root, "arm64", "aarch64-linux-gnu")
    found = [name for entry, name in linker.unresolved() if entry.path == "libs/b.so"]
    assert found == unresolved


def test_which_layers_are_ours() -> None:
    ours: dict[str, Any] = {"created_by": f"RUN . {STEP}"}
    base, env, copied = {"created_by": "ADD"}, {"empty_layer": True}, {"created_by": "COPY a /a"}

    def own(*history: dict[str, Any], base: bool = False, above: int | None = None) -> list[int]:
        count = sum("empty_layer" not in step for step in history)
        return sorted(own_layers(count, base=base, above=above, history=history))

    assert own(base, env, ours, copied, ours) == [0, 1, 2, 3]
    assert own(base, env, ours, copied, ours, base=True) == [1, 2, 3]
    # A ready image as it is.
    assert own(base, env, copied, base=True) == []
    # A source's Dockerfile made the layer between.
    assert own(base, ours, copied, ours, base=True, above=1) == [1, 3]
    # What lies above our step above it is ours, also where our tools had no part in it.
    between = (ours, copied, ours)
    assert own(base, ours, copied, *between, copied, base=True, above=2) == [1, 3, 4, 5, 6]
    # None is known to lie above it: what does may be its own.
    assert own(base, ours, copied, base=True, above=0) == [1]
    assert sorted(own_layers(2, base=True, above=None, history=[ours])) == [0, 1]


@pytest.mark.parametrize(("at", "refused"), [(2, False), (4, True)])
def test_a_step_without_our_tools_above_a_source_is_held_to_the_rules(
    tmp_path: Path, at: int, refused: bool
) -> None:
    """The same step is the source's own below an overlay, and this project's above it."""
    store = Store.open(tmp_path)
    stack = good_maker.stack()
    stack.insert(at, {"var/lib/apt/lists/x_Packages": b"x"})
    made = [put_layer(store, files) for files in stack]
    config = good_maker.config([diff_id for _, diff_id in made])
    steps = [step for step in config["history"] if "empty_layer" not in step]
    steps.insert(at, {"created_by": "RUN /bin/sh -c echo x # buildkit"})
    image = put_image(store, config | {"history": steps}, [one for one, _ in made])
    plan = good_maker.plan()
    source = SourceBuild(
        pin="vllm", value="1", repository="r", commit="0" * 40, tree="0" * 40,
        dockerfile="Dockerfile", target=None, version=None, images={},
    )  # fmt: skip
    debian, torch, *above = plan.layers
    layers = (debian, dataclasses.replace(torch, source=source), *above)
    plan = dataclasses.replace(plan, layers=layers)
    assert ("static/apt-lists" in failed(plan, image, store)) is refused


def test_packages_of_dpkg() -> None:
    status = (
        "Package: a\nStatus: install ok installed\nVersion: 1:2\nDescription: x\n y: z\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 2\n"
    )
    assert layerscan.packages(status) == {"a": "1:2"}


def test_a_project_adds_rules_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "static.yaml").write_text("driver_libraries: [{name: libx.so, reason: a test}]\n")
    names = [one.name for one in rules.load(tmp_path).driver_libraries]
    assert names == [*(one.name for one in rules.builtin().driver_libraries), "libx.so"]
    (tmp_path / "static.yaml").write_text("setuid:\n  - {path: a, mode: '0755', reason: x}\n")
    with pytest.raises(ConfigError) as error:
        rules.load(tmp_path)
    (problem,) = error.value.problems
    assert (problem.file, problem.line) == (f"{tmp_path}/static.yaml", 2)
    (tmp_path / "static.yaml").write_text(
        "setuid: [a]\nleftovers: [{name: x, pattern: (, reason: y}]\n"
        "loaded_before:\n  - {from: 3}\n"
    )
    with pytest.raises(ConfigError) as error:
        rules.load(tmp_path)
    assert [(one.line, one.what) for one in error.value.problems] == [
        (1, "setuid.0 must be a mapping, but is 'a'"),
        (2, "leftovers.0.pattern must be a regular expression, but is '('"),
        (4, "loaded_before.0.files is missing"),
        (4, "loaded_before.0.from must be text, but is 3"),
        (4, "loaded_before.0.needs is missing"),
        (4, "loaded_before.0.reason is missing"),
    ]
