"""Images as archives, and what builders say of themselves."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.build.engine import builders
from sparkimage.core.errors import StoreError
from sparkimage.image import archive
from sparkimage.image.store import Image, Store
from tests.unit.oci_maker import LAYERS, PACK, flip, make_image


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def read(image: Image, name: str, store: Store) -> dict[str, bytes]:
    data = b"".join(archive.stream(image, name, store))
    assert len(data) % tarfile.BLOCKSIZE == 0
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            assert member.isfile()
            assert member.name not in found
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


@pytest.mark.parametrize("packed", PACK)
def test_an_archive_is_a_layout_with_every_blob_whole(store: Store, packed: str) -> None:
    image = make_image(store, packed=packed)
    files = read(image, "spark:v", store)
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    for name, data in blobs.items():
        assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    assert set(files) - set(blobs) == {"oci-layout", "index.json", "manifest.json"}
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    # As an OCI layout: from the index to the manifest, and on to each blob.
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == image.digest
    assert entry["annotations"]["io.containerd.image.name"] == "docker.io/library/spark:v"
    manifest = blobs["blobs/" + entry["digest"].replace(":", "/")]
    assert entry["size"] == len(manifest)
    named = [json.loads(manifest)["config"], *json.loads(manifest)["layers"]]
    for one in named:
        assert len(blobs["blobs/" + one["digest"].replace(":", "/")]) == one["size"]
    assert len(blobs) == 1 + len(named)
    # As `docker save` writes it: config and layers by path, in order.
    (listed,) = json.loads(files["manifest.json"])
    assert listed["RepoTags"] == ["spark:v"]
    config, layers = json.loads(blobs[listed["Config"]]), [blobs[one] for one in listed["Layers"]]
    assert len(layers) == len(LAYERS)
    if packed == "":
        seen = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
        assert config["rootfs"]["diff_ids"] == seen


def test_a_layer_that_stands_twice_is_sent_once(store: Store) -> None:
    image = make_image(store, [LAYERS[0], LAYERS[1], LAYERS[0]])
    files = read(image, "registry.example:5000/a/b:c", store)
    (listed,) = json.loads(files["manifest.json"])
    assert len(listed["Layers"]) == 3
    assert len(set(listed["Layers"])) == 2
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "registry.example:5000/a/b:c"


def test_a_layer_may_be_larger_than_8_gib(store: Store) -> None:
    image = make_image(store)
    large = replace(image.layers[0], size=9 << 30)
    stream = archive.stream(replace(image, layers=(large,)), "spark:v", store)
    name = "blobs/" + large.digest.replace(":", "/")
    header = next(chunk for chunk in stream if chunk.startswith(name.encode()))
    assert tarfile.TarInfo.frombuf(header[:512], "utf-8", "strict").size == 9 << 30


def test_a_damaged_blob_ends_the_stream(store: Store) -> None:
    image = make_image(store)
    flip(store.path(image.layers[1].digest))
    with pytest.raises(StoreError, match=image.layers[1].digest):
        list(archive.stream(image, "spark:v", store))


ONE = """\
Name:          default
Driver:        docker
Last Activity: 2026-01-02 03:04:05 +0000 UTC

Nodes:
Name:             default
Endpoint:         default
Status:           running
BuildKit version: v0.17.3
Platforms:        linux/arm64, linux/amd64 (+2), linux/386
Labels:
 org.mobyproject.buildkit.worker.moby.host-gateway-ip: 172.17.0.1
GC Policy rule#0:
 All:            false
 Filters:        type==source.local,type==exec.cachemount,type==source.git.checkout
"""
TWO = """\
Name:          farm
Driver:        remote
Last Activity: 2026-01-02 03:04:05 +0000 UTC

Nodes:
Name:                  farm0
Endpoint:              tcp://one.example:1234
Driver Options:        cacert="/ca.pem"
Status:                running
BuildKit daemon flags: --allow-insecure-entitlement=network.host
BuildKit version:      v0.23.2
Platforms:             linux/amd64*, linux/amd64/v2, linux/amd64/v3, linux/arm64
Labels:
 org.mobyproject.buildkit.worker.executor:         oci
 org.mobyproject.buildkit.worker.snapshotter:      overlayfs

Name:             farm1
Endpoint:         tcp://two.example:1234
Status:           running
BuildKit version: v0.23.2
Platforms:        linux/arm64
Labels:
"""
SILENT = """\
Name:   farm
Driver: docker-container

Nodes:
Name:     farm0
Endpoint: unix:///var/run/docker.sock
Error:    Cannot connect to the Docker daemon at unix:///var/run/docker.sock.
Status:   inactive
"""


@pytest.mark.parametrize(
    ("said", "nodes"),
    [
        (ONE, {"default": "arm64"}),
        (TWO, {"tcp://one.example:1234": "amd64", "tcp://two.example:1234": "arm64"}),
        (SILENT, {}),
        ("", {}),
    ],
)
def test_the_endpoint_and_the_native_architecture_of_each_node(
    said: str, nodes: dict[str, str]
) -> None:
    assert builders.parse(said) == (tuple(nodes), tuple(nodes.values()))
