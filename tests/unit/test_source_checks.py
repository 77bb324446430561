"""A source's own Dockerfile is held against its layer before anything is built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.lock_items import KEPT, Commit, PatchText, Target
from sparkimage.config.lockfile import ANY, Entry, Lock
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import Key
from sparkimage.config.series import SERIES
from sparkimage.resolve import source_files
from tests.lab import command
from tests.unit import project_maker as maker
from tests.unit.git_maker import SITE, Remote, isolate, resolve_context
from tests.unit.test_dockerfile_reader import LIKE_VLLM

VARIANT = "from-source"
SOURCE = {
    "pin": "fork",
    "dockerfile": "docker/Dockerfile",
    "target": "vllm-openai",
    "images": {"BUILD_BASE_IMAGE": "devel", "FINAL_BASE_IMAGE": "layer"},
}


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project with one source, locked, and the repository that it is built from."""

    folder: Path
    remote: Remote
    home: Path

    def write(
        self,
        files: Mapping[str, str],
        layer: Mapping[str, Any] | None = None,
        nccl: str = "2.31.2",
        patched: str | None = None,
    ) -> None:
        """Commit ``files`` and lock that commit, for a layer with these changes.

        ``patched`` takes the place of the Dockerfile.
        """
        commit = self.remote.commit(dict(files))
        pins: dict[str, dict[str, Any]] = {
            "cuda": {"13.0": maker.CUDA},
            "devel": {"13.0": maker.CUDA},
            "fork": {"1.0": maker.git_pin(commit, self.remote.address)},
            "nccl": {nccl: maker.NCCL},
        }
        layers: dict[str, Any] = {
            "base": {"base": "cuda"},
            "compiled": {"source": SOURCE, "pins": ["nccl"], **(layer or {})},
            "overlay": {"debs": "nccl"},
        }
        chosen = {pin: next(iter(found)) for pin, found in pins.items()}
        data = maker.document(pins, layers, [maker.include(VARIANT, *layers, **chosen)])
        fix = {"kind": "replace", "purpose": "x", "for": "fork", "file": "fix",
               "replaces": "docker/Dockerfile"}  # fmt: skip
        if patched is not None:
            data["layers"]["compiled"]["patches"] = ["fix"]
            (self.folder / "patches").mkdir(exist_ok=True)
            (self.folder / "patches" / "fix").write_text(patched)
        read = maker.write(self.folder, data, {"fix": fix} if patched is not None else None)
        held = maker.locked(read)
        key = ("fork", "1.0")
        entry = held.entries[key]
        tree = self.remote.git("rev-parse", f"{commit}^{{tree}}")
        items = {ANY: (Commit(commit=commit, tree=tree),)}
        entries = {**held.entries, key: Entry(requested=entry.requested, platforms=items)}
        if patched is not None:
            entries |= self._patched(held, files["docker/Dockerfile"], patched)
        text = lockfile.dump(
            Lock(file="matrix.lock", request_digest=held.request_digest, entries=entries)
        )
        (self.folder / "matrix.lock").write_text(text)

    def _patched(self, held: Lock, before: str, after: str) -> dict[Key, Entry]:
        """The entries of the patch, and of its series."""
        sha256 = maker.sha256(after)
        found: dict[str, PatchText | Target] = {
            PATCHES: PatchText(size=len(after), sha256=sha256),
            SERIES: Target(
                before=maker.sha256(before), after=sha256, size=1, mode=KEPT,
                path="docker/Dockerfile",
            ),
        }  # fmt: skip
        entries = {}
        for key, entry in held.entries.items():
            if (item := found.get(key[0])) is not None:
                kept = (i for i in entry.platforms[ANY] if not isinstance(i, type(item)))
                platforms = {ANY: (*kept, item)}
                entries[key] = Entry(requested=entry.requested, platforms=platforms)
        return entries

    def run(self, *words: str, site: Path | None = None) -> tuple[int, str]:
        """Exit code and standard error of a command."""
        environment = {
            **os.environ,
            "SPARKIMAGE_HOME": str(self.home),
            "SPARKIMAGE_MIRRORS": os.devnull,
            # Not this one: a build would begin after the check.
            "SPARKIMAGE_ENGINE": "system",
            "DOCKER_HOST": "unix:///nowhere/docker.sock",
        }
        mirror = f"{SITE}={site or self.remote.folder.parent}"
        done = command.call([*words, "--mirror", mirror], environment, cwd=self.folder)
        return done.returncode, done.stderr

    def problems(self) -> list[str]:
        """What `image` says before it asks for an engine; empty where it got there."""
        code, said = self.run("image", VARIANT)
        if code == 3:
            assert "cannot" in said or "engine" in said
            return []
        assert code == 2, said
        return [line.strip() for line in said.splitlines()[1:] if not line.startswith("→")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    isolate(monkeypatch)
    (tmp_path / "p").mkdir()
    remote = Remote.make(tmp_path / "site", "fork.git")
    return Project(folder=tmp_path / "p", remote=remote, home=tmp_path / "home")


GOOD = {"docker/Dockerfile": LIKE_VLLM, "setup.py": "pass\n"}


def test_a_layer_that_fits_its_source_has_nothing_said(project: Project) -> None:
    project.write(GOOD, {"args": {"torch_cuda_arch_list": "12.1a", "UV_INDEX_URL": "x"}})
    assert project.problems() == []


def test_all_that_does_not_fit_is_said_at_once(project: Project) -> None:
    end = "FROM vllm-base AS vllm-openai\n"
    more = "COPY --from=ghcr.example/uv:1 /uv /\nADD https://a.example/x /\n"
    text = LIKE_VLLM.replace(end, end + more)
    source = {**SOURCE, "images": {"FINAL_BASE_IMAGE": "layer", "BUILD_BASE": "devel"}}
    args = {"CUDA_VERSON": "13.1", "only_in_tests": "1", "HTTP_PROXY": "http://p.example"}
    project.write({"docker/Dockerfile": text}, {"source": source, "args": args})
    commit = project.remote.git("rev-parse", "main")[:9]
    where = f"docker/Dockerfile of fork 1.0 ({commit})"
    said = "\n".join(project.problems())
    for what, todo in (
        (f"{where} has no argument CUDA_VERSON", "did you mean 'CUDA_VERSION'?; else remove it"),
        (f"{where} has no argument only_in_tests", "known are"),
        (f"{where} has no argument BUILD_BASE", "did you mean 'BUILD_BASE_IMAGE'?"),
        (
            f"{where}, line 7, takes FROM builder:cuda13.0.3, which no pin of the layer has",
            "pin it, and name the pin: `images: {BUILD_BASE_IMAGE: PIN}`",
        ),
        (
            f"{where}, line 25, takes COPY --from=ghcr.example/uv:1, which no pin",
            'pin it, and name the pin: `inputs: {"ghcr.example/uv:1": PIN}`',
        ),
        (f"{where}, line 26, takes ADD https://a.example/x, which no pin", "pin it"),
    ):
        before, found, after = said.partition(what)
        assert found, (what, said)
        assert before.rpartition("\n")[2].startswith("matrix.yaml:1: ")
        assert todo in after.splitlines()[1]


@pytest.mark.parametrize(
    ("files", "source", "what", "todo"),
    [
        (GOOD, {"target": "vllm-opnai"}, "has no target 'vllm-opnai'", "'vllm-openai'?"),
        (GOOD, {"dockerfile": "Dockerfile"}, "has no Dockerfile", "'docker/Dockerfile'?"),
        (
            GOOD,
            {"images": {"BUILD_BASE_IMAGE": "layer", "FINAL_BASE_IMAGE": "devel"}},
            "the target is built FROM final_base_image, not on the layer below",
            "write `images: {FINAL_BASE_IMAGE: layer}`",
        ),
        (
            {"docker/Dockerfile": "FROM a AS x\n"},
            {"target": "x", "images": {"BASE": "layer"}},
            "line 1, takes FROM a, which no pin of the layer has",
            '`inputs: {"a": PIN}`',
        ),
    ],
)  # fmt: skip
def test_what_the_source_lacks(
    project: Project, files: Mapping[str, str], source: Mapping[str, Any], what: str, todo: str
) -> None:
    project.write(files, {"source": {**SOURCE, **source}})
    said = "\n".join(project.problems())
    assert what in said
    assert todo in said


def test_a_context_below_the_root(project: Project) -> None:
    files = {"sub/docker/Dockerfile": LIKE_VLLM}
    project.write(files, {"source": {**SOURCE, "context": "sub"}})
    assert project.problems() == []
    project.write(files, {"source": {**SOURCE, "context": "other"}})
    assert "has no other/docker/Dockerfile" in "\n".join(project.problems())


def test_a_dockerfile_is_read_as_its_patches_leave_it(project: Project) -> None:
    args = {"args": {"new": "1"}}
    project.write(GOOD, args)
    assert "has no argument new" in "\n".join(project.problems())
    project.write(GOOD, args, patched=f"ARG new\n{LIKE_VLLM}")
    assert project.problems() == []
    project.write(GOOD, patched=LIKE_VLLM.replace("AS vllm-openai", "AS other"))
    assert "has no target 'vllm-openai'" in "\n".join(project.problems())


def test_an_input_stands_for_what_the_dockerfile_names(project: Project) -> None:
    text = LIKE_VLLM.replace("FROM ${BUILD_BASE_IMAGE}", "FROM docker.io/library/rust:1")
    source = {**SOURCE, "images": {"FINAL_BASE_IMAGE": "layer"}}
    project.write({"docker/Dockerfile": text}, {"source": source})
    assert '`inputs: {"rust:1": PIN}`' in "\n".join(project.problems())
    source = {**source, "inputs": {"rust:1": "devel"}}
    project.write({"docker/Dockerfile": text}, {"source": source})
    assert project.problems() == []


TWO_PARTS = """\
ARG BASE_IMAGE
ARG BASE_TAG
ARG CUDA_VERSION=13.0
FROM ${BASE_IMAGE}:${BASE_TAG} AS build
COPY --from=docker.io/tools/uv:latest /uv /bin/
FROM registry.example/cuda:${CUDA_VERSION}-runtime
COPY --from=build /bin/uv /bin/
"""
"""Images whose names the Dockerfile makes of several arguments."""


def test_an_image_made_of_several_arguments(project: Project) -> None:
    source: dict[str, Any] = {
        "pin": "fork",
        "inputs": {
            "devel.example/cuda:{devel}-x": "devel",
            # As the Dockerfile has it; BuildKit looks for the shortest form.
            "docker.io/tools/uv:latest": "devel",
            "registry.example/cuda:{cuda}-runtime": "layer",
        },
    }
    layer: dict[str, Any] = {"source": source, "pins": ["cuda", "nccl"], "args": {}}
    layer["args"] = {"BASE_IMAGE": "devel.example/cuda", "BASE_TAG": "{devel}-x",
                     "CUDA_VERSION": "{cuda}"}  # fmt: skip
    project.write({"Dockerfile": TWO_PARTS}, layer)
    assert project.problems() == []
    read = matrix.load(project.folder / "matrix.yaml")
    lock = lockfile.load(project.folder / "matrix.lock")
    compiled = planning.make(read, read.variants[0], lock, maker.ORIGIN).layers[1]
    assert {one.context: one.content is None for one in compiled.inputs} == {
        "devel.example/cuda:13.0-x": False,
        "tools/uv": False,
        "registry.example/cuda:13.0-runtime": True,
    }
    project.write({"Dockerfile": TWO_PARTS}, {**layer, "args": {}})
    said = "\n".join(project.problems())
    assert "line 4, takes FROM ${BASE_IMAGE}:${BASE_TAG}, which is ':' here" in said
    assert "give BASE_IMAGE and BASE_TAG a value: `args`, or `images`" in said
    del source["inputs"]["registry.example/cuda:{cuda}-runtime"]
    source["inputs"]["other"] = "layer"
    project.write({"Dockerfile": TWO_PARTS}, layer)
    said = "\n".join(project.problems())
    assert "built FROM registry.example/cuda:13.0-runtime, not on the layer below" in said
    assert 'write `inputs: {"registry.example/cuda:13.0-runtime": layer}`' in said


@pytest.mark.parametrize(("version", "said"), [("2.31.2", False), ("2.31.0", False), ("2.3", True)])
def test_a_shorter_version_is_any_of_them(project: Project, version: str, said: bool) -> None:
    text = LIKE_VLLM.replace("NCCL_VERSION=2.31.2", "NCCL_VERSION=2.31")
    project.write({"docker/Dockerfile": text}, {"pins": []}, nccl=version)
    assert bool(project.problems()) is said


def test_what_is_compiled_and_what_runs_agree(project: Project) -> None:
    project.write(GOOD, {"pins": []}, nccl="2.32.3")
    (what, todo) = project.problems()
    assert what.endswith(
        "line 3, has NCCL_VERSION=2.31.2, and the image gets nccl 2.32.3: it would be built for "
        "another one"
    )
    assert todo == "pass the pin's version: add `pins: [nccl]` to the layer"
    # With an argument of one's own it is the matrix that says so; and the same one needs none.
    project.write(GOOD, {"pins": [], "args": {"NCCL_VERSION": "2.32.3"}}, nccl="2.32.3")
    assert project.problems() == []
    project.write(GOOD, {"pins": []})
    assert project.problems() == []


@pytest.mark.parametrize(
    ("version", "said"), [("2.30.4", True), ("2.31.2", False), ("2.32.3", False)]
)
def test_an_older_pin_than_the_source_is_made_for(
    project: Project, version: str, said: bool
) -> None:
    project.write(GOOD, nccl=version)
    if said:
        (what, todo) = project.problems()
        assert what.endswith(f"line 3, has NCCL_VERSION=2.31.2; nccl {version} is older")
        assert todo == "pin 2.31.2 or a newer one, or write `downgrade: true` here"
    else:
        assert project.problems() == []
    project.write(GOOD, {"downgrade": True}, nccl=version)
    assert project.problems() == []


def test_a_printed_plan_works_from_what_was_read_before(project: Project, tmp_path: Path) -> None:
    project.write(GOOD, {"args": {"wrong": "1"}})
    nowhere = tmp_path / "nowhere"
    assert project.run("image", VARIANT, "--print", "json", site=nowhere)[0] == 0
    assert project.problems() != []
    code, said = project.run("image", VARIANT, "--print", "json", site=nowhere)
    assert code == 2
    assert "has no argument wrong" in said


def test_what_cannot_be_read_is_said_and_no_failure(project: Project, tmp_path: Path) -> None:
    project.write(GOOD)
    code, said = project.run("image", VARIANT, site=tmp_path / "nowhere")
    assert code == 3
    assert "docker/Dockerfile of fork 1.0 was not read, and is not checked" in said


def test_lock_says_it_too(project: Project) -> None:
    project.write(GOOD, {"args": {"wrong": "1"}})
    code, said = project.run("lock", "--only", VARIANT)
    assert code == 2
    assert "has no argument wrong" in said


@pytest.mark.parametrize(
    ("files", "takes"),
    [
        ({**GOOD, "setup.py": "os.getenv('VLLM_VERSION_OVERRIDE')\n"}, True),
        (GOOD, False),
        ({"docker/Dockerfile": LIKE_VLLM}, False),
    ],
)
def test_who_takes_vllms_own_variable_for_the_version(
    project: Project, files: Mapping[str, str], takes: bool
) -> None:
    project.write(files)
    read = matrix.load(project.folder / "matrix.yaml")
    lock = lockfile.load(project.folder / "matrix.lock")
    layer = planning.make(read, read.variants[0], lock, maker.ORIGIN).layers[1]
    context = resolve_context(project.remote.folder.parent, project.home)
    assert source_files.takes_version(layer, project.folder, context) is takes
