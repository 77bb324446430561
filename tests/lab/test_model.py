"""A model's folder on its way to all nodes, or to none: `model push`, `status`, `verify`, `gc`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.lab import command
from tests.lab.modelling import MB, OWN, THERE, Models, fill, noise

DIFFERS, FAILED = 15, 13


def states(facts: dict[str, Any]) -> list[str]:
    return [node["state"] for node in facts["nodes"]]


def test_push_travels_once_and_only_what_is_missing(models: Models) -> None:
    fill(models.here, {"config.json": 700, "sub/a.bin": 0, "m 1.safetensors": 3 * MB})
    # One that was copied by hand, before another shard came.
    models.put(models.fleet["node3"])
    fill(models.here, {"m 2.safetensors": 2 * MB})
    with models.strangers():
        facts = models.push()
    models.arrived()
    assert states(facts) == ["copied"] * 4
    all_ = 5 * MB + 700
    assert [node["sent"] for node in facts["nodes"]] == [all_, all_, 2 * MB, all_]
    assert facts["warnings"] == []
    # From here to the first node, which passes it on.
    up = {node.name: node.data.up for node in models.nodes}
    assert 5 * MB < up["node1"] < 5.5 * MB
    assert up["node2"] == up["node3"] == up["node4"] == 0

    again = models.push()
    assert states(again) == ["unchanged"] * 4
    assert again["sent"] == 0

    # A changed shard, one less, and a file that only one node has.
    fill(models.here, {"m 2.safetensors": 2 * MB}, seed=1)
    (models.here / "sub" / "a.bin").unlink()
    models.fleet["node2"].exec("touch", f"{THERE}/extra.safetensors")
    before = models.fleet["node1"].data.up
    facts = models.push()
    models.arrived()
    assert {node["sent"] for node in facts["nodes"]} == {2 * MB}
    assert models.fleet["node1"].data.up - before < 2.5 * MB
    # What was there before stays until gc.
    assert "extra.safetensors" in models.fleet["node2"].exec("ls", f"{OWN}/previous")
    done = models.run("gc")
    assert done.returncode == 0, done.stderr
    assert "node2: freed 2.0 MB" in done.stdout
    left = models.fleet.each(lambda node: node.exec("ls", OWN))
    assert set(left.values()) == {"listing\nmanifest"}


@pytest.mark.thorough
def test_nodes_without_data_addresses_and_names(models: Models) -> None:
    """Each is reached where it was reached from here, as it sees that itself."""
    fill(models.here)
    models.write_fleet(data=None)
    for node in models.nodes:
        node.control.forget()
    with models.strangers():
        facts = models.push()
    models.arrived()
    assert facts["warnings"] == []
    up = [node.control.up for node in models.nodes]
    assert up[0] > 5 * MB
    assert max(up[1:]) < MB


@pytest.mark.thorough
def test_copies_by_hand_are_verified_and_not_sent(models: Models) -> None:
    fill(models.here)
    for node in models.nodes:
        models.put(node)
    before = models.fleet.each(lambda node: node.exec("stat", "-c", "%i", THERE))
    facts = models.push()
    assert states(facts) == ["verified"] * 4
    assert facts["sent"] == 0
    # They are what they were, with a record.
    assert models.fleet.each(lambda node: node.exec("stat", "-c", "%i", THERE)) == before
    models.arrived()
    assert states(models.push()) == ["unchanged"] * 4


@pytest.mark.thorough
def test_verify_finds_what_status_cannot_see(models: Models) -> None:
    fill(models.here)
    models.push()
    done = models.run("status")
    assert done.returncode == 0, done.stderr
    assert "all 4 nodes" in done.stdout
    # A bit, and nothing that tells of it.
    node = models.fleet["node3"]
    node.exec(
        "sh", "-c",
        f"cd {THERE} && file=model-1.safetensors && touch -r $file /tmp/t && "
        "printf x | dd of=$file bs=1 seek=7 conv=notrunc status=none && touch -r /tmp/t $file",
    )  # fmt: skip
    assert models.run("status").returncode == 0
    done = models.run("verify")
    assert done.returncode == DIFFERS
    assert f"node3: {THERE}: model-1.safetensors has another sha256" in done.stderr
    # From then on everybody knows.
    done = models.run("status", "--json")
    assert done.returncode == DIFFERS
    (facts,) = json.loads(done.stdout)
    assert [bool(one["differences"]) for one in facts["nodes"]] == [False, False, True, False]
    facts = models.push()
    assert states(facts) == ["unchanged", "unchanged", "copied", "unchanged"]
    assert [node["sent"] for node in facts["nodes"]] == [0, 0, 3 * MB, 0]
    models.arrived()
    assert models.run("verify").returncode == 0

    node.exec("rm", f"{THERE}/config.json")
    done = models.run("status")
    assert done.returncode == DIFFERS
    assert "node3: /disk/small/models/m: config.json is missing" in done.stderr
    for words in (["doctor", "--model", THERE], ["nodes"]):
        fleet = ["--nodes", str(models.folder / "fleet.yaml"), "--json"]
        facts = json.loads(command.call([*words, *fleet], models.environment).stdout)
        if words == ["nodes"]:
            assert [one["models"][THERE] for one in facts] == [
                [], [], ["config.json is missing"], [],
            ]  # fmt: skip
        else:
            (check,) = (one for one in facts["checks"] if one["check"] == "model-pushed")
            assert check["nodes"] == {
                "node1": "ok", "node2": "ok", "node3": "fail", "node4": "ok",
            }  # fmt: skip


def cache(folder: Path) -> Path:
    """A model as Hugging Face's cache keeps it; its snapshot."""
    repo = folder / "models--o--m"
    snapshot = repo / "snapshots" / "c0ffee"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    snapshot.mkdir(parents=True)
    for name, size in (("config.json", 700), ("model.safetensors", 3 * MB)):
        content = noise(size, name)
        own = hashlib.sha256(content).hexdigest()
        if size < MB:
            head = b"blob %d\0" % size
            own = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        (repo / "blobs" / own).write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(repo / "blobs" / own, snapshot))
    return snapshot


