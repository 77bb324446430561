"""Nothing but the inputs of the lock enters a build: each kind, changed one at a time, fails it.

Two ways: what a plan names is altered in the plan, as an altered lock would; and what a Dockerfile
reaches for by itself is written into a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sparkimage.config.lock_items import Deb
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.core.errors import BuildError, LockError, SparkError
from sparkimage.resolve import fetch as inputs
from sparkimage.verify import pipeline
from tests.lab.conftest import Lab
from tests.lab.recipe import TWIN, Recipe

ZEROS = "0" * 64


def layer(plan: Plan, name: str) -> LayerPlan:
    return next(one for one in plan.layers if one.name == name)


def changed(plan: Plan, name: str, **changes: object) -> Plan:
    """The plan with one of its layers changed."""
    layers = tuple(
        dataclasses.replace(one, **changes) if one.name == name else one  # type: ignore[arg-type]
        for one in plan.layers
    )
    return dataclasses.replace(plan, layers=layers)


def base_image(plan: Plan) -> Plan:
    image = layer(plan, "cuda-base").image
    assert image is not None
    other = dataclasses.replace(image, digest=f"sha256:{ZEROS}")
    return changed(plan, "cuda-base", image=other)


def builder_image(plan: Plan) -> Plan:
    source = layer(plan, "vllm-source").source
    assert source is not None
    images = {
        arg: image and dataclasses.replace(image, digest=f"sha256:{ZEROS}")
        for arg, image in source.images.items()
    }
    return changed(plan, "vllm-source", source=dataclasses.replace(source, images=images))


def commit(plan: Plan) -> Plan:
    source = layer(plan, "vllm-source").source
    assert source is not None
    return changed(plan, "vllm-source", source=dataclasses.replace(source, commit="0" * 40))


def tree(plan: Plan) -> Plan:
    source = layer(plan, "vllm-source").source
    assert source is not None
    return changed(plan, "vllm-source", source=dataclasses.replace(source, tree="0" * 40))


def _debs(plan: Plan, name: str, **changes: str) -> Plan:
    debs = layer(plan, name).debs
    assert debs is not None
    first = dataclasses.replace(debs.debs[0], **changes)  # type: ignore[arg-type]
    other = dataclasses.replace(debs, debs=(first, *debs.debs[1:]))
    return changed(plan, name, debs=other)


def deb_bytes(plan: Plan) -> Plan:
    return _debs(plan, "nccl-apt", sha256=ZEROS)


def deb_withdrawn(plan: Plan) -> Plan:
    return _debs(plan, "nccl-apt", sha256=ZEROS, version="2.30.5-1+cuda13.2")


def debian_package(plan: Plan) -> Plan:
    return _debs(plan, "python", sha256=ZEROS)


def debian_root(plan: Plan) -> Plan:
    root = layer(plan, "debian").root
    assert root is not None
    first: Deb = dataclasses.replace(root.debs[0], sha256=ZEROS)
    return changed(plan, "debian", root=dataclasses.replace(root, debs=(first, *root.debs[1:])))


def wheel(plan: Plan) -> Plan:
    (one,) = layer(plan, "cuda").wheels
    return changed(plan, "cuda", wheels=(dataclasses.replace(one, sha256=ZEROS),))


def wheel_withdrawn(plan: Plan) -> Plan:
    (one,) = layer(plan, "cuda").wheels
    return changed(plan, "cuda", wheels=(dataclasses.replace(one, version="13.0.9999"),))


def local_wheel(plan: Plan) -> Plan:
    wheels = layer(plan, "vllm").wheels
    first = dataclasses.replace(wheels[0], sha256=ZEROS)
    return changed(plan, "vllm", wheels=(first, *wheels[1:]))


def patch_text(plan: Plan) -> Plan:
    (series,) = layer(plan, "sm12x-patch").patches
    (patch,) = series.patches
    patches = (dataclasses.replace(patch, sha256=ZEROS),)
    return changed(plan, "sm12x-patch", patches=(dataclasses.replace(series, patches=patches),))


def _target(plan: Plan, **changes: str) -> Plan:
    (series,) = layer(plan, "sm12x-patch").patches
    (target,) = series.targets
    targets = (dataclasses.replace(target, **changes),)  # type: ignore[arg-type]
    other = dataclasses.replace(series, targets=targets)
    return changed(plan, "sm12x-patch", patches=(other,))


def patch_before(plan: Plan) -> Plan:
    return _target(plan, before=ZEROS)


def patch_after(plan: Plan) -> Plan:
    return _target(plan, after=ZEROS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A change of the plan, the error that it must meet, and a part of its message."""

    change: Callable[[Plan], Plan]
    error: type[SparkError]
    says: str


