"""The image store: an OCI image layout, addressed by digest.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md

Every blob is written under a temporary name and renamed; every change of index.json replaces the
file under a lock: an interruption leaves the old or the new one. What is read is hashed.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparkimage.core import locks
from sparkimage.core.errors import ImageMissingError, SparkError, StoreError
from sparkimage.core.files import atomic_file
from sparkimage.core.locks import Say
from sparkimage.core.program import program
from sparkimage.image.settings import Settings
from sparkimage.image.streams import CHUNK, HashingReader, Readable

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
SHORTEST = 4
"""Digits of a digest that are enough, where they are unique."""
HEX = frozenset("0123456789abcdef")
IN_USE = ".in-use"
"""The lock file that every command which reads or writes blobs holds, shared."""
ABANDONED_S = 86_400.0
"""Seconds after which a temporary file belongs to no running command."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """An OCI descriptor: media type, digest (``sha256:<hex>``) and size in bytes of a blob."""

    media_type: str
    digest: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, kw_only=True)
class Layer(Descriptor):
    """One layer of an image; ``diff_id`` is the digest of its uncompressed tar."""

    diff_id: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the store."""

    digest: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    names: tuple[str, ...]

    @property
    def platform(self) -> str:
        return f"{self.config['os']}/{self.config['architecture']}"

    @property
    def settings(self) -> Settings:
        return Settings.of(self.config)

    @property
    def size(self) -> int:
        """Bytes of all layers as they are stored (compressed)."""
        return sum(layer.size for layer in self.layers)

    def blobs(self) -> tuple[tuple[str, int], ...]:
        """Digest and size of every blob but the manifest."""
        config = self.manifest["config"]
        return (
            (config["digest"], config["size"]),
            *((layer.digest, layer.size) for layer in self.layers),
        )


