"""Compiled caches: saved from a warm server under their key, brought to nodes that lack them,
damaged and interrupted on the way."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.serve.cache_store import CacheStore, Saved, hash_of
from tests.lab.node import Node, put, wait
from tests.lab.serving import MODEL, NODES, PROFILES, OnNodes, serving
from tests.lab.test_launch import kernels, ok, refused

STORE, FAILED = 8, 13
HALF = ["cached", "cached", "compiled", "compiled"]
WARM = ("--warm-up", "300")
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnNodes]:
    """Four nodes, and the caches of a warm server that ran there."""
    with serving(engine, tmp_path_factory.mktemp("serving")) as made:
        made.clean()
        for name in NODES:
            made.model(name)
        done = made.launch("--save-caches", *WARM)
        ok(done)
        assert "saved caches " in done.stderr
        yield made


@pytest.fixture
def nodes(saved: OnNodes) -> OnNodes:
    """The same without the server; node3 and node4 have no caches any more."""
    ok(saved.run("stop"))
    saved.matrix(PROFILES)
    for name in NODES:
        saved.model(name)
    saved.fleet.each(lambda node: node.exec("rm", "-rf", folder(saved, "/packs")))
    for name in ("node3", "node4"):
        saved.fleet[name].exec("rm", "-rf", folder(saved))
    return saved


def store(nodes: OnNodes) -> CacheStore:
    return CacheStore.of(nodes.store)


def the(nodes: OnNodes) -> Saved:
    """The only set that there is."""
    (found,) = store(nodes).all()
    return found


def folder(nodes: OnNodes, below: str = "") -> str:
    """The folder of the image's caches on each node; ``/packs``: that of what is on its way."""
    name = nodes.store.resolve("r:good").digest[7:19]
    return f"/root/.cache/sparkimage{below or f'/{name}'}"


def there(nodes: OnNodes, node: str) -> dict[str, str]:
    """The sha256 of each cached file of a node."""
    ask = f"cd {folder(nodes)} 2>/dev/null && find . -type f ! -name .saved -exec sha256sum {{}} +"
    lines = nodes.fleet[node].exec("sh", "-c", f"{ask} || :").splitlines()
    return {path[2:]: sha256 for sha256, path in (line.split("  ") for line in lines)}


def nothing_left(nodes: OnNodes) -> None:
    """Nothing of the way is left on any node."""

    def one(node: Node) -> str:
        ask = f"ls -A {folder(nodes, '/packs')}; ls -d {folder(nodes)}/.staged"
        return node.exec("sh", "-c", f"{{ {ask}; }} 2>/dev/null || :")

    assert set(nodes.fleet.each(one).values()) == {""}


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as data:
        data.seek(at)
        (byte,) = data.read(1)
        data.seek(at)
        data.write(bytes([byte ^ 1]))


def test_saved_and_brought_to_the_nodes_that_lack_them(nodes: OnNodes) -> None:
    expected = the(nodes)
    assert expected.parts(2) == ["shared", "rank-2"]
    assert (expected.ranks, expected.key.profile, expected.key.gpus) == (4, "four", "NVIDIA GB10")
    had = there(nodes, "node1")
    done = nodes.launch()
    ok(done)
    assert "to node3, node4" in done.stderr
    assert kernels(nodes) == ["cached"] * 4
    # Each one has its own rank's, and what all have.
    for rank, name in ((2, "node3"), (3, "node4")):
        found = there(nodes, name)
        assert f"vllm/torch_compile_cache/0123456789/rank_{rank}_0/kernel" in found
        assert len(found) == len(had)
    assert there(nodes, "node1") == had
    nothing_left(nodes)
    # From then on there is nothing to bring, and nothing is asked of docker.
    ok(nodes.run("stop"))
    done = nodes.launch()
    ok(done)
    assert "caches" not in done.stderr


def test_times_of_files_stay(nodes: OnNodes) -> None:
    """Ninja builds anew what is older than its sources."""
    file = f"{folder(nodes)}/vllm/torch_compile_cache/0123456789/rank_0_0/kernel"
    before = nodes.fleet["node1"].exec("stat", "-c", "%Y", file)
    nodes.fleet["node1"].exec("rm", "-rf", folder(nodes))
    ok(nodes.run("distribute", "good", "--with-caches"))
    assert nodes.fleet["node1"].exec("stat", "-c", "%Y", file) == before


