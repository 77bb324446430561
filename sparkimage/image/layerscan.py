"""Facts about each file of a layer, from one pass over it, in bounded memory."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Sequence
from email.parser import Parser
from typing import IO, Any

from sparkimage.core import secrets
from sparkimage.image import elf

VERSION = 5
"""Raised with every change of the facts, so that those of an older version are not used."""
CHUNK = 1 << 20
SMALL = 1 << 20
"""Bytes up to which a file is searched for secrets."""
HASHED = 16 << 20
"""Bytes up to which a file is hashed; a libnccl is, whatever its size."""

NCCL = re.compile(r"(^|/)libnccl\.so[^/]*$")
_SAID_IN_CODE = (
    ("nccl", NCCL, re.compile(rb"NCCL version (\d+\.\d+\.\d+)")),
    ("nvcc", re.compile(r"(^|/)bin/nvcc$"), re.compile(rb"compilation tools, release (\d+\.\d+)")),
)
"""The fact, its files, and what a program or library says of itself."""
_NO = ("", None)
_CUDART = re.compile(r"(^|/)cuda_runtime_api\.h$")
_CUDART_VERSION = re.compile(rb"(?m)^#define\s+CUDART_VERSION\s+(\d+)")
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
_LIST = re.compile(r"^var/lib/dpkg/info/[^/]+\.list$")
_TORCH = re.compile(r"(^|/)torch/version\.py$")
_CUDA = re.compile(rb"(?m)^cuda\b[^=\n]*=\s*['\"]?([^'\"\s#]+)")
_METADATA = re.compile(r"(^|/)[^/]+-packages/[^/]+\.(dist|egg)-info/(METADATA|PKG-INFO)$")
_CERTIFICATES = re.compile(r"^(etc/ssl/certs|usr/share/ca-certificates)/")


def learn(path: str, size: int, stream: IO[bytes]) -> dict[str, Any]:
    """Read a regular file of ``size`` bytes to its end.

    Returns ``sha256``; ``elf`` (as ``Elf.to_dict``); ``nccl``: the version string in a libnccl;
    ``nvcc`` and ``cudart``: the release (13.0) of a CUDA compiler and of the runtime's headers;
    ``cuda``: of torch/version.py; ``secrets``: their kinds; ``certificates``: their count;
    ``packages``: name to version, by dpkg; ``lists``: the paths that a package of dpkg has;
    ``wheel``: name and version, by a wheel's METADATA;
    ``text`` of a few files.
    """
    digest = hashlib.sha256() if size <= HASHED or NCCL.search(path) else None
    fact, wanted = next(((f, said) for f, files, said in _SAID_IN_CODE if files.search(path)), _NO)
    version, tail = None, b""

    def read() -> bytes:
        nonlocal version, tail
        piece = stream.read(CHUNK)
        if digest is not None:
            digest.update(piece)
        if wanted is not None and version is None:
            match = wanted.search(tail + piece)
            version = match[1].decode() if match else None
            tail = piece[-64:]
        return piece

    first = read()
    facts: dict[str, Any] = {}
    if first.startswith(elf.MAGIC) and (head := elf.read(read, first)) is not None:
        facts["elf"] = head.to_dict()
    while read():
        pass
    if digest is not None:
        facts["sha256"] = digest.hexdigest()
    if version is not None:
        facts[fact] = version
    if size <= SMALL:
        facts |= _of_text(path, first)
    return facts


def _of_text(path: str, data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if kinds := secrets.in_file(path, data):
        facts["secrets"] = kinds
    script = len(data) <= SHORT and data.startswith(b"#!") and _SCRIPT.search(path)
    if script or _KEPT.search(path):
        facts["text"] = data.decode(errors="replace")
    if _TORCH.search(path):
        match = _CUDA.search(data)
        facts["cuda"] = match[1].decode(errors="replace") if match else None
    if _CUDART.search(path) and (match := _CUDART_VERSION.search(data)):
        # 13000 is 13.0.
        facts["cudart"] = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
    if _CERTIFICATES.match(path):
        facts["certificates"] = data.count(b"-----BEGIN CERTIFICATE-----")
    if _STATUS.match(path):
        facts["packages"] = packages(data.decode(errors="replace"))
    if _LIST.match(path):
        facts["lists"] = data.decode(errors="replace").split("\n")
    if _METADATA.search(path):
        facts["wheel"] = wheel(data.decode(errors="replace"))
    return facts


def account(rows: list[Sequence[Any]]) -> None:
    """Write into the facts of every program, library and setuid file which of dpkg's packages has
    it (``package``), by the lists of the same layer, which are dropped.

    A package's files and its list come with one step: what a later step writes is not the
    package's. https://man7.org/linux/man-pages/man1/dpkg.1.html (FILES)
    """
    packages: dict[str, str] = {}
    for path, *_, facts in rows:
        # NAME.list or NAME:ARCHITECTURE.list
        package = posixpath.basename(path).removesuffix(".list").partition(":")[0]
        packages |= dict.fromkeys(map(_merged, facts.pop("lists", ())), package)
    for number, (path, kind, size, mode, target, facts) in enumerate(rows):
        if (mode & 0o6000 or "elf" in facts) and kind in ("0", "1"):
            package = packages.get(_merged(path), "")
            if package:
                rows[number] = (path, kind, size, mode, target, {**facts, "package": package})


def _merged(path: str) -> str:
    """The path below /usr: packages still name what was below / before
    https://wiki.debian.org/UsrMerge."""
    return path.lstrip("/").removeprefix("usr/")


def wheel(metadata: str) -> list[str]:
    """Name, as the lock writes it, and version of an installed wheel.

    https://packaging.python.org/en/latest/specifications/core-metadata/
    """
    # Most commands read what an earlier scan has found.
    from packaging.utils import canonicalize_name

    fields = Parser().parsestr(metadata, headersonly=True)
    return [canonicalize_name(fields.get("Name", "")), fields.get("Version", "")]


def packages(status: str) -> dict[str, str]:
    """Name to version of every installed package of dpkg's status file."""
    blocks = (Parser().parsestr(block, headersonly=True) for block in status.split("\n\n"))
    return {
        fields["Package"]: fields.get("Version", "")
        for fields in blocks
        if "Package" in fields and fields.get("Status", "").endswith(" installed")
    }
