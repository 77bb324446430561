"""matrix.yaml: what it expands to, and every way in which it can be wrong."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.lock_items import Deb, Item, Wheel
from sparkimage.config.lockfile import Entry, Lock
from sparkimage.config.plan import Origin
from sparkimage.core.errors import ConfigError, LockError, UsageError
from tests.unit import project_maker as maker

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
  base: {base: debian}
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
     "axis nccl has '2.30.9', which is not in pins.nccl", "did you mean"),
    ("  base: {base", "  gone: {}\n  base: {base", 10, "layer gone has no images/gone/Dockerfile",
     "write it"),
    ('"2.30.7": {kind', '"2.30.7": {version: newest, kind', 8,
     "pin nccl: 'newest' is not a version", "MAJOR.MINOR.PATCH"),
    ("[linux/arm64, linux/amd64]\n  deb", "[linux/arm64, linux/riscv64]\n  deb", 17,
     "no layer supports platform 'linux/riscv64'", "did you mean"),
    ("n{nccl}-{arch}", "n-{arch}", 13, "two variants are called 'n-arm64'",
     "add {nccl}, in which they differ, to defaults.name"),
    ('nccl: ["2.30.4", "2.30.7"]\nex', 'nccl: ["2.30.4", "2.30.4"]\nex', 19,
     "axis nccl has '2.30.4' twice", "keep one of the two"),
    ("include: []", "include: [{name: x, platform: linux/arm64, pins: {platform: x}}]", 22,
     "variant x: platform is no pin", "write `platform:` or `platforms:` beside its name"),
    ("version: 1\n", "version: 1\nmirrors: {whels: 'https://i.example'}\n", 2,
     "the mirror of whels is 'https://i.example', and whels is no registry",
     "did you mean 'wheels'?"),
    ("version: 1\n", "version: 1\nmirrors: {dockerio: 'r.example/hub'}\n", 2,
     "and dockerio is no registry", "did you mean 'docker.io'?"),
    ("version: 1\n", "version: 1\nmirrors: {hub: 'r.example/hub'}\n", 2,
     "the mirror of hub is 'r.example/hub', and hub is no registry", "write wheels,"),
    ("nvidia-nccl-cu13==2.30.4", "nvidia-nccl-cu13", 7, "does not have the right form",
     "write its version, too: `nvidia-nccl-cu13==VERSION`"),
    ("nvidia-nccl-cu13==2.30.4", "nccl @ https://e.example/n.whl", 7, "does not have the right",
     "is a pin of kind `file`, which a layer installs"),
    ("nvidia-nccl-cu13==2.30.4", "git+https://e.example/n.git", 7, "does not have the right form",
     "is a pin of kind `git`, which a layer builds"),
    ("nvidia-nccl-cu13==2.30.4", "-r requirements.txt", 7, "does not have the right form",
     "write the file's lines here"),
    ("exclude:\n  - {p", "exclude:\n  {p", 20,
     "exclude must be a list, but is a mapping", "`exclude: [{NAME: …}]`"),
    ("n{nccl}-{arch}", "n{nope}", 13, "cannot be filled in: 'nope' is no axis",
     "known are {platform}, {debian}, {nccl}, {arch}"),
    ("n{nccl}-{arch}", "n{}", 13, "cannot be filled in: '' is no axis", "known are"),
    ("n{nccl}-{arch}", "n{0}", 13, "cannot be filled in: '0' is no axis", "known are"),
    ("n{nccl}-{arch}", "n{nccl.x}", 13, "'nccl.x' is no axis", "did you mean {nccl}?"),
    ("n{nccl}-{arch}", "n{nccl[0]}", 13, "'nccl[0]' is no axis", "did you mean {nccl}?"),
    ("n{nccl}-{arch}", "n{nccl!r}", 13, "cannot be filled in: 'nccl' takes no format", "known"),
    ("n{nccl}-{arch}", "n{nccl:>3000000000}", 13, "'nccl' takes no format", "known are"),
    ("n{nccl}-{arch}", "n{nccl:{arch}}", 13, "'nccl' takes no format", "known are"),
    ("n{nccl}-{arch}", "n{nccl", 13, "cannot be filled in: expected '}'", "known are"),
    ("n{nccl}-{arch}", "n {nccl}-{arch}", 13, "cannot be an image's tag", "letters"),
    ('["n2.30.4-*"]', "[other]", 24, "group default: 'other' is no variant", "known are"),
    ("[base, nccl]", "[base, ncl]", 14, "unknown layer 'ncl'", "did you mean 'nccl'?"),
    ("{base: debian}", "{base: debian, pins: [cuda]}", 10, "uses pin 'cuda', which is not in pins",
     "known are"),
    ('python: "3.13"}\n    "2.30.7"', 'python: 3.13}\n    "2.30.7"', 7, "must be text, but is 3.13",
     'quote it: "3.13"'),
    ("nvidia-nccl-cu13==2.30.4", "nvidia-nccl-cu13>=2.30.4", 7, "does not have the right form",
     "NAME==VERSION"),
    ("kind: debian", "kind: ubuntu", 5, "pins.debian.trixie is of the unknown kind 'ubuntu'",
     "known are deb, debian, file, git, image, wheels"),
    ("version: 1\n", "version: 2\n", 1, "version is 2", "it must be 1"),
    ("some/where", "Some/Where", 2, "does not have the right form", "did you mean 'some/where'?"),
    ("  platform: [linux/arm64, linux/amd64]\n", "", 16, "there is no platform axis", "add"),
    ("include: []", "include: [{name: x, platform: linux/arm64, pins: {ncl: '1'}}]", 22,
     "variant x names ncl '1', which is not in pins", "did you mean 'nccl'?"),
    ("include: []", ("include: [{name: n2.30.4-arm64, platform: linux/arm64, "
     "pins: {debian: trixie, nccl: 2.30.7}}]"), 22, "two variants are called 'n2.30.4-arm64'",
     "rename one"),
    ("include: []", "include: []\ninclude: []", 23, "duplicate key 'include'", "keep"),
    ("{base: debian}", "{base: nccl}", 13, ("layer base has nccl as `base`, but nccl 2.30.4 is a "
     "wheels pin"), "`base` takes a pin of kind debian or image"),
    ("{wheels: {pin: nccl}}", "{debs: nccl}", 13, ("layer nccl has nccl as `debs`, but nccl 2.30.4 "
     "is a wheels pin"), "`debs` takes a pin of kind deb or debian"),
    ("{wheels: {pin: nccl}}", "{wheels: {pin: debian}}", 13, ("layer nccl has debian as `wheels`, "
     "but debian trixie is a debian pin"), "`wheels` takes a pin of kind wheels"),
    ("{wheels: {pin: nccl}}", ("{source: {pin: nccl, dockerfile: D, target: t, images: {A: debian, "
     "B: layer}}}"), 13, ("layer nccl has debian as `source`, "
     "but debian trixie is a debian pin"), "`source` takes a pin of kind image"),
    ("[base, nccl]", "[nccl, base]", 13, ("variant n2.30.4-arm64: layer base has a `base`, but is "
     "not the lowest"), "the lowest layer, and no other, has a `base`"),
    ("[base, nccl]", "[nccl]", 13, ("variant n2.30.4-arm64: layer nccl is the "
     "lowest, but has no `base`"),
     "the lowest layer, and no other, has a `base`"),
    ("{wheels: {pin: nccl}}", "{wheels: {pin: nccl}, patches: [fix]}", 11,
     "layer nccl applies patch 'fix', which is not in patches/patches.yaml",
     "write patches/patches"),
    ("{wheels: {pin: nccl}}", "{wheels: {pin: nccl}, checks: [bsae]}", 11,
     "layer nccl takes the checks of 'bsae', which is no layer", "did you mean 'base'?"),
    ('suite: trixie}', 'suite: trixie, pakages: [gcc]}', 5, "unknown key 'pakages'",
     "did you mean 'packages'?"),
    ("{kind: debian, suite: trixie}", "{kind: git, repository: x}", 5, "'x' does not have the",
     "ssh://git@HOST/PATH"),
    ("axes:\n", "axes: &a\n  loop: *a\n", 16, "an alias contains itself", "remove the alias"),
    ("version: 1\n", "version: 1\n\t- x", 2, "invalid YAML", "spaces"),
    ("version: 1\n", "---\nversion: 1\n---\n", 3, "invalid YAML", "one document"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "what", "todo"), WRONG)
def test_a_problem_has_its_line_and_next_action(
    project: Path, old: str, new: str, line: int, what: str, todo: str
) -> None:
    assert old in GOOD
    reported = problems(project, GOOD.replace(old, new, 1))
    assert any(at == line and what in seen and todo in hint for at, seen, hint in reported), (
        reported
    )


def test_all_problems_are_in_one_report_sorted_by_line(project: Path) -> None:
    text = GOOD.replace("repository:", "repositry:").replace("include:", "inclde:")
    reported = problems(project, text)
    assert [line for line, _, _ in reported] == sorted(line for line, _, _ in reported)
    assert len(reported) == 3  # two unknown keys, and the repository is missing


def test_an_unknown_patch_suggests_the_nearest(tmp_path: Path) -> None:
    pins = {"os": {"trixie": maker.OS}}
    layers = {"low": {"base": "os"}, "high": {"patches": ["fox"]}}
    data = maker.document(pins, layers, [maker.include("v", *layers, os="trixie")])
    patch = {"kind": "replace", "purpose": "x", "file": "f", "root": "/opt", "replaces": "x",
             "needed_by": ["aaaaaaa"]}  # fmt: skip
    with pytest.raises(ConfigError) as error:
        maker.write(tmp_path, data, {"fix": patch})
    (problem,) = error.value.problems
    assert problem.what == "layer high applies patch 'fox', which is not in patches/patches.yaml"
    assert problem.todo == "did you mean 'fix'?"


def test_a_matrix_of_every_kind_of_pin_and_layer(tmp_path: Path) -> None:
    pins = {
        "os": {"13.0.0": maker.CUDA, "trixie": maker.OS},
        "fork": {"one": maker.git_pin("a" * 9)},
        "nccl": {"2.30.0": maker.NCCL},
    }
    source = {
        "pin": "fork", "dockerfile": "D", "target": "t",
        "images": {"BUILD": "os", "FINAL": "layer"},
    }  # fmt: skip
    layers = {
        "low": {"base": "os"},
        "made": {"source": source, "checks": ["low"]},
        "debs": {"debs": "nccl"},
    }
    good = maker.include("v", *layers, os="13.0.0", fork="one", nccl="2.30.0")
    read = maker.write(tmp_path, maker.document(pins, layers, [good]))
    # What a source builds has no Dockerfile of ours.
    assert not (tmp_path / "images" / "made").exists()
    assert read.variants[0].pins == {"os": "13.0.0", "fork": "one", "nccl": "2.30.0"}
    assert set(lockfile.requests(read)) == set(read.variants[0].pins.items())
    # One value of a pin suits a layer, and another one does not.
    bad = {**good, "pins": {**good["pins"], "os": "trixie"}}
    with pytest.raises(ConfigError) as error:
        maker.write(tmp_path, maker.document(pins, layers, [bad]))
    assert [(p.what, p.todo) for p in error.value.problems] == [
        ("variant v: layer made has os as `source`, but os trixie is a debian pin",
         "`source` takes a pin of kind image"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "images", "line", "what"),
    [
        ("debs: nccl", "BUILD: os, FINAL: layer", 12, "would ignore its `debs`"),
        ("wheels: {pin: app}", "BUILD: os, FINAL: layer", 12, "would ignore its `wheels`"),
        ("base: os", "BUILD: os, FINAL: layer", 12, "would ignore its `base`"),
        ("inputs: {x: os}", "BUILD: os, FINAL: layer", 12, "would ignore its `inputs`"),
        ("args: {}", "BUILD: os", 11, "takes no layer below"),
    ],
)
def test_a_source_layer_with_ignored_inputs_is_refused(
    tmp_path: Path, more: str, images: str, line: int, what: str
) -> None:
    images = f"images: {{{images}}}"
    values = {"os": "13.0.0", "fork": "one", "nccl": "2.30.0", "app": "1.0.0"}
    text = f"""version: 1