@dataclass(frozen=True)
class Store:
    """An OCI layout in the folder ``root``."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open the store, making it where there is none."""
        store = cls(root)
        (root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not (root / "oci-layout").exists():
            store._write(root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if not (root / "index.json").exists():
            store._write_index([])
        for folder in root.glob("incoming-*"):
            if not locks.is_running(folder.name.split("-")[1]):
                shutil.rmtree(folder, ignore_errors=True)
        return store

    # Blobs

    def path(self, digest: str) -> Path:
        """The file of a blob, which need not exist."""
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= HEX:
            raise StoreError(f"{digest!r} is not a sha256 digest")
        return self.root / "blobs" / "sha256" / value

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Store ``data``."""
        return self.put_stream(io.BytesIO(data), media_type)

    def put_stream(self, source: Readable, media_type: str) -> Descriptor:
        """Store all that ``source`` yields, in constant memory."""
        reader = HashingReader(source)
        with atomic_file(self.root) as file:
            while chunk := reader.read(CHUNK):
                file.sink.write(chunk)
            size = file.sink.tell()
            file.rename_to(self.path(reader.digest), mode=0o444)
        return Descriptor(media_type=media_type, digest=reader.digest, size=size)

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[IO[bytes]]:
        """The blob to read from; at the end of the context its digest is checked.

        Raises ``StoreError`` when the blob is missing or corrupt.
        """
        try:
            with self.path(digest).open("rb") as raw:
                reader = HashingReader(raw)
                yield reader  # type: ignore[misc]
                reader.drain()
        except FileNotFoundError:
            raise self.damage(digest, "is missing") from None
        if reader.digest != digest:
            raise self.damage(digest, f"is corrupt: {reader.digest}")

    def pieces(self, digest: str) -> Iterator[bytes]:
        """The bytes of a blob, of which the last ones come only when all are proven: what was
        sent of a damaged one is never complete. Raises as ``open_blob``."""
        last = b""
        with self.open_blob(digest) as blob:
            while piece := blob.read(CHUNK):
                yield last
                last = piece
        yield last

    def read_json(self, digest: str) -> dict[str, Any]:
        """The JSON document of ``digest``, its digest checked. Raises ``StoreError``."""
        with self.open_blob(digest) as blob:
            data = blob.read()
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self.damage(digest, "is not a JSON document")
        return document

    def discard(self, digest: str) -> None:
        """Remove a damaged blob, so that the next build writes it again."""
        self.path(digest).unlink(missing_ok=True)

    def is_shared(self, digest: str) -> bool:
        """Whether an engine has the same file; False for one that is missing."""
        path = self.path(digest)
        return path.exists() and path.stat().st_nlink > 1

    def uses(self, manifest: str, blobs: Iterable[str]) -> bool:
        """Whether the image of this manifest has one of these blobs."""
        return not set(blobs).isdisjoint(self._blobs_of(manifest))

    def damaged(self, digest: str) -> list[str]:
        """The blobs of an image that are missing or corrupt; reads them all."""

        def is_corrupt(blob: str) -> bool:
            try:
                with self.open_blob(blob):
                    return False
            except StoreError:
                return True

        if is_corrupt(digest):
            return [digest]
        blobs = self._blobs_of(digest)
        return [blob for blob in blobs[1:] if is_corrupt(blob)] if len(blobs) > 1 else [digest]

    def damage(self, digest: str, what: str) -> StoreError:
        """The error for a blob; ``what`` says what is wrong with it."""
        users = [name for name, used in self.names().items() if digest in self._blobs_of(used)]
        variant = users[0].rpartition(":")[2] if users else "VARIANT"
        return StoreError(
            f"the stored blob {digest} {what}" + (f"; {', '.join(users)} uses it" if users else ""),
            hint=f"build it again: {program()} image {variant} --repair",
        )

    def _blobs_of(self, manifest: str) -> list[str]:
        """A manifest and what it names; itself alone where it cannot be read."""
        try:
            data = json.loads(self.path(manifest).read_bytes())
            blobs = [blob["digest"] for blob in (data["config"], *data["layers"])]
        except (OSError, ValueError, KeyError, TypeError):
            blobs = []
        return list(dict.fromkeys([manifest, *blobs]))

    # Images

    def names(self) -> dict[str, str]:
        """Every name of the store, with the manifest digest that it points to."""
        return {
            entry["annotations"][REF_NAME]: entry["digest"]
            for entry in self._index()
            if REF_NAME in entry.get("annotations", {})
        }

    def images(self) -> Iterator[Image]:
        """Every image that has a name; damaged ones are left out."""
        for digest in set(self.names().values()):
            try:
                image = self.resolve(digest)
            except SparkError:
                continue
            yield image

    def name(self, ref: str, descriptor: Descriptor) -> None:
        """Let the name ``ref`` point to this image, and to no other."""
        self._replace(ref, {**descriptor.to_dict(), "annotations": {REF_NAME: ref}})

    def unname(self, ref: str) -> None:
        """Remove the name; the image stays until ``gc``."""
        self._replace(ref)

    def _replace(self, ref: str, *entries: dict[str, Any]) -> None:
        with self.locked():
            others = [e for e in self._index() if e.get("annotations", {}).get(REF_NAME) != ref]
            self._write_index([*others, *entries])

    def descriptor(self, digest: str) -> Descriptor:
        """The descriptor of a stored manifest."""
        return Descriptor(media_type=MANIFEST, digest=digest, size=self.path(digest).stat().st_size)

    def holds(self, digest: str) -> bool:
        """Whether the store has the manifest and all its blobs in their sizes; hashes no layer."""
        try:
            image = self.resolve(digest)
            return all(self.path(blob).stat().st_size == size for blob, size in image.blobs())
        except (StoreError, ImageMissingError, OSError):
            return False

    def resolve(self, reference: str) -> Image:
        """The image of a name, a digest, or the unique beginning of one (at least 4 digits).

        Raises ``ImageMissingError`` with the nearest names; ``StoreError`` when it is damaged.
        """
        names = self.names()
        digest = names.get(reference)
        value = reference.removeprefix("sha256:")
        if digest is None and len(value) >= SHORTEST and set(value) <= HEX:
            start = f"sha256:{value}"
            named = {blob for blob in names.values() if blob.startswith(start)}
            if len(value) == 64 and self.path(start).exists():
                digest = start
            elif len(named) == 1 and self.path(*named).exists():
                (digest,) = named
            elif len(named) > 1:
                raise ImageMissingError(
                    f"the digests of {len(named)} images begin with {value}",
                    hint=f"pass more of it: {', '.join(sorted(one[7:19] for one in named))}",
                )
        if digest is None:
            near = difflib.get_close_matches(reference, names, n=3, cutoff=0.3)
            raise ImageMissingError(
                f"the image store has no {reference}",
                hint=f"did you mean {' or '.join(near)}?"
                if near
                else f"list what there is: {program()} images",
            )
        manifest = self.read_json(digest)
        try:
            config = self.read_json(manifest["config"]["digest"])
            pairs = zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
            layers = tuple(
                Layer(
                    digest=layer["digest"],
                    size=layer["size"],
                    media_type=layer["mediaType"],
                    diff_id=diff_id,
                )
                for layer, diff_id in pairs
            )
        except (KeyError, TypeError, ValueError):
            raise self.damage(digest, "is not the manifest of an image") from None
        return Image(
            digest=digest,
            manifest=manifest,
            config=config,
            layers=layers,
            names=tuple(sorted(name for name, named in names.items() if named == digest)),
        )

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """An OCI layout that shares this store's blobs, for a program that exports into one.

        The blobs that it writes are stored at once; its index.json is its own.
        """
        with self._folder() as folder:
            (folder / "blobs").symlink_to("../blobs")
            yield folder

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """As ``incoming``, with blobs of its own: ``adopt`` moves the image's into the store."""
        with self._folder() as folder:
            (folder / "blobs" / "sha256").mkdir(parents=True)
            yield folder

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix=f"incoming-{os.getpid()}-", dir=self.root))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def layout(self, image: Descriptor) -> Iterator[Path]:
        """An image layout with this one image (or index), named ``x``, for a program to read."""
        with self.incoming() as folder:
            entry = {**image.to_dict(), "annotations": {REF_NAME: "x"}}
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
            (folder / "index.json").write_text(json.dumps(index))
            (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
            yield folder

    def adopt(self, incoming: Path) -> Descriptor:
        """The one image that was exported into ``incoming``, complete. Raises ``StoreError``."""
        index = json.loads((incoming / "index.json").read_text())
        while True:
            images = [
                entry
                for entry in index["manifests"]
                if "vnd.docker.reference.type" not in entry.get("annotations", {})
            ]
            if len(images) != 1:
                raise StoreError(f"expected one image in the export, but it has {len(images)}")
            digest: str = images[0]["digest"]
            self._move(incoming, digest)
            if images[0]["mediaType"] not in (INDEX, DOCKER_INDEX):
                break
            index = self.read_json(digest)
        for blob in self._blobs_of(digest):
            self._move(incoming, blob)
        if not self.holds(digest):
            raise StoreError(
                f"the export of {digest} is incomplete", hint="run the same command again"
            )
        return self.descriptor(digest)

    def _move(self, incoming: Path, digest: str) -> None:
        """Move a blob of ``incoming``, if it has it, into the store once its digest is checked. The
        store's own file is replaced: two that are hard links of one are on the disk once."""
        file, held = incoming / "blobs" / "sha256" / digest[7:], self.path(digest)
        if not file.exists() or (held.exists() and held.samefile(file)):
            return
        with file.open("rb") as raw:
            reader = HashingReader(raw)
            reader.drain()
        if reader.digest != digest:
            raise StoreError(
                f"the engine's blob {digest} is corrupt: {reader.digest}",
                hint=f"recreate the engine: {program()} engine down --purge; then run the "
                "same command",
            )
        file.replace(held)

    def gc(self, say: Say = locks.silent) -> int:
        """Remove the blobs that no named image uses, and what a killed command was writing.
        Returns the bytes freed: none for a blob that an engine shares.

        Waits for commands that use the store: a build names its image when it is verified, long
        after its blobs are stored. ``say`` gets the line that says for which process it waits.
        """
        busy = "uses the store"
        with locks.exclusive(self.root / IN_USE, say, busy), self.locked():
            used = {blob for digest in self.names().values() for blob in self._blobs_of(digest)}
            freed = 0
            for path in (self.root / "blobs" / "sha256").iterdir():
                if f"sha256:{path.name}" not in used:
                    status = path.stat()
                    freed += status.st_size if status.st_nlink == 1 else 0
                    path.unlink()
            for file in self.root.glob(".new-*"):
                if file.stat().st_mtime < time.time() - ABANDONED_S:
                    freed += file.stat().st_size
                    file.unlink()
            return freed

    # Facts

    def put_fact(self, kind: str, key: str, data: Any) -> None:
        """Store a small JSON document beside the blobs."""
        path = self._fact(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, json.dumps(data, separators=(",", ":")).encode())

    def get_fact(self, kind: str, key: str) -> Any:
        """The document of this key; None when there is none, or one that cannot be read."""
        try:
            return json.loads(self._fact(kind, key).read_bytes())
        except (OSError, ValueError):
            return None

    def forget_fact(self, kind: str, key: str) -> None:
        """Remove the document of this key."""
        self._fact(kind, key).unlink(missing_ok=True)

    def fact_keys(self, kind: str) -> list[str]:
        """The digests that documents of this kind are stored under."""
        names = sorted(path.stem for path in (self.root / "facts" / kind).glob("sha256-*.json"))
        return [name.replace("-", ":", 1) for name in names]

    def has_fact(self, kind: str, key: str) -> bool:
        """Whether there is a document of this key, be it readable or not."""
        return self._fact(kind, key).exists()

    def _fact(self, kind: str, key: str) -> Path:
        return self.root / "facts" / kind / f"{key.replace(':', '-').replace('/', '-')}.json"

    # Files

    def _index(self) -> list[dict[str, Any]]:
        try:
            index = json.loads((self.root / "index.json").read_text())
            entries: list[dict[str, Any]] = index["manifests"]
            return entries
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.root}/index.json cannot be read: {error}",
                hint=f"move it away; `{program()} image` names its images again",
            ) from None

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        data = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        self._write(self.root / "index.json", json.dumps(data, indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        with atomic_file(self.root) as file:
            file.sink.write(data)
            file.rename_to(path)

    @contextmanager
    def in_use(self, say: Say = locks.silent) -> Iterator[None]:
        """``gc`` removes no blob of this store within the context."""
        with locks.shared(self.root / IN_USE, say, "removes what no image uses"):
            yield

    @contextmanager
    def naming(self, ref: str, say: Say = locks.silent) -> Iterator[None]:
        """No other command makes an image for the name ``ref`` within the context.

        ``say`` gets the line that says for which process this one waits.
        """
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        file = folder / (ref.replace("/", "-").replace(":", "-") + ".lock")
        with locks.exclusive(file, say, f"makes {ref}, too"):
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other command changes the index or a seal within the context."""
        with locks.exclusive(self.root / ".lock"):
            yield
