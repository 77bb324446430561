"""The architectures that images are built for, in one table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from sparkimage.core.errors import PreflightError

GLIBC = "2.39"
"""The glibc of a base that does not say which one it has: Ubuntu 24.04's."""
UV_GLIBC: tuple[int, ...] = (17, 28, *range(31, 41))
"""The minor versions of glibc 2 that uv's `--python-platform` takes (`uv pip compile --help`)."""


@dataclass(frozen=True, kw_only=True)
class Arch:
    """The names of one architecture, and facts of its programs."""

    name: str
    """In Docker and OCI."""
    machine: str
    """In ``uname -m``, Python's wheels and qemu."""
    elf_machine: int
    """``e_machine`` of its ELF files."""
    oldest_glibc: int
    """The first minor version of its manylinux tags: https://peps.python.org/pep-0600/."""
    exit_42: bytes
    """Machine code of ``exit(42)``, for a program that tests emulation."""
    hosted: str
    """The label of GitHub's hosted runners."""
    self_hosted: str
    """The label of self-hosted runners."""

    @property
    def triplet(self) -> str:
        """Debian's multiarch tuple: https://wiki.debian.org/Multiarch/Tuples."""
        return f"{self.machine}-linux-gnu"

    def uv_platform(self, glibc: str) -> str:
        """Uv's `--python-platform` for a base with ``glibc`` ("2.39")."""
        return f"{self.machine}-manylinux_2_{newest_tag(glibc)}"

    @property
    def uv_wheel(self) -> str:
        """The platform tag of uv's static executable."""
        return f"musllinux_1_1_{self.machine}"


ARCHES: Mapping[str, Arch] = {
    "amd64": Arch(
        name="amd64",
        machine="x86_64",
        elf_machine=62,
        oldest_glibc=5,
        exit_42=bytes.fromhex("bf2a000000b83c0000000f05"),  # mov edi,42; mov eax,60; syscall
        hosted="ubuntu-24.04",
        self_hosted="x64",
    ),
    "arm64": Arch(
        name="arm64",
        machine="aarch64",
        elf_machine=183,
        oldest_glibc=17,
        exit_42=bytes.fromhex("400580d2a80b80d2010000d4"),  # mov x0,42; mov x8,93; svc 0
        hosted="ubuntu-24.04-arm",
        self_hosted="arm64",
    ),
}


GPU_MACHINES: Mapping[int, str] = {190: "CUDA", 224: "AMDGPU"}
"""``e_machine`` of code for GPUs, which lies in images of every architecture:
https://gabi.xinuos.com/elf/a-emachine.html"""


def newest_tag(glibc: str) -> int:
    """The minor version of the newest manylinux tag whose wheels run with ``glibc`` ("2.39"), of
    those that uv knows."""
    minor = int(glibc.partition(".")[2])
    return max(known for known in UV_GLIBC if known <= max(minor, UV_GLIBC[0]))


def arch_name(machine: str) -> str:
    """Docker's name for a ``uname -m``; an unknown one is returned as it is."""
    return next((arch.name for arch in ARCHES.values() if arch.machine == machine), machine)


def native_arch() -> str:
    """This machine's architecture, "amd64" or "arm64".

    Raises ``PreflightError`` for any other.
    """
    machine = platform.machine()
    name = arch_name(machine)
    if name not in ARCHES:
        raise PreflightError(
            f"this machine is {machine}; only x86_64 and aarch64 are supported",
            hint="run this on one of those",
        )
    return name
