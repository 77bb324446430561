"""What a node lacks, and the steps in which it gets it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import StoreError
from sparkimage.image import archive
from sparkimage.image.archive import Part
from sparkimage.image.store import Image, Layer, Store
from sparkimage.image.streams import CHUNK
from sparkimage.nodes import delta
from sparkimage.nodes.snapshot import STAGING, chain_ids
from tests.unit.oci_maker import Files, digest, flip, make_image

LAYERS: list[Files] = [{f"f{n}": bytes([n]) * (1000 * (n + 1))} for n in range(5)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def image(store: Store) -> Image:
    return make_image(store, LAYERS, "")


@pytest.fixture(scope="module")
def parts(store: Store, image: Image) -> tuple[Part, ...]:
    return delta.parts(store, image)


def test_chain_id_covers_all_layers_below() -> None:
    a, b = digest(b"a"), digest(b"b")
    assert chain_ids([a, b]) == [a, digest(f"{a} {b}".encode())]
    assert chain_ids([b, a])[1] != chain_ids([a, b])[1]
    assert chain_ids([]) == []


@given(lacking=st.sets(st.integers(0, 4)), size=st.integers(1, 30_000))
def test_steps_bring_each_lacking_layer_once_and_end_with_the_image(
    parts: tuple[Part, ...], image: Image, store: Store, lacking: set[int], size: int
) -> None:
    steps = delta.steps(parts, lacking, size=size)
    layers = image.layers
    assert [one for step in steps for one in step.send] == [layers[n] for n in sorted(lacking)]
    last = steps[-1].part
    assert last.manifest.data == store.path(image.digest).read_bytes()
    assert json.loads(last.config.data) == image.config
    counts = [len(step.part.layers) for step in steps]
    assert counts == sorted(set(counts))
    assert len({step.part.name for step in steps}) == len(steps)
    # A step names no layer that is neither there nor among what came so far.
    there = {layer for n, layer in enumerate(layers) if n not in lacking}
    for step in steps:
        there |= set(step.send)
        assert set(step.part.layers) <= there
    # None but the last is smaller than asked for.
    assert all(step.size >= size for step in steps[:-1])


def test_a_part_is_an_image_of_the_lowest_layers(
    parts: tuple[Part, ...], image: Image, store: Store
) -> None:
    part = parts[1]
    config, manifest = json.loads(part.config.data), json.loads(part.manifest.data)
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers[:2]]
    assert manifest["config"]["digest"] == digest(part.config.data)
    assert manifest["config"]["size"] == len(part.config.data)
    assert digest(part.manifest.data) == part.manifest.digest
    assert delta.parts(store, image) == parts
    assert part.name == f"{STAGING}:{image.digest[7:19]}-2"


def test_partial_archive_lists_all_layers(
    parts: tuple[Part, ...], image: Image, store: Store
) -> None:
    step = delta.steps(parts, {1, 4}, size=1 << 30)[-1]
    body, end = archive.partial(step, store)
    with tarfile.open(fileobj=io.BytesIO(b"".join(body) + end)) as tar:
        names = tar.getnames()
        (listed,) = json.load(tar.extractfile("manifest.json") or io.BytesIO())
    sent = [f"blobs/sha256/{image.layers[n].digest[7:]}" for n in (1, 4)]
    assert names[:2] == sent
    assert len([name for name in names if name.startswith("blobs/")]) == 4
    assert len(listed["Layers"]) == 5
    assert listed["RepoTags"] == [step.part.name]


def one_blob(folder: Path, data: bytes) -> tuple[Store, Layer]:
    store = Store.open(folder)
    named = store.put_bytes(data, "t")
    return store, Layer(digest=named.digest, size=named.size, media_type="t", diff_id="")


def test_blob_is_read_in_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    store, layer = one_blob(tmp_path, data)
    assert b"".join(store.pieces(layer.digest)) == data
    store, layer = one_blob(tmp_path, b"")
    assert b"".join(store.pieces(layer.digest)) == b""


@pytest.mark.parametrize("spoil", ["flip", "cut", "empty", "remove"])
def test_last_piece_of_a_corrupt_blob_is_withheld(tmp_path: Path, spoil: str) -> None:
    store, layer = one_blob(tmp_path, b"y" * (2 * CHUNK))
    path = store.path(layer.digest)
    if spoil == "flip":
        flip(path)
    elif spoil == "remove":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[: CHUNK + 5] if spoil == "cut" else b"")
    got: list[bytes] = []
    with pytest.raises(StoreError, match=layer.digest):
        got.extend(store.pieces(layer.digest))
    # Its last piece is never sent, so that no engine takes it for complete.
    assert len(b"".join(got)) < 2 * CHUNK
