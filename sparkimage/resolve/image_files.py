"""Files of an image of a registry, read without an engine.

Its layers are streamed from the top down, and no further than to the file. What a layer has is kept
in the home under its digest, so that the next file costs one layer at most.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import zstandard

from sparkimage.config.address import Place
from sparkimage.config.lock_items import PinnedImage
from sparkimage.core import files, locks
from sparkimage.core.errors import Locked, LockError, PublishedError
from sparkimage.image.layerindex import decompressed, entry_path
from sparkimage.image.store import Descriptor
from sparkimage.image.streams import stream
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.skopeo import Repository
from sparkimage.resolve.tools import Tools

LINKS_MAX = 40
"""Links that a path may lead through, as in Linux."""
OPAQUE = ".wh..wh..opq"
FILE, LINK, HARD_LINK, FOLDER = "file", "link", "hard link", "folder"

Listing = Mapping[str, tuple[str, str]]
"""Path to kind and target, of every entry of a layer."""


def read_file(
    locked: Locked, image: PinnedImage, path: str, context: ResolveContext
) -> bytes | None:
    """The content of the regular file ``path`` (absolute) as a container of ``image`` sees it;
    None where it has none. Errors as ``opened``."""
    with opened(locked, image, context) as layers:
        return layers.read([path])[path]


@contextmanager
def opened(locked: Locked, image: PinnedImage, context: ResolveContext) -> Iterator[ImageLayers]:
    """The layers of an image of a registry.

    Raises ``LockError`` where the registry no longer has the image or a layer is not readable,
    ``RegistryError`` where it refuses, ``NetworkError`` where it does not answer.
    """
    place = Place.parse(context.mirrors.of(image.name))
    repository = Repository(place=place, tools=Tools(outside=context))
    try:
        manifest = repository.manifest(image.digest)
        if manifest is None:
            raise LockError(
                f"{locked}: the registry has no {image.name}@{image.digest[:19]} any more",
                hint=f"name a mirror, or take what its tag is now: {locked.update}",
            )
        with repository.blobs(image.digest) as blobs:
            yield ImageLayers(
                title=str(locked),
                layers=[
                    Descriptor(digest=one["digest"], size=one["size"], media_type=one["mediaType"])
                    for one in manifest.content["layers"]
                ],
                blob=lambda layer: blobs.read(layer.digest, layer.size),
                cache=context.home / "layers",
            )
    except PublishedError as error:
        raise LockError(
            f"{locked}: {error.message}", hint="name a mirror that has all of it"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ImageLayers:
    """The layers of an image, from the lowest up. Raises ``LockError`` for one that is no layer."""

    title: str
    layers: Sequence[Descriptor]
    blob: Callable[[Descriptor], Iterator[bytes]]
    """Reads a layer's blob, verified at its end."""
    cache: Path

    def read(self, paths: Iterable[str]) -> dict[str, bytes | None]:
        """The contents of these regular files (absolute paths); None for what is none."""
        wanted = {path: posixpath.normpath(path).strip("/") for path in paths}
        return {path: self._read(own, frozenset(wanted.values())) for path, own in wanted.items()}

    def named(self, name: str) -> list[str]:
        """The absolute paths of all files of this name in any layer, sorted."""
        found = {
            f"/{path}"
            for layer in self.layers
            for path, (kind, _) in self._listing(layer, frozenset()).items()
            if kind == FILE and path.rpartition("/")[2] == name
        }
        return sorted(found)

    def _read(self, path: str, wanted: frozenset[str], links: int = LINKS_MAX) -> bytes | None:
        above = (path, *(str(part) for part in PurePosixPath(path).parents if part.name))
        folders: set[str] = set()
        for layer in reversed(self.layers):
            listing = self._listing(layer, wanted | {path})
            kind, target = listing.get(path, ("", ""))
            if kind in (FILE, HARD_LINK):
                return self._content(layer, path if kind == FILE else target)
            for part in above:
                kind, target = listing.get(part, ("", ""))
                if kind == FOLDER:
                    folders.add(part)
                elif kind == LINK and links and part not in folders:
                    rest = posixpath.relpath(path, part)
                    led = posixpath.normpath(posixpath.join("/", part, "..", target, rest))
                    return self._read(led.strip("/"), wanted, links - 1)
                elif kind:
                    return None
            if path in folders or any(_removes(listing, part) for part in above):
                return None
        return None

    def _listing(self, layer: Descriptor, wanted: frozenset[str]) -> Listing:
        """What a layer has; the content of what is wanted of it is kept as well."""
        file = self._folder(layer) / "listing"
        file.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(file.with_name("lock")):
            if not file.is_file():
                listing = self._scan(layer, wanted)
                files.write(file, zstandard.compress(json.dumps(listing).encode()))
                return listing
        return {
            path: (kind, target)
            for path, (kind, target) in json.loads(zstandard.decompress(file.read_bytes())).items()
        }

    def _content(self, layer: Descriptor, path: str) -> bytes:
        file = self._kept(layer, path)
        if not file.is_file():
            self._scan(layer, frozenset([path]))
        return file.read_bytes()

    def _scan(self, layer: Descriptor, wanted: frozenset[str]) -> Listing:
        """Read a layer to its end, and keep the content of what is wanted of it."""
        listing: dict[str, tuple[str, str]] = {}
        blob = stream(self.blob(layer))
        try:
            tar = decompressed(blob, layer.media_type)
            with tarfile.open(fileobj=tar, mode="r|") as archive:
                for member in archive:
                    path = entry_path(member.name)
                    listing[path] = _kind(member)
                    if member.isreg() and path in wanted:
                        content = archive.extractfile(member)
                        assert content is not None
                        files.write(self._kept(layer, path), content.read())
                    archive.members = []  # type: ignore[attr-defined]
            while blob.read(tarfile.RECORDSIZE):
                pass
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zstandard.ZstdError) as error:
            raise LockError(
                f"{self.title}: the layer {layer.digest[:19]} cannot be unpacked: {error}",
                hint="look at the image: docker pull",
            ) from None
        return listing

    def _folder(self, layer: Descriptor) -> Path:
        return self.cache / layer.digest.partition(":")[2]

    def _kept(self, layer: Descriptor, path: str) -> Path:
        return self._folder(layer) / hashlib.sha256(path.encode()).hexdigest()


def _removes(listing: Listing, path: str) -> bool:
    """Whether a layer removes ``path`` of the layers below.

    https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
    """
    folder, name = posixpath.split(path)
    return any(posixpath.join(folder, mark) in listing for mark in (OPAQUE, f".wh.{name}"))


def _kind(member: tarfile.TarInfo) -> tuple[str, str]:
    if member.islnk():
        return HARD_LINK, entry_path(member.linkname)
    if member.issym():
        return LINK, member.linkname
    return (FILE if member.isreg() else FOLDER if member.isdir() else "other"), ""
