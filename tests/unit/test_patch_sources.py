"""Where patches and the files that they change come from: web servers and indexes of wheels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import planning
from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.lock_items import Target
from sparkimage.config.lockfile import ANY, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.series import SERIES
from sparkimage.core.errors import LockError
from sparkimage.core.process import Local
from sparkimage.resolve import fetch, patch_files, resolver
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.patching import sha256
from sparkimage.resolve.resolver import Outcome, Update
from tests.lab import servers
from tests.unit import index_maker
from tests.unit import project_maker as maker

CODE = "https://code.example"
DIFF = "--- a/lib.py\n+++ b/lib.py\n@@ -1 +1 @@\n-v = '1.0'\n+v = 'patched'\n"
FIX = {"kind": "diff", "purpose": "x", "for": "app", "root": "/opt/site"}
APP = {"kind": "wheels", "require": ["lib==1.0"], "python": "3.12"}


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def project(folder: Path, patch: Mapping[str, Any]) -> Matrix:
    layers: dict[str, Any] = {
        "low": {"base": "os"},
        "app": {"wheels": {"pin": "app"}},
        "fix": {"patches": ["fix"]},
    }
    pins = {"os": {"trixie": maker.OS}, "app": {"1.0.0": APP}}
    variants = [maker.include("v", *layers, os="trixie", app="1.0.0")]
    folder.mkdir()
    return maker.write(folder, maker.document(pins, layers, variants), {"fix": {**FIX, **patch}})


def context(home: Path, mirrors: Mapping[str, str]) -> ResolveContext:
    return ResolveContext(
        home=home, runner=Local(), mirrors=Mirrors(rules=dict(mirrors)), say=lambda _: None
    )


def resolve(read: Matrix, reached: ResolveContext) -> Outcome:
    held = maker.locked(read)
    known = Lock(
        file="x", request_digest="", entries={k: e for k, e in held.entries.items() if k[0] == "os"}
    )
    return resolver.resolve(read, known, reached, Update())


def test_the_files_of_a_wheel_of_an_index_are_patched(tmp_path: Path) -> None:
    read = project(tmp_path / "p", {"file": "fix.diff"})
    (read.root / "patches" / "fix.diff").write_text(DIFF)
    with index_maker.serve(tmp_path / "index") as (index, address):
        index.add("lib", "1.0")
        index.add("other", "1.0")
        done = resolve(read, reached := context(tmp_path / "home", {WHEELS: address}))
        assert done.failures == {}
        _, target = done.lock.items(SERIES, "app 1.0.0: fix", maker.ARM)
        assert isinstance(target, Target)
        assert (target.path, target.before) == ("lib.py", sha256(b"v = '1.0'\n"))
        plan = planning.make(read, read.variants[0], done.lock, maker.ORIGIN)
        (one,) = plan.layers[2].patches
        assert [wheel.name for wheel in one.wheels] == ["lib"]
    # What was fetched is there when it is built, without the index.
    patched = fetch.patched(plan, read.root, reached)
    assert patched == {"/opt/site/lib.py": b"v = 'patched'\n"}


def test_a_wheel_that_has_no_such_file(tmp_path: Path) -> None:
    read = project(tmp_path / "p", {"file": "fix.diff", "project": "lib"})
    (read.root / "patches" / "fix.diff").write_text(DIFF.replace("/lib.py", "/old/lib.py"))
    with index_maker.serve(tmp_path / "index") as (index, address):
        index.add("lib", "1.0")
        done = resolve(read, context(tmp_path / "home", {WHEELS: address}))
    (failure,) = done.failures.values()
    assert failure.message == (
        "patch fix does not apply to app 1.0.0: old/lib.py is not there; a file of that name is "
        "lib.py"
    )


def test_a_pull_request_is_a_diff_with_a_locked_hash(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "7.diff").write_text(DIFF)
    url, right = f"{CODE}/7.diff", sha256(DIFF.encode())
    with (
        servers.http_folder(tmp_path / "web") as web,
        index_maker.serve(tmp_path / "index") as (index, address),
    ):
        index.add("lib", "1.0")
        reached = context(tmp_path / "home", {WHEELS: address, CODE: web.url})
        for number, patch in enumerate(({"url": url}, {"url": url, "sha256": right})):
            read = project(tmp_path / f"p{number}", patch)
            done = resolve(read, reached)
            assert done.failures == {}
            (text,) = done.lock.items(PATCHES, "fix", ANY)
            assert text == patch_files.summary(DIFF.encode())
        wrong = resolve(project(tmp_path / "w", {"url": url, "sha256": "1" * 64}), reached)
        assert f"patch fix: {url} has sha256 {right}" in wrong.failures[PATCHES, "fix"].message
        gone = resolve(project(tmp_path / "g", {"url": f"{CODE}/8.diff"}), reached)
        assert "answers 404" in gone.failures[PATCHES, "fix"].message
    plan = planning.make(read, read.variants[0], done.lock, maker.ORIGIN)
    assert plan.layers[2].patches[0].patches[0].uri == url
    # It is in the home from now on, and another text is not taken for it.
    (one,) = plan.layers[2].patches
    assert patch_files.texts(one.patches, read.root, reached)[0].data == DIFF.encode()
    with servers.http_folder(tmp_path / "web") as web:
        (tmp_path / "web" / "7.diff").write_text("other")
        fresh = context(tmp_path / "home2", {CODE: web.url})
        with pytest.raises(LockError, match="and the lock says"):
            patch_files.texts(one.patches, read.root, fresh)
