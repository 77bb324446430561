"""Images as files on real engines: `docker load` takes what `save` writes."""

from __future__ import annotations

import copy
import json
import select
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sparkimage.image.store import Store
from sparkimage.verify import pipeline
from tests.lab import hostile
from tests.lab.conftest import Lab
from tests.lab.node import READY_S, Node
from tests.lab.shipment import NAME, NODES, PAYLOAD, VARIANT, Shipment, everywhere, ok


@pytest.fixture(scope="module")
def tiny(lab: Lab) -> pipeline.Result:
    return lab.build("plain-amd64")


@pytest.fixture(scope="module")
def saved(lab: Lab, tiny: pipeline.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "image.tar"
    done = lab.run("save", tiny.plan.variant, "-o", str(file))
    assert done.returncode == 0, done.stderr
    return file


def test_an_engine_loads_what_was_saved(lab: Lab, tiny: pipeline.Result, saved: Path) -> None:
    name = tiny.plan.image
    lab.docker.image.remove(name, force=True)
    with saved.open("rb") as source:
        done = subprocess.run(
            [*lab.engine.docker, "load"], stdin=source, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    seen = lab.docker.image.inspect(name)
    assert seen.id in (tiny.image.digest, tiny.image.manifest["config"]["digest"])
    assert seen.root_fs.layers == [layer.diff_id for layer in tiny.image.layers]
    said = lab.docker.run(name, ["--version"], entrypoint="python3", remove=True)
    assert str(said).startswith("Python 3.13")


def test_what_is_saved_is_loaded_by_every_engine(shipment: Shipment) -> None:
    image = shipment.image(PAYLOAD)
    file = shipment.folder / "image.tar"
    ok(shipment.run("save", VARIANT, "-o", str(file)))
    piped = subprocess.run(
        shipment.argv("save", VARIANT, "-o", "-"), env=shipment.environment(), check=True,
        capture_output=True,
    ).stdout  # fmt: skip
    assert piped == file.read_bytes()

    def loaded(node: Node) -> str:
        assert NAME in node.docker("load", given=piped)
        return node.docker("run", "--rm", "--network=none", NAME)

    assert set(shipment.fleet.each(loaded).values()) == {"it runs"}
    assert everywhere(shipment, image)
    # And distribute finds nothing to send, but what nobody has proven there it proves.
    facts = json.loads(ok(shipment.distribute("--json")))
    assert {(one["state"], one["sent"]) for one in facts["nodes"]} == {("unchanged", 0)}
    told = json.loads(ok(shipment.run("receipts", "--nodes", "fleet.yaml", "--json")))
    assert {one["node"] for one in told if "container" in one["proven"]} == set(NODES)


def test_another_store_loads_it_by_pipe(
    lab: Lab, tiny: pipeline.Result, saved: Path, tmp_path: Path
) -> None:
    with saved.open("rb") as source:
        done = subprocess.run(
            lab.argv("load", "-"), stdin=source, capture_output=True, text=True, check=False,
            env=lab.environment(SPARKIMAGE_STORE=str(tmp_path)),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path)
    assert store.names() == {tiny.plan.image: tiny.image.digest}
    assert store.damaged(tiny.image.digest) == []


def test_what_is_loaded_over_the_gate_stays_unverified(
    lab: Lab, tiny: pipeline.Result, saved: Path, tmp_path: Path
) -> None:
    # Somebody who believes a signed seal alone, and this one is not.
    key = str(hostile.public(hostile.make_key(tmp_path / "key.pem")))
    more = {
        "SPARKIMAGE_STORE": str(tmp_path / "store"), "SPARKIMAGE_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    refused = lab.run("load", str(saved), "--key", key, **more)
    assert refused.returncode == 14
    assert "is not signed" in refused.stderr
    loaded = lab.run("load", str(saved), "--key", key, "--allow-unverified", **more)
    assert loaded.returncode == 0, loaded.stderr
    assert "UNVERIFIED" in loaded.stdout
    onward = ("save", tiny.plan.variant, "-o", str(tmp_path / "onward.tar"))
    again = lab.run(*onward, **more)
    assert again.returncode == 14
    assert "was loaded unverified" in again.stderr
    assert not (tmp_path / "onward.tar").exists()
    assert lab.run(*onward, "--allow-unverified", **more).returncode == 0
    third = lab.run("load", str(tmp_path / "onward.tar"))
    assert third.returncode == 14
    assert "was shipped unverified" in third.stderr


def test_an_image_whose_variant_has_left_the_matrix_ships(
    lab: Lab, tiny: pipeline.Result, tmp_path: Path
) -> None:
    data = copy.deepcopy(lab.data)
    data["include"] = [one for one in data["include"] if one["name"] != tiny.plan.variant]
    data["pins"]["debian"]["trixie"] = {**data["pins"]["debian"]["trixie"], "packages": ["gcc"]}
    file = tmp_path / "image.tar"
    lab.write(data)
    try:
        for one in (tiny.image.digest, tiny.image.digest[7:19], tiny.plan.image, tiny.plan.variant):
            file.unlink(missing_ok=True)
            done = lab.run("save", one, "-o", str(file))
            assert done.returncode == 0, done.stderr
            assert "warning" not in done.stderr
        said = lab.run("verify", tiny.plan.variant, "--tier", "static", "--json")
        assert json.loads(said.stdout)["result"] == "PASSED"
    finally:
        lab.write(lab.data)
    # And is taken in where there is no matrix at all.
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = [sys.executable, "-m", "sparkimage", "load", str(file)]
    more = {"SPARKIMAGE_STORE": str(tmp_path / "store")}
    subprocess.run(argv, cwd=empty, env=lab.environment(**more), check=True)
    again = ["save", tiny.plan.image, "-o", str(tmp_path / "again.tar")]
    subprocess.run([*argv[:3], *again], cwd=empty, env=lab.environment(**more), check=True)
    assert (tmp_path / "again.tar").read_bytes() == file.read_bytes()


def test_an_image_of_before_the_matrix_changed_ships_with_a_warning(
    lab: Lab, tiny: pipeline.Result, tmp_path: Path
) -> None:
    data = copy.deepcopy(lab.data)
    (one,) = [one for one in data["include"] if one["name"] == tiny.plan.variant]
    one["cmd"] = ["other"]
    file = tmp_path / "image.tar"
    lab.write(data)
    try:
        done = lab.run("save", tiny.plan.variant, "-o", str(file))
    finally:
        lab.write(lab.data)
    assert done.returncode == 0, done.stderr
    assert f"sparkimage image {tiny.plan.variant}" in done.stderr
    with tarfile.open(file) as archive:
        assert f"blobs/sha256/{tiny.image.digest[7:]}" in archive.getnames()


def test_a_target_that_cannot_be_written_is_said_at_once(
    lab: Lab, tiny: pipeline.Result, tmp_path: Path
) -> None:
    for target, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "x", "does not exist")):
        done = lab.run("save", tiny.plan.variant, "-o", str(target))
        assert done.returncode == 2
        assert why in done.stderr
        assert "saving" not in done.stderr
    report = lab.run("verify", tiny.plan.variant, "--html", str(tmp_path))
    assert report.returncode == 2
    assert "is a folder" in report.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_file(lab: Lab, tiny: pipeline.Result, tmp_path: Path) -> None:
    # As Ctrl-C does: to the command, in the midst of its writing.
    process = subprocess.Popen(
        lab.argv("save", tiny.plan.variant, "-o", str(tmp_path / "image.tar")),
        env=lab.environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None
        select.select([], [], [], 0.001)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=READY_S)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_static_tier_starts_no_engine(lab: Lab, tiny: pipeline.Result, tmp_path: Path) -> None:
    # A home that no engine could be made in; its own key signs, so it is a seal of its own.
    home = tmp_path / "home"
    done = lab.run(
        "verify", tiny.plan.variant, "--tier", "static", "--json",
        SPARKIMAGE_HOME=str(home), SPARKIMAGE_ENGINE="system", DOCKER_HOST="unix:///nowhere",
        SPARKIMAGE_STORE=str(lab.context.store.root),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["tiers"] == ["static", "run"]
    assert {check["tier"] for check in said["checks"]} == {"static", "run"}
    assert not (home / "engine").exists()


def test_the_node_tier_never_passes_without_a_gpu(lab: Lab, tiny: pipeline.Result) -> None:
    alone = lab.run("verify", tiny.plan.variant, "--tier", "node")
    assert alone.returncode == 9
    assert "not run: no GPU" in alone.stderr
    shown = lab.run("verify", tiny.plan.variant, "--tier", "static,node")
    assert "[[gpu]]" in shown.stdout
    both = lab.run("verify", tiny.plan.variant, "--tier", "static,node", "--json")
    assert both.returncode == 0, both.stderr
    said = json.loads(both.stdout)
    assert said["notRun"]["node"].startswith("not run: no GPU")
    assert "node" not in said["tiers"]
