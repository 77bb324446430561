"""The files of every layer of an image, from the store's blobs: overwritten and deleted ones too.

A layer is read once in streaming mode and checked against its digest and its diffID. Its list of
entries, with the facts of ``layerscan`` about each file, is kept in the store under the diffID,
which can never mean another list. Layers are read in parallel.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import IO, Any

import zstandard

from sparkimage.core.errors import StoreError
from sparkimage.image import layerscan
from sparkimage.image.elf import Elf
from sparkimage.image.store import Image, Layer, Store
from sparkimage.image.streams import HashingReader

BUFFER = 1 << 16
"""tarfile copies the rest of its buffer with every header."""
FACT = f"scan-{layerscan.VERSION}"
STEP = "/run/tools/step.sh"
"""In the history of every layer that a RUN step of this project made."""


@dataclass(frozen=True)
class Entry:
    """One entry of a layer's tar: ``kind`` is tarfile's type character, ``size`` in bytes."""

    layer: int
    path: str
    kind: str
    size: int
    mode: int
    target: str
    seen: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The facts of ``layerscan.learn`` about a regular file."""

    @property
    def is_file(self) -> bool:
        return self.kind == "0"

    @property
    def is_whiteout(self) -> bool:
        """Whether it only marks something below as removed."""
        return self.path.rpartition("/")[2].startswith(".wh.")

    @cached_property
    def elf(self) -> Elf | None:
        """The head of a program or a library; of a hard link, of what it links to."""
        return Elf.from_dict(self.seen["elf"]) if "elf" in self.seen else None

    def __str__(self) -> str:
        return f"{self.path} (layer {self.layer})"


@dataclass(frozen=True)
class ImageFiles:
    """Every entry of every layer, from the lowest up."""

    layers: tuple[tuple[Entry, ...], ...]

    def every(self, pattern: str, *, only_files: bool = False) -> list[Entry]:
        """The entries of all layers whose path (without a leading /) matches the expression."""
        expression = re.compile(pattern)
        return [
            entry
            for layer in self.layers
            for entry in layer
            if expression.search(entry.path)
            and not entry.is_whiteout
            and (entry.is_file or not only_files)
        ]

    def layer_sizes(self) -> list[int]:
        """Bytes of the files in each layer, unpacked."""
        return [sum(entry.size for entry in layer if entry.is_file) for layer in self.layers]

    def duplicates(self, min_size: int = 1) -> list[str]:
        """Paths that are stored as a regular file in more than one layer."""
        seen: dict[str, int] = {}
        twice = set()
        for layer in self.layers:
            for entry in layer:
                if entry.is_file and entry.size >= min_size:
                    if seen.get(entry.path, entry.layer) != entry.layer:
                        twice.add(entry.path)
                    seen[entry.path] = entry.layer
        return sorted(twice)

    @cached_property
    def final(self) -> Mapping[str, Entry]:
        """What a container sees: path to entry, whiteouts applied.

        https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
        """
        visible: dict[str, Entry] = {}
        removed: set[str] = set()
        """By a layer above, with all below them."""
        emptied: set[str] = set()
        """By a layer above."""

        def is_hidden(path: str) -> bool:
            hidden = path in removed
            while path and not hidden:
                path = path.rpartition("/")[0]
                hidden = path in removed or path in emptied
            return hidden

        for layer in reversed(self.layers):
            # A layer's whiteouts hide only what is below the layer.
            entries = {entry.path: entry for entry in layer if not entry.is_whiteout}
            new = entries.keys() - visible.keys()
            visible |= {path: entries[path] for path in new if not is_hidden(path)}
            for entry in layer:
                folder, _, name = entry.path.rpartition("/")
                if name == ".wh..wh..opq":
                    emptied.add(folder)
                elif entry.is_whiteout:
                    removed.add(f"{folder}/{name[4:]}".lstrip("/"))
                elif entry.kind != "5":
                    emptied.add(entry.path)
        return {
            entry.path: entry
            for layer in self.layers
            for entry in layer
            if visible.get(entry.path) is entry
        }


