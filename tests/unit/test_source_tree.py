"""The build context of a source that is patched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparkimage.build import bake
from sparkimage.config import planning
from sparkimage.config.lockfile import Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Plan
from sparkimage.core.errors import ConfigError, LockError
from sparkimage.resolve import resolver, source_files, source_tree
from sparkimage.resolve.context import Inputs
from sparkimage.resolve.resolver import Update
from tests.unit import project_maker as maker
from tests.unit.git_maker import Remote, git, isolate, resolve_context

FILES = {
    "docker/Dockerfile": "# syntax=docker/dockerfile:1\nARG BASE\nFROM ${BASE} AS t\nCOPY . .\n",
    ".dockerignore": "vllm\n",
    ".gitignore": "*.so\n",
    "vllm/a.py": "one\ntwo\nthree\n",
    "tool": "run\n",
}
DIFF = """\
diff --git a/vllm/a.py b/vllm/a.py
--- a/vllm/a.py
+++ b/vllm/a.py
@@ -1,3 +1,3 @@
 one
-two
+2
 three
diff --git a/tool b/tool
old mode 100644
new mode 100755
"""
MORE = """\
diff --git a/vllm/a.py b/vllm/a.py
--- a/vllm/a.py
+++ b/vllm/a.py
@@ -1,3 +1,3 @@
 one
-2
+two again
 three
