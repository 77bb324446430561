"""The store, the layer index and the seal, on small real images."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparkimage.core.errors import ImageMissingError, StoreError
from sparkimage.image import archive
from sparkimage.image.layerindex import ImageFiles, image_files
from sparkimage.image.store import TAR, Descriptor, Image, Store
from tests.unit.oci_maker import LAYERS, PACK, Files, digest, flip, make_image, tar


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_a_name_moves_and_never_doubles(store: Store) -> None:
    one, two = make_image(store), make_image(store, LAYERS[:1])
    store.name("r:v", store.descriptor(one.digest))
    store.name("r:v", store.descriptor(two.digest))
    assert store.names() == {"r:v": two.digest}
    assert store.resolve("r:v").names == ("r:v",)
    assert store.resolve(two.digest[7:15]).digest == two.digest
    store.unname("r:v")
    assert store.names() == {}


def test_what_is_missing_is_named_with_what_is_near(store: Store) -> None:
    image = make_image(store)
    store.name("spark:vllm-1", store.descriptor(image.digest))
    with pytest.raises(ImageMissingError) as error:
        store.resolve("spark:vlm-1")
    assert error.value.hint == "did you mean spark:vllm-1?"


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_flipped_bit_is_detected_and_named(store: Store, which: str) -> None:
    image = make_image(store)
    store.name("r:v", store.descriptor(image.digest))
    blob = {
        "manifest": image.digest,
        "config": image.manifest["config"]["digest"],
        "layer": image.layers[1].digest,
    }[which]
    assert store.damaged(image.digest) == []
    flip(store.path(blob))
    assert store.damaged(image.digest) == [blob]
    with pytest.raises(StoreError) as error, store.open_blob(blob) as file:
        file.read()
    assert blob in error.value.message
    assert "image v --repair" in error.value.hint or which == "manifest"
    store.discard(blob)
    assert not store.holds(image.digest)


def test_a_crash_between_writes_leaves_the_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image(store)
    store.name("r:v", store.descriptor(image.digest))

    def crash(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="gone"):
        store.unname("r:v")
    monkeypatch.undo()
    assert store.names() == {"r:v": image.digest}
    assert [p.name for p in store.root.iterdir() if p.name.startswith(".new")] == []


def test_an_export_is_adopted_with_its_blobs(store: Store) -> None:
    with store.incoming() as folder:
        foreign = Store(folder)
        (folder / "index.json").write_text('{"manifests": []}')
        image = make_image(foreign)
        attestation = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
        index = {"manifests": [foreign.descriptor(image.digest).to_dict(), attestation]}
        (folder / "index.json").write_text(json.dumps(index))
        assert store.adopt(folder).digest == image.digest
        store.discard(image.layers[0].digest)
        with pytest.raises(StoreError, match="incomplete"):
            store.adopt(folder)
    assert list(store.root.glob("incoming-*")) == []


def test_leftovers_of_a_dead_process_are_removed(store: Store) -> None:
    (store.root / "incoming-999999999-x").mkdir()
    (store.root / f"incoming-{os.getpid()}-y").mkdir()
    Store.open(store.root)
    assert [p.name for p in store.root.glob("incoming-*")] == [f"incoming-{os.getpid()}-y"]


def test_gc_keeps_what_a_name_uses(store: Store) -> None:
    kept, gone = make_image(store), make_image(store, [{"other": b"file"}])
    store.name("r:v", store.descriptor(kept.digest))
    assert store.gc() > 0
    assert store.holds(kept.digest)
    assert not store.holds(gone.digest)


def test_gc_waits_for_a_command_that_uses_the_store(store: Store) -> None:
    # A build names its image when it is proven, long after its blobs are here.
    image, said, waits = make_image(store), list[str](), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    with ThreadPoolExecutor() as pool:
        with store.in_use():
            freed = pool.submit(store.gc, say)
            assert waits.wait(60)
            assert store.holds(image.digest)
            store.name("r:v", store.descriptor(image.digest))
        assert freed.result(60) == 0
    assert said == [f"waiting for process {os.getpid()}, which uses the store"]


def test_one_process_at_a_time_makes_an_image_of_a_name(store: Store) -> None:
    said, waits, order = list[str](), threading.Event(), list[str]()

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    def second() -> None:
        with store.naming("h:5000/r:v", say):
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with store.naming("h:5000/r:v"), store.naming("h:5000/r:w"):
            other = pool.submit(second)
            assert waits.wait(60)
            order.append("first")
        other.result(60)
    assert order == ["first", "second"]
    assert said == [f"waiting for process {os.getpid()}, which makes h:5000/r:v, too"]


def test_gc_removes_what_a_killed_command_was_writing_and_nothing_younger(store: Store) -> None:
    left, young = store.root / ".new-left", store.root / ".new-young"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert store.gc() == 4
    assert not left.exists()
    assert young.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_docker_archive_becomes_an_image(store: Store, legacy: bool) -> None:
    layers = [tar(files) for files in LAYERS[:2]]
    config = json.dumps(
        {
            "os": "linux",
            "architecture": "arm64",
            "rootfs": {"diff_ids": [digest(b) for b in layers]},
        }
    ).encode()
    members: Files = {}
    if legacy:
        paths = ["one/layer.tar", "two/layer.tar"]
        name = f"{digest(config)[7:]}.json"
        members |= {"one/VERSION": b"1.0", "one/json": b"{}", name: config}
    else:
        paths = [f"blobs/sha256/{digest(data)[7:]}" for data in layers]
        name = f"blobs/sha256/{digest(config)[7:]}"
        members |= {"oci-layout": b"{}", "index.json": b"{}", name: config}
    members |= dict(zip(paths, layers, strict=True))
    members["manifest.json"] = json.dumps([{"Config": name, "Layers": paths}]).encode()
    made = archive.import_docker_archive(io.BytesIO(tar(members)), store)
    image = store.resolve(made.digest)
    assert [la.diff_id for la in image.layers] == [digest(data) for data in layers]
    assert image.manifest["config"]["digest"] == digest(config)
    assert store.damaged(made.digest) == []


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"../evil": b"x"}, "unsafe path"),
        ({"a": b"x"}, "no manifest.json"),
        ({"manifest.json": b'[{"Config": "c", "Layers": []}]'}, "lacks c"),
        ({"manifest.json": b"[{}]"}, "no manifest.json with one image"),
        ({"manifest.json": b"not json"}, "not an archive of `docker save`"),
    ],
)
def test_an_archive_that_is_none_is_refused(store: Store, members: Files, what: str) -> None:
    with pytest.raises(StoreError, match=what):
        archive.import_docker_archive(io.BytesIO(tar(members)), store)


@pytest.mark.parametrize("stream", [b"", b"no tar" * 200, tar({"a": b"x" * 5000})[:2000]], ids=len)
def test_what_is_no_tar_is_refused(store: Store, stream: bytes) -> None:
    with pytest.raises(StoreError, match="not an archive of `docker save`"):
        archive.import_docker_archive(io.BytesIO(stream), store)


def test_a_shared_layer_is_a_link_in_the_archive(store: Store) -> None:
    layer = tar({"a": b"x"})
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [digest(layer)] * 2}}
    listed = [{"Config": "c.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]
    members: Files = {
        "one/layer.tar": layer,
        "two/layer.tar": "../one/layer.tar",
        "c.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(listed).encode(),
    }
    image = store.resolve(archive.import_docker_archive(io.BytesIO(tar(members)), store).digest)
    assert [one.digest for one in image.layers] == [digest(layer)] * 2


def test_a_missing_manifest_is_damage_too(store: Store) -> None:
    image = make_image(store)
    store.name("r:v", store.descriptor(image.digest))
    store.discard(image.digest)
    assert store.damaged(image.digest) == [image.digest]


def test_what_was_discarded_is_written_again(store: Store) -> None:
    image = make_image(store)
    for blob in (image.digest, *(one for one, _ in image.blobs())):
        flip(store.path(blob))
        store.discard(blob)
    assert make_image(store) == image
    assert store.damaged(image.digest) == []


@pytest.mark.parametrize("packed", PACK)
def test_the_index_sees_every_layer_and_the_final_root(store: Store, packed: str) -> None:
    image = make_image(store, packed=packed)
    files = image_files(store, image)
    assert files.duplicates() == ["etc/a"]
    assert [str(e) for e in files.every("gone$")] == ["etc/gone (layer 0)"]
    assert files.layer_sizes() == [3 + 1 + 4, 3, 1]
    assert sorted(files.final) == ["etc", "etc/a", "link", "opt/new"]
    assert files.final["etc/a"].layer == 1
    # A second look reads the fact, not the layer.
    store.discard(image.layers[0].digest)
    assert image_files(store, image) == files


def test_a_layer_that_is_not_its_diff_id_is_refused(store: Store) -> None:
    image = make_image(store)
    lying = store.put_bytes(PACK["+zstd"](tar({"x": b"y"})), TAR + "+zstd")
    layer = type(image.layers[0])(
        digest=lying.digest, size=lying.size, media_type=TAR + "+zstd",
        diff_id=image.layers[0].diff_id,
    )  # fmt: skip
    forged = Image(
        digest=image.digest, manifest=image.manifest, config=image.config, layers=(layer,), names=()
    )
    with pytest.raises(StoreError, match="its image says"):
        image_files(store, forged)
    flip(store.path(image.layers[0].digest))
    with pytest.raises(StoreError):
        image_files(store, image)
    assert ImageFiles(()).final == {}


ONE = f"sha256:{'a' * 64}"


def test_a_digest_is_never_a_path(store: Store) -> None:
    for bad in ("sha256:../../etc/passwd", "md5:" + "a" * 64, "sha256:" + "A" * 64):
        with pytest.raises(StoreError, match="not a sha256 digest"):
            store.path(bad)
    assert Descriptor(media_type="m", digest=ONE, size=1).to_dict()["mediaType"] == "m"


def exported(source: Store, image: Image, folder: Path) -> None:
    """What an exporter writes of an image: its index, and its blobs among others."""
    entry = source.descriptor(image.digest).to_dict()
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    for path in (source.root / "blobs" / "sha256").iterdir():
        os.link(path, folder / "blobs" / "sha256" / path.name)


def test_an_export_gives_the_store_the_files_that_it_has(store: Store, tmp_path: Path) -> None:
    engine = Store.open(tmp_path / "engine")
    image, other = make_image(engine), make_image(engine, [{"other": b"x"}])
    # A copy that the store has gives way to the file of the engine.
    copy = store.put_bytes(engine.path(image.layers[0].digest).read_bytes(), TAR)
    assert not store.is_shared(copy.digest)
    with store.staging() as staging:
        exported(engine, image, staging)
        assert store.adopt(staging).digest == image.digest
    assert store.holds(image.digest)
    assert not store.path(other.digest).exists()
    for blob in (image.digest, *(each for each, _ in image.blobs())):
        assert store.path(blob).samefile(engine.path(blob))
        assert store.is_shared(blob)
    assert [path.name for path in store.root.glob("incoming-*")] == []
    # What the engine keeps is not freed, and stays as it is.
    assert store.gc() == 0
    assert not store.path(image.digest).exists()
    assert engine.damaged(image.digest) == []


def test_a_damaged_blob_of_an_export_never_becomes_one_of_the_store(
    store: Store, tmp_path: Path
) -> None:
    engine = Store.open(tmp_path / "engine")
    image = make_image(engine)
    layer = image.layers[1].digest
    flip(engine.path(layer))
    with store.staging() as staging:
        exported(engine, image, staging)
        with pytest.raises(StoreError, match=f"the engine's blob {layer} is corrupt") as error:
            store.adopt(staging)
    assert "engine down --purge" in error.value.hint
    assert not store.path(layer).exists()


def test_an_archive_without_layers_names_the_image(store: Store) -> None:
    image = make_image(store)
    packed = archive.without_layers(image, "lab/x:1", store)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar_file:
        members = {one.name: tar_file.extractfile(one) for one in tar_file}
    blobs = {name.replace("blobs/sha256/", "sha256:") for name in members if "blobs/" in name}
    assert blobs == {image.digest, image.manifest["config"]["digest"]}
    file = members["index.json"]
    assert file is not None
    (entry,) = json.load(file)["manifests"]
    assert entry["digest"] == image.digest
    assert entry["annotations"]["io.containerd.image.name"] == "docker.io/lab/x:1"
