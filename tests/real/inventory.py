"""Inventories of real content: what the static tier knows of every file that real images hold.

`make inventories` resolves the wheels below, reads each one through, and keeps of every file what
a store keeps of a layer's: path, kind, size, mode, target, and the facts of ``layerscan``. No
content is kept. ``real_images`` makes images of them, which the static tier examines as any other.

`python -m tests.real.inventory root FILE` does the same with the files that dpkg's packages have on
the machine where it runs: so NVIDIA's CUDA 13.0.2 image (Ubuntu 24.04, amd64) was read.
"""

from __future__ import annotations

import configparser
import json
import os
import stat
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import requests
import zstandard

from sparkimage.config.address import Mirrors
from sparkimage.core.arch import ARCHES
from sparkimage.core.process import Local
from sparkimage.image import layerscan
from sparkimage.resolve import wheels

GLIBC = "2.39"
"""Of Ubuntu 24.04."""
FOLDER = Path(__file__).parent
KEPT = {"elf", "nccl", "cuda", "secrets", "certificates", "packages", "wheel", "text", "package"}
"""Facts of an inventory; of a libnccl its sha256, too."""
Row = tuple[str, str, int, int, str, dict[str, Any]]
"""Path, kind as in a tar, size, mode, target, facts: as the store keeps an entry of a layer."""


@dataclass(frozen=True, kw_only=True)
class Wheels:
    """A set of wheels that real images hold."""

    name: str
    arch: str
    require: tuple[str, ...]
    python: str = "3.12"
    until: str = ""
    """Only what the index had on that day."""
    exclude: tuple[str, ...] = ()

    @property
    def site(self) -> str:
        return f"usr/local/lib/python{self.python}/dist-packages"


SERVER = ("accelerate", "bitsandbytes", "modelscope", "timm", "runai-model-streamer[s3,gcs,azure]")
"""What the target vllm-openai of vLLM's Dockerfile installs beside vLLM."""
CONNECTORS = ("nixl", "mooncake-transfer-engine", "cupy-cuda13x<14.1")
"""And where INSTALL_KV_CONNECTORS is true."""
SETS = (
    Wheels(
        name="vllm0.23.0-arm64",
        arch="arm64",
        require=("vllm==0.23.0", *SERVER, *CONNECTORS),
        until="2026-06-30",
    ),
    *(
        Wheels(name=f"vllm0.33.0-{arch}", arch=arch, require=("vllm[b12x]==0.33.0",))
        for arch in ("arm64", "amd64")
    ),
)


def read_wheels(wanted: Wheels) -> list[Row]:
    """What an installer makes of the wheels: one is on disk at a time."""
    rows: dict[str, Row] = {}
    with TemporaryDirectory(prefix="inventory-") as name:
        for file, url in resolved(wanted, Path(name)):
            print(file, flush=True)
            path = Path(name, file)
            with requests.get(url, stream=True, timeout=60) as answer:
                answer.raise_for_status()
                with path.open("wb") as sink:
                    for piece in answer.iter_content(1 << 20):
                        sink.write(piece)
            rows |= {row[0]: row for row in members(path, wanted.site)}
            path.unlink()
    return list(rows.values())


def resolved(wanted: Wheels, folder: Path) -> list[tuple[str, str]]:
    """The wheels of a set, as name of the file and address."""
    (folder / "requirements").write_text("\n".join(wanted.require))
    pylock = folder / "pylock.toml"
    newest = ["--exclude-newer", wanted.until] if wanted.until else []
    Local().run(
        [
            *wheels.UV_PIP, "compile", f"{folder}/requirements", *newest,
            "--python-platform", ARCHES[wanted.arch].uv_platform(GLIBC),
            "--python-version", wanted.python, "--only-binary", ":all:",
            "--format", "pylock.toml", "--output-file", str(pylock),
        ],
        env=wheels.environment(Mirrors()),
    )  # fmt: skip
    locked = tomllib.loads(pylock.read_text())
    urls = {
        wheel["url"].rpartition("/")[2]: wheel["url"]
        for package in locked["packages"]
        for wheel in package.get("wheels", ())
    }
    picked = wheels.pick(locked, wanted.name, f"linux/{wanted.arch}", wanted.python, GLIBC, None)
    return [(wheel.file, urls[wheel.file]) for wheel in picked]