repository: r
pins:
  os: {{"13.0.0": {{kind: image, image: "nvidia/cuda:13.0"}}}}
  nccl: {{"2.30.0": {json.dumps(maker.NCCL)}}}
  app: {{"1.0.0": {json.dumps(maker.APP)}}}
  fork: {{one: {json.dumps(maker.git_pin("a" * 9))}}}
layers:
  low: {{base: os}}
  made:
    source: {{pin: fork, dockerfile: D, target: t, {images}}}
    {more}
defaults: {{name: x, layers: [low, made]}}
include: [{json.dumps(maker.include("v", "low", "made", **values))}]
groups: {{default: [v]}}
"""
    (tmp_path / "images" / "low").mkdir(parents=True)
    (tmp_path / "images" / "low" / "Dockerfile").write_text("FROM layer\n")
    assert [at for at, seen, _ in problems(tmp_path, text) if what in seen] == [line]


INPUTS = """\
version: 1
repository: r
pins:
  os: {trixie: {kind: debian, suite: trixie}}
  words: {v1: {kind: file, url: "https://files.example/words.txt"}}
  fork: {one: {kind: git, repository: "https://git.example/f.git", commit: aaaaaaa}}
  cuda: {"13": {kind: image, image: "nvidia/cuda:13.0"}}
