"""Images as archives that every engine loads, streamed straight from the store.

An archive is an OCI layout and a ``manifest.json`` beside it: engines with the containerd store
read the one, older ones the other (https://github.com/moby/docker-image-spec). Both take an
archive that lacks the blobs that they have.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.config.address import image_name
from sparkimage.image.store import MANIFEST, REF_NAME, Image, Layer, Store, digest_of


@dataclass(frozen=True, kw_only=True)
class Document:
    """A small blob: its bytes and their digest."""

    digest: str
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Document:
        return cls(digest=digest_of(data), data=data)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An image of the lowest layers of another one; of all of them for the image itself."""

    name: str
    manifest: Document
    config: Document
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part to load, and the layers of it whose blobs go along."""

    part: Part
    send: tuple[Layer, ...]

    @property
    def size(self) -> int:
        """Bytes of the blobs."""
        return sum(layer.size for layer in self.send)


def stream(
    image: Image, name: str, store: Store, more: Mapping[str, Any] | None = None
) -> Iterator[bytes]:
    """The bytes of an archive in which ``image`` is called ``name``, in constant memory.

    ``more`` are further JSON documents by path, which engines ignore.
    Raises ``StoreError`` in mid-stream when a blob is not what its digest says.
    """

    manifest = (image.digest, store.path(image.digest).stat().st_size)
    layers = [layer.digest for layer in image.layers]
    documents = _documents(manifest, image.manifest["config"]["digest"], layers, name)
    # Before the blobs: who loads it can refuse before the gigabytes come.
    yield from _small({**documents, **(more or {})})
    yield from _blobs([manifest, *image.blobs()], store)
    yield END


def partial(step: Step, store: Store) -> tuple[Iterator[bytes], bytes]:
    """The bytes of an archive of ``step``, with the layers to send alone, in two pieces.

    An engine begins to unpack after the second piece, which is a few kilobytes: it can be held
    back until the step before is done. Raises ``StoreError`` in mid-stream, as ``stream``.
    """
    part = step.part
    layers = [layer.digest for layer in part.layers]
    documents = _documents(
        (part.manifest.digest, len(part.manifest.data)), part.config.digest, layers, part.name
    )
    own = [(one.digest, one.data) for one in (part.manifest, part.config)]
    end = [
        *(_member(_file(digest), data) for digest, data in own),
        *_small(documents),
        END,
    ]
    return _blobs([(layer.digest, layer.size) for layer in step.send], store), b"".join(end)


END = bytes(2 * tarfile.BLOCKSIZE)


def _documents(
    manifest: tuple[str, int], config: str, layers: Sequence[str], name: str
) -> dict[str, Any]:
    digest, size = manifest
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": size,
                "annotations": {"io.containerd.image.name": str(image_name(name)), REF_NAME: name},
            }
        ],
    }
    listed = [
        {"Config": _file(config), "RepoTags": [name], "Layers": [_file(one) for one in layers]}
    ]
    return {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": index,
        "manifest.json": listed,
    }


def _small(documents: Mapping[str, Any]) -> Iterator[bytes]:
    for path, document in documents.items():
        yield _member(path, json.dumps(document).encode())


def _blobs(blobs: Iterable[tuple[str, int]], store: Store) -> Iterator[bytes]:
    for digest, size in dict.fromkeys(blobs):
        yield _header(_file(digest), size)
        yield from store.pieces(digest)
        yield _padding(size)


def _member(path: str, data: bytes) -> bytes:
    return _header(path, len(data)) + data + _padding(len(data))


def _file(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