def members(wheel: Path, site: str) -> Iterator[Row]:
    """The files of a wheel, where they are installed.

    https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            path = f"{site}/{info.filename}"
            first, _, rest = info.filename.partition("/")
            if first.endswith(".data"):
                kind, _, below = rest.partition("/")
                places = {"scripts": "usr/local/bin", "data": "usr/local"}
                path = f"{places.get(kind, site)}/{below}"
            executable = info.external_attr >> 16 & 0o111 or path.startswith("usr/local/bin/")
            with archive.open(info) as content:
                yield row(path, info.file_size, 0o755 if executable else 0o644, content)
            if rest == "entry_points.txt" and first.endswith(".dist-info"):
                yield from programs(archive.read(info).decode())


def programs(entry_points: str) -> Iterator[Row]:
    """The scripts that an installer writes."""
    parsed = configparser.ConfigParser(delimiters=("=",), strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(entry_points)
    if parsed.has_section("console_scripts"):
        for name in parsed["console_scripts"]:
            text = "#!/usr/bin/python3\n"
            yield (f"usr/local/bin/{name}", "0", len(text), 0o755, "", {"text": text})


def row(path: str, size: int, mode: int, content: IO[bytes]) -> Row:
    """A file, with what ``layerscan`` learns of it."""
    facts = layerscan.learn(path, size, content)
    kept = {name: fact for name, fact in facts.items() if name in KEPT | {"lists"}}
    if "nccl" in facts:
        kept["sha256"] = facts["sha256"]
    return (path, "0", size, mode, "", kept)


def read_root() -> list[Row]:
    """The files of this machine that dpkg's packages have, its database, and ld.so's config."""
    folders = ("etc/ld.so.conf.d", "etc/alternatives", "var/lib/dpkg/info")
    paths = {
        "bin", "sbin", "lib", "lib64", "etc/ld.so.conf", "etc/os-release", "var/lib/dpkg/status",
        "usr/local/cuda",
    }  # fmt: skip
    paths |= {str(path).lstrip("/") for folder in folders for path in Path("/", folder).glob("*")}
    for file in Path("/var/lib/dpkg/info").glob("*.list"):
        for line in file.read_text().splitlines():
            folder, _, name = line.rpartition("/")
            if name not in ("", "."):
                paths.add(os.path.join(os.path.realpath(folder or "/"), name).lstrip("/"))
    rows: list[Sequence[Any]] = []
    for path in sorted(paths):
        try:
            state = os.lstat(f"/{path}")
        except OSError:
            continue
        mode = stat.S_IMODE(state.st_mode)
        if stat.S_ISREG(state.st_mode):
            with open(f"/{path}", "rb") as content:
                rows.append(row(path, state.st_size, mode, content))
        elif stat.S_ISLNK(state.st_mode):
            rows.append((path, "2", 0, mode, os.readlink(f"/{path}"), {}))
        elif stat.S_ISDIR(state.st_mode):
            rows.append((path, "5", 0, mode, "", {}))
    layerscan.account(rows)
    return [tuple(one) for one in rows]


def write(file: Path, rows: Sequence[Row]) -> None:
    """Keep an inventory."""
    text = json.dumps(
        {"scan": layerscan.VERSION, "rows": sorted(rows)}, separators=(",", ":"), sort_keys=True
    )
    file.write_bytes(zstandard.ZstdCompressor(level=19).compress(text.encode()))
    elves = sum("elf" in facts for *_, facts in rows)
    print(f"{file.name}: {len(rows)} entries, {elves} ELF files, {file.stat().st_size} bytes")


def load(name: str) -> str:
    """The rows of an inventory, as the text that they are kept as."""
    text = zstandard.ZstdDecompressor().decompress((FOLDER / f"{name}.json.zst").read_bytes())
    return text.decode()


def main(argv: Sequence[str]) -> None:
    """Make the inventories named, or all; `root FILE` reads this machine."""
    if argv[:1] == ["root"]:
        write(Path(argv[1]), read_root())
        return
    for wanted in SETS:
        if not argv or wanted.name in argv:
            write(FOLDER / f"{wanted.name}.json.zst", read_wheels(wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
