"""matrix.yaml: what it expands to, and every way in which it can be wrong."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage import lock, matrix, plan
from sparkimage.errors import ConfigError, LockError, UsageError
from sparkimage.lock import Lock, Wheel, WheelsEntry
from sparkimage.plan import Origin

GOOD = """\
version: 1
repository: some/where
pins:
  debian:
    trixie: {kind: debian, suite: trixie}
  nccl:
    "2.30.4": {kind: wheels, require: ["nvidia-nccl-cu13==2.30.4"], python: "3.13"}
    "2.30.7": {kind: wheels, require: ["nvidia-nccl-cu13==2.30.7"], python: "3.13"}
layers:
  base: {pins: [debian]}
  nccl: {wheels: {pin: nccl}}
defaults:
  name: "n{nccl}-{arch}"
  layers: [base, nccl]
  entrypoint: [run]
axes:
  platform: [linux/arm64, linux/amd64]
  debian: [trixie]
  nccl: ["2.30.4", "2.30.7"]
exclude:
  - {platform: linux/amd64, nccl: "2.30.7"}
include: []
groups:
  default: ["n2.30.4-*"]
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("base", "nccl"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "Dockerfile").write_text(f"FROM layer AS {name}\n")
    return folder


def load(project: Path, text: str) -> matrix.Matrix:
    (project / "matrix.yaml").write_text(text)
    return matrix.load(project / "matrix.yaml")