layers:
  low: {base: os}
  up: {inputs: {words: words, tree: fork, devel: cuda}, secrets: [TOKEN], ssh: true, syntax: cuda}
  made: {source: {pin: fork, images: {FINAL: layer}, disk: 1.5GB, memory: 2GB}}
defaults: {name: x, layers: [low, up, made]}
include:
  - {name: v, platform: linux/arm64, pins: {os: trixie, words: v1, fork: one, cuda: "13"}}
groups: {default: [v]}
"""
WRONG_INPUTS = [
    ("words: words,", "words: wrods,", 10, "layer up uses pin 'wrods', which is not in pins",
     "did you mean 'words'?"),
    ("words: words,", "words: os,", 14, ("layer up has os as `inputs`, but os trixie is a debian "
     "pin"), "`inputs` takes a pin of kind git or image or file"),
    ("words: words,", "tools: words,", 10, ("layer up has an input called 'tools': that is the "
     "folder with step.sh"), "give the context another name"),
    ("words: words,", "layer: words,", 10, "that is the layer below", "another name"),
    ("words: words,", "scratch: words,", 10, "that is the empty image", "another name"),
    ("words: words,", "up: words,", 10, "that is the stage of its own Dockerfile", "another name"),
    ("words: words,", "Words: words,", 10, "layers.up.inputs.Words", "did you mean 'words'?"),
    ("images: {FINAL: layer},", "images: {FINAL: layer}, inputs: {final: cuda},", 11,
     "layer made has an input called 'final': that is the image of FINAL", "another name"),
    ("syntax: cuda", "syntax: fork", 14, "layer up has fork as `syntax`, but fork one is a git pin",
     "`syntax` takes a pin of kind image"),
    ("secrets: [TOKEN]", "secrets: [ca]", 10, "layer up has a secret called 'ca'", "another name"),
    ("secrets: [TOKEN]", "secrets: [a=b]", 10, "layers.up.secrets.0: 'a=b' does not have",
     "it must be letters, digits and `_.-`"),
    ("ssh: true", "ssh: agent", 10, "layers.up.ssh must be true or false", "write true or false"),
    ("disk: 1.5GB", "disk: 107", 11, "source.disk must be text, but is 107", 'quote it: "107"'),
    ("disk: 1.5GB", "disk: 107G", 11, "source.disk: '107G' does not have the right form",
     "did you mean '107GB'?"),
    ("memory: 2GB", "jobs: 16", 11, "unknown key 'jobs' in layers.made.source",
     "write it as a build argument of the layer: `args: {max_jobs: \"16\"}`"),
    ("memory: 2GB", "context: /x", 11, "source.context: '/x' does not have", "did you mean 'x'?"),
    ("memory: 2GB", "context: a/../b", 11, "source.context: 'a/../b' does not have",
     "a relative path, without `..`"),
    ("https://files.example/words.txt", "ftp://files.example/words.txt", 5,
     "pins.words.v1.url: 'ftp://files.example/words.txt' does not have", "be https://HOST/PATH"),
    ("https://files.example/words.txt", "https://me:secret@files.example/words.txt", 5,
     "'https://files.example/words.txt' has a login, which plans and labels would show",
     "did you mean 'https://files.example/words.txt'?"),
    ("https://files.example/words.txt", "https://files.example/a/", 5,
     "pin words: '', the end of its `url`, is no file name here", "give it a `name:`"),
    ('words.txt"}', 'words.txt", sha256: abc}', 5, "pins.words.v1.sha256: 'abc' does not have",
     "64 hex digits"),
    ('words.txt"}', 'words.txt", name: "../x"}', 5, "pins.words.v1.name: '../x' does not",
     "name of a file"),
    ("https://git.example/f.git", "https://me:token@git.example/f.git", 6,
     "pins.fork.one.repository", "ssh://git@HOST/PATH where it is private"),
    ("https://git.example/f.git", "git@git.example:f.git", 6, "pins.fork.one.repository",
     "ssh://git@HOST/PATH where it is private"),
    ("kind: git, ", 'kind: git, version: "1 0", ', 6, "pins.fork.one.version: '1 0' does not",
     "(PEP 440)"),
    ("  fork:", "  layer: {one: {kind: debian, suite: sid}}\n  fork:", 6,
     "no pin can be called 'layer': among the images of a source this is the layer below",
     "rename"),
    ("layers: [low, up, made]", "layers: [made, up]", 11,
     "variant v: layer made is the lowest, but it takes the layer below",
     "give it an image pin in place of `layer`, or a layer below it"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "what", "todo"), WRONG_INPUTS)
def test_a_problem_of_an_input_has_its_line_and_next_action(
    tmp_path: Path, old: str, new: str, line: int, what: str, todo: str
) -> None:
    assert INPUTS.count(old) == 1
    for name in ("low", "up"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "Dockerfile").write_text("FROM layer\n")
    assert load(tmp_path, INPUTS).variants[0].pins["words"] == "v1"
    reported = problems(tmp_path, INPUTS.replace(old, new))
    assert any(at == line and what in seen and todo in hint for at, seen, hint in reported), (
        reported
    )


def test_disk_and_memory_are_of_the_plan_and_not_of_the_image(tmp_path: Path) -> None:
    pins = {"os": {"trixie": maker.OS}, "fork": {"one": maker.git_pin("a" * 40)}}
    source = {"pin": "fork", "images": {"FINAL": "layer"}}
    layers: dict[str, Any] = {"low": {"base": "os"}}
    layers |= {name: {"source": dict(source)} for name in ("one", "two")}
    variant = maker.include("v", *layers, os="trixie", fork="one")
    read = maker.write(tmp_path, maker.document(pins, layers, [variant]))
    plain = planning.make(read, read.variants[0], maker.locked(read), ORIGIN)
    assert (plain.disk, plain.memory) == (0, 0)
    layers["one"]["source"] |= {"disk": "107GB", "memory": "1.5GB"}
    layers["two"]["source"] |= {"disk": "500MB", "memory": "0.1TB"}
    read = maker.write(tmp_path, maker.document(pins, layers, [variant]))
    plan = planning.make(read, read.variants[0], maker.locked(read), ORIGIN)
    assert (plan.disk, plan.memory) == (107_500_000_000, 100_000_000_000)
    assert plan.checksum() == plain.checksum()


def test_versions_of_images_commits_and_files(tmp_path: Path) -> None:
    git = {"kind": "git", "repository": maker.FORK, "commit": "a" * 40}
    image = {"kind": "image", "image": "x:1"}
    pins: dict[str, Any] = {
        "os": {"trixie": maker.OS},
        "a": {"0.33.0": git, "main": git},
        "b": {"13.0.3": image, "24.04": image},
        "c": {"o200k": maker.FILE},
        "d": {"0.6.16.post3": maker.APP, "noble": maker.APP},
    }
    layers = {
        "low": {"base": "os"},
        "up": {"inputs": {"a": "a", "b": "b", "c": "c"}},
        "app": {"wheels": {"pin": "d"}},
    }
    variants = [
        maker.include(
            "v", *layers, os="trixie", a="0.33.0", b="13.0.3", c="o200k", d="0.6.16.post3"
        ),
        maker.include("w", *layers, os="trixie", a="main", b="24.04", c="o200k", d="noble"),
    ]
    read = maker.write(tmp_path, maker.document(pins, layers, variants))
    v, w = planning.make_all(read, read.variants, maker.locked(read), ORIGIN)
    assert v.versions == {"a": "0.33.0", "b": "13.0.3", "c": "o200k", "d": "0.6.16.post3"}
    assert w.versions == {"a": "0+gaaaaaaaaa", "c": "o200k"}
    assert "B_VERSION" not in w.layers[1].args


def test_an_unknown_value_of_a_pin_is_reported_with_its_line(project: Path) -> None:
    pins = 'pins: {debian: trixi, nccl: "2.30.4"}'
    text = GOOD.replace("include: []", f"include: [{{name: z, platform: linux/arm64, {pins}}}]")
    assert problems(project, text) == [
        (22, "variant z names debian 'trixi', which is not in pins", "did you mean 'trixie'?")
    ]


def test_pins_of_a_variant_agree_on_python(tmp_path: Path) -> None:
    pins = {
        "os": {"trixie": maker.OS},
        "app": {"1.0.0": maker.APP},
        "lib": {"1.0.0": {**maker.APP, "python": "3.13"}},
    }
    layers = {
        "low": {"base": "os"},
        "a": {"wheels": {"pin": "app"}},
        "b": {"wheels": {"pin": "lib"}},
    }
    variant = maker.include("v", *layers, os="trixie", app="1.0.0", lib="1.0.0")
    with pytest.raises(ConfigError) as error:
        maker.write(tmp_path, maker.document(pins, layers, [variant]))
    assert "3.13" in error.value.detail


def test_a_pin_called_patches_does_not_hide_the_patches(tmp_path: Path) -> None:
    layers = {"low": {"base": "patches"}}
    data = maker.document(
        {"patches": {"trixie": maker.OS}}, layers, [maker.include("v", "low", patches="trixie")]
    )
    try:
        read = maker.write(tmp_path, data)
    except ConfigError:
        return
    assert set(lockfile.requests(read)) == {("patches", "trixie")}


def test_a_variant_has_a_layer_once(tmp_path: Path) -> None:
    layers: dict[str, Any] = {"low": {"base": "os"}, "high": {}}
    variant = maker.include("v", "low", "high", "high", os="trixie")
    with pytest.raises(ConfigError):
        maker.write(tmp_path, maker.document({"os": {"trixie": maker.OS}}, layers, [variant]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python", "the build argument PYTHON_VERSION is Python's X.Y"),
        ("n_ccl", "the build argument N_CCL_VERSION is the version of pin n-ccl"),
    ],
)
def test_two_pins_cannot_have_the_same_build_argument(
    tmp_path: Path, name: str, reason: str
) -> None:
    pins = {"os": {"trixie": maker.OS}, "n-ccl": {"2.30.0": maker.NCCL}, name: {"1.0.0": maker.APP}}
    layers = {"low": {"base": "os", "pins": [name]}}
    variant = maker.include("v", *layers, os="trixie", **{name: "1.0.0"})
    with pytest.raises(ConfigError, match="1 problem") as error:
        maker.write(tmp_path, maker.document(pins, layers, [variant]))
    assert f"a pin cannot be called {name!r}: {reason}" in error.value.detail


WORDS = """\
version: 1
repository: a/b
pins:
  g: {"1.0.0": {kind: git, repository: "https://x/y.git", ref: v1, commit: 01234567, version: 1.10,
                python: 3.10}}
  i: {"1.0.0": {kind: image, image: "a:1", python: 3}, "2.0.0": {kind: image, image: [a]}}
