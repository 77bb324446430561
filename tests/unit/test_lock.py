"""The lock: whether it fits a matrix, and messages about damage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config import lock_items, lockfile, matrix, yamlfile
from sparkimage.config.lock_items import (
    KEPT,
    PRESENT,
    Commit,
    Deb,
    File,
    Item,
    PatchText,
    PinnedImage,
    Step,
    Target,
    Wheel,
)
from sparkimage.config.lockfile import ANY, Entry, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import MISSING
from sparkimage.config.pins import Key
from sparkimage.config.series import SERIES
from sparkimage.core.errors import LockError
from tests.unit import project_maker as maker

PROJECT = Path(__file__).resolve().parents[2]
ASKED: dict[str, object] = {
    "kind": "wheels", "require": ["a==1.0"], "exclude": [], "python": "3.13",
}  # fmt: skip
ONE = Wheel(name="a", version="1.0", file="a-1.0-py3-none-any.whl", size=3, sha256="a" * 64)


def lock_of(entries: Mapping[Key, Entry], digest: str = "f" * 64) -> Lock:
    return Lock(file="matrix.lock", request_digest=digest, entries=entries)


def entry(*platforms: str) -> Entry:
    return Entry(requested=ASKED, platforms=dict.fromkeys(platforms, (ONE,)))


@pytest.mark.parametrize("pin", ["no", "on", "null", "y", "1", "2e3"])
@pytest.mark.parametrize("value", ["no", "2.30", "1:30", "a b", 'with "quotes"', "~"])
def test_names_that_look_like_yaml_values_stay_names(tmp_path: Path, pin: str, value: str) -> None:
    lock = lock_of({(pin, value): entry("linux/arm64")})
    (tmp_path / "matrix.lock").write_text(lockfile.dump(lock))
    assert lockfile.load(tmp_path / "matrix.lock") == lock


def test_a_matrix_without_pins_has_a_lock_without_pins(tmp_path: Path) -> None:
    empty = lock_of({})
    (tmp_path / "matrix.lock").write_text(lockfile.dump(empty))
    assert lockfile.load(tmp_path / "matrix.lock") == empty


def test_the_order_of_entries_does_not_change_the_file() -> None:
    two = Wheel(name="b", version="1.0", file="b.whl", size=3, sha256="b" * 64)
    entries = {
        ("p", "1"): Entry(
            requested=ASKED, platforms={"linux/arm64": (ONE, two), "linux/amd64": (ONE,)}
        ),
        ("a", "1"): entry("linux/amd64"),
    }
    turned = {
        ("a", "1"): entry("linux/amd64"),
        ("p", "1"): Entry(
            requested=dict(reversed(ASKED.items())),
            platforms={"linux/amd64": (ONE,), "linux/arm64": (ONE, two)},
        ),
    }
    assert lockfile.dump(lock_of(entries)) == lockfile.dump(lock_of(turned))


def test_the_order_of_items_does_not_change_the_file() -> None:
    two = Wheel(name="b", version="1.0", file="b.whl", size=3, sha256="b" * 64)
    one_way, other_way = (
        lock_of({("p", "1"): Entry(requested=ASKED, platforms={"linux/arm64": items})})
        for items in ((ONE, two), (two, ONE))
    )
    assert lockfile.dump(one_way) == lockfile.dump(other_way)


def test_the_real_lock_without_one_platform() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    lock = lockfile.load(PROJECT / "matrix.lock")
    vllm = lock.entries["vllm", "0.32.0"]
    lacking = Entry(
        requested=vllm.requested,
        platforms={p: w for p, w in vllm.platforms.items() if p != "linux/amd64"},
    )
    entries = {**lock.entries, ("vllm", "0.32.0"): lacking}
    assert lockfile.check(read, replace(lock, entries=entries)) == [
        "pin vllm 0.32.0 is not locked for linux/amd64"
    ]
    message = r"^matrix.lock has nothing for pin vllm 0.32.0 on linux/amd64$"
    with pytest.raises(LockError, match=message):
        replace(lock, entries=entries).items("vllm", "0.32.0", "linux/amd64")


def test_the_releases_of_nccl_in_the_real_lock() -> None:
    found = lockfile.nccl_releases(lockfile.load(PROJECT / "matrix.lock"))
    assert {release: pins for release, pins in found.items() if release == "2.30.4"} == {
        "2.30.4": ["nccl 2.30.4"]
    }


def test_all_differences_are_in_one_report() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    lock = lockfile.load(PROJECT / "matrix.lock")
    entries = dict(lock.entries)
    del entries["nccl", "2.30.7"]
    entries["old", "1"] = entry("linux/arm64")
    entries["vllm", "0.32.0"] = entry("linux/arm64")
    assert lockfile.check(read, replace(lock, entries=entries)) == [
        "pin nccl 2.30.7 is not locked",
        "pin vllm 0.32.0 has changed since it was locked",
        "pin vllm 0.32.0 is not locked for linux/amd64",
        "pin old 1 is locked, but no variant uses it",
    ]


GOOD = lockfile.dump(lock_of({("p", "1"): entry("linux/arm64")}))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("a" * 64, "a" * 63, "is damaged"),
        ("a" * 64, "g" * 64, "is damaged"),
        ("a 1.0 3", "a 1.0 three", "is damaged"),
        ("a 1.0 3", "a 1.0", "is damaged"),
        ("asked:", "axed:", "is damaged: pins.p.1.asked is missing .line 15.$"),
        (
            "asked: {",
            "asked: x #",
            "is damaged: pins.p.1.asked must be a mapping, but is 'x' .line",
        ),
        ('"kind": "wheels"', '"kind": "wheel"', "is damaged: pins.p.1: asked is of no known kind"),
        ('"kind": "wheels"', '"kind": []', "is damaged: pins.p.1: asked is of no known kind"),
        ('"kind": "wheels"', '"kind": "git"', "is damaged: pins.p.1: 'wheel a .* of another kind"),
        ("3 a", f"{'9' * 16} a", "is damaged: pins.p.1: 'wheel a .* has an invalid size: .* .line"),
        ("platforms:", "platforms: x #", "is damaged"),
        ("linux/arm64:", "linux/riscv64:", "is damaged: pins.p.1.platforms.linux/riscv64"),
        ("- wheel", "wheel", "is damaged: pins.p.1.platforms.linux/arm64 must be a list"),
        (
            "- wheel",
            "- [x]\n          - wheel",
            "is damaged: pins.p.1.platforms.linux/arm64.0 must",
        ),
        (
            "asked:",
            "unresolved: !!bool x\n      asked:",
            "is damaged: unknown tag `!!bool`",
        ),
        ("asked:", "unresolved: 3\n      asked:", "is damaged: pins.p.1.unresolved must be text"),
        ("asked:", "asked: {}\n      asked:", "is damaged: duplicate key 'asked'"),
        ('"p":', "[p]:", "is damaged: a key must be a plain word"),
        ("linux/arm64:\n", "linux/arm64: [\n", "is damaged: invalid YAML"),
        ("version: 3", "version: 1", "is not a lock of version 3"),
        ("version: 3", "version: 2", "is of version 2, not 3"),
        ("- wheel", "- wheal", "is damaged"),
        # No file of a lock lies outside of its folder.
        (
            " a-1.0-py3",
            " ../a-1.0-py3",
            r"is damaged: .* has an invalid file: '\.\./a-1.0-py3.* .line",
        ),
        ("matrix:", "matrx:", "is damaged"),
    ],
)
def test_a_damaged_lock_says_what_is_wrong_and_what_to_run(
    tmp_path: Path, old: str, new: str, what: str
) -> None:
    assert old in GOOD
    path = tmp_path / "matrix.lock"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(LockError, match=f"^{path} {what}") as error:
        lockfile.load(path)
    assert error.value.hint == lockfile.REMEDY


def test_a_lock_of_a_newer_program_says_so(tmp_path: Path) -> None:
    path = tmp_path / "matrix.lock"
    path.write_text(GOOD.replace("version: 3", "version: 4"))
    with pytest.raises(LockError, match="is of version 4, of a newer sparkimage, not 3") as error:
        lockfile.load(path)
    assert error.value.hint.startswith("upgrade to the version")


def test_what_lock_takes_of_a_lock_of_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "matrix.lock"
    patch = (
        '"patches":\n    "x":\n      asked: {"kind": "diff"}\n      platforms: {any: [patch 1 a]}\n'
    )
    path.write_text(GOOD.replace("version: 3", "version: 2") + f"  {patch}")
    lock = lockfile.load(path, older=True)
    assert lock.entries == {("p", "1"): entry("linux/arm64")}
    path.write_text(GOOD.replace("version: 3", "version: 1"))
    with pytest.raises(LockError, match="is not a lock of version 3"):
        lockfile.load(path, older=True)


def test_all_damage_is_in_one_report(tmp_path: Path) -> None:
    text = GOOD.replace("linux/arm64:", "linux/arm64:\n          - a\n          - b")
    (tmp_path / "matrix.lock").write_text(text)
    with pytest.raises(LockError) as error:
        lockfile.load(tmp_path / "matrix.lock")
    assert "pins.p.1: 'a' is not a lock line" in error.value.message
    assert "pins.p.1: 'b' is not a lock line" in error.value.detail


def test_a_lock_may_be_larger_than_what_people_write(tmp_path: Path) -> None:
    items = tuple(replace(ONE, version=f"1.{n:05}") for n in range(9000))
    lock = lock_of({("p", "1"): Entry(requested=ASKED, platforms={"linux/arm64": items})})
    (tmp_path / "matrix.lock").write_text(lockfile.dump(lock))
    assert (tmp_path / "matrix.lock").stat().st_size > yamlfile.MAX_BYTES
    assert lockfile.load(tmp_path / "matrix.lock") == lock


def test_an_image_is_one_line(tmp_path: Path) -> None:
    image = PinnedImage(name="a", digest="sha256:" + "a" * 64, tagged="sha256:" + "b" * 64)
    for items in ((), (image, replace(image, name="b"))):
        resolved = Entry(requested={"kind": "image"}, platforms={"linux/arm64": items})
        text = lockfile.dump(lock_of({("p", "1"): resolved}))
        (tmp_path / "matrix.lock").write_text(text)
        with pytest.raises(LockError, match=r"pins.p.1: linux/arm64 must have one `image` line"):
            lockfile.load(tmp_path / "matrix.lock")


def test_a_missing_lock_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"/matrix.lock is missing$") as error:
        lockfile.load(tmp_path / "matrix.lock")
    assert error.value.hint == lockfile.REMEDY
    with pytest.raises(LockError, match="is damaged: the file cannot be read"):
        lockfile.load(tmp_path)


# One token of a line: no spaces, and nothing that YAML would take for a comment.
token = st.builds("{}{}{}".format, st.sampled_from("aZ09"), st.text("bY18:._+~%-", max_size=8),
                  st.sampled_from("a9"))  # fmt: skip
path = st.builds("{}{}{}".format, st.sampled_from("a_"), st.text("bY1_. /+-", max_size=12),
                 st.sampled_from("az"))  # fmt: skip
file = path.map(lambda text: text.replace("/", "."))
sha256 = st.integers(0, 2**256 - 1).map("{:064x}".format)
image_digest = sha256.map("sha256:{}".format)
commit = st.integers(0, 2**160 - 1).map("{:040x}".format)
size = st.integers(0, 10**12)
items: dict[str, st.SearchStrategy[Item]] = {
    "wheel": st.builds(
        Wheel, name=token, version=token, size=size, sha256=sha256, file=file
    ),
    "deb": st.builds(
        Deb, name=token, version=token, part=st.sampled_from(["root", "more"]), size=size,
        sha256=sha256, file=file,
    ),
    "image": st.builds(PinnedImage, name=token, digest=image_digest, tagged=image_digest),
    "commit": st.builds(Commit, commit=commit, tree=commit),
    "patch": st.builds(PatchText, size=size, sha256=sha256),
    "step": st.builds(
        Step, number=st.integers(1, 99),
        state=st.sampled_from([lock_items.CHANGES, PRESENT]), patch=token,
    ),
    "target": st.builds(
        Target, before=sha256 | st.just(MISSING), after=sha256 | st.just(MISSING), size=size,
        mode=st.sampled_from([KEPT, "644", "755"]), path=path,
    ),
    "file": st.builds(File, size=size, sha256=sha256, name=path),
}  # fmt: skip
readable = st.text(st.characters(max_codepoint=0xD7FF, exclude_categories=["Cc", "Cs"]))
# YAML has room for 1,024 characters in a key.
names = st.text(st.characters(max_codepoint=0xD7FF, exclude_categories=["Cc", "Cs"]), min_size=1,
                max_size=40)  # fmt: skip


some: dict[str, st.SearchStrategy[list[Item]]] = {
    word: st.lists(item, min_size=1, max_size=3) for word, item in items.items()
}
series = st.tuples(some["step"], some["target"]).map(lambda both: (*both[0], *both[1]))
lines: dict[str, st.SearchStrategy[tuple[Item, ...]]] = {
    "wheels": some["wheel"].map(tuple),
    "deb": some["deb"].map(tuple),
    "debian": some["deb"].map(tuple),
    "image": st.tuples(items["image"]),
    "git": st.tuples(items["commit"]),
    "file": st.tuples(items["file"]),
    "replace": st.tuples(items["patch"]),
    "diff": st.tuples(items["patch"]),
    "series": series,
}


def entries(kind: str) -> st.SearchStrategy[Entry]:
    request = st.dictionaries(names, names | st.lists(names) | st.none(), max_size=3).map(
        lambda more: {**more, "kind": kind}
    )
    platforms = st.dictionaries(
        st.sampled_from(["linux/arm64", "linux/amd64", ANY]), lines[kind], min_size=1
    )
    resolved = st.builds(Entry, requested=request, platforms=platforms)
    return resolved | st.builds(Entry, requested=request, unresolved=readable)


def test_every_kind_has_its_strategy() -> None:
    assert set(items) == set(lockfile.WORDS)
    assert set(lines) == set(lockfile.HOLDS)


@pytest.mark.parametrize("kind", lines)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_lock_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    lock = lock_of(
        data.draw(st.dictionaries(st.tuples(names, names), entries(kind), max_size=3)),
        digest=data.draw(sha256.filter(lambda text: not text.isdecimal())),
    )
    file = tmp_path_factory.getbasetemp() / "matrix.lock"
    file.write_text(lockfile.dump(lock))
    read = lockfile.load(file)
    assert lockfile.dump(read) == lockfile.dump(lock)
    assert {key: unordered(entry) for key, entry in read.entries.items()} == {
        key: unordered(entry) for key, entry in lock.entries.items()
    }


def unordered(entry: Entry) -> tuple[object, ...]:
    """The entry, but for the order of its items, which the file has its own way with."""
    platforms = {platform: frozenset(items) for platform, items in entry.platforms.items()}
    return dict(entry.requested), platforms, entry.unresolved


def patching(path: str) -> Lock:
    target = Target(before=MISSING, after="b" * 64, size=1, mode="644", path=path)
    entry = Entry(requested={"kind": "series"}, platforms={ANY: (target,)})
    return lock_of({(SERIES, "fork one: x"): entry})


UNQUOTED = {
    "a checksum of digits only": lock_of({}, digest="0" * 64),
    "a path with a comment's sign": patching("a #b"),
    "a path with a colon": patching("a: b"),
    "a reason beyond the basic plane": lock_of(
        {("x", "1"): Entry(requested={"kind": "git"}, unresolved="\N{COLLISION SYMBOL}")}
    ),
}


@pytest.mark.parametrize("what", UNQUOTED)
def test_what_can_be_locked_can_be_read(tmp_path: Path, what: str) -> None:
    (tmp_path / "matrix.lock").write_text(lockfile.dump(UNQUOTED[what]))
    assert lockfile.load(tmp_path / "matrix.lock") == UNQUOTED[what]


PINS: dict[str, dict[str, Any]] = {
    # Of one glibc: another one would change what the wheels are resolved for, too.
    "os": {"testing": {**maker.OS, "suite": "testing"}, "sid": {**maker.OS, "suite": "sid"}},
    "cuda": {"13.0.0": maker.CUDA, "13.1.0": {**maker.CUDA, "image": "nvidia/cuda:13.1"}},
    "nccl": {"2.30.0": maker.NCCL},
    "app": {"1.0.0": maker.APP, "2.0.0": {**maker.APP, "require": ["app==2.0"]}},
    "fork": {"one": maker.git_pin("a" * 40), "two": maker.git_pin("b" * 8)},
}
LAYERS: dict[str, dict[str, Any]] = {
    "low": {"base": "os"},
    "debs": {"debs": "nccl"},
    "wheels": {"wheels": {"pin": "app"}},
    "rest": {"pins": ["cuda", "fork"]},
}
CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "os": ({"suite": "forky"}, {"packages": ["gcc"]}),
    "cuda": ({"image": "nvidia/cuda:13.0-devel"},),
    "nccl": ({"packages": ["libnccl2=2.31"]}, {"repository": {maker.ARM: "https://other.example"}}),
    "app": ({"require": ["app==3.0"]}, {"exclude": []}, {"require": ["app==2.0", "more==1.0"]}),
    "fork": ({"commit": "c" * 40}, {"repository": "https://git.example/other.git"}),
}


@st.composite
def matrices(draw: st.DrawFn) -> dict[str, Any]:
    """One to three variants over all kinds of pins."""
    variants = [
        maker.include(
            f"v{i}",
            *LAYERS,
            platform=draw(st.sampled_from(["linux/arm64", "linux/amd64"])),
            **{pin: draw(st.sampled_from(list(values))) for pin, values in PINS.items()},
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    return maker.document(PINS, LAYERS, variants)


def turned(draw: st.DrawFn, data: Any, name: str = "") -> Any:
    """The same with every mapping, and every list whose order means nothing, in another order."""
    if isinstance(data, dict):
        return {key: turned(draw, data[key], key) for key in draw(st.permutations(list(data)))}
    if isinstance(data, list):
        moves = name in ("packages", "require", "exclude", "include", "pins")
        order = draw(st.permutations(data)) if moves else data
        return [turned(draw, item) for item in order]
    return data


@st.composite
def written(draw: st.DrawFn, data: dict[str, Any]) -> str:
    """The matrix as somebody might write it: any order, form, indentation, and comments."""
    text = yaml.safe_dump(
        turned(draw, data),
        sort_keys=False,
        default_flow_style=draw(st.sampled_from([True, False, None])),
        indent=draw(st.integers(2, 8)),
        width=10_000,
    )
    comment = st.sampled_from(["", "# why\n", "\n", "   # - x: [\n\n"])
    return "".join(draw(comment) + line for line in text.splitlines(keepends=True))


def read_as(folder: Path, text: str) -> Matrix:
    (folder / "matrix.yaml").write_text(text)
    return matrix.load(folder / "matrix.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in LAYERS:
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "Dockerfile").write_text(f"FROM layer AS {name}\n")
    return folder


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_only_a_changed_request_makes_a_lock_stale(project: Path, data: st.DataObject) -> None:
    given_matrix = data.draw(matrices())
    read = read_as(project, yaml.safe_dump(given_matrix))
    lock = maker.locked(read)
    assert lockfile.check(read, lock) == []
    again = read_as(project, data.draw(written(given_matrix)))
    assert lockfile.request_digest(again) == lock.request_digest
    assert lockfile.check(again, lock) == []
    # One pin of one variant has changed, and nothing else is reported.
    pin = data.draw(st.sampled_from(list(CHANGES)))
    value = data.draw(st.sampled_from([v["pins"][pin] for v in given_matrix["include"]]))
    change = data.draw(st.sampled_from(CHANGES[pin]))
    asks = {**PINS[pin], value: {**PINS[pin][value], **change}}
    other = {**given_matrix, "pins": {**PINS, pin: asks}}
    moved = read_as(project, data.draw(written(other)))
    assert lockfile.request_digest(moved) != lock.request_digest
    assert lockfile.check(moved, lock) == [f"pin {pin} {value} has changed since it was locked"]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_unused_value_does_not_make_a_lock_stale(project: Path, data: st.DataObject) -> None:
    given_matrix = data.draw(matrices())
    read = read_as(project, yaml.safe_dump(given_matrix))
    more = {**PINS, "cuda": {**PINS["cuda"], "14.0.0": {**maker.CUDA, "image": "nvidia/cuda:14"}}}
    wider = read_as(project, yaml.safe_dump({**given_matrix, "pins": more}))
    assert lockfile.request_digest(wider) == lockfile.request_digest(read)
    assert lockfile.check(wider, maker.locked(read)) == []


def test_a_lock_that_was_edited_by_hand_is_reported(project: Path) -> None:
    variants = [maker.include("v", *LAYERS, **{pin: next(iter(v)) for pin, v in PINS.items()})]
    read = read_as(project, yaml.safe_dump(maker.document(PINS, LAYERS, variants)))
    lock = replace(maker.locked(read), request_digest="0" * 64)
    (problem,) = lockfile.check(read, lock)
    assert "its checksum is not the matrix's" in problem


def test_an_unresolved_pin_fits_until_its_request_changes(project: Path) -> None:
    variants = [maker.include("v", *LAYERS, **{pin: next(iter(v)) for pin, v in PINS.items()})]
    read = read_as(project, yaml.safe_dump(maker.document(PINS, LAYERS, variants)))
    lock = maker.locked(read)
    key = ("fork", "one")
    unresolved = Entry(requested=lock.entries[key].requested, unresolved="its server is silent")
    lock = replace(lock, entries={**lock.entries, key: unresolved})
    assert lockfile.check(read, lock) == []
    assert lock.unresolved(*key) == "its server is silent"
    assert lock.unresolved("os", "testing") is None
    assert lock.find(*key, maker.ARM) is None
    with pytest.raises(LockError, match=r"has nothing for pin fork one"):
        lock.items(*key, maker.ARM)
    pins = {**PINS, "fork": {"one": maker.git_pin("d" * 40)}}
    moved = read_as(project, yaml.safe_dump(maker.document(pins, LAYERS, variants)))
    assert lockfile.check(moved, lock) == ["pin fork one has changed since it was locked"]
