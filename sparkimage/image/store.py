"""The image store: an OCI image layout, addressed by digest.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md

Every blob is written under a temporary name and renamed, every change of index.json is a new file
in its place under a lock: an interruption leaves the old or the new. What is read is hashed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from sparkimage.core import locks
from sparkimage.core.errors import ImageMissingError, StoreError
from sparkimage.core.files import unnamed
from sparkimage.core.locks import Say
from sparkimage.image.settings import Settings

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
CHUNK = 1 << 20
IN_USE = ".in-use"
"""Held, shared, by every command that reads blobs or brings new ones."""
LEFT_S = 86_400.0
"""Seconds after which a file without a name is nobody's any more."""


def digest_of(data: bytes) -> str:
    """The digest by which ``data`` is addressed."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Readable(Protocol):
    """What a stream must be able to do."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What names a blob: media type, digest (``sha256:<hex>``), size in bytes."""

    media_type: str
    digest: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an image; ``diff_id`` is the digest of its uncompressed tar."""

    digest: str
    size: int
    media_type: str
    diff_id: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of the store."""

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
        """Bytes of all layers as they are stored."""
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
        for left in root.glob("incoming-*"):
            if not locks.is_running(left.name.split("-")[1]):
                shutil.rmtree(left, ignore_errors=True)
        return store

    # Blobs

    def path(self, digest: str) -> Path:
        """Where the blob of ``digest`` lies or would lie."""
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise StoreError(f"{digest!r} is no sha256 digest")
        return self.root / "blobs" / "sha256" / value

    def put_bytes(self, data: bytes, media_type: str) -> Descriptor:
        """Store ``data``."""
        digest = digest_of(data)
        if not self.path(digest).exists():
            self._write(self.path(digest), data)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def put_stream(self, source: Readable, media_type: str) -> Descriptor:
        """Store all that ``source`` yields, in constant memory."""
        digest, size = hashlib.sha256(), 0
        with unnamed(self.root) as file:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                file.sink.write(chunk)
            found = f"sha256:{digest.hexdigest()}"
            file.name(self.path(found), mode=0o444)
        return Descriptor(media_type=media_type, digest=found, size=size)

    def put_file(self, path: Path, media_type: str) -> Descriptor:
        """Store a copy of the file."""
        with path.open("rb") as source:
            return self.put_stream(source, media_type)

    @contextmanager
    def open_blob(self, digest: str) -> Iterator[IO[bytes]]:
        """The blob to read from; leaving the context after the end was read proves it whole.

        Raises ``StoreError`` when it is missing, or when what was read is not what was named.
        """
        try:
            with self.path(digest).open("rb") as raw:
                proving = _Proving(raw)
                yield proving  # type: ignore[misc]
                while proving.read(CHUNK):
                    pass
        except FileNotFoundError:
            raise self.damage(digest, "is missing") from None
        if f"sha256:{proving.digest.hexdigest()}" != digest:
            raise self.damage(digest, f"holds other bytes: sha256:{proving.digest.hexdigest()}")

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
        """The JSON document of ``digest``, proven. Raises ``StoreError``."""
        with self.open_blob(digest) as blob:
            data = blob.read()
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self.damage(digest, "is no JSON document")
        return document

    def discard(self, digest: str) -> None:
        """Remove a damaged blob, so that the next build writes it again."""
        self.path(digest).unlink(missing_ok=True)

    def damaged(self, digest: str) -> list[str]:
        """The blobs of an image that are missing or not what their digest says; reads them all."""
        try:
            manifest = self.read_json(digest)
            parts = [manifest["config"], *manifest["layers"]]
            blobs: list[str] = [part["digest"] for part in parts]
        except (StoreError, KeyError, TypeError):
            return [digest]
        return [blob for blob in dict.fromkeys(blobs) if not self._whole(blob)]

    def _whole(self, digest: str) -> bool:
        try:
            with self.open_blob(digest):
                pass
        except StoreError:
            return False
        return True

    def damage(self, digest: str, what: str) -> StoreError:
        users = [name for name, used in self.names().items() if digest in self._uses(used)]
        return StoreError(
            f"the stored blob {digest} {what}" + (f"; {', '.join(users)} uses it" if users else ""),
            hint="build it again: python build.py image "
            + (users[0].rpartition(":")[2] if users else "VARIANT")
            + " --repair",
        )

    def _uses(self, manifest: str) -> set[str]:
        try:
            data = json.loads(self.path(manifest).read_bytes())
            parts = [data["config"], *data["layers"]]
            return {manifest, *(part["digest"] for part in parts)}
        except (OSError, ValueError, KeyError, TypeError):
            return {manifest}

    # Images

    def names(self) -> dict[str, str]:
        """Every name of the store, with the manifest digest that it stands for."""
        return {
            entry["annotations"][REF_NAME]: entry["digest"]
            for entry in self._index()
            if REF_NAME in entry.get("annotations", {})
        }

    def name(self, ref: str, descriptor: Descriptor) -> None:
        """Let ``ref`` stand for this image, and for no other."""
        with self.locked():
            entries = [e for e in self._index() if e.get("annotations", {}).get(REF_NAME) != ref]
            entries.append({**descriptor.to_dict(), "annotations": {REF_NAME: ref}})
            self._write_index(entries)

    def unname(self, ref: str) -> None:
        """Forget the name; the image stays until ``gc``."""
        with self.locked():
            self._write_index(
                [e for e in self._index() if e.get("annotations", {}).get(REF_NAME) != ref]
            )

    def descriptor(self, digest: str) -> Descriptor:
        """The descriptor of a stored manifest."""
        return Descriptor(media_type=MANIFEST, digest=digest, size=self.path(digest).stat().st_size)

    def holds(self, digest: str) -> bool:
        """Whether the manifest and all its blobs are here in their sizes; hashes no layer."""
        try:
            image = self.resolve(digest)
            return all(self.path(blob).stat().st_size == size for blob, size in image.blobs())
        except (StoreError, ImageMissingError, OSError):
            return False

    def resolve(self, reference: str) -> Image:
        """The image of a name, a digest, or the unique beginning of one (at least 6 digits).

        Raises ``ImageMissingError`` with the nearest names; ``StoreError`` when it is damaged.
        """
        names = self.names()
        digest = names.get(reference)
        if digest is None:
            value = reference.removeprefix("sha256:")
            if len(value) >= 6 and set(value) <= set("0123456789abcdef"):
                known = {p.name for p in (self.root / "blobs" / "sha256").glob(f"{value}*")}
                manifests = [d for d in known if d in {n[7:] for n in names.values()}]
                if len(value) == 64 and value in known:
                    digest = f"sha256:{value}"
                elif len(manifests) == 1:
                    digest = f"sha256:{manifests[0]}"
        if digest is None:
            near = difflib.get_close_matches(reference, names, n=3, cutoff=0.3)
            raise ImageMissingError(
                f"the image store holds no {reference}",
                hint=f"did you mean {' or '.join(near)}?" if near else "python build.py image",
            )
        manifest = self.read_json(digest)
        try:
            config = self.read_json(manifest["config"]["digest"])
            layers = tuple(
                Layer(
                    digest=layer["digest"],
                    size=layer["size"],
                    media_type=layer["mediaType"],
                    diff_id=diff_id,
                )
                for layer, diff_id in zip(
                    manifest["layers"], config["rootfs"]["diff_ids"], strict=True
                )
            )
        except (KeyError, TypeError, ValueError):
            raise self.damage(digest, "is no image manifest with its config") from None
        return Image(
            digest=digest,
            manifest=manifest,
            config=config,
            layers=layers,
            names=tuple(sorted(name for name, held in names.items() if held == digest)),
        )

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A layout of its own over this store's blobs, for a program that exports into a layout.

        What it writes as blobs is here at once and stays; its index never touches ours.
        """
        folder = Path(tempfile.mkdtemp(prefix=f"incoming-{os.getpid()}-", dir=self.root))
        try:
            (folder / "blobs").symlink_to("../blobs")
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
        entries = index["manifests"]
        while True:
            entries = [
                e for e in entries if "vnd.docker.reference.type" not in e.get("annotations", {})
            ]
            if len(entries) != 1:
                raise StoreError(f"expected one image in the export, but found {len(entries)}")
            if entries[0]["mediaType"] not in (
                INDEX,
                "application/vnd.docker.distribution.manifest.list.v2+json",
            ):
                break
            entries = self.read_json(entries[0]["digest"])["manifests"]
        digest: str = entries[0]["digest"]
        if not self.holds(digest):
            raise StoreError(
                f"the export of {digest} is incomplete", hint="run the same command again"
            )
        return self.descriptor(digest)

    def import_docker_archive(self, stream: Readable) -> Descriptor:
        """Take in one image from what ``docker save`` writes (any engine since 20.10).

        https://github.com/moby/docker-image-spec: manifest.json names the config and the layers'
        files; a layer that another image shares may be a link to its file. The config is kept as
        it is. Raises ``StoreError`` for an archive that is none.
        """
        try:
            listed, blobs, links = self._unpack(stream)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise StoreError(
                f"this is no archive of an image: {error}", hint="save it again: docker save"
            ) from None
        try:
            (one,) = listed
            config_file, layer_files = str(one["Config"]), [str(name) for name in one["Layers"]]
        except (KeyError, TypeError, ValueError):
            raise StoreError("the archive holds no manifest.json with one image") from None

        def blob(name: str) -> Descriptor:
            name = os.path.normpath(name)
            found = blobs.get(links.get(name, name))
            if found is None:
                raise StoreError(f"the archive lacks {name}, which its manifest.json lists")
            return found

        config = blob(config_file)
        layers = [blob(name) for name in layer_files]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {**config.to_dict(), "mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [{**la.to_dict(), "mediaType": self._layer_type(la)} for la in layers],
        }
        return self.put_bytes(json.dumps(manifest, separators=(",", ":")).encode(), MANIFEST)

    def _unpack(self, stream: Readable) -> tuple[Any, dict[str, Descriptor], dict[str, str]]:
        """The archive's manifest.json, its files as blobs, and its links, by path."""
        blobs: dict[str, Descriptor] = {}
        links: dict[str, str] = {}
        listed: Any = None
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                name = os.path.normpath(member.name)
                if name.startswith(("/", "..")):
                    raise StoreError(f"the archive holds the unsafe path {member.name!r}")
                if member.issym() or member.islnk():
                    base = os.path.dirname(name) if member.issym() else ""
                    links[name] = os.path.normpath(os.path.join(base, member.linkname))
                elif member.isfile():
                    source = archive.extractfile(member)
                    assert source is not None
                    if name == "manifest.json":
                        listed = json.load(source)
                    elif not name.endswith((".json", "/VERSION")) or name.count("/") == 0:
                        blobs[name] = self.put_stream(source, TAR)
        return listed, blobs, links

    def _layer_type(self, layer: Descriptor) -> str:
        with self.path(layer.digest).open("rb") as file:
            head = file.read(4)
        if head[:2] == b"\x1f\x8b":
            return TAR + "+gzip"
        return TAR + "+zstd" if head == b"\x28\xb5\x2f\xfd" else TAR

    def gc(self, say: Say = locks.silent) -> int:
        """Remove the blobs that no named image uses, and what a killed command was writing.
        Returns the bytes set free.

        Waits for commands that use the store: a build names its image when it is proven, long
        after its blobs are here. ``say`` takes the line that says for which process it waits.
        """
        busy = "uses the store"
        with locks.exclusive(self.root / IN_USE, say, busy), self.locked():
            used = {blob for digest in self.names().values() for blob in self._uses(digest)}
            freed = 0
            for path in (self.root / "blobs" / "sha256").iterdir():
                if f"sha256:{path.name}" not in used:
                    freed += path.stat().st_size
                    path.unlink()
            for left in self.root.glob(".new-*"):
                if left.stat().st_mtime < time.time() - LEFT_S:
                    freed += left.stat().st_size
                    left.unlink()
            return freed

    # Facts

    def put_fact(self, kind: str, key: str, data: Any) -> None:
        """Keep a small JSON document beside the blobs."""
        path = self._fact(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(path, json.dumps(data, separators=(",", ":")).encode())

    def get_fact(self, kind: str, key: str) -> Any:
        """The document kept under this key; None when there is none, or a broken one."""
        try:
            return json.loads(self._fact(kind, key).read_bytes())
        except (OSError, ValueError):
            return None

    def forget_fact(self, kind: str, key: str) -> None:
        """Keep no document under this key any more."""
        self._fact(kind, key).unlink(missing_ok=True)

    def fact_keys(self, kind: str) -> list[str]:
        """The digests that documents of this kind are kept under."""
        names = sorted(path.stem for path in (self.root / "facts" / kind).glob("sha256-*.json"))
        return [name.replace("-", ":", 1) for name in names]

    def has_fact(self, kind: str, key: str) -> bool:
        """Whether a document is kept under this key, be it whole or broken."""
        return self._fact(kind, key).exists()

    def _fact(self, kind: str, key: str) -> Path:
        return self.root / "facts" / kind / f"{key.replace(':', '-').replace('/', '-')}.json"

    # Files

    def _index(self) -> list[dict[str, Any]]:
        try:
            entries: list[dict[str, Any]] = json.loads((self.root / "index.json").read_text())[
                "manifests"
            ]
            return entries
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.root}/index.json cannot be read: {error}",
                hint="move it away; `python build.py image` names its images again",
            ) from None

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        data = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
        self._write(self.root / "index.json", json.dumps(data, indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        with unnamed(self.root) as file:
            file.sink.write(data)
            file.name(path)

    @contextmanager
    def in_use(self, say: Say = locks.silent) -> Iterator[None]:
        """No blob of this store is removed within, whether an image with a name has it or not."""
        with locks.shared(self.root / IN_USE, say, "removes what no image uses"):
            yield

    @contextmanager
    def naming(self, ref: str, say: Say = locks.silent) -> Iterator[None]:
        """Nobody else makes an image for the name ``ref`` within.

        ``say`` takes the line that says for which process this one waits.
        """
        folder = self.root / "locks"
        folder.mkdir(exist_ok=True)
        file = folder / (ref.replace("/", "-").replace(":", "-") + ".lock")
        with locks.exclusive(file, say, f"makes {ref}, too"):
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the index or a seal within."""
        with locks.exclusive(self.root / ".lock"):
            yield


class _Proving:
    """A file that hashes what is read of it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw = raw
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.raw.read(size)
        self.digest.update(data)
        return data
