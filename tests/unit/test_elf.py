"""ELF heads, whole or in pieces: this machine's as pyelftools reads them, and broken ones."""

from __future__ import annotations

import io
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

from sparkimage.build.engine.emulation import program
from sparkimage.core.arch import ARCHES
from sparkimage.image import elf
from sparkimage.image.elf import Elf
from tests.unit import elf_maker

FOUND = sorted(
    {
        Path(sys.executable).resolve(),
        *Path("/usr/lib").glob("*-linux-gnu/libc.so.6"),
        *Path("/usr/lib").glob("*-linux-gnu/libm.so.6"),
        *list(Path(sys.prefix).rglob("*.so"))[:5],
    }
)


def parse(data: bytes) -> Elf | None:
    return elf.read(lambda: b"", data)


def pieces(data: bytes, size: int) -> Elf | None:
    return elf.read(partial(io.BytesIO(data).read, size))


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_real_files_as_pyelftools_reads_them(path: Path) -> None:
    head = parse(path.read_bytes())
    with path.open("rb") as file:
        real: Any = ELFFile(file)
        dynamic: Any
        (dynamic,) = (s for s in real.iter_segments() if isinstance(s, DynamicSegment))
        needed = tuple(t.needed for t in dynamic.iter_tags("DT_NEEDED"))
        soname = [t.soname for t in dynamic.iter_tags("DT_SONAME")]
        notes = [note for s in real.iter_segments("PT_NOTE") for note in s.iter_notes()]
        build_ids = [n["n_desc"] for n in notes if n["n_type"] == "NT_GNU_BUILD_ID"]
        interp = [s.get_interp_name() for s in real.iter_segments("PT_INTERP")]
    assert head is not None
    assert (head.machine, head.problem) == (ARCHES[head.arch].elf_machine, None)
    assert head.needed == needed
    assert [head.soname] == (soname or [None])
    assert [head.interpreter] == (interp or [None])
    assert [head.build_id] == (build_ids or [None])


def test_code_for_a_gpu_is_read_no_further_than_its_machine() -> None:
    cubin = bytearray(elf_maker.library("amd64", needed=["a.so"]))
    cubin[18:20] = (190).to_bytes(2, "little")
    head = parse(bytes(cubin))
    assert head is not None
    assert head.is_gpu_code
    assert (head.needed, head.problem) == ((), None)
    assert not Elf(machine=183, type=3).is_gpu_code


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_pieces_come_to_the_same(last: bool, size: int) -> None:
    data = elf_maker.library(
        "arm64", soname="libx.so.1", needed=["a.so", "b.so"], runpath="$ORIGIN:/x",
        interpreter="/lib/ld.so", text=bytes(300), strings_last=last,
    )  # fmt: skip
    found = pieces(data, size)
    assert found == parse(data)
    assert found == Elf(
        machine=183, type=3, soname="libx.so.1", needed=("a.so", "b.so"),
        runpath=("$ORIGIN", "/x"), interpreter="/lib/ld.so",
    )  # fmt: skip
    assert found is not None
    assert Elf.from_dict(found.to_dict()) == found


def test_a_program_without_a_dynamic_section() -> None:
    for arch in ARCHES:
        head = parse(program(arch, ARCHES[arch].exit_42))
        assert head is not None
        assert (head.arch, head.type, head.needed, head.problem) == (arch, elf.PROGRAM, (), None)


def test_other_kinds() -> None:
    assert parse(b"#!/bin/sh\n" * 20) is None
    assert parse(b"\x7fELF") is None
    narrow = parse(b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\x00\x28\x00" + bytes(60))
    assert narrow is not None
    assert narrow.arch == "machine 40, not 64-bit little-endian"
    assert Elf.from_dict(narrow.to_dict()) == narrow


def test_every_cut_is_seen() -> None:
    data = elf_maker.library("amd64", soname="l.so", needed=["a.so"])
    for length in range(64, len(data) - 1, 7):
        head = parse(data[:length])
        assert head is not None
        assert head.problem is not None or head.soname == "l.so"
    # The dynamic section is the end of the file.
    assert parse(data[:-16]).problem is not None  # type: ignore[union-attr]


def test_only_the_beginning_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elf, "KEPT", 300)
    data = elf_maker.library("amd64", soname="l.so", text=bytes(400))
    found = pieces(data, 10)
    assert found is not None
    assert "further back" in str(found.problem)
