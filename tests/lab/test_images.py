"""Images of the lab, from the matrix to the seal, on a real engine."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

from sparkimage.building import builder
from sparkimage.errors import VerifyError
from sparkimage.proof import seal, verify
from sparkimage.proof.checks import NOT_BEGUN
from sparkimage.storage.store import Store
from sparkimage.tier import Tier
from tests.lab.conftest import REPOSITORY, Lab
from tests.lab.wrong import NEEDS_GPU, WRONG, Wrong


@pytest.fixture(scope="module")
def good(lab: Lab) -> builder.Result:
    return lab.build("good-amd64", rebuild=True)


def test_a_good_image_is_proven_sealed_and_named(lab: Lab, good: builder.Result) -> None:
    name = f"{REPOSITORY}:good-amd64"
    store = lab.shop.store
    assert store.names()[name] == good.image.digest
    assert name in lab.images()
    assert f"{name}{builder.STAGING}" not in lab.images()
    verdict = seal.verdict(store, good.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    assert verdict.tiers == (Tier.STATIC, Tier.RUN)
    assert {check.layer for check in verdict.checks if check.tier is Tier.RUN} == {
        "_every",
        *(layer.name for layer in good.plan.layers),
    }
    (answer,) = [check for check in verdict.checks if check.id == "run/entrypoint-answers"]
    assert (answer.result, answer.seen) == ("PASSED", "usage: vllm serve")
    assert store.damaged(good.image.digest) == []


def test_arguments_follow_the_entrypoint(lab: Lab, good: builder.Result) -> None:
    said = lab.docker.run(good.plan.image, ["MODEL", "--port", "1"], remove=True)
    assert json.loads(str(said)) == ["stand-in vllm", "serve", "MODEL", "--port", "1"]


def test_nothing_is_done_when_nothing_changed(lab: Lab, good: builder.Result) -> None:
    again = lab.build("good-amd64")
    assert again.unchanged
    assert again.image.digest == good.image.digest


def test_two_builds_make_the_same_layers(lab: Lab, good: builder.Result) -> None:
    # The other variant's lower layers are the same ones, so its chain begins alike.
    other = lab.plan("wrong-many-faults")
    assert [layer.name for layer in other.layers][:8] == [la.name for la in good.plan.layers]
    stored = {layer.digest for layer in good.image.layers}
    assert len(stored) == len(good.image.layers)


def test_another_architecture_is_proven_under_emulation(lab: Lab) -> None:
    made = lab.build("good-arm64")
    assert made.image.platform == "linux/arm64"
    verdict = seal.verdict(lab.shop.store, made.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    seen = {check.id: check.seen for check in verdict.checks}
    assert seen["_every/test_platform_of_the_programs"] == "aarch64"
    assert seen["nccl-pip/test_version_of_the_preload"] == 23004


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_image_is_refused(lab: Lab, wrong: Wrong) -> None:
    before = lab.images(), lab.shop.store.names()
    with pytest.raises(VerifyError) as refusal:
        lab.build(f"wrong-{wrong.name}")
    refused_by = set(re.findall(r"^✗ ([^:]+):", refusal.value.detail, re.MULTILINE))
    assert set(wrong.checks) <= refused_by
    # Refused means: no name anywhere, and a seal that says FAILED.
    staged = f"{REPOSITORY}:wrong-{wrong.name}{builder.STAGING}"
    assert lab.images() - {staged} == before[0]
    assert lab.shop.store.names() == before[1]
    digest = refusal.value.message.split("sha256:")[1].split(")")[0]
    kept = [p for p in (lab.shop.store.root / "facts" / "seal").iterdir() if digest in p.name]
    sealed = seal.verdict(lab.shop.store, kept[0].stem.replace("-", ":"))
    assert sealed is not None
    assert sealed.result == "FAILED"
    assert {check.tier for check in sealed.checks} == {Tier.STATIC, Tier.RUN}
    lab.docker.image.remove(staged, force=True)


@pytest.mark.usefixtures("good")
def test_what_answers_with_a_gpu_only_has_not_passed(lab: Lab) -> None:
    made = lab.build(f"wrong-{NEEDS_GPU.name}")
    said = made.not_run["run/entrypoint-answers"]
    assert said.startswith("not run: it answers with a GPU only (exit code 1: RuntimeError")
    verdict = seal.verdict(lab.shop.store, made.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    assert "run/entrypoint-answers" not in {check.id for check in verdict.checks}
    assert verdict.not_run == made.not_run
    shown = lab.run("verify", made.plan.variant, "--tier", "run")
    assert f"run/entrypoint-answers: {said}" in " ".join(shown.stdout.split())


def test_other_expectations_than_the_image_was_built_for_are_refused(
    lab: Lab, good: builder.Result
) -> None:
    # What a Dockerfile cannot spoil, since the definition sets it last: the plan is wrong instead.
    layers = good.plan.layers
    assert layers[0].root is not None
    bookworm = dataclasses.replace(layers[0].root, suite="bookworm")
    root = dataclasses.replace(layers[0], root=bookworm)
    plan = dataclasses.replace(
        good.plan,
        platform="linux/arm64",
        labels={**good.plan.labels, "dev.sparkimage.version.nccl": "2.30.5"},
        layers=(root, *layers[1:]),
        python="3.12",
    )
    reference = good.plan.image
    with verify.container(lab.engine, lab.runner, reference, good.plan.platform) as container:
        checks = verify.examine(
            plan,
            good.image,
            container,
            project=lab.project,
            store=lab.shop.store,
            engine=lab.engine,
            runner=lab.runner,
        )
    refused_by = {check.id for check in checks if check.result == "FAILED"}
    assert refused_by >= {
        "_every/test_labels",
        "_every/test_platform_of_the_config",
        "_every/test_platform_of_the_programs",
        "debian/test_suite",
        "python/test_python_version",
        "nccl-pip/test_soname_and_architecture",
    }


def test_verify_proves_again_and_names_what_is_wrong(lab: Lab, good: builder.Result) -> None:
    done = lab.run("verify", "good-amd64")
    assert done.returncode == 0, done.stderr
    assert f"{len(good.checks)} checks passed" in done.stdout
    by_digest = lab.run("verify", good.image.digest[7:19], "--json")
    assert json.loads(by_digest.stdout)["result"] == "PASSED"
    missing = lab.run("verify", "0123456789ab")
    assert missing.returncode == 5
    assert "the image store holds no 0123456789ab" in missing.stderr


LOSES = """#!/bin/sh
# runc's child is lost before an exec's command has begun, {times} times.
case " $* " in
*' exec '*)
    if [ $(wc -l <'{folder}/lost') -lt {times} ]; then
        echo >>'{folder}/lost'
        echo 'OCI runtime exec failed: exec failed: unable to start container process: {words}: \
read init-p: connection reset by peer: unknown'
        exit 126
    fi
    ;;
