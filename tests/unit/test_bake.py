"""What BuildKit is told to build, and what it may read: nothing but what the plan holds."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.build import bake
from sparkimage.config import planning
from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import Plan
from sparkimage.resolve.context import Inputs
from tests.unit import project_maker as maker

COMMIT = "a" * 40
MIRRORS = Mirrors(
    rules={
        "docker.io": "registry.example:5000/hub",
        "https://git.example": "https://mirror.example/git",
        WHEELS: "https://user:secret@index.example/simple",
    }
)
SOURCE = {
    "pin": "fork",
    "dockerfile": "docker/Dockerfile",
    "target": "final",
    "images": {"BUILD_IMAGE": "cuda-devel", "FINAL_IMAGE": "layer"},
}
PINS: dict[str, Any] = {
    "os": {"trixie": maker.OS},
    "app": {"1.0.0": maker.APP},
    "nccl": {"2.30.0": maker.NCCL},
    "cuda": {"13.0.0": maker.CUDA},
    "cuda-devel": {"13.0.0": {**maker.CUDA, "image": "nvidia/cuda:13.0-devel"}},
    "fork": {"one": maker.git_pin(COMMIT)},
    "server": {
        "one": {"kind": "git", "repository": "https://git.example/server.git", "commit": "b" * 40}
    },
    "vocabulary": {"o200k": maker.FILE},
}
LAYERS: dict[str, Any] = {
    "root": {"base": "os"},
    "more": {"debs": "os"},
    "wheels": {"wheels": {"pin": "app"}},
    "cuda-base": {"base": "cuda"},
    "source": {"source": SOURCE, "args": {"max_jobs": "3"}},
    "debs": {"debs": "nccl"},
    "last": {},
    "compiled": {
        "inputs": {"tree": "fork", "devel": "cuda-devel", "words": "vocabulary"},
    },
    "lowest": {
        "source": {
            "pin": "server",
            "context": "docker",
            "images": {"BASE": "cuda"},
            "inputs": {"nvidia/cuda:13.0-devel": "cuda-devel", "words": "vocabulary"},
        }
    },
}


VARIANTS = ["of-wheels", "of.source", "of-inputs", "of-lowest"]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Plan]:
    values = {pin: next(iter(found)) for pin, found in PINS.items()}
    variants = [
        maker.include("of-wheels", "root", "more", "wheels", "last", **values),
        maker.include("of.source", "cuda-base", "source", "debs", "last", **values),
        maker.include("of-inputs", "root", "compiled", "last", **values),
        maker.include("of-lowest", "lowest", "last", **values),
    ]
    folder = tmp_path_factory.mktemp("project")
    read = maker.write(folder, maker.document(PINS, LAYERS, variants))
    made = planning.make_all(read, read.variants, maker.locked(read), maker.ORIGIN)
    return {plan.variant: plan for plan in made}


def inputs(plan: Plan, *, ca: str | None = None) -> Inputs:
    fed = (one.name for one in plan.layers if one.wheels or one.debs or one.patches)
    return Inputs(
        steps={la.name: Path("/project", la.dockerfile) for la in plan.layers},
        tools=Path("/package/_tools"),
        builder=Path("/package/_builder"),
        uv=Path("/uv"),
        root=Path("/root-folder"),
        layers={name: Path("/inputs", name) for name in fed},
        trees={},
        files={file.sha256: Path("/files", file.sha256) for la in plan.layers for file in la.files},
        dockerfiles={},
        overrides=frozenset(),
        sources={},
        ca_bundle=ca,
    )


def targets(
    plan: Plan, mirrors: Mirrors = bake.NO_MIRRORS, cache: str | None = None, **more: str
) -> dict[str, Any]:
    made = bake.definition([plan], {plan.variant: inputs(plan, **more)}, mirrors, cache)
    assert made["group"] == {"default": {"targets": [bake.target_name(plan)]}}
    found: dict[str, Any] = made["target"]
    return found


def allowed(rules: Mapping[str, Any], identifier: str) -> bool:
    """Whether BuildKit reads this source: of the rules that fit, the last one counts."""
    verdict = "ALLOW"
    for rule in rules["rules"]:
        pattern, kind = rule["selector"]["identifier"], rule["selector"]["matchType"]
        hit = (
            fnmatch.fnmatchcase(identifier, pattern)
            if kind == "WILDCARD"
            else identifier == pattern
        )
        if hit:
            verdict = rule["action"]
    return verdict == "ALLOW"


def image(plan: Plan, layer: str) -> PinnedImage:
    (found,) = (one for one in plan.layers if one.name == layer)
    if found.source is not None:
        (only,) = (one for one in found.source.images.values() if one is not None)
        return only
    assert found.image is not None
    return found.image


def test_a_plan_of_wheels_reads_local_files_only(plans: Mapping[str, Plan]) -> None:
    rules = bake.policy([plans["of-wheels"]])
    assert [rule["action"] for rule in rules["rules"]] == ["DENY", "ALLOW"]
    assert allowed(rules, "local://context")
    for other in ("docker-image://docker.io/library/debian:13", "https://example.org/x",
                  "git://git.example/fork.git#" + COMMIT, "oci-layout://x"):  # fmt: skip
        assert not allowed(rules, other)


def test_a_plan_reads_its_own_images_and_commit_only(plans: Mapping[str, Plan]) -> None:
    plan = plans["of.source"]
    rules = bake.policy([plan])
    base, devel = (image(plan, name) for name in ("cuda-base", "source"))
    assert base.digest != devel.digest
    for name in (base, devel):
        reference = f"docker-image://{name.name}@{name.digest}"
        assert allowed(rules, reference)
        assert not allowed(rules, f"docker-image://{name.name}:13.0")
        assert not allowed(rules, f"docker-image://{name.name}:13.0@{name.digest}")
        assert not allowed(rules, f"{reference[:-1]}x")
    assert allowed(rules, f"git://git.example/fork.git#{COMMIT}")
    assert not allowed(rules, f"git://git.example/fork.git#{COMMIT[:9]}")
    assert not allowed(rules, "git://git.example/fork.git")
    assert not allowed(rules, f"git://git.example/other.git#{COMMIT}")


def test_with_mirrors_only_the_mirror_is_read(plans: Mapping[str, Plan]) -> None:
    plan = plans["of.source"]
    rules = bake.policy([plan], MIRRORS)
    digest = image(plan, "cuda-base").digest
    assert allowed(rules, f"docker-image://registry.example:5000/hub/nvidia/cuda@{digest}")
    assert not allowed(rules, f"docker-image://docker.io/nvidia/cuda@{digest}")
    assert allowed(rules, f"git://mirror.example/git/fork.git#{COMMIT}")
    assert not allowed(rules, f"git://git.example/fork.git#{COMMIT}")


def test_a_user_is_no_part_of_a_git_sources_name(plans: Mapping[str, Plan]) -> None:
    site = Mirrors(rules={"https://git.example": "https://me@mirror.example:22/x"})
    rules = bake.policy([plans["of.source"]], site)
    assert allowed(rules, f"git://mirror.example:22/x/fork.git#{COMMIT}")


def test_what_is_fetched_with_ssh_is_a_folder(plans: Mapping[str, Plan]) -> None:
    plan = plans["of-inputs"]
    site = Mirrors(rules={"https://git.example": "ssh://git@mirror.example/x"})
    given = replace(inputs(plan), trees={COMMIT: Path("/trees", COMMIT)})
    made = bake.definition([plan], {plan.variant: given}, site)["target"]
    assert made["of-inputs--compiled"]["contexts"]["tree"] == f"/trees/{COMMIT}"
    identifiers = [rule["selector"]["identifier"] for rule in bake.policy([plan], site)["rules"]]
    assert not any(identifier.startswith("git://") for identifier in identifiers)


def remote(target: Mapping[str, Any]) -> list[str]:
    """Every source of a target that lies elsewhere, as the policy names it."""
    named = [target["context"], *target["contexts"].values()]
    found = []
    for one in named:
        if one.startswith("docker-image://") and one != "docker-image://scratch":
            found.append(one)
        elif "://" in one and not one.startswith("docker-image://"):
            found.append("git://" + one.partition("://")[2])
    return found


@given(
    st.sampled_from([bake.NO_MIRRORS, MIRRORS]),
    st.lists(st.sampled_from(VARIANTS), min_size=1, unique=True),
)
def test_what_is_built_is_what_may_be_read(
    plans: Mapping[str, Plan], mirrors: Mirrors, names: list[str]
) -> None:
    chosen = [plans[name] for name in names]
    rules = bake.policy(chosen, mirrors)
    made = bake.definition(chosen, {one.variant: inputs(one) for one in chosen}, mirrors)
    asked = {one for target in made["target"].values() for one in remote(target)}
    assert all(allowed(rules, one) for one in asked)
    exact = {r["selector"]["identifier"] for r in rules["rules"]
             if r["selector"]["matchType"] == "EXACT"}  # fmt: skip
    # And nothing may be read that no target asks for.
    assert exact == asked


@pytest.mark.parametrize(
    ("mirrors", "site", "hub"),
    [
        (bake.NO_MIRRORS, "https://git.example", "docker.io"),
        (MIRRORS, "https://mirror.example/git", "registry.example:5000/hub"),
    ],
)
def test_a_source_is_built_at_its_commit_by_its_own_dockerfile(
    plans: Mapping[str, Plan], mirrors: Mirrors, site: str, hub: str
) -> None:
    plan = plans["of.source"]
    made = targets(plan, mirrors)
    assert list(made) == [
        "of_source--cuda-base",
        "of_source--source--build_image",
        "of_source--source",
        "of_source--debs",
        "of_source",
    ]
    source, builder = made["of_source--source"], made["of_source--source--build_image"]
    assert source["context"] == f"{site}/fork.git#{COMMIT}"
    assert (source["dockerfile"], source["target"]) == ("docker/Dockerfile", "final")
    assert source["contexts"] == {
        "build_image": "target:of_source--source--build_image",
        "layer": "target:of_source--cuda-base",
    }
    args = source["args"]
    assert (args["BUILD_IMAGE"], args["FINAL_IMAGE"]) == ("build_image", "layer")
    assert args["max_jobs"] == "3"
    assert args["FORK_COMMIT"] == COMMIT
    assert args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"] == "1"
    # The version that its git has no tag for stands in the image that it is compiled in.
    devel = image(plan, "source")
    assert builder["context"] == "/package/_builder"
    assert (builder["target"], builder["args"]) == ("setuptools-scm", {"VERSION": "1.0"})
    assert builder["contexts"] == {"layer": f"docker-image://{hub}/nvidia/cuda@{devel.digest}"}
    base = image(plan, "cuda-base")
    bottom = made["of_source--cuda-base"]["contexts"]["layer"]
    assert bottom == f"docker-image://{hub}/nvidia/cuda@{base.digest}"


def test_a_layer_has_its_inputs_as_named_contexts(plans: Mapping[str, Plan]) -> None:
    plan = plans["of-inputs"]
    made = targets(plan, MIRRORS)["of-inputs--compiled"]
    contexts, layer = made["contexts"], plan.layers[1]
    sha256 = maker.sha256("vocabulary o200k")
    (devel,) = layer.images
    assert contexts == {
        "layer": "target:of-inputs--root",
        "tools": "/package/_tools",
        "tree": f"https://mirror.example/git/fork.git#{COMMIT}",
        "devel": f"docker-image://registry.example:5000/hub/nvidia/cuda@{devel.digest}",
        "words": f"/files/{sha256}",
    }
    expected = {"FORK_COMMIT": COMMIT, "FORK_VERSION": "1.0", "CUDA_DEVEL_VERSION": "13.0.0",
                "VOCABULARY_VERSION": "o200k"}  # fmt: skip
    assert expected.items() <= made["args"].items()
    assert plan.labels["dev.sparkimage.commit.fork"] == COMMIT
    assert plan.labels["dev.sparkimage.file.vocabulary"] == f"sha256:{sha256}"
    assert plan.download_bytes == 5 + 10


def test_a_source_can_be_the_lowest_layer(plans: Mapping[str, Plan]) -> None:
    plan = plans["of-lowest"]
    made = targets(plan)
    assert list(made) == ["of-lowest--lowest", "of-lowest"]
    lowest = made["of-lowest--lowest"]
    base, devel = plan.layers[0].images
    # Without a version that it is to get, its images are as they are.
    assert lowest["contexts"] == {
        "base": f"docker-image://docker.io/nvidia/cuda@{base.digest}",
        "nvidia/cuda:13.0-devel": f"docker-image://docker.io/nvidia/cuda@{devel.digest}",
        "words": f"/files/{maker.sha256('vocabulary o200k')}",
    }
    assert lowest["context"] == f"https://git.example/server.git#{'b' * 40}:docker"
    assert lowest["dockerfile"] == "Dockerfile"
    assert "target" not in lowest
    assert lowest["args"]["SERVER_VERSION"] == f"0+g{'b' * 9}"
    assert made["of-lowest"]["contexts"]["layer"] == "target:of-lowest--lowest"


def test_a_layer_is_given_its_own_inputs(plans: Mapping[str, Plan]) -> None:
    made = targets(plans["of-wheels"])
    # One copy of uv is passed on to all.
    uv = made.pop("of-wheels--_uv")
    assert (uv["dockerfile-inline"], uv["contexts"]) == ("FROM uv\n", {"uv": "/uv"})
    given = {name: target["contexts"].get("inputs") for name, target in made.items()}
    assert given == {
        "of-wheels--root": None,
        "of-wheels--more": "/inputs/more",
        "of-wheels--wheels": "/inputs/wheels",
        "of-wheels": None,
    }
    assert made["of-wheels--root"]["context"] == "/root-folder"
    assert made["of-wheels--root"]["contexts"]["layer"] == "docker-image://scratch"
    taken = {name: one["contexts"]["uv"] for name, one in made.items() if "uv" in one["contexts"]}
    assert taken == {"of-wheels--wheels": "target:of-wheels--_uv"}


def test_secrets_are_given_to_wheels_and_are_no_arguments(plans: Mapping[str, Plan]) -> None:
    plan = plans["of-wheels"]
    made = targets(plan, MIRRORS, ca="/ca.pem")
    assert {name: one["secret"] for name, one in made.items() if "secret" in one} == {
        "of-wheels--wheels": ["id=ca,src=/ca.pem", f"id=index,env={bake.INDEX_VARIABLE}"]
    }
    assert "secret@" not in repr(made)
    # A mirror changes nothing else of what is built.
    plain = targets(plan, ca="/ca.pem")
    assert plain["of-wheels--wheels"]["secret"] == ["id=ca,src=/ca.pem"]
    for target in (*made.values(), *plain.values()):
        target.pop("secret", None)
    assert made == plain
    assert not any("secret" in one for one in targets(plan).values())


def test_a_cache_is_read_by_all_and_written_once(plans: Mapping[str, Plan]) -> None:
    plan = plans["of-wheels"]
    made = targets(plan, cache="registry.example/cache")
    ref = "type=registry,ref=registry.example/cache:of-wheels"
    assert [one["cache-from"] for one in made.values() if "cache-from" in one] == [[ref]] * 4
    (written,) = (one["cache-to"] for one in made.values() if "cache-to" in one)
    (said,) = written
    assert said.startswith(f"{ref},mode=max,")
    assert "ignore-error=true" in said
    assert "cache-to" in made["of-wheels"]
    assert not any({"cache-from", "cache-to"} & set(one) for one in targets(plan).values())


def test_one_target_alone_is_the_image(plans: Mapping[str, Plan]) -> None:
    for plan in plans.values():
        made = targets(plan)
        last = made.pop(bake.target_name(plan))
        assert last["labels"] == plan.labels
        assert last["output"] == [f"type=image,name={plan.image},{bake.COMPRESSION}"]
        assert all(one["output"] == ["type=cacheonly"] for one in made.values())
        assert not any("labels" in one for one in made.values())
        assert all(one["platforms"] == [plan.platform] for one in made.values())