layers:
  base: {source: g, pins: g, platforms: []}
  up:
defaults: {name: [x], layers: [base], answer: {args: [], says: ""}}
exclude: [{platform: {a: b}}]
include: [x]
groups: {default: {a: b}}
profiles: {p: {variants: ["*"], nodes: "2", rdma: yes please, serve: {max_model_len: 1.5,
               compilation: [a]}}}
"""


def test_messages_use_the_words_of_the_file(project: Path) -> None:
    assert problems(project, WORDS) == [
        (4, "pins.g.1.0.0.commit must be text, but is 01234567", 'quote it: "01234567"'),
        (4, "pins.g.1.0.0.version must be text, but is 1.10", 'quote it: "1.10"'),
        (4, "unknown key 'ref' in pins.g.1.0.0",
         "known are branch, commit, kind, python, repository, version"),
        (5, "pins.g.1.0.0.python must be text, but is 3.10", 'quote it: "3.10"'),
        (6, "pins.i.1.0.0.python must be text, but is 3", 'quote it: "3"'),
        (6, "pins.i.2.0.0.image must be one word, but is a list",
         "write one word: `image: …` (NAME:TAG, and @sha256:… where its digest is known)"),
        (8, "layers.base.pins must be a list, but is 'g'",
         "write a list: `pins: ['g']` (pins whose version alone is needed)"),
        (8, "layers.base.platforms is empty",
         "at least 1 entry must be here (those that it supports)"),
        (8, "layers.base.source must be a mapping, but is 'g'",
         "write a mapping: `source: {pin: …}` (built by the Dockerfile of a git pin)"),
        (9, "layers.up must be a mapping, but is empty",
         "write a mapping: `up: {}` (what each layer needs)"),
        (10, "defaults.answer.says is empty",
         "at least 1 character must be here (a part of its output then)"),
        (10, "defaults.name must be one word, but is a list",
         "write one word: `name: …` (the tag; {axis}, {pin} and {arch} are filled in)"),
        (11, "exclude.0.platform must be one word, but is a mapping",
         ("write one word: `platform: …` (combinations to leave out: VALUE, [VALUE, …] or !VALUE "
         "of axes)")),
        (12, "include.0 must be a mapping, but is 'x'",
         "write a mapping: `- {name: …}` (single variants beside the axes)"),
        (13, "groups.default must be a list, but is a mapping",
         ("write a list: `default: […]` (globs on variants, by a name for them; `image` builds "
         "`default`)")),
        (14, "profiles.p.nodes must be a whole number, but is '2'",
         "write a whole number: `nodes: 2` (how many it is for)"),
        (14, "profiles.p.rdma must be true or false, but is 'yes please'",
         ("write true or false: `rdma: true` (NCCL must use InfiniBand or RoCE; default: "
         "with several nodes)")),
        (14, "profiles.p.serve.max_model_len must be a whole number, but is 1.5",
         "write a whole number: `max_model_len: 1` (tokens of context)"),
        (15, "profiles.p.serve.compilation must be a mapping, but is a list",
         "write a mapping: `compilation: {NAME: …}` (--compilation-config)"),
    ]  # fmt: skip


def test_a_product_beyond_the_limit_is_not_computed(project: Path) -> None:
    names = [f"p{n}" for n in range(62)]
    pins = "".join(f"  {n}: {{a: {{kind: debian, suite: a}}, b: {{kind: debian, suite: b}}}}\n"
                   for n in names)  # fmt: skip
    axes = "".join(f"  {n}: [a, b]\n" for n in names)
    text = GOOD.replace("pins:\n", "pins:\n" + pins, 1)
    few = text.replace("axes:\n", "axes:\n" + "".join(axes.splitlines(keepends=True)[:13]))
    assert problems(project, few) == [
        (78, "the axes multiply to 32,768 variants; the limit is 10,000",
         "remove values, or list the variants under `include`"),
    ]  # fmt: skip
    many = "".join(axes.splitlines(keepends=True)[:40])
    ((_, what, _),) = problems(project, text.replace("axes:\n", "axes:\n" + many))
    assert "4,398,046,511,104 variants" in what
    ((_, what, _),) = problems(project, text.replace("axes:\n", "axes:\n" + axes))
    assert "over 1,000,000,000,000,000,000 variants" in what


def test_a_report_has_at_most_100_problems(project: Path) -> None:
    values = ", ".join(f"v{n}" for n in range(1000))
    values_after = ", ".join(f"v{n}: *d" for n in range(1, 1000))
    text = GOOD.replace(
        "    trixie: {kind: debian, suite: trixie}",
        f"    {{v0: &d {{kind: debian, suite: trixie}}, {values_after}}}",
    )
    text = text.replace("debian: [trixie]", f"debian: [{values}]").replace(
        'nccl: ["2.30.4", "2.30.7"]\nex', 'nccl: ["2.30.4"]\nex'
    )
    text = text.replace("[linux/arm64, linux/amd64]\n", "[linux/arm64]\n")
    reported = problems(project, text.replace('"n{nccl}-{arch}"', '"n {debian}"'))
    assert len(reported) == 100
    assert len(load(project, text.replace("n{nccl}-{arch}", "n2.30.4-{debian}")).variants) == 1000


def test_an_idle_exclude_is_a_warning(project: Path) -> None:
    read = load(project, GOOD.replace("linux/amd64, nccl", "linux/arm64, debian: sid, nccl"))
    (warning,) = read.warnings
    assert warning.line == 21
    assert warning.what == "this exclude matches no variant: debian has no value 'sid'"
    assert warning.todo == "debian has trixie; correct it, or remove this"
    assert len(read.variants) == 4


def test_a_layer_that_does_not_support_the_platform(project: Path) -> None:
    text = GOOD.replace("{wheels: {pin: nccl}}", "{wheels: {pin: nccl}, platforms: [linux/arm64]}")
    assert any("does not support linux/amd64" in what for _, what, _ in problems(project, text))


def test_two_layers_cannot_both_take_the_rest(project: Path) -> None:
    text = GOOD.replace("{base: debian}", "{base: debian, wheels: {pin: nccl}}")
    assert any("both take the rest of pin nccl" in what for _, what, _ in problems(project, text))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"\xff\xfe\x00", "the file is UTF-16"),
        (b"x" * (1 << 20) + b"xx", "larger than 1 MiB"),
        ((b"a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
         b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"),
         "with aliases expanded"),
        (b"- 1\n- 2\n", "the file must be a mapping, but is a list"),
        (b"just words", "the file must be a mapping, but is 'just words'"),
    ],
)  # fmt: skip
def test_files_that_are_no_matrix(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        matrix.load(path)
    assert any(what in p.what for p in error.value.problems), error.value.detail


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
    assert [v.name for v in matrix.select(read, only=["*-arm64"])] == [
        "n2.30.4-arm64",
        "n2.30.7-arm64",
    ]
    both = matrix.select(read, only=["n2.30.7-*", "*-amd64"])
    assert [v.name for v in both] == ["n2.30.7-arm64", "n2.30.4-amd64"]
    with pytest.raises(UsageError, match="no variant matches 'x'"):
        matrix.select(read, only=["*-amd64", "x"])
    with pytest.raises(UsageError, match="there is no variant") as error:
        matrix.select(read, names=["n2.30.4-amr64"])
    assert error.value.hint == "did you mean 'n2.30.4-arm64'?"
    (begun,) = matrix.select(read, names=["n2.30.4-arm"])
    assert begun.name == "n2.30.4-arm64"
    with pytest.raises(UsageError, match="variants begin with 'n2'"):
        matrix.select(read, names=["n2"])
    with pytest.raises(UsageError, match="no variant matches"):
        matrix.select(read, only=["x*"])


names = st.lists(st.text("abcxyz", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)


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
        "layers": {"base": {"base": "a", "pins": ["b"]}},
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


DEB = Deb(name="apt", version="3.0", part="root", size=1, sha256="1" * 64, file="apt_3.0_all.deb")


def locked(read: matrix.Matrix, *wheels: Wheel) -> Lock:
    """A lock of all that the matrix wants, its wheels pins with these wheels."""
    entries = {}
    for (pin, value), (request, platforms) in lockfile.requests(read).items():
        items: tuple[Item, ...] = wheels if pin == "nccl" else (DEB,)
        entries[pin, value] = Entry(requested=request, platforms=dict.fromkeys(platforms, items))
    return Lock(file="matrix.lock", request_digest=lockfile.request_digest(read), entries=entries)


def test_every_wheel_goes_to_exactly_one_layer(project: Path) -> None:
    text = GOOD.replace("{base: debian}", '{base: debian, wheels: {pin: nccl, select: ["nv*"]}}')
    read = load(project, text)
    lock = locked(read, wheel("nvidia-x"), wheel("torch"), wheel("vllm"))
    plan = planning.make(read, read.variants[0], lock, ORIGIN)
    assert [[w.name for w in layer.wheels] for layer in plan.layers] == [
        ["nvidia-x"],
        ["torch", "vllm"],
    ]
    assert plan.layers[1].requirements.splitlines()[0] == f"torch==1.0 --hash=sha256:{'0' * 64}"
    with pytest.raises(LockError, match="gets no wheel"):
        planning.make(read, read.variants[0], locked(read, wheel("torch")), ORIGIN)


def test_a_project_of_two_pins_is_an_error(tmp_path: Path) -> None:
    pins = {"os": {"trixie": maker.OS}, "a": {"1.0.0": maker.APP}, "b": {"2.0.0": maker.APP}}
    layers = {"low": {"base": "os"}, "x": {"wheels": {"pin": "a"}}, "y": {"wheels": {"pin": "b"}}}
    variant = maker.include("v", *layers, os="trixie", a="1.0.0", b="2.0.0")
    read = maker.write(tmp_path, maker.document(pins, layers, [variant]))
    lock = maker.locked(read)

    def entries(*wheels: Wheel) -> Lock:
        entry = lock.entries["b", "2.0.0"]
        other = Entry(requested=entry.requested, platforms=dict.fromkeys(entry.platforms, wheels))
        return replace(lock, entries={**lock.entries, ("b", "2.0.0"): other})

    message = r"^variant v: pins a 1.0.0 and b 2.0.0 both install lib \(1.0 and 2.0\)$"
    with pytest.raises(LockError, match=message) as error:
        planning.make(read, read.variants[0], entries(wheel("x"), wheel("lib", "2.0")), ORIGIN)
    assert "`exclude: [lib]`" in error.value.hint
    planning.make(read, read.variants[0], entries(wheel("x")), ORIGIN)


def test_a_requirement_can_have_extras(project: Path) -> None:
    extras = "ray[cgraph,client,default]==2.54.0"
    pin = load(project, GOOD.replace("nvidia-nccl-cu13==2.30.4", extras)).pins["nccl"]["2.30.4"]
    assert pin.request()["require"] == [extras]
    for wrong in ("ray[]==1", "ray[a==1", "ray[a]", "ray[a]>=1", "ray[a;b]==1"):
        ((line, what, todo),) = problems(project, GOOD.replace("nvidia-nccl-cu13==2.30.4", wrong))
        assert (line, "does not have the right form" in what) == (7, True)
        assert "NAME[EXTRA,…]==VERSION" in todo


def test_a_wheel_that_no_layer_takes_is_an_error(project: Path) -> None:
    read = load(project, GOOD.replace("{pin: nccl}", '{pin: nccl, select: ["nv*"]}'))
    with pytest.raises(LockError, match="no layer takes torch"):
        planning.make(read, read.variants[0], locked(read, wheel("nvidia"), wheel("torch")), ORIGIN)


def test_the_checksum_changes_with_the_locked_wheels_only(project: Path) -> None:
    read = load(project, GOOD)
    plan = planning.make(read, read.variants[0], locked(read, wheel("a")), ORIGIN)
    same = planning.make(read, read.variants[0], locked(read, wheel("a")), ORIGIN)
    other = planning.make(read, read.variants[0], locked(read, wheel("a", "1.1")), ORIGIN)
    assert plan.checksum() == same.checksum()
    assert plan.checksum() != other.checksum()
    assert plan.lock_checksum != other.lock_checksum
    assert plan.labels["dev.sparkimage.lock"] == f"sha256:{plan.lock_checksum}"
    assert plan.labels["dev.sparkimage.version.nccl"] == "2.30.4"


def test_differences_of_lock_and_matrix_are_reported(project: Path) -> None:
    read = load(project, GOOD)
    lock = locked(read, wheel("a"))
    assert lockfile.check(read, lock) == []
    moved = load(project, GOOD.replace("cu13==2.30.4", "cu13==2.30.5"))
    assert lockfile.check(moved, lock) == ["pin nccl 2.30.4 has changed since it was locked"]
    fewer = replace(
        lock, entries={k: entry for k, entry in lock.entries.items() if k != ("nccl", "2.30.7")}
    )
    assert lockfile.check(read, fewer) == ["pin nccl 2.30.7 is not locked"]
    more = replace(lock, entries={**lock.entries, ("old", "1"): lock.entries["nccl", "2.30.4"]})
    assert lockfile.check(read, more) == ["pin old 1 is locked, but no variant uses it"]
    with pytest.raises(LockError, match="has nothing for pin nccl"):
        planning.make(read, read.variants[1], fewer, ORIGIN)


@pytest.mark.parametrize(
    "text", ["", "version: 9\n", "version: 2\npins: 3\n", "a: [", "version: 2\n"]
)
def test_a_damaged_lock_says_what_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.lock").write_text(text)
    with pytest.raises(LockError) as error:
        lockfile.load(tmp_path / "matrix.lock")
    assert "sparkimage lock" in error.value.hint
