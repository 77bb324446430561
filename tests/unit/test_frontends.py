"""The `# syntax=` lines of Dockerfiles, of our layers and of sources."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import LayerPlan, SourceBuild
from sparkimage.core.errors import BuildError, LockError
from sparkimage.resolve import frontends
from sparkimage.resolve.context import ResolveContext
from tests.unit.git_maker import Remote, isolate, resolve_context

SYNTAX = "# syntax=docker/dockerfile:1.7\n"
BODY = "FROM layer AS up\nRUN --network=none true\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (SYNTAX + BODY, BODY),
        ("#syntax = docker/dockerfile:1\n" + BODY, BODY),
        ("# SYNTAX=docker/dockerfile:1\r\n" + BODY, BODY),
        ("\ufeff" + SYNTAX + BODY, BODY),
        ("#!/usr/bin/env x\n" + SYNTAX + BODY, "#!/usr/bin/env x\n" + BODY),
        ("# escape=`\n" + SYNTAX + BODY, "# escape=`\n" + BODY),
        (SYNTAX + "# check=error=true\n" + BODY, "# check=error=true\n" + BODY),
        (BODY, None),
        # Below anything that is no directive it is a comment.
        ("# A layer.\n" + SYNTAX + BODY, None),
        ("\n" + SYNTAX + BODY, None),
        (BODY + SYNTAX, None),
        ("# syntax=\n" + BODY, None),
        ("", None),
    ],
)
def test_the_line_is_dropped_where_it_counts(text: str, left: str | None) -> None:
    assert frontends.without_syntax(text) == left


def layer(name: str = "up", source: SourceBuild | None = None) -> LayerPlan:
    path = source.dockerfile if source else f"images/{name}/Dockerfile"
    return LayerPlan(name=name, dockerfile=path, args={}, source=source)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResolveContext:
    isolate(monkeypatch)
    return resolve_context(tmp_path / "site", tmp_path / "home")


def test_a_layer_of_ours(tmp_path: Path, context: ResolveContext) -> None:
    folder = tmp_path / "images" / "up"
    folder.mkdir(parents=True)
    (folder / "Dockerfile").write_text(SYNTAX + BODY)
    assert frontends.rewritten(layer(), tmp_path, context) == BODY
    pinned = PinnedImage(name="docker.io/docker/dockerfile", digest="sha256:x", tagged="sha256:x")
    assert frontends.rewritten(replace(layer(), syntax=pinned), tmp_path, context) is None
    (folder / "Dockerfile.dockerignore").write_text("*.md\n")
    with pytest.raises(BuildError, match=r"built without Dockerfile.dockerignore$") as error:
        frontends.rewritten(layer(), tmp_path, context)
    assert "`syntax: PIN`" in error.value.hint
    (folder / "Dockerfile").write_text(BODY)
    assert frontends.rewritten(layer(), tmp_path, context) is None


def test_a_source(tmp_path: Path, context: ResolveContext) -> None:
    remote = Remote.make(tmp_path / "site", "fork.git")
    commit = remote.commit({"docker/Dockerfile": SYNTAX + BODY, "docker/plain": BODY})
    source = SourceBuild(
        pin="fork", value="1", repository=remote.address, commit=commit,
        tree=remote.git("rev-parse", f"{commit}^{{tree}}"), dockerfile="docker/Dockerfile",
        target=None, version=None, images={},
    )  # fmt: skip
    below = replace(source, context="docker", dockerfile="Dockerfile")
    plain = replace(source, dockerfile="docker/plain")
    for one, text in ((source, BODY), (below, BODY), (plain, None)):
        assert frontends.rewritten(layer(source=one), tmp_path, context) == text
    gone = replace(source, dockerfile="Dockerfile")
    with pytest.raises(LockError, match=f"fork.git has no Dockerfile at {commit[:12]}$") as error:
        frontends.rewritten(layer(source=gone), tmp_path, context)
    assert "`dockerfile`" in error.value.hint
