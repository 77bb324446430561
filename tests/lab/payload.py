"""Images of any size for the nodes, put straight into a store: no build, and they run.

The lowest layer is a busybox; each other one is a file of a given size, half of it noise and half
of it text, as binaries are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from sparkimage.config.tier import Tier
from sparkimage.image.store import TAR, Descriptor, Image, Store
from sparkimage.image.streams import Readable
from sparkimage.verify import plan_record, seal
from sparkimage.verify.plan_record import PlanRecord
from tests.lab import node_image
from tests.unit import good_maker, seal_maker

BLOCK = 1 << 16
APPLETS = ("sh", "cat", "echo", "ls", "sha256sum", "sleep", "true", "false")
ZSTD, PLAIN = "+zstd", ""
_made: dict[tuple[object, ...], tuple[Descriptor, str]] = {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A layer with one file of ``size`` bytes, whose content comes of ``seed``."""

    size: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Payload:
    """An image: busybox, and a layer for each part."""

    parts: tuple[Part, ...]
    packed: str = ZSTD
    level: int = 1

    @classmethod
    def of(cls, *sizes: int, packed: str = ZSTD) -> Payload:
        """Layers of these sizes, from the lowest up."""
        return cls(parts=tuple(Part(size=size, seed=n) for n, size in enumerate(sizes)),
                   packed=packed)  # fmt: skip

    def changed(self, index: int, seed: int = 1000) -> Payload:
        """The same with another content in one part; -1 is the top layer."""
        parts = list(self.parts)
        parts[index] = dataclasses.replace(parts[index], seed=seed)
        return dataclasses.replace(self, parts=tuple(parts))

    def put(self, store: Store, name: str | None = None, *, arch: str = "amd64") -> Image:
        """The image in ``store``, under ``name``."""
        layers = [_layer(store, self, -1, arch)]
        layers += [_layer(store, self, n, arch) for n in range(len(self.parts))]
        image = good_maker.put_image(
            store, _config(arch, [id for _, id in layers]), [blob.to_dict() for blob, _ in layers]
        )
        if name is not None:
            store.name(name, store.descriptor(image.digest))
        return store.resolve(image.digest)


def sealed(
    store: Store, image: Image, name: str, *, record: PlanRecord | None = None,
    result: str = "PASSED", lock: str = "2" * 64,
) -> Image:  # fmt: skip
    """The image, named, with a seal that the gate takes (unless ``result`` is FAILED)."""
    store.name(name, store.descriptor(image.digest))
    if record is not None:
        plan_record.save(store, image.digest, record)
    plan = seal_maker.PLAN if record is None else record.checksum
    checks = (
        seal_maker.check("static/payload", tier=Tier.STATIC),
        seal_maker.check("payload/test_runs", result),
        *(seal_maker.check(id) for id in (record.required.checks if record is not None else ())),
    )
    made = seal_maker.made(*checks, digest=image.digest, image=name, plan=plan, lock=lock)
    seal.save(store, made)
    return store.resolve(image.digest)


def _config(arch: str, diff_ids: Sequence[str]) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": arch,
        "created": "2000-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/bin", "PAYLOAD=1"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo it runs"],
            "Labels": {"dev.sparkimage.variant": "payload"},
        },
        "history": [
            {"created": "2000-01-01T00:00:00Z", "created_by": f"layer {n}"}
            for n in range(len(diff_ids))
        ],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def _layer(store: Store, payload: Payload, index: int, arch: str) -> tuple[Descriptor, str]:
    """The blob and the diffID of a layer: of busybox, where ``index`` is -1."""
    part = None if index < 0 else payload.parts[index]
    key = (str(store.root), index, part, payload.packed, payload.level, arch)
    held = _made.get(key)
    if held is not None and store.path(held[0].digest).exists():
        return held
    stream = _Hashed(busybox_tar(arch) if part is None else _file(f"data/{index}", part))
    source: Readable = stream
    if payload.packed == ZSTD:
        pack = zstandard.ZstdCompressor(level=payload.level, threads=-1)
        source = pack.stream_reader(stream)  # type: ignore[arg-type]
    blob = store.put_stream(source, TAR + payload.packed)
    _made[key] = blob, f"sha256:{stream.digest.hexdigest()}"
    return _made[key]


def busybox_tar(arch: str) -> Iterator[bytes]:
    """A root file system with nothing but busybox."""
    yield good_maker.tar({
        "bin": None,
        "bin/busybox": (0o755, node_image.busybox(arch)),
        **{f"bin/{name}": "busybox" for name in APPLETS},
        "etc": None,
        "etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
        "tmp": None,
    })  # fmt: skip


def _file(path: str, part: Part) -> Iterator[bytes]:
    """The tar of one file."""
    member = tarfile.TarInfo(path)
    member.size, member.mode = part.size, 0o644
    yield member.tobuf(format=tarfile.PAX_FORMAT)
    noise = random.Random(f"{part.seed} {part.size}")
    text = (f"{path} {part.seed} and so on\n".encode() * BLOCK)[:BLOCK]
    left, turn = part.size, 0
    while left:
        block = (noise.randbytes(BLOCK) if turn % 2 == 0 else text)[:left]
        left, turn = left - len(block), turn + 1
        yield block
    yield bytes(-part.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


class _Hashed(io.RawIOBase):
    """A stream of these pieces, and the sha256 of all that was read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.rest = b""
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        found = [self.rest]
        have = len(self.rest)
        while size < 0 or have < size:
            piece = next(self.pieces, b"")
            if not piece:
                break
            found.append(piece)
            have += len(piece)
        data = b"".join(found)
        cut = len(data) if size < 0 else size
        data, self.rest = data[:cut], data[cut:]
        self.digest.update(data)
        return data
