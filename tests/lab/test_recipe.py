"""The recipe's variants end to end: locked, built by the fork's own Dockerfile, proven, refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sparkimage.config import lock_items, lockfile
from sparkimage.core.errors import BuildError, VerifyError
from sparkimage.verify import pipeline, seal
from tests.lab import fork, mutants, sampling
from tests.lab.conftest import REPOSITORY
from tests.lab.recipe import FAULTS, LATEST, PATCH, STACK, TWIN, Fault, Recipe


@pytest.fixture(scope="module")
def good(recipe: Recipe) -> pipeline.Result:
    return recipe.lab.build(TWIN)


@pytest.mark.arm64
@pytest.mark.thorough
def test_the_recipe_builds_for_its_own_platform(recipe: Recipe) -> None:
    made = recipe.lab.build("ds4-flash")
    assert made.image.platform == "linux/arm64"
    assert [layer.name for layer in made.plan.layers] == list(STACK)
    seen = {check.id: check.seen for check in made.checks}
    debs = next(layer.debs for layer in made.plan.layers if layer.name == "nccl-apt")
    assert debs is not None
    assert {deb.name: deb.version for deb in debs.debs} == {
        "libnccl2": "2.30.4-1+cuda13.2",
        "libnccl-dev": "2.30.4-1+cuda13.2",
    }
    # Packages in another version than the lock's.
    assert seen["static/packages"] == {}
    assert seen["nccl-pip/test_mapped_nccl_answers_the_pin"] == 23004
    # The letter-suffixed tag notwithstanding, and not the guess that setuptools_scm would make.
    assert seen["vllm/test_version"] == "20260613.dev297+ga93b9098b"
    verdict = seal.verdict(recipe.lab.context.store, made.image.digest)
    assert verdict is not None
    assert verdict.result == "PASSED"


def test_the_abbreviated_commit_became_whole(recipe: Recipe) -> None:
    held = lockfile.load(recipe.lab.project / "matrix.lock")
    (commit,) = held.items("vllm", "20260613", lockfile.ANY)
    assert isinstance(commit, lock_items.Commit)
    assert commit.commit == recipe.fork.recipe
    assert held.entries[("vllm", "20260613")].requested["commit"] == recipe.fork.recipe[:10]


def test_the_fork_got_its_arguments(recipe: Recipe, good: pipeline.Result) -> None:
    said = recipe.lab.docker.run(
        good.plan.image,
        ["/usr/local/lib/python3.12/dist-packages/vllm/_build.json"],
        entrypoint="cat",
        remove=True,
    )
    built = json.loads(str(said))
    assert "12.1a" in built.values()
    assert {"16", "2"} <= set(map(str, built.values()))


def test_arguments_follow_the_entrypoint(recipe: Recipe, good: pipeline.Result) -> None:
    said = recipe.lab.docker.run(good.plan.image, ["MODEL", "--port", "1"], remove=True)
    assert json.loads(str(said))[1:] == ["serve", "MODEL", "--port", "1"]


def test_a_dockerfile_since_0_28_with_a_manylinux_builder(recipe: Recipe) -> None:
    made = recipe.lab.build(LATEST)
    said = recipe.lab.docker.run(
        made.plan.image,
        ["/usr/local/lib/python3.12/dist-packages/vllm/_build.json"],
        entrypoint="cat",
        remove=True,
    )
    built = json.loads(str(said))
    # What is compiled and what runs agree.
    assert built["BUILT_FOR_NCCL"] == made.plan.expect.nccl == "2.30.4"
    # vLLM's own variable has the version, and no other package is given it.
    assert built["SETUPTOOLS_SCM_PRETEND_VERSION"] is None
    seen = {check.id: check.seen for check in made.checks}
    assert seen["vllm/test_version"] == "20260804.1"
    assert seen["static/overlay-order"] == []


def test_a_machine_that_is_too_small_is_told_before_it_starts(edited: Recipe) -> None:
    layer = edited.data["layers"]["vllm-source"]
    layer["source"]["memory"] = "100TB"
    # Another argument, so that it was not compiled here before.
    layer["args"]["max_jobs"] = "1"
    edited.lab.write(edited.data)
    done = edited.lab.run("image", LATEST)
    assert done.returncode == 9
    assert f"{LATEST} cannot be compiled here: this machine has " in done.stderr
    assert "vllm-source needs 100000.0 GB free" in done.stderr


def test_what_the_forks_dockerfile_lacks_is_said_by_lock_and_image(edited: Recipe) -> None:
    edited.data["layers"]["vllm-source"]["args"]["BUILD_OS"] = "ubuntu"
    edited.lab.write(edited.data)
    for words in (("lock", "--only", LATEST), ("image", LATEST)):
        done = edited.lab.run(*words)
        assert done.returncode == 2, done.stderr
        assert (
            f"docker/Dockerfile of vllm 20260804 ({edited.fork.latest[:9]}) has no argument "
            "BUILD_OS" in done.stderr
        )


@pytest.mark.thorough
def test_the_later_commit_is_proven_without_the_patch(recipe: Recipe) -> None:
    made = recipe.lab.build("ds4-flash-ga-amd64")
    assert not any(check.layer == "sm12x-patch" for check in made.checks)


def test_the_later_commit_needs_no_patch(recipe: Recipe) -> None:
    done = recipe.lab.run("patches", "--json")
    states = {row["variant"]: row["state"] for row in json.loads(done.stdout)}
    assert states["ds4-flash"] == "applied"
    assert states["ds4-flash-20260621"] == "does not fit"
    assert states["ds4-flash-ga"] == "not needed"


MEANT = {check.removeprefix("static/") for fault in FAULTS for check in fault.checks}
OURS = [one for one in mutants.MUTANTS if one.check in MEANT]
"""Of the faults that are put into an image, those of the checks that the traps are for."""


@pytest.mark.parametrize(
    "of", [OURS, pytest.param(mutants.MUTANTS, marks=pytest.mark.thorough)], ids=["traps", "all"]
)
def test_mutants_of_the_twin(
    recipe: Recipe, good: pipeline.Result, tmp_path: Path, of: list[mutants.Mutant]
) -> None:
    store = recipe.lab.context.store
    results = list(mutants.run(good.plan, good.image, store, tmp_path / "work", of))
    assert {one.mutant.check for one in results} >= {
        "packages", "patches", "patches-parse", "entrypoint", "apt-lists", "nccl-root",
        "torch-cuda", "cuda-base/test_version", "cuda-base/test_toolkit_folder",
        "vllm-source/test_place",
    }  # fmt: skip
    assert [one.mutant.name for one in results if not one.killed] == []


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    "fault", sampling.params("recipe-fault", FAULTS), ids=lambda fault: fault.name
)
def test_a_trap_is_refused(recipe: Recipe, fault: Fault) -> None:
    with pytest.raises(VerifyError) as refusal:
        recipe.lab.build(f"fault-{fault.name}")
    refused_by = set(re.findall(r"^✗ (\S+)", refusal.value.detail, re.MULTILINE))
    assert set(fault.checks) <= refused_by
    assert f"{REPOSITORY}:fault-{fault.name}" not in recipe.lab.context.store.names()


@pytest.mark.thorough
def test_a_version_that_git_would_guess_is_refused(recipe: Recipe) -> None:
    # Without its environment setuptools_scm makes 0.1.dev1+g… of a shallow commit, in silence.
    folder = recipe.lab.project / "images" / "_builder"
    # A project's own goes before the package's.
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM layer AS setuptools-scm\n")
    try:
        with pytest.raises(VerifyError, match="failed 1 of") as refusal:
            recipe.lab.build(TWIN, rebuild=True)
    finally:
        (folder / "Dockerfile").unlink()
        folder.rmdir()
    assert "vllm/test_version" in refusal.value.detail
    recipe.lab.build(TWIN, rebuild=True)


def test_no_overlay_below_says_so(edited: Recipe) -> None:
    edited.data["include"].append(
        {**next(one for one in edited.data["include"] if one["name"] == TWIN),
         "name": "no-overlay", "layers": ["cuda-base", "vllm-source", "nccl-pip"]}
    )  # fmt: skip
    edited.lab.write(edited.data)
    edited.lab.lock()
    with pytest.raises(BuildError) as failure:
        edited.lab.build("no-overlay")
    assert "no layer below brings NCCL 2.30.4" in failure.value.detail


def test_a_changed_patch_is_one_layer_of_kilobytes(edited: Recipe, good: pipeline.Result) -> None:
    edited.write_patches(origin=edited.later_patch())
    stale = edited.lab.run("lock", "--check")
    assert stale.returncode == 11
    assert f"pin patches {PATCH} has changed since" in stale.stderr
    edited.lab.lock()
    made = edited.lab.unproven(TWIN)
    assert made.layers[:-1] == good.image.layers[:-1]
    assert made.layers[-1] != good.image.layers[-1]
    assert made.layers[-1].size < 4096


def test_a_patch_at_a_wrong_path_stops_before_the_build(edited: Recipe) -> None:
    moved = fork.RECIPE_PATH.replace("deepseek_v4_ops/", "")
    edited.write_patches(replaces=moved)
    locked = edited.lab.run("lock")
    done = edited.lab.run("image", TWIN)
    listed = edited.lab.run("patches", "--json")
    said = (
        f"patch {PATCH} does not apply to vllm 20260613 ({edited.fork.recipe[:9]}): {moved} is not "
        f"there; a file of that name is {fork.RECIPE_PATH}"
    )
    assert (locked.returncode, done.returncode) == (11, 11)
    assert said in " ".join(locked.stderr.split())
    assert said in " ".join(done.stderr.split())
    assert "layer" not in done.stderr.split("error:")[0]
    states = {row["variant"]: row["state"] for row in json.loads(listed.stdout)}
    assert states[TWIN] == "not resolved"


def test_a_diff_is_applied_as_git_does(edited: Recipe, good: pipeline.Result) -> None:
    origin = {**edited.later_patch(), "path": "patches/sm12x.diff"}
    edited.write_patches(origin=origin, kind="diff", replaces=None)
    edited.lab.lock()
    made = edited.lab.unproven(TWIN)
    (series,) = edited.lab.plan(TWIN).layers[-1].patches
    assert [target.path for target in series.targets] == [fork.RECIPE_PATH]
    assert made.layers[:-1] == good.image.layers[:-1]


def test_export_writes_what_a_mount_takes(
    recipe: Recipe, good: pipeline.Result, tmp_path: Path
) -> None:
    done = recipe.lab.run("patches", "export", str(tmp_path / "live"), "--variant", TWIN)
    assert done.returncode == 0, done.stderr
    mount = next(line for line in done.stdout.splitlines() if "-v " in line).split()[1]
    source, target, mode = mount.split(":")
    assert (target, mode) == (f"/usr/local/lib/python3.12/dist-packages/{fork.RECIPE_PATH}", "ro")
    inside = recipe.lab.docker.run(good.plan.image, [target], entrypoint="cat", remove=True)
    assert Path(source).read_text().strip() == str(inside).strip()
    many = recipe.lab.run("patches", "export", str(tmp_path / "live"))
    assert many.returncode == 2
    assert f"--variant: ds4-flash, {TWIN}" in many.stderr


@pytest.mark.thorough
def test_a_ready_image_takes_the_overlay(edited: Recipe, tmp_path: Path) -> None:
    recipe, lab = edited, edited.lab
    ready = lab.build("ds4-flash-ga-amd64")
    name = f"{recipe.registry.address}/hazyumps/deepseek-v4-flash-gb10:ready"
    # The author's image starts another program, and has this NCCL already.
    (tmp_path / "Dockerfile").write_text(
        f'FROM {ready.plan.image}\nENTRYPOINT ["/opt/nvidia/entrypoint.sh"]\n'
    )
    said = tmp_path / "metadata.json"
    argv = [
        *lab.engine.docker, "buildx", "build", "--quiet", "--provenance=false",
        "--metadata-file", str(said), f"--output=type=image,name={name},push=true", str(tmp_path),
    ]  # fmt: skip
    lab.runner.run(argv, env=lab.engine.environment)
    lab.docker.image.remove(name)
    pin = recipe.data["pins"]["vllm"]["ready-20260727"]
    pin |= {
        "image": "hazyumps/deepseek-v4-flash-gb10:ready@"
        + json.loads(said.read_text())["containerimage.digest"],
        "version": "0.1.0",
        "commit": recipe.fork.ga,
    }
    recipe.data["include"].append(
        {
            "name": "ready-amd64",
            "platform": "linux/amd64",
            "layers": ["prebuilt", "nccl-apt", "nccl-pip", "serve"],
            "pins": {"vllm": "ready-20260727", "nccl": "2.30.4-cuda13.2"},
        }
    )
    lab.write(recipe.data)
    lab.lock()
    made = lab.build("ready-amd64")
    assert [layer.diff_id for layer in made.image.layers[: len(ready.image.layers)]] == [
        layer.diff_id for layer in ready.image.layers
    ]
    assert {"prebuilt", "torch", "nccl-pip"} <= {check.layer for check in made.checks}
    assert made.image.settings.entrypoint == ("vllm", "serve")