@pytest.mark.thorough
def test_hugging_face_cache(models: Models) -> None:
    snapshot = cache(models.folder)
    repo = snapshot.parent.parent
    repo.rename(models.here)
    snapshot = models.here / "snapshots" / "c0ffee"
    facts = models.push()
    models.arrived()
    # The bytes once, and the links as they are.
    assert {node["sent"] for node in facts["nodes"]} == {3 * MB + 700 + 6}
    link = os.readlink(snapshot / "model.safetensors")
    for node in models.nodes:
        assert node.exec("readlink", f"{THERE}/snapshots/c0ffee/model.safetensors") == link
    # A snapshot alone is a folder of files.
    models.here.rename(models.folder / "kept")
    models.here.symlink_to(models.folder / "kept" / "snapshots" / "c0ffee")
    facts = models.push()
    models.arrived()
    assert {node["sent"] for node in facts["nodes"]} == {0}
    assert set(models.there(models.nodes[0])) == {"config.json", "model.safetensors"}


@pytest.mark.thorough
def test_folders_that_cannot_be_replaced_are_refused_at_once(models: Models) -> None:
    fill(models.here)
    node1, node2, node3, _ = models.nodes
    node1.exec("sh", "-c", f"mkdir -p {os.path.dirname(THERE)} && touch {THERE}")
    node2.exec("sh", "-c", f"mkdir -p {THERE} && mount -t tmpfs none {THERE}")
    node3.fill_disk(100 * MB)
    try:
        done = models.run("push")
    finally:
        node2.exec("umount", THERE)
    assert done.returncode == FAILED
    assert "2 of 4 nodes failed; nothing was sent" in done.stderr
    assert f"node1: {THERE} is not a folder that this user can read" in done.stderr
    assert f"node2: {THERE} is a file system of its own" in done.stderr
    node1.exec("rm", THERE)
    done = models.run("push")
    assert done.returncode == FAILED
    assert "node3: /disk/small" in done.stderr
    assert "free, the model needs 505.0 MB" in done.stderr
    node3.free_disk()
    models.write_fleet(user="plain")
    done = models.run("push")
    assert "node4: no permission to write in /disk/small" in done.stderr
    assert all(node.data.up == 0 for node in models.nodes)
    models.write_fleet()
    models.push()
    models.arrived()