RECIPE = (
    Case(change=base_image, error=LockError, says="the registry has no docker.io/nvidia/cuda@"),
    Case(change=builder_image, error=LockError, says="the registry has no docker.io/nvidia/cuda@"),
    Case(change=commit, error=LockError, says="no longer has the commit 0000"),
    Case(change=tree, error=LockError, says="and the lock says 000000000000"),
    Case(change=deb_bytes, error=LockError, says="and the lock says 0000"),
    Case(change=deb_withdrawn, error=LockError, says="no longer has libnccl"),
    Case(change=patch_text, error=LockError, says="and the lock says 0000"),
    Case(change=patch_before, error=BuildError, says="the build of"),
    Case(change=patch_after, error=LockError, says="and the lock says 0000"),
)
WHEELS = (
    Case(change=debian_root, error=LockError, says="and the lock says 0000"),
    Case(change=debian_package, error=LockError, says="and the lock says 0000"),
    Case(change=wheel, error=LockError, says="another hash than the lock says"),
    Case(change=wheel_withdrawn, error=LockError, says="nvidia-cuda-runtime==13.0.9999"),
    Case(change=local_wheel, error=LockError, says="another hash than the lock says"),
)


def refuse(lab: Lab, name: str, case: Case) -> None:
    before = lab.context.store.names()
    with pytest.raises(case.error) as refusal:
        pipeline.build(case.change(lab.plan(name)), lab.context)
    assert case.says in refusal.value.message
    assert refusal.value.hint
    assert lab.context.store.names() == before


@pytest.mark.parametrize("case", RECIPE, ids=lambda case: case.change.__name__)
def test_an_altered_input_of_the_recipe_fails_the_build(recipe: Recipe, case: Case) -> None:
    refuse(recipe.lab, TWIN, case)


@pytest.mark.parametrize("case", WHEELS, ids=lambda case: case.change.__name__)
def test_an_altered_input_from_wheels_fails_the_build(lab: Lab, case: Case) -> None:
    refuse(lab, "good-amd64", case)


def test_an_altered_build_tool_fails_the_build(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = inputs.uv_pins().split("--hash")[0] + f"--hash=sha256:{ZEROS}\n"
    monkeypatch.setattr(inputs, "uv_pins", lambda: pins)
    plan = dataclasses.replace(lab.plan("good-amd64"), variant="other")
    with pytest.raises(LockError, match="another hash than the lock says"):
        pipeline.build(plan, lab.context)


UNPINNED = {
    "tag": ("FROM layer AS unpinned\nCOPY --from={registry}/nvidia/cuda:13.0.3-base-ubuntu24.04 "
            "/etc/os-release /x\n"),
    "digest": (f"FROM layer AS unpinned\nCOPY --from={{registry}}/nvidia/cuda@sha256:{ZEROS} "
               "/etc/os-release /x\n"),
    "from": "FROM {registry}/nvidia/cuda:13.0.3-base-ubuntu24.04 AS unpinned\n",
    "http": "FROM layer AS unpinned\nADD {web}/sbsa/Packages /x\n",
    "git": "FROM layer AS unpinned\nADD {git}/jasl/vllm.git#codex/ds4-sm120-min-enable /x\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", UNPINNED)
def test_what_a_dockerfile_reaches_for_itself_is_denied(recipe: Recipe, kind: str) -> None:
    lab = recipe.lab
    places = {
        "registry": recipe.registry.address,
        "web": recipe.apt.url,
        "git": lab.mirrors["https://github.com"],
    }
    # With this line our reader, which would say it before, leaves the file to BuildKit.
    lab.add_layer("unpinned", "# escape=`\n" + UNPINNED[kind].format(**places))
    with pytest.raises(BuildError) as refusal:
        pipeline.build(with_layer(lab), lab.context)
    assert "which is not locked" in refusal.value.message
    assert "source.images" in refusal.value.hint


def test_a_step_has_no_network(recipe: Recipe) -> None:
    # This layer's image knows Debian's mirror, and a build with a network would reach it.
    update = "apt-get -o APT::Update::Error-Mode=any -o Acquire::Retries=0 update"
    recipe.lab.add_layer("unpinned", f"FROM layer AS unpinned\nRUN {update}\n")
    with pytest.raises(BuildError) as refusal:
        pipeline.build(with_layer(recipe.lab), recipe.lab.context)
    assert "Failed to fetch" in refusal.value.detail


def test_a_step_that_would_have_one_is_refused(recipe: Recipe) -> None:
    file = recipe.lab.project / "images" / "unpinned" / "Dockerfile"
    recipe.lab.add_layer("unpinned", "FROM layer AS unpinned\n")
    file.write_text("FROM layer AS unpinned\nRUN apt-get update && \\\n    apt-get install curl\n")
    with pytest.raises(BuildError, match="a step has network access") as refusal:
        pipeline.build(with_layer(recipe.lab), recipe.lab.context)
    assert refusal.value.detail == "RUN apt-get update && apt-get install curl"


def with_layer(lab: Lab) -> Plan:
    """The twin with the layer ``unpinned`` on it."""
    plan = lab.plan(TWIN)
    top = LayerPlan(name="unpinned", dockerfile="images/unpinned/Dockerfile", args={})
    return dataclasses.replace(plan, variant="unpinned", layers=(*plan.layers, top))