def test_of_another_key_they_are_not_brought(nodes: OnNodes) -> None:
    """Another profile, another model, another GPU, another image."""
    changed = {**PROFILES["four"], "env": {"VLLM_USE_FLASHINFER": "1"}}
    nodes.matrix({**PROFILES, "four": changed})
    done = nodes.launch("--replace")
    ok(done)
    assert "saved caches of this image are for another profile: not used" in done.stderr
    assert sorted(kernels(nodes)) == HALF
    nodes.fleet["node3"].exec("rm", "-rf", folder(nodes))
    nodes.matrix(PROFILES)
    for node in nodes.fleet:
        put(node, {f"{MODEL}/config.json": (0o644, b'{"other": 1}')})
    assert "are for another model" in nodes.launch("--replace").stderr
    put(nodes.fleet["node2"], {f"{MODEL}/config.json": (0o644, b"{}")})
    assert "has not the same config.json on all nodes" in nodes.launch("--replace").stderr
    done = nodes.launch("--replace", variant="entry")
    ok(done)
    assert "caches" not in done.stderr
    assert kernels(nodes) == ["compiled"] * 4


def test_what_a_node_compiled_itself_stays_unless_it_is_told_otherwise(nodes: OnNodes) -> None:
    file = "vllm/torch_compile_cache/0123456789/rank_2_0/kernel"
    node = nodes.fleet["node3"]
    put(node, {f"{folder(nodes)}/{file}": (0o644, b"its own"),
               f"{folder(nodes)}/vllm/more/own": (0o644, b"its own")})  # fmt: skip
    ok(nodes.launch())
    assert node.exec("cat", f"{folder(nodes)}/{file}") == "its own"
    assert set(there(nodes, "node1")) - set(there(nodes, "node3")) == {
        file.replace("rank_2", "rank_0")
    }
    ok(nodes.launch("--replace", "--replace-caches"))
    assert node.exec("cat", f"{folder(nodes)}/{file}") == "compiled"
    assert "vllm/more/own" not in there(nodes, "node3")


