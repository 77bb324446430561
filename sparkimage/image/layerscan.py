"""What is learnt of each file while a layer is read: once, forward, in bounded memory."""

from __future__ import annotations

import hashlib
import re
from typing import IO, Any

from sparkimage.image import elf, secrets

VERSION = 3
"""Counts up with every change of what is learnt, so that older facts are not taken for it."""
CHUNK = 1 << 20
SMALL = 1 << 20
"""Bytes up to which a file is searched for secrets."""
HASHED = 16 << 20
"""Bytes up to which a file is hashed; a libnccl is, whatever its size."""

NCCL = re.compile(r"(^|/)libnccl\.so[^/]*$")
_NCCL_VERSION = re.compile(rb"NCCL version (\d+\.\d+\.\d+)")
_KEPT = re.compile(
    r"^etc/ld\.so\.(preload|conf|conf\.d/.+\.conf)$|^(etc|usr/lib)/os-release$"
    r"|(^|/)nvidia_nccl[^/]*\.dist-info/RECORD$"
)
"""Files whose text is kept."""
_SCRIPT = re.compile(r"(^|/)bin/[^/]+$")
"""Programs; the text of a short script is kept, too."""
SHORT = 1 << 13
"""Bytes of the longest script that is kept: those that pip and uv write have a few hundred."""
_STATUS = re.compile(r"^var/lib/dpkg/status(\.d/[^/]+)?$")
_TORCH = re.compile(r"(^|/)torch/version\.py$")
_CUDA = re.compile(rb"(?m)^cuda\b[^=\n]*=\s*['\"]?([^'\"\s#]+)")
_METADATA = re.compile(r"(^|/)[^/]+-packages/[^/]+\.(dist|egg)-info/(METADATA|PKG-INFO)$")
_FIELD = re.compile(r"(?m)^(Name|Version):\s*(\S+)")
_CERTIFICATES = re.compile(r"^(etc/ssl/certs|usr/share/ca-certificates)/")


def learn(path: str, size: int, stream: IO[bytes]) -> dict[str, Any]:
    """Read a regular file of ``size`` bytes to its end.

    ``sha256``; ``elf`` (as ``Elf.to_dict``); ``nccl``: the version that a libnccl says; ``cuda``:
    what torch/version.py says; ``secrets``: kinds; ``certificates``: how many; ``packages``: name
    to version, by dpkg; ``wheel``: name and version, by a wheel's METADATA; ``text`` of a few.
    """
    is_nccl = NCCL.search(path) is not None
    digest = hashlib.sha256() if size <= HASHED or is_nccl else None
    piece = stream.read(CHUNK)
    reader = elf.Reader() if piece.startswith(elf.MAGIC) else None
    version, tail = None, b""
    first = piece
    while piece:
        if digest is not None:
            digest.update(piece)
        if reader is not None:
            reader.feed(piece)
        if is_nccl and version is None:
            match = _NCCL_VERSION.search(tail + piece)
            version = match[1].decode() if match else None
            tail = piece[-64:]
        piece = stream.read(CHUNK)
    seen: dict[str, Any] = {}
    if digest is not None:
        seen["sha256"] = digest.hexdigest()
    if reader is not None and (found := reader.result()) is not None:
        seen["elf"] = found.to_dict()
    if version is not None:
        seen["nccl"] = version
    if size <= SMALL:
        seen |= _of_text(path, first)
    return seen


def _of_text(path: str, data: bytes) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    if found := secrets.in_file(path, data):
        seen["secrets"] = found
    script = len(data) <= SHORT and data.startswith(b"#!") and _SCRIPT.search(path)
    if script or _KEPT.search(path):
        seen["text"] = data.decode(errors="replace")
    if _TORCH.search(path):
        match = _CUDA.search(data)
        seen["cuda"] = match[1].decode(errors="replace") if match else None
    if _CERTIFICATES.match(path):
        seen["certificates"] = data.count(b"-----BEGIN CERTIFICATE-----")
    if _STATUS.match(path):
        seen["packages"] = packages(data.decode(errors="replace"))
    if _METADATA.search(path):
        seen["wheel"] = wheel(data.decode(errors="replace"))
    return seen


def wheel(metadata: str) -> list[str]:
    """Name, as the lock writes it, and version of an installed wheel.

    https://packaging.python.org/en/latest/specifications/core-metadata/
    """
    fields = dict(_FIELD.findall("\n".join(metadata.splitlines()).partition("\n\n")[0]))
    name = re.sub(r"[-_.]+", "-", fields.get("Name", "")).lower()
    return [name, fields.get("Version", "")]


def packages(status: str) -> dict[str, str]:
    """Name to version of what dpkg's status file says is installed."""
    found = {}
    for block in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if "Package" in fields and fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields.get("Version", "")
    return found
