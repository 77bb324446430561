"""The architectures that images are built for: all that differs between them is in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GLIBC = (2, 39)
"""The newest glibc that a wheel may ask for: Ubuntu 24.04's; Debian 13 has 2.41."""


@dataclass(frozen=True, kw_only=True)
class Arch:
    """What one architecture is called, and what programs of it look like."""

    name: str
    """As Docker and OCI call it."""
    machine: str
    """As ``uname -m``, Python's wheels and qemu call it."""
    elf_machine: int
    """``e_machine`` of its ELF files."""
    oldest_glibc: int
    """The minor version that its manylinux tags begin with: https://peps.python.org/pep-0600/."""
    exit_42: bytes
    """Machine code of ``exit(42)``, for a program that proves an emulation."""
    hosted: str
    """The label of GitHub's own runners."""
    self_hosted: str
    """The label that GitHub's agent gives to one's own runner."""

    @property
    def triplet(self) -> str:
        """Debian's name of its folders: https://wiki.debian.org/Multiarch/Tuples."""
        return f"{self.machine}-linux-gnu"

    @property
    def uv_platform(self) -> str:
        """Uv's name for what runs on ``GLIBC`` and later."""
        return f"{self.machine}-manylinux_{GLIBC[0]}_{GLIBC[1]}"

    @property
    def uv_wheel(self) -> str:
        """The platform tag of uv's own static program."""
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


def arch_name(machine: str) -> str:
    """Docker's name of what ``uname -m``, an engine or a node says; what is unknown as it is."""
    return next((one.name for one in ARCHES.values() if one.machine == machine), machine)