@pytest.mark.parametrize("what", ["archive", "sums", "shorter", "record"])
def test_damaged_ones_are_refused(nodes: OnNodes, what: str) -> None:
    here = store(nodes)
    set_ = the(nodes)
    archive = here.folder(set_) / "shared.tar"
    sums = here.folder(set_) / "shared.sums"
    record = here.root / f"{set_.key.id}.json"
    file = {"archive": archive, "shorter": archive, "sums": sums, "record": record}[what]
    before = file.read_bytes()
    try:
        if what == "shorter":
            file.write_bytes(before[:-1])
        elif what == "record":
            file.write_bytes(before.replace(b'"profile": "four"', b'"profile": "fous"'))
        else:
            flip(file, len(before) // 2)
        done = nodes.launch()
        ok(done)
        assert "warning: saved caches were not copied: " in done.stderr
        assert str(file) in done.stderr
        assert "launch --save-caches" in done.stderr
        # The server runs all the same.
        assert sorted(kernels(nodes)) == HALF
        if what != "record":
            nodes.fleet["node4"].exec("rm", "-rf", folder(nodes))
            refused(nodes.run("distribute", "good", "--with-caches"), STORE, str(file))
    finally:
        file.write_bytes(before)


def test_a_bit_that_flips_on_the_node_is_refused(nodes: OnNodes) -> None:
    """An archive that is right as a file, and holds something else than its sums say."""
    here = store(nodes)
    set_ = the(nodes)
    archive = here.folder(set_) / "shared.tar"
    before, record = archive.read_bytes(), here.root / f"{set_.key.id}.json"
    text = record.read_text()
    at = 512 * (before.index(b"kernel.cubin") // 512 + 1)
    try:
        flip(archive, at)
        old = next(one.sha256 for one in set_.entries if one.path == "shared.tar")
        record.write_text(text.replace(old, hash_of(archive)))
        done = nodes.launch()
        ok(done)
        assert "not what was saved: " in done.stderr
        assert sorted(kernels(nodes)) == HALF
        nothing_left(nodes)
    finally:
        archive.write_bytes(before)
        record.write_text(text)


def test_an_interrupted_one_leaves_the_old_or_the_new(nodes: OnNodes) -> None:
    """Killed on the way: what a node has is what it had, and the next run goes on."""
    words = nodes.launching()
    ask = f"ls {folder(nodes, '/packs')}/.*/blobs 2>/dev/null | wc -l"
    old: dict[str, str] = {}
    with nodes.begun(words) as process:
        wire = nodes.fleet["node3"].data
        wire.hang_after(4_000)
        wait(lambda: wire.hangs or process.poll() is not None, "nothing is sent")
        assert wire.hangs
        process.send_signal(signal.SIGKILL)
        process.wait()
        wire.restore()
    nodes.fleet.quiet()
    assert nodes.fleet["node3"].exec("sh", "-c", ask) != "0"
    assert (there(nodes, "node3"), there(nodes, "node4")) == (old, old)
    ok(nodes.run("distribute", "good", "--with-caches"))
    assert len(there(nodes, "node3")) == len(there(nodes, "node4")) == len(there(nodes, "node1"))
    nothing_left(nodes)


def facts(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok(done))
    return found


def test_listed_and_collected(nodes: OnNodes) -> None:
    (one,) = facts(nodes.run("caches", "--json"))
    assert (one["variant"], one["model"], one["profile"]) == ("good", MODEL, "four")
    assert "nodes" not in one
    (one,) = facts(nodes.run("caches", "--nodes", "fleet.yaml", "--json"))
    assert one["nodes"] == ["node1", "node2"]
    said = ok(nodes.run("caches", "--nodes", "fleet.yaml"))
    assert "node1, node2" in said
    nodes.fleet["node1"].control.cut()
    try:
        refused(nodes.run("caches", "--nodes", "fleet.yaml"), FAILED, "node1")
    finally:
        nodes.fleet["node1"].control.restore()
    # Those of an image that the store has stay.
    ok(nodes.run("store", "gc"))
    assert facts(nodes.run("caches", "--json"))


def test_those_of_images_that_are_gone_are_removed_from_the_nodes(nodes: OnNodes) -> None:
    gone = folder(nodes, "/0123456789ab")
    for node in nodes.fleet:
        node.exec("sh", "-c", f"mkdir -p {gone}/vllm; echo x >{gone}/vllm/kernel")
    before = there(nodes, "node1")
    said = ok(nodes.run("gc", "--nodes", "fleet.yaml", "--dry-run"))
    assert said.count("would remove compiled caches of 0123456789ab") == 4
    assert nodes.fleet["node4"].exec("ls", gone) == "vllm"
    # Of what runs, and of images that are there, they stay.
    ok(nodes.launch())
    found = facts(nodes.run("gc", "--nodes", "fleet.yaml", "--json"))
    assert [list(one["caches"]) for one in found] == [["0123456789ab"]] * 4
    assert nodes.fleet["node4"].exec("sh", "-c", f"ls -d {gone} 2>/dev/null || :") == ""
    assert there(nodes, "node1") == before
    assert "compiled caches" not in ok(nodes.run("gc", "--nodes", "fleet.yaml"))


def test_what_cannot_be_saved(nodes: OnNodes) -> None:
    refused(nodes.run(*nodes.launching(), "--save-caches"), 2, "drop --no-warm-up")
    words = nodes.launching("--profile", "uncached", "--save-caches", *WARM)
    refused(nodes.run(*words), 2, "profile uncached has no `caches` to save")
    refused(nodes.launch("--save-caches", "--share-cache", *WARM), 2, "drop --share-cache")
    before = the(nodes)
    nodes.model("node1", compiles=True)
    done = nodes.launch("--save-caches", "--warm-up", "2")
    ok(done)
    assert "the caches were not saved: the warm-up did not finish" in done.stderr
    assert the(nodes) == before


def test_by_a_user_who_is_not_root(nodes: OnNodes) -> None:
    """The server's files are root's: they are read, brought and removed all the same."""
    nodes.nodes(**{name: {"user": "worker"} for name in NODES})
    home = nodes.fleet["node3"].exec("sh", "-c", "echo ~worker")
    own = folder(nodes).replace("/root", home)
    try:
        ok(nodes.launch("--save-caches", *WARM))
        ok(nodes.run("stop"))
        nodes.fleet["node3"].exec("sh", "-c", f"mv {own} {own[:-12]}0123456789ab")
        done = nodes.launch()
        ok(done)
        assert "to node3\n" in done.stderr
        assert kernels(nodes) == ["cached"] * 4
        ok(nodes.run("gc", "--nodes", "fleet.yaml"))
        assert nodes.fleet["node3"].exec("ls", own[:-13]).split() == [own[-12:], "packs"]
    finally:
        ok(nodes.run("stop"))
        nodes.nodes()