esac
exec '{docker}' "$@"
"""


@pytest.mark.parametrize(("times", "failed"), [(1, 0), (2, 1)])
def test_a_command_that_the_engine_did_not_begin_is_begun_once_more(
    lab: Lab, good: builder.Result, tmp_path: Path, times: int, failed: int
) -> None:
    (tmp_path / "lost").touch()
    folder = tmp_path / "bin"
    folder.mkdir()
    loses = LOSES.format(times=times, words=NOT_BEGUN, folder=tmp_path, docker=lab.engine.docker[0])
    (folder / "docker").write_text(loses)
    (folder / "docker").chmod(0o755)
    engine = dataclasses.replace(lab.engine, bin=folder)
    came = verify.run(
        good.plan, good.image, live=lambda: verify.Live(engine=engine, reference=good.plan.image),
        project=lab.project, store=lab.shop.store, runner=lab.runner, tiers=[Tier.RUN],
    )  # fmt: skip
    assert len((tmp_path / "lost").read_text().splitlines()) == times
    assert len(came.failed) == failed
    assert all(NOT_BEGUN in str(check.seen) for check in came.failed)


def test_an_engine_with_the_classic_store_gives_the_same_layers(
    lab: Lab, good: builder.Result
) -> None:
    # Its way into the store is `docker save`, which any engine has.
    classic = dataclasses.replace(lab.engine, containerd_store=False)
    shop = dataclasses.replace(lab.shop, engine=classic)
    made = builder.build(good.plan, shop, rebuild=True)
    assert [la.diff_id for la in made.image.layers] == [la.diff_id for la in good.image.layers]
    assert made.image.config["config"]["Entrypoint"] == ["vllm", "serve"]
    lab.build("good-amd64", rebuild=True)


def test_a_flipped_bit_is_found_named_and_mended(lab: Lab, good: builder.Result) -> None:
    store = lab.shop.store
    layer = good.image.layers[-1]
    path = store.path(layer.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    found = lab.run("store", "check")
    assert found.returncode == 8
    assert f"{REPOSITORY}:good-amd64: damaged: {layer.digest}" in found.stdout
    assert "python build.py image good-amd64 --repair" in found.stderr
    mended = lab.run("image", "good-amd64", "--repair")
    assert mended.returncode == 0, mended.stderr
    assert layer.digest in mended.stderr
    assert Store.open(store.root).damaged(good.image.digest) == []


def test_the_printed_definition_builds_by_hand(lab: Lab, good: builder.Result) -> None:
    printed = lab.run("image", "good-amd64", "--print", "bake")
    file = lab.project / "bake.json"
    file.write_text(printed.stdout)
    subprocess.run(
        [*lab.engine.docker, "buildx", "bake", "--file", str(file)],
        env=lab.environment(BUILDX_NO_DEFAULT_LOAD="1", **lab.engine.environment),
        check=True,
        capture_output=True,
    )
    held = lab.docker.image.inspect(good.plan.image)
    assert held.id == good.image.digest


def test_a_changed_nccl_pin_rebuilds_its_layer_and_none_below(
    lab: Lab, good: builder.Result
) -> None:
    with pytest.raises(VerifyError) as refusal:
        lab.build("wrong-nccl-2.28.9-under-a-2.30.4-name", rebuild=True)
    digest = refusal.value.message.split("(")[1].split(")")[0]
    manifests = [
        p.name
        for p in (lab.shop.store.root / "blobs" / "sha256").iterdir()
        if p.name.startswith(digest[7:])
    ]
    other = lab.shop.store.resolve(f"sha256:{manifests[0]}")
    same = [a == b for a, b in zip(good.image.layers, other.layers, strict=True)]
    names = [la.name for la in good.plan.layers if la.name != "serve"]
    assert [name for name, one in zip(names, same, strict=True) if not one] == ["nccl"]