def own_layers(
    count: int, *, base: bool, above: int | None, history: Iterable[Mapping[str, Any]]
) -> frozenset[int]:
    """The numbers of those of ``count`` layers that a step of this project made.

    ``base``: whether the image is based on one that is not built here; ``above``: where a source's
    own Dockerfile made layers, at least how many such steps lie above them. Neither the base's nor
    the source's are held to this project's rules. All are, where the history does not tell. Pure.
    """
    steps = [step for step in history if not step.get("empty_layer")]
    if (not base and above is None) or len(steps) != count:
        return frozenset(range(count))
    own = {number for number, step in enumerate(steps) if STEP in step.get("created_by", "")}
    # A layer that a COPY or a RUN without our tools made has no step in its history.
    lowest = min(sorted(own, reverse=True)[:above], default=count)
    return frozenset({*own, *range(lowest, count)})


def image_files(store: Store, image: Image) -> ImageFiles:
    """Index every layer of ``image``. Raises ``StoreError`` for a corrupt one."""
    # The longest first. Decompression and hashes leave the interpreter to the other threads.
    order = sorted(range(len(image.layers)), key=lambda number: -image.layers[number].size)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        entries = {n: pool.submit(_entries, store, image.layers[n], n) for n in order}
    return ImageFiles(tuple(entries[n].result() for n in range(len(image.layers))))


@lru_cache(maxsize=64)
def content(store: Store, layer: Layer, path: str) -> bytes:
    """The bytes of a regular file of a layer, which is read up to there."""
    with (
        store.open_blob(layer.digest) as blob,
        tarfile.open(fileobj=decompressed(blob, layer.media_type), mode="r|") as archive,
    ):
        for member in archive:
            if member.isreg() and entry_path(member.name) == path:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
    raise StoreError(f"layer {layer.digest} has no file {path}")


def entry_path(name: str) -> str:
    """The path of an entry of a layer's tar, without a leading /."""
    return name.removeprefix("./").strip("/")


def unpacked_size(store: Store, layer: Layer) -> int:
    """Bytes of a layer's files: as scanned, else an estimate that is rather too high."""
    rows = store.get_fact(FACT, layer.diff_id)
    if rows is not None:
        return sum(row[2] for row in rows if row[1] == "0")
    return layer.size if layer.media_type.endswith("tar") else 3 * layer.size


def _entries(store: Store, layer: Layer, number: int) -> tuple[Entry, ...]:
    rows = store.get_fact(FACT, layer.diff_id)
    if rows is None:
        rows = _read(store, layer)
        store.put_fact(FACT, layer.diff_id, rows)
    return tuple(Entry(number, *row) for row in rows)


def _read(store: Store, layer: Layer) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = []
    known: dict[str, dict[str, Any]] = {}
    with store.open_blob(layer.digest) as blob:
        try:
            plain = HashingReader(decompressed(blob, layer.media_type))
            with tarfile.open(fileobj=plain, mode="r|", bufsize=BUFFER) as archive:  # type: ignore[call-overload]
                for member in archive:
                    path = entry_path(member.name)
                    facts: dict[str, Any] = {}
                    if member.isreg():
                        content = archive.extractfile(member)
                        assert content is not None
                        facts = known[path] = layerscan.learn(path, member.size, content)
                    elif member.islnk():
                        facts = known.get(entry_path(member.linkname), {})
                    kind = member.type.decode().replace("\0", "0")
                    rows.append((path, kind, member.size, member.mode, member.linkname, facts))
                    archive.members = []  # or the list grows with the layer
            plain.drain()
            layerscan.account(rows)
        except (tarfile.TarError, OSError, EOFError, ValueError, zstandard.ZstdError) as error:
            raise store.damage(layer.digest, f"cannot be unpacked: {error}") from None
    if plain.digest != layer.diff_id:
        raise store.damage(
            layer.digest, f"unpacks to {plain.digest}, but its image says {layer.diff_id}"
        )
    return rows


def decompressed(blob: IO[bytes], media_type: str) -> Any:
    """The blob to read from, unpacked where its media type says that it is packed."""
    if media_type.endswith(("+gzip", ".gzip")):
        return gzip.GzipFile(fileobj=blob)
    if media_type.endswith("+zstd"):
        return zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)
    return blob