def problems(project: Path, text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(ConfigError) as error:
        load(project, text)
    return [(p.line, p.what, p.todo) for p in error.value.problems]


def test_expansion(project: Path) -> None:
    read = load(project, GOOD)
    assert [v.name for v in read.variants] == ["n2.30.4-arm64", "n2.30.7-arm64", "n2.30.4-amd64"]
    assert read.groups == {"default": ("n2.30.4-arm64", "n2.30.4-amd64")}
    assert read.warnings == ()
    assert read.variants[0].pins == {"debian": "trixie", "nccl": "2.30.4"}


TWIN = (
    "include: [{name: n2.30.4-arm64, platform: linux/arm64, "
    'pins: {debian: trixie, nccl: "2.30.7"}}]'
)
WRONG = [
    ("repository:", "repositry:", 2, "unknown key 'repositry'", "did you mean 'repository'?"),
    ("{wheels: {pin: nccl}}", "{wheels: {pin: nccl, selct: [a]}}", 11, "unknown key 'selct'",
     "did you mean 'select'?"),
    ('nccl: ["2.30.4", "2.30.7"]\nex', 'nccl: ["2.30.4", "2.30.9"]\nex', 19,
     "axis nccl names '2.30.9', but pins.nccl has no such value", "did you mean"),
    ("  base: {pins", "  gone: {}\n  base: {pins", 10, "layer gone has no images/gone/Dockerfile",
     "make it"),
    ('"2.30.7": {kind', '"newest": {kind', 8, "pin nccl: 'newest' is no version",
     "MAJOR.MINOR.PATCH"),
    ("[linux/arm64, linux/amd64]\n  deb", "[linux/arm64, linux/riscv64]\n  deb", 17,
     "platform 'linux/riscv64' is supported by no layer", "did you mean"),
    ("n{nccl}-{arch}", "n-{arch}", 13, "two variants are called 'n-arm64'", "axis that tells"),
    ("n{nccl}-{arch}", "n{nope}", 13, "cannot be filled in: 'nope'", "known are {platform}"),
    ("n{nccl}-{arch}", "n {nccl}-{arch}", 13, "cannot be an image's tag", "letters"),
    ('["n2.30.4-*"]', "[other]", 24, "group default: 'other' is no variant", "known are"),
    ("[base, nccl]", "[base, ncl]", 14, "unknown layer 'ncl'", "did you mean 'nccl'?"),
    ("debian: [trixie]\n  n", "debain: [trixie]\n  n", 18, "axis 'debain' is neither", "did you"),
    ("{pins: [debian]}", "{pins: [debian, cuda]}", 10, "uses pin 'cuda', which is not in pins",
     "known are"),
    ('python: "3.13"}\n    "2.30.7"', 'python: 3.13}\n    "2.30.7"', 7, "must be text, but is 3.13",
     'quote it: "3.13"'),
    ("nvidia-nccl-cu13==2.30.4", "nvidia-nccl-cu13>=2.30.4", 7, "does not have the right form",
     "NAME==VERSION"),
    ("kind: debian", "kind: ubuntu", 5, "is of no known kind", "kind: debian"),
    ("version: 1\n", "version: 2\n", 1, "version is 2", "it must be 1"),
    ("  debian: [trixie]\n", "", 13, "layer base needs a value for pin debian", "add an axis"),
    ("some/where", "Some/Where", 2, "does not have the right form", "it must match"),
    ("  platform: [linux/arm64, linux/amd64]\n", "", 16, "there is no platform axis", "add"),
    ("include: []", "include: [{name: x, platform: linux/arm64, pins: {ncl: '1'}}]", 22,
     "variant x names ncl '1', which is not in pins", "did you mean 'nccl'?"),
    ("include: []", ("include: [{name: n2.30.4-arm64, platform: linux/arm64, "
     "pins: {debian: trixie, nccl: 2.30.7}}]"), 22, "two variants are called 'n2.30.4-arm64'",
     "rename one"),
    ("include: []", "include: []\ninclude: []", 23, "the key 'include' stands here twice", "keep"),
    ("axes:\n", "axes: &a\n  loop: *a\n", 16, "an alias contains itself", "remove the alias"),
    ("version: 1\n", "version: 1\n\t- x", 2, "this is no YAML", "spaces"),
    ("version: 1\n", "---\nversion: 1\n---\n", 3, "this is no YAML", "one document"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "what", "todo"), WRONG)
def test_a_problem_has_its_line_and_its_mend(
    project: Path, old: str, new: str, line: int, what: str, todo: str
) -> None:
    assert old in GOOD
    found = problems(project, GOOD.replace(old, new, 1))
    assert any(at == line and what in said and todo in mend for at, said, mend in found), found


def test_all_problems_are_in_one_report_sorted_by_line(project: Path) -> None:
    text = GOOD.replace("repository:", "repositry:").replace("include:", "inclde:")
    found = problems(project, text)
    assert [line for line, _, _ in found] == sorted(line for line, _, _ in found)
    assert len(found) == 3  # two unknown keys, and the repository is missing


def test_an_idle_exclude_is_a_warning(project: Path) -> None:
    read = load(project, GOOD.replace("linux/amd64, nccl", "linux/arm64, debian: sid, nccl"))
    assert [(w.line, w.what) for w in read.warnings] == [(21, "this exclude matches no variant")]
    assert len(read.variants) == 4


def test_a_layer_that_does_not_support_the_platform(project: Path) -> None:
    text = GOOD.replace("{wheels: {pin: nccl}}", "{wheels: {pin: nccl}, platforms: [linux/arm64]}")
    assert any("does not support linux/amd64" in what for _, what, _ in problems(project, text))


def test_two_layers_cannot_both_take_the_rest(project: Path) -> None:
    text = GOOD.replace("base: {pins: [debian]}", "base: {pins: [debian], wheels: {pin: nccl}}")
    assert any("both take the rest of pin nccl" in what for _, what, _ in problems(project, text))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x" * (1 << 20) + b"xx", "larger than 1 MiB"),
        ((b"a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
         b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"),
         "aliases expand"),
        (b"- 1\n- 2\n", "version is missing"),
        (b"just words", "version is missing"),
    ],
)  # fmt: skip
def test_files_that_are_no_matrix(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        matrix.load(path)
    assert any(what in p.what for p in error.value.problems) or "Input should be" in str(
        error.value.detail
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 problem") as missing:
        matrix.load(tmp_path / "nothing.yaml")
    assert "does not exist" in missing.value.detail
    with pytest.raises(ConfigError) as folder:
        matrix.load(tmp_path)
    assert "cannot be read: Is a directory" in folder.value.detail


def test_axes_without_a_platform_are_refused_beside_an_include(project: Path) -> None:
    text = GOOD.replace("  platform: [linux/arm64, linux/amd64]\n", "").replace(
        "include: []", "include: [{name: x, platform: linux/arm64, layers: [base]}]"
    )
    assert (16, "there is no platform axis", "add `platform: [linux/arm64]`") in problems(
        project, text
    )


def test_a_matrix_may_be_includes_only(project: Path) -> None:
    head, _, _ = GOOD.partition("axes:\n")
    read = load(
        project,
        head + "include:\n  - {name: x, platform: linux/amd64, pins: {debian: trixie, "
        'nccl: "2.30.7"}}\ngroups: {default: [x]}\n',
    )
    assert [(v.name, v.platform, v.pins["nccl"]) for v in read.variants] == [
        ("x", "linux/amd64", "2.30.7")
    ]


def test_select(project: Path) -> None:
    read = load(project, GOOD)
    assert [v.name for v in matrix.select(read, only="*-arm64")] == [
        "n2.30.4-arm64",
        "n2.30.7-arm64",
    ]
    with pytest.raises(UsageError, match="no variant is called") as error:
        matrix.select(read, names=["n2.30.4-arm"])
    assert error.value.hint == "did you mean 'n2.30.4-arm64'?"
    with pytest.raises(UsageError, match="no variant matches"):
        matrix.select(read, only="x*")


names = st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=4, unique=True)


@settings(max_examples=60, deadline=None)
@given(a=names, b=names, data=st.data())
def test_the_product_without_what_is_excluded(
    project: Path, a: list[str], b: list[str], data: st.DataObject
) -> None:
    rows = list(itertools.product(a, b))
    gone = data.draw(st.lists(st.sampled_from(rows), unique=True, max_size=len(rows) - 1))
    given_matrix: dict[str, Any] = {
        "version": 1,
        "repository": "r",
        "pins": {
            axis: {value: {"kind": "debian", "suite": "sid"} for value in values}
            for axis, values in (("a", a), ("b", b))
        },
        "layers": {"base": {"pins": ["a", "b"]}},
        "defaults": {"name": "{a}-{b}-{arch}", "layers": ["base"]},
        "axes": {"platform": ["linux/arm64"], "a": a, "b": b},
        "exclude": [{"a": x, "b": y} for x, y in gone],
        "groups": {"default": ["*"]},
    }
    read = load(project, json.dumps(given_matrix))
    kept = [row for row in rows if row not in gone]
    assert [v.name for v in read.variants] == [f"{x}-{y}-arm64" for x, y in kept]
    # Neither the order of an exclude's keys nor that of the pins means anything.
    turned = copy.deepcopy(given_matrix)
    turned["exclude"] = [dict(reversed(list(e.items()))) for e in turned["exclude"]]
    turned["pins"] = dict(reversed(list(turned["pins"].items())))
    assert load(project, json.dumps(turned)).variants == read.variants


def wheel(name: str, version: str = "1.0") -> Wheel:
    return Wheel(name=name, version=version, file=f"{name}-{version}.whl", size=1, sha256="0" * 64)


ORIGIN = Origin(source="unknown", revision="unknown", epoch=0)


def locked(read: matrix.Matrix, *wheels: Wheel) -> Lock:
    entries = {
        ("nccl", value): WheelsEntry(
            asked=lock.asked(read.pins["nccl"][value]),
            platforms={"linux/arm64": wheels, "linux/amd64": wheels},
        )
        for value in ("2.30.4", "2.30.7")
    }
    return Lock(file="matrix.lock", entries=entries)


def test_every_wheel_goes_to_exactly_one_layer(project: Path) -> None:
    text = GOOD.replace(
        "base: {pins: [debian]}", 'base: {pins: [debian], wheels: {pin: nccl, select: ["nv*"]}}'
    )
    read = load(project, text)
    held = locked(read, wheel("nvidia-x"), wheel("torch"), wheel("vllm"))
    made = plan.make(read, read.variants[0], held, ORIGIN)
    assert [[w.name for w in layer.wheels] for layer in made.layers] == [
        ["nvidia-x"],
        ["torch", "vllm"],
    ]
    assert made.layers[1].requirements.splitlines()[0] == f"torch==1.0 --hash=sha256:{'0' * 64}"
    with pytest.raises(LockError, match="gets no wheel"):
        plan.make(read, read.variants[0], locked(read, wheel("torch")), ORIGIN)


def test_a_wheel_that_no_layer_takes_is_an_error(project: Path) -> None:
    read = load(project, GOOD.replace("{pin: nccl}", '{pin: nccl, select: ["nv*"]}'))
    with pytest.raises(LockError, match="no layer takes torch"):
        plan.make(read, read.variants[0], locked(read, wheel("nvidia"), wheel("torch")), ORIGIN)


def test_the_checksum_changes_with_what_goes_in_and_with_nothing_else(project: Path) -> None:
    read = load(project, GOOD)
    one = plan.make(read, read.variants[0], locked(read, wheel("a")), ORIGIN)
    same = plan.make(read, read.variants[0], locked(read, wheel("a")), ORIGIN)
    other = plan.make(read, read.variants[0], locked(read, wheel("a", "1.1")), ORIGIN)
    assert one.checksum() == same.checksum()
    assert one.checksum() != other.checksum()
    assert one.lock_checksum != other.lock_checksum
    assert one.labels["dev.sparkimage.lock"] == f"sha256:{one.lock_checksum}"
    assert one.labels["dev.sparkimage.version.nccl"] == "2.30.4"


def test_lock_and_matrix_disagree(project: Path) -> None:
    read = load(project, GOOD)
    held = locked(read, wheel("a"))
    assert lock.check(read, held) == []
    moved = load(project, GOOD.replace("cu13==2.30.4", "cu13==2.30.5"))
    assert lock.check(moved, held) == ["pin nccl 2.30.4 asks for something else than was locked"]
    fewer = Lock(file="matrix.lock", entries={("nccl", "2.30.4"): held.entries["nccl", "2.30.4"]})
    assert lock.check(read, fewer) == ["pin nccl 2.30.7 is not locked"]
    more = Lock(file="f", entries={**held.entries, ("old", "1"): held.entries["nccl", "2.30.4"]})
    assert lock.check(read, more) == ["pin old 1 is locked but no variant uses it"]
    with pytest.raises(LockError, match="holds nothing for pin nccl"):
        plan.make(read, read.variants[1], fewer, ORIGIN)


words = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
wheels_of = st.lists(
    st.builds(
        Wheel,
        name=words,
        version=st.from_regex(r"[0-9]\.[0-9]", fullmatch=True),
        file=words,
        size=st.integers(0, 10**12),
        sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(words, words), wheels_of, max_size=4))
def test_a_lock_reads_as_it_was_written(
    project: Path, entries: dict[tuple[str, str], list[Wheel]]
) -> None:
    made = Lock(
        file="matrix.lock",
        entries={
            key: WheelsEntry(
                asked={"require": ["a==1"], "exclude": [], "python": "3.13"},
                platforms={"linux/arm64": tuple(sorted(found))},
            )
            for key, found in entries.items()
        },
    )
    path = project / "matrix.lock"
    path.write_text(lock.dump(made))
    if entries:
        assert lock.dump(lock.load(path)) == lock.dump(made)


@pytest.mark.parametrize(
    "text", ["", "version: 9\n", "version: 1\npins: 3\n", "a: [", "version: 1\n"]
)
def test_a_damaged_lock_says_what_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.lock").write_text(text)
    with pytest.raises(LockError) as error:
        lock.load(tmp_path / "matrix.lock")
    assert "python build.py lock" in error.value.hint
