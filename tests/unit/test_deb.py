"""Debian's packages, packed anew: dpkg reads the same from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sparkimage.core.process import Local
from sparkimage.resolve.deb import repacked

CONTROL = """\
Package: small
Version: 1:2-3
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: a test
"""


def made(folder: Path, form: str) -> bytes:
    """A package as dpkg-deb makes it."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL)
    (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\n")
    (tree / "DEBIAN" / "postinst").chmod(0o755)
    (tree / "usr").mkdir()
    (tree / "usr" / "a file").write_bytes(b"one" * 5000)
    (tree / "usr" / "program").write_bytes(b"#!/bin/sh\n")
    (tree / "usr" / "program").chmod(0o4755)
    (tree / "usr" / "link").symlink_to("program")
    file = folder / "small.deb"
    Local().run(
        ["dpkg-deb", "--root-owner-group", f"-Z{form}", "--build", str(tree), str(file)],
        env={"SOURCE_DATE_EPOCH": "946684800"},
    )
    return file.read_bytes()


def read(folder: Path, package: bytes) -> list[bytes]:
    """What dpkg-deb sees of a package: its fields, its scripts, and its files as a tar."""
    file = folder / "read.deb"
    file.write_bytes(package)
    return [
        subprocess.run(["dpkg-deb", option, file], capture_output=True, check=True).stdout
        for option in ("--field", "--ctrl-tarfile", "--fsys-tarfile")
    ]


@pytest.mark.parametrize("form", ["xz", "gzip", "none", "zstd"])
def test_dpkg_reads_the_same(tmp_path: Path, form: str) -> None:
    package = made(tmp_path, form)
    again = repacked(package)
    assert read(tmp_path, again) == read(tmp_path, package)
    assert b"data.tar.zst" in again
    assert repacked(package) == again
    assert repacked(again) == again


def test_what_is_no_package_is_refused() -> None:
    with pytest.raises(ValueError, match="not a Debian package"):
        repacked(b"<html>")
