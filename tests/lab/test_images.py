"""Images of the lab, from the matrix to the seal, on a real engine."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sparkimage.build.engine import private
from sparkimage.config.plan import REVISION_LABEL
from sparkimage.config.tier import Tier
from sparkimage.core.errors import VerifyError
from sparkimage.image import layerindex
from sparkimage.verify import pipeline, plan_record, run_entrypoint, run_tiers, seal
from sparkimage.verify.checks import NOT_STARTED
from tests.lab.conftest import REPOSITORY, Lab, spare_engine
from tests.lab.wrong import ANSWER, BROKEN, NEEDS_GPU, SILENT, STACK, WRONG, Broken, Silent


@pytest.fixture(scope="module")
def good(lab: Lab) -> pipeline.Result:
    return lab.build("good-amd64", rebuild=True)


def container(lab: Lab, made: pipeline.Result) -> AbstractContextManager[str]:
    """A container of the image, for a test to break."""
    return run_tiers.container(lab.engine, lab.runner, made.plan.image, made.plan.platform)


def test_a_good_image_is_proven_sealed_and_named(lab: Lab, good: pipeline.Result) -> None:
    name = f"{REPOSITORY}:good-amd64"
    store = lab.context.store
    assert store.names()[name] == good.image.digest
    assert name in lab.images()
    assert f"{name}{pipeline.REFUSED}" not in lab.images()
    verdict = seal.verdict(store, good.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    assert verdict.tiers == (Tier.STATIC, Tier.RUN)
    of = {tier: {one.layer for one in verdict.checks if one.tier is tier} for tier in Tier}
    assert of[Tier.STATIC] == {"static", "cuda", "vllm", "nccl-pip", "serve"}
    assert of[Tier.RUN] == {"_every", "python", "cuda", "torch", "nccl-pip"}
    (answer,) = [check for check in verdict.checks if check.id == "run/entrypoint-answers"]
    assert (answer.result, answer.seen) == ("PASSED", "usage: vllm serve")
    assert store.damaged(good.image.digest) == []


def test_every_layer_has_the_folders_that_its_files_are_in(lab: Lab, good: pipeline.Result) -> None:
    """Docker 29.7.0 refused layers without them."""
    layers = layerindex.image_files(lab.store, good.image).layers
    assert len(layers) > 3
    for entries in layers:
        folders = {""}
        for entry in entries:
            assert entry.path.rpartition("/")[0] in folders, str(entry)
            folders |= {entry.path} if entry.kind == "5" else set()


def test_arguments_follow_the_entrypoint(lab: Lab, good: pipeline.Result) -> None:
    said = lab.docker.run(good.plan.image, ["MODEL", "--port", "1"], remove=True)
    assert json.loads(str(said)) == ["stand-in vllm", "serve", "MODEL", "--port", "1"]


def test_nothing_is_done_when_nothing_changed(lab: Lab, good: pipeline.Result) -> None:
    again = lab.build("good-amd64")
    assert again.unchanged
    assert again.image.digest == good.image.digest


def test_another_commit_of_the_same_recipe_builds_nothing(lab: Lab, good: pipeline.Result) -> None:
    """A change of a profile is one. The image keeps the commit that it was built from."""
    plan = lab.plan("good-amd64")
    labels = {**plan.labels, REVISION_LABEL: "1" * 40}
    again = pipeline.build(
        dataclasses.replace(plan, labels=labels, epoch=plan.epoch + 9), lab.context
    )
    assert again.unchanged
    assert again.image.digest == good.image.digest
    assert again.plan.labels == good.plan.labels
    done = lab.run("verify", "good-amd64", "--tier", Tier.STATIC)
    assert done.returncode == 0, done.stderr


def test_an_image_whose_plan_is_lost_is_built_again(lab: Lab, good: pipeline.Result) -> None:
    (fact,) = (lab.context.store.root / "facts" / plan_record.KIND).glob(
        f"*{good.image.digest.removeprefix('sha256:')}*"
    )
    fact.unlink()
    again = lab.build("good-amd64")
    assert not again.unchanged
    assert again.image.digest == good.image.digest
    assert plan_record.load(lab.context.store, good.image.digest).plan == good.plan


@pytest.mark.arm64
@pytest.mark.thorough
def test_another_architecture_is_proven_under_emulation(lab: Lab) -> None:
    made = lab.build("good-arm64")
    assert made.image.platform == "linux/arm64"
    verdict = seal.verdict(lab.context.store, made.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    seen = {check.id: check.seen for check in verdict.checks}
    assert seen["_every/test_platform_of_the_programs"] == "aarch64"
    assert seen["nccl-pip/test_version_of_the_preload"] == 23004


def test_a_wrong_image_is_refused(lab: Lab, good: pipeline.Result) -> None:
    # What the field shipped: 2.28.9 under a 2.30.4 name.
    (wrong,) = WRONG
    before = lab.images(), lab.context.store.names()
    with pytest.raises(VerifyError) as refusal:
        lab.build(f"wrong-{wrong.name}")
    refused_by = re.findall(r"^✗ (\S+)", refusal.value.detail, re.MULTILINE)
    assert sorted(refused_by) == sorted(wrong.checks)
    # Refused means: no name anywhere, and a seal that says FAILED.
    staged = f"{REPOSITORY}:wrong-{wrong.name}{pipeline.REFUSED}"
    assert lab.images() - {staged} == before[0]
    assert lab.context.store.names() == before[1]
    store = lab.context.store
    short = refusal.value.message.split("sha256:")[1].split(")")[0]
    (manifest,) = (store.root / "blobs" / "sha256").glob(f"{short}*")
    made = store.resolve(f"sha256:{manifest.name}")
    sealed = seal.verdict(store, made.digest)
    assert sealed is not None
    assert sealed.result == "FAILED"
    assert {check.tier for check in sealed.checks} == {Tier.STATIC, Tier.RUN}
    lab.docker.image.remove(staged, force=True)
    # A changed pin rebuilds its layer and none below.
    names = [la.name for la in good.plan.layers if la.name != "serve"]
    same = [a == b for a, b in zip(good.image.layers, made.layers, strict=True)]
    assert [name for name, one in zip(names, same, strict=True) if not one] == ["nccl"]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_the_run_tier_refuses_a_broken_container(
    lab: Lab, good: pipeline.Result, broken: Broken
) -> None:
    with container(lab, good) as made:
        lab.docker.execute(made, ["sh", "-ec", broken.command])
        checks = run_tiers.examine(
            good.plan, made, project=lab.project, engine=lab.engine, runner=lab.runner
        )
    failed = [check.id for check in checks if not check.passed]
    assert sorted(failed) == sorted(broken.checks)


@pytest.mark.thorough
def test_the_compiler_of_the_wheels_works(lab: Lab) -> None:
    made = lab.build("toolkit-amd64")
    check = "cuda/test_nvcc_compiles_and_links"
    verdict = seal.verdict(lab.context.store, made.image.digest)
    assert verdict is not None
    assert {one.id: one.seen for one in verdict.checks}[check] == "built"
    for broken in ("rm $CUDA_HOME/lib64", "rm -r $CUDA_HOME/include/crt", "rm $CUDA_HOME/bin/nvcc"):
        with container(lab, made) as name:
            lab.docker.execute(name, ["sh", "-ec", broken])
            checks = run_tiers.examine(
                made.plan, name, project=lab.project, engine=lab.engine, runner=lab.runner
            )
        assert [one.id for one in checks if not one.passed] == [check]


@pytest.mark.parametrize("silent", SILENT, ids=lambda silent: silent.name)
def test_what_does_not_answer_is_refused(lab: Lab, good: pipeline.Result, silent: Silent) -> None:
    reference = f"{REPOSITORY}:silent"
    with container(lab, good) as made:
        lab.docker.execute(made, ["sh", "-ec", silent.command])
        changes = ['ENTRYPOINT ["vllm", "serve"]', "CMD []", silent.change]
        options = [word for change in changes for word in ("--change", change)]
        lab.runner.run([*lab.engine.docker, "commit", *options, made, reference])
    checks: list[seal.Check] = []
    not_run: dict[str, str] = {}
    try:
        with run_entrypoint.started(good.plan, lab.engine, reference, lab.runner) as answer:
            assert answer is not None
            answer.add(checks, not_run)
    finally:
        lab.docker.image.remove(reference, force=True)
    seen = [not_run[ANSWER]] if not_run else [check.seen for check in checks if not check.passed]
    assert len(seen) == 1
    assert silent.seen in seen[0]


def test_the_run_tier_takes_what_it_expects_from_the_plan(lab: Lab, good: pipeline.Result) -> None:
    layers = good.plan.layers[:2]
    plan = dataclasses.replace(good.plan, platform="linux/arm64", python="3.12", layers=layers)
    with container(lab, good) as made:
        checks = run_tiers.examine(
            plan, made, project=lab.project, engine=lab.engine, runner=lab.runner
        )
    assert [check.id for check in checks if not check.passed] == [
        "_every/test_platform_of_the_programs",
        "python/test_python_version",
    ]


@pytest.mark.thorough
@pytest.mark.usefixtures("good")
def test_what_answers_with_a_gpu_only_has_not_passed(lab: Lab) -> None:
    made = lab.build(f"wrong-{NEEDS_GPU.name}")
    said = made.not_run["run/entrypoint-answers"]
    assert said.startswith("not run: it answers only with a GPU (exit code 1: RuntimeError")
    verdict = seal.verdict(lab.context.store, made.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"
    assert "run/entrypoint-answers" not in {check.id for check in verdict.checks}
    assert verdict.not_run == made.not_run
    shown = lab.run("verify", made.plan.variant, "--tier", "run")
    assert f"run/entrypoint-answers: {said}" in " ".join(shown.stdout.split())


def test_verify_proves_again_and_names_what_is_wrong(lab: Lab, good: pipeline.Result) -> None:
    done = lab.run("verify", "good-amd64")
    assert done.returncode == 0, done.stderr
    assert f"{len(good.checks)} checks passed" in done.stdout
    by_digest = lab.run("verify", good.image.digest[7:19], "--json")
    assert json.loads(by_digest.stdout)["result"] == "PASSED"
    missing = lab.run("verify", "0123456789ab")
    assert missing.returncode == 5
    assert "the image store has no 0123456789ab" in missing.stderr


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
    lab: Lab, good: pipeline.Result, tmp_path: Path, times: int, failed: int
) -> None:
    (tmp_path / "lost").touch()
    folder = tmp_path / "bin"
    folder.mkdir()
    loses = LOSES.format(
        times=times, words=NOT_STARTED, folder=tmp_path, docker=lab.engine.docker[0]
    )
    (folder / "docker").write_text(loses)
    (folder / "docker").chmod(0o755)
    engine = dataclasses.replace(lab.engine, bin=folder)
    # The two checks of every image are enough.
    plan = dataclasses.replace(good.plan, layers=good.plan.layers[:1], answer=None)
    error = None
    try:
        run_tiers.verify(
            plan_record.record(plan, lab.project), good.image,
            live=lambda: run_tiers.Live(engine=engine, reference=good.plan.image),
            project=lab.project, store=lab.context.store, runner=lab.runner, tiers=[Tier.RUN],
            write_seal=False,
        )  # fmt: skip
    except VerifyError as raised:
        error = raised
    assert len((tmp_path / "lost").read_text().splitlines()) == times
    assert (error is not None) is (failed > 0)
    if error is not None:
        assert f"failed {failed} of" in error.message
        assert error.detail.count(NOT_STARTED) == failed


@pytest.fixture(scope="module")
def tiny(lab: Lab) -> pipeline.Result:
    return lab.build("tiny-amd64")


@pytest.mark.thorough
def test_an_engine_with_the_classic_store_gives_the_same_layers(
    lab: Lab, tiny: pipeline.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its way into the store is `docker save`, which any engine has.
    config = private.daemon_config
    classic = {"features": {"containerd-snapshotter": False}, "storage-driver": "overlay2"}
    monkeypatch.setattr(private, "daemon_config", lambda *given: {**config(*given), **classic})
    with spare_engine("classic") as (home, engine):
        assert not engine.containerd_store
        other = Lab(lab.project, tmp_path / "store", engine)
        other.context = dataclasses.replace(other.context, home=home)
        made = other.build("tiny-amd64")
        assert (
            other.docker.image.inspect(tiny.plan.image).id
            == made.image.manifest["config"]["digest"]
        )
        other.said.close()
    assert [la.diff_id for la in made.image.layers] == [la.diff_id for la in tiny.image.layers]
    assert made.image.settings.labels == tiny.plan.labels


def test_a_flipped_bit_is_found_named_and_mended(lab: Lab, tiny: pipeline.Result) -> None:
    store = lab.context.store
    layer = tiny.image.layers[-1]
    path = store.path(layer.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    # The store's alone: what it shares with the engine is in test_disk.py.
    path.unlink()
    path.write_bytes(bytes(data))
    found = lab.run("store", "check")
    assert found.returncode == 8
    assert f"{REPOSITORY}:tiny-amd64: corrupt: {layer.digest}" in found.stdout
    # Other images of the lab may stand on the same layer; one build mends all of them.
    assert re.search(r"sparkimage image \w+-amd64 --repair", found.stderr)
    mended = lab.run("image", "tiny-amd64", "--repair")
    assert mended.returncode == 0, mended.stderr
    assert layer.digest in mended.stderr
    assert lab.run("store", "check").returncode == 0


def test_the_printed_definition_builds_by_hand(lab: Lab, tiny: pipeline.Result) -> None:
    printed = lab.run("image", "tiny-amd64", "--print", "bake")
    file = lab.project / "bake.json"
    file.write_text(printed.stdout)
    subprocess.run(
        [*lab.engine.docker, "buildx", "bake", "--file", str(file)],
        env=lab.environment(BUILDX_NO_DEFAULT_LOAD="1", **lab.engine.environment),
        check=True,
        capture_output=True,
    )
    held = lab.docker.image.inspect(tiny.plan.image)
    assert held.id == tiny.image.digest


@pytest.mark.thorough
def test_the_real_nccl_answers_its_pin(lab: Lab) -> None:
    # Elsewhere in the lab a stand-in answers in its place.
    lock = lab.project / "matrix.lock"
    held = lock.read_text()
    data = copy.deepcopy(lab.data)
    data["pins"]["nccl"]["real"] = {
        "kind": "wheels",
        "python": "3.13",
        "require": ["nvidia-nccl-cu13==2.30.4"],
        "version": "2.30.4",
    }
    pins = {"debian": "trixie", "vllm": "0.32.0+standin", "nccl": "real"}
    data["include"].append(
        {"name": "real-nccl", "platform": "linux/amd64", "layers": list(STACK), "pins": pins}
    )
    lab.write(data)
    try:
        lab.lock()
        made = lab.build("real-nccl")
    finally:
        lab.write(lab.data)
        lock.write_text(held)
    seen = {check.id: check.seen for check in made.checks}
    assert seen["nccl-pip/test_mapped_nccl_answers_the_pin"] == 23004
    assert seen["nccl-pip/test_version_of_the_preload"] == 23004
    assert "static/nccl-bytes" in seen