diff --git a/vllm/new.so b/vllm/new.so
new file mode 100644
--- /dev/null
+++ b/vllm/new.so
@@ -0,0 +1 @@
+ignored by git, and yet a part of the tree
"""
PATCHES = {
    name: {"kind": "diff", "purpose": "x", "file": f"{name}.diff"} for name in ("one", "two")
}


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    isolate(monkeypatch)
    return Remote.make(tmp_path / "site", "fork.git")


def project(
    folder: Path, commit: str, address: str, *, target: str = "t", more: str = ""
) -> Matrix:
    source = {"pin": "fork", "dockerfile": "docker/Dockerfile", "target": target}
    layers = {
        "low": {"base": "os"},
        "made": {
            "source": {**source, "images": {"BASE": "layer"}},
            "patches": ["one", "two"],
        },
    }
    pins = {"os": {"trixie": maker.OS}, "fork": {"one": maker.git_pin(commit, address)}}
    (folder / "patches").mkdir(parents=True)
    (folder / "patches" / "one.diff").write_text(DIFF)
    (folder / "patches" / "two.diff").write_text(MORE + more)
    variant = maker.include("v", *layers, os="trixie", fork="one")
    return maker.write(folder, maker.document(pins, layers, [variant]), PATCHES)


def planned(read: Matrix, site: Path, home: Path) -> tuple[Plan, Lock]:
    held = maker.locked(read)
    os_only = Lock(
        file="matrix.lock",
        request_digest="",
        entries={key: entry for key, entry in held.entries.items() if key[0] == "os"},
    )
    done = resolver.resolve(read, os_only, resolve_context(site, home), Update())
    assert done.failures == {}
    return planning.make(read, read.variants[0], done.lock, maker.ORIGIN), done.lock


def state(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    """Everything that a build can see of a folder."""
    return {
        str(place.relative_to(folder)): (
            place.lstat().st_mode, place.lstat().st_mtime,
            place.read_bytes() if place.is_file() else b"",
        )
        for place in sorted(folder.rglob("*"))
    }  # fmt: skip


def test_the_tree_is_patched_and_the_same_everywhere(tmp_path: Path, remote: Remote) -> None:
    commit = remote.commit(FILES)
    read = project(tmp_path / "p", commit, remote.address)
    site = tmp_path / "site"
    plan, _ = planned(read, site, tmp_path / "home")
    made = plan.layers[1]
    first = source_tree.context(made, read.root, resolve_context(site, tmp_path / "home"))
    tree, seen = first / "tree", state(first)
    assert (tree / "vllm" / "a.py").read_text() == "one\ntwo again\nthree\n"
    assert (tree / "vllm" / "new.so").is_file()
    assert os.access(tree / "tool", os.X_OK)
    # setuptools_scm and a Dockerfile's mount of .git find a repository with nothing to say.
    assert git("-C", str(tree), "status", "--porcelain", "--ignored") == ""
    assert git("-C", str(tree), "rev-list", "HEAD").split()[1:] == [commit]
    assert git("-C", str(tree), "show", "--format=%an %at %s", "--name-only", "HEAD") == (
        "sparkimage 946684800 Patches: one, two\n\ntool\nvllm/a.py\nvllm/new.so"
    )
    git("-C", str(tree), "fsck", "--strict")
    # Of another clone, with another umask, at another time.
    before = os.umask(0o077)
    try:
        other = tmp_path / "other"
        remote.commit({"x": "later"})
        second = source_tree.context(made, read.root, resolve_context(site, other))
    finally:
        os.umask(before)
    assert (second.name, second != first) == (first.name, True)
    assert state(second) == seen
    # What is there is not made again.
    git("--git-dir", str(remote.folder), "update-ref", "-d", "refs/heads/main")
    again = source_tree.context(made, read.root, resolve_context(tmp_path / "none", other))
    assert again == second


def test_a_patched_source_is_built_from_the_folder(tmp_path: Path, remote: Remote) -> None:
    read = project(tmp_path / "p", remote.commit(FILES), remote.address)
    home = tmp_path / "home"
    plan, _ = planned(read, tmp_path / "site", home)
    context = resolve_context(tmp_path / "site", home)
    folder = source_tree.context(plan.layers[1], read.root, context)
    inputs = Inputs(
        steps={la.name: read.root / la.dockerfile for la in plan.layers}, uv=None, root=tmp_path,
        layers={}, sources={"made": folder}, files={}, trees={}, dockerfiles={},
        overrides=frozenset(), tools=tmp_path, builder=tmp_path, ca_bundle=None,
    )  # fmt: skip
    target = bake.definition([plan], {"v": inputs})["target"]["v"]
    assert target["context"] == str(folder / "tree")
    # Its own .dockerignore is not heeded, as with a git context.
    assert target["dockerfile"] == str(folder / "Dockerfile")
    assert (folder / "Dockerfile").read_text() == FILES["docker/Dockerfile"].partition("\n")[2]
    assert (folder / "Dockerfile.dockerignore").is_file()
    rules = [rule["selector"]["identifier"] for rule in bake.policy([plan])["rules"]]
    assert not [rule for rule in rules if rule.startswith("git://")]


def test_what_cannot_be_a_context(tmp_path: Path, remote: Remote) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    read = project(tmp_path / "p", remote.commit({**FILES, ".gitmodules": ""}), remote.address)
    plan, _ = planned(read, site, home)
    with pytest.raises(LockError, match="pin fork one has submodules"):
        source_tree.context(plan.layers[1], read.root, resolve_context(site, home))
    files = {path: text for path, text in FILES.items() if not path.startswith("docker")}
    read = project(tmp_path / "q", remote.commit(files), remote.address)
    plan, _ = planned(read, site, home)
    with pytest.raises(LockError, match="docker/Dockerfile is not there after the patches"):
        source_tree.context(plan.layers[1], read.root, resolve_context(site, home))
    (read.root / "patches" / "two.diff").write_text(MORE + "\n")
    with pytest.raises(LockError, match=r"patch two: its file has sha256 .*, and the lock says"):
        source_tree.context(plan.layers[1], read.root, resolve_context(site, home))
    assert not (home / "sources").exists() or not list((home / "sources").iterdir())


STAGE = """\
diff --git a/docker/Dockerfile b/docker/Dockerfile
--- a/docker/Dockerfile
+++ b/docker/Dockerfile
@@ -3,2 +3,3 @@
 FROM ${BASE} AS t
 COPY . .
+FROM t AS added
"""


def test_the_dockerfile_is_checked_as_it_is_patched(tmp_path: Path, remote: Remote) -> None:
    site, home, commit = tmp_path / "site", tmp_path / "home", remote.commit(FILES)
    for more, wrong in (("", "has no target 'added'"), (STAGE, "")):
        read = project(tmp_path / f"p{wrong}", commit, remote.address, target="added", more=more)
        plan, _ = planned(read, site, home)
        reached = resolve_context(site, home)
        if not wrong:
            assert source_files.check(read, [plan], reached) == ()
            assert source_files.check(read, [plan], reached, offline=True) == ()
            continue
        with pytest.raises(ConfigError) as error:
            source_files.check(read, [plan], reached)
        assert wrong in error.value.detail
