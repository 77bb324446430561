"""Images as archives that every engine loads, streamed from the store, and back.

An archive is an OCI layout with a ``manifest.json`` beside it: engines with the containerd store
read the one, older ones the other (https://github.com/moby/docker-image-spec). Both take an
archive without the blobs that they already have.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.config.address import image_name
from sparkimage.core.errors import StoreError
from sparkimage.image.store import MANIFEST, REF_NAME, TAR, Descriptor, Image, Layer, Store
from sparkimage.image.streams import Readable, digest_of

AGAIN = "save it again: docker save"


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
    """The lowest layers of an image as an image of their own; all of them are the image."""

    name: str
    manifest: Document
    config: Document
    layers: tuple[Layer, ...]

    @classmethod
    def whole(cls, image: Image, name: str, store: Store) -> Part:
        """The image itself, with the exact bytes of its manifest and config."""
        documents = []
        for digest in (image.digest, image.manifest["config"]["digest"]):
            with store.open_blob(digest) as blob:
                documents.append(Document(digest=digest, data=blob.read()))
        manifest, config = documents
        return cls(name=name, manifest=manifest, config=config, layers=image.layers)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A part to load, and its layers whose blobs are sent."""

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
    Raises ``StoreError`` in mid-stream when a blob is corrupt.
    """

    manifest = (image.digest, store.path(image.digest).stat().st_size)
    layers = [layer.digest for layer in image.layers]
    documents = _documents(manifest, image.manifest["config"]["digest"], layers, name)
    # Before the blobs: a reader can refuse the image before it gets gigabytes.
    yield from _small({**documents, **(more or {})})
    yield from _blobs([manifest, *image.blobs()], store)
    yield END


def partial(step: Step, store: Store) -> tuple[Iterator[bytes], bytes]:
    """The bytes of an archive of ``step``, with only the layers to send, in two pieces.

    An engine begins to unpack after the second piece, which is a few kilobytes: hold it back until
    the step before is done. Raises ``StoreError`` in mid-stream, as ``stream``.
    """
    part = step.part
    layers = [layer.digest for layer in part.layers]
    documents = _documents(
        (part.manifest.digest, len(part.manifest.data)), part.config.digest, layers, part.name
    )
    own = (part.manifest, part.config)
    end = [*(_member(_file(blob.digest), blob.data) for blob in own), *_small(documents), END]
    return _blobs([(layer.digest, layer.size) for layer in step.send], store), b"".join(end)


def without_layers(image: Image, name: str, store: Store) -> bytes:
    """An archive in which ``image`` is called ``name``, for an engine that has all its layers.

    Raises ``StoreError``.
    """
    return partial(Step(part=Part.whole(image, name, store), send=()), store)[1]


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
    listed = {"Config": _file(config), "RepoTags": [name], "Layers": [_file(d) for d in layers]}
    return {
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
        "index.json": index,
        "manifest.json": [listed],
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


def import_docker_archive(stream: Readable, store: Store) -> Descriptor:
    """Store the image of an archive that ``docker save`` wrote (any engine since 20.10).

    https://github.com/moby/docker-image-spec: manifest.json names the config and the layers'
    files; a layer that two images share may be a link to its file. The config is kept as it
    is. Raises ``StoreError`` for any other archive.
    """
    try:
        listed, blobs = _unpack(stream, store)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise StoreError(f"not an archive of `docker save`: {error}", hint=AGAIN) from None
    try:
        (entry,) = listed
        files = [os.path.normpath(name) for name in (entry["Config"], *entry["Layers"])]
    except (KeyError, TypeError, ValueError):
        raise StoreError("the archive has no manifest.json with one image", hint=AGAIN) from None
    if missing := [name for name in files if name not in blobs]:
        raise StoreError(
            f"the archive lacks {missing[0]}, which its manifest.json lists", hint=AGAIN
        )
    config, *layers = (blobs[name].to_dict() for name in files)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {**config, "mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [{**layer, "mediaType": _layer_type(layer["digest"], store)} for layer in layers],
    }
    return store.put_bytes(json.dumps(manifest, separators=(",", ":")).encode(), MANIFEST)


def _unpack(stream: Readable, store: Store) -> tuple[Any, dict[str, Descriptor]]:
    """The archive's manifest.json, and its files as blobs, by their paths and their links'."""
    blobs: dict[str, Descriptor] = {}
    links: dict[str, str] = {}
    listed: Any = None
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            name = os.path.normpath(member.name)
            if name.startswith(("/", "..")):
                raise StoreError(f"the archive has the unsafe path {member.name!r}", hint=AGAIN)
            if member.issym() or member.islnk():
                base = os.path.dirname(name) if member.issym() else ""
                links[name] = os.path.normpath(os.path.join(base, member.linkname))
            elif member.isfile():
                source = archive.extractfile(member)
                assert source is not None
                if name == "manifest.json":
                    listed = json.load(source)
                elif not name.endswith((".json", "/VERSION")) or name.count("/") == 0:
                    blobs[name] = store.put_stream(source, TAR)
    return listed, blobs | {
        link: blobs[target] for link, target in links.items() if target in blobs
    }


def _layer_type(digest: str, store: Store) -> str:
    with store.path(digest).open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b":
        return TAR + "+gzip"
    return TAR + "+zstd" if head == b"\x28\xb5\x2f\xfd" else TAR
