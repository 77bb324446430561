"""Images as archives that every engine loads, streamed straight from the store.

An archive is an OCI layout and a ``manifest.json`` beside it: engines with the containerd store
read the one, older ones the other (https://github.com/moby/docker-image-spec).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from sparkimage.store import CHUNK, MANIFEST, REF_NAME, Image, Store


def stream(
    image: Image, name: str, store: Store, more: Mapping[str, Any] | None = None
) -> Iterator[bytes]:
    """The bytes of an archive in which ``image`` is called ``name``, in constant memory.

    ``more`` are further JSON documents by path, which engines ignore.
    Raises ``StoreError`` in mid-stream when a blob is not what its digest says.
    """
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "digest": image.digest,
                "size": store.path(image.digest).stat().st_size,
                "annotations": {"io.containerd.image.name": _full(name), REF_NAME: name},
            }
        ],
    }
    listed = [
        {
            "Config": _file(image.manifest["config"]["digest"]),
            "RepoTags": [name],
            "Layers": [_file(layer.digest) for layer in image.layers],
        }
    ]
    small = {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": index,
        "manifest.json": listed,
        # Before the blobs: who loads it can refuse before the gigabytes come.
        **(more or {}),
    }
    for path, data in small.items():
        encoded = json.dumps(data).encode()
        yield _header(path, len(encoded)) + encoded + _padding(len(encoded))
    manifest = (image.digest, store.path(image.digest).stat().st_size)
    for digest, size in dict.fromkeys([manifest, *image.blobs()]):
        yield _header(_file(digest), size)
        with store.open_blob(digest) as blob:
            while chunk := blob.read(CHUNK):
                yield chunk
        yield _padding(size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _file(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _full(name: str) -> str:
    from sparkimage.address import image_name

    return str(image_name(name))


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
