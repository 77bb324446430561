"""Makes small real images in a store: plain, gzip and zstd layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from sparkimage.image.store import MANIFEST, TAR, Image, Store

Files = dict[str, bytes | str | None]
"""Path to content; a str is a link's target, None a folder."""


def tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                member.mode = 0o755 if name.startswith("bin/") else member.mode
                archive.addfile(member, io.BytesIO(content))
                continue
            member.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
            member.linkname = content or ""
            archive.addfile(member)
    return buffer.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
LAYERS: list[Files] = [
    {"etc": None, "etc/a": b"one", "etc/gone": b"x", "opt/dir/f": b"deep"},
    {"etc/.wh.gone": b"", "etc/a": b"two", "link": "etc/a"},
    {"opt/.wh..wh..opq": b"", "opt/new": b"n"},
]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_image(store: Store, layers: Sequence[Files] = LAYERS, packed: str = "+zstd") -> Image:
    plain = [tar(files) for files in layers]
    blobs = [store.put_bytes(PACK[packed](data), TAR + packed) for data in plain]
    config: dict[str, Any] = {
        "os": "linux",
        "architecture": "arm64",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in plain]},
    }
    kept = store.put_bytes(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": kept.to_dict(),
        "layers": [blob.to_dict() for blob in blobs],
    }
    return store.resolve(store.put_bytes(json.dumps(manifest).encode(), MANIFEST).digest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
