"""Emulation of the other architecture: the kernel's binfmt_misc and qemu.

https://docs.kernel.org/admin-guide/binfmt-misc.html: an entry with flag F holds its interpreter
open, so that it works in every container; of two entries that match, the newer one wins.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.core import debian_tools
from sparkimage.core.arch import ARCHES, native_arch
from sparkimage.core.errors import CommandError, PreflightError, UsageError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner

BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU_MIN = 10
"""qemu 7.2 (Debian 12) hangs in ``import torch`` of an arm64 image; 10.0 runs it."""
PROBE_EXIT = 42
# The mask lets any OS ABI and both EXEC and DYN pass, as qemu's own binfmt entries do.
MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An emulator that is registered with the kernel."""

    name: str
    enabled: bool
    interpreter: str
    flags: str
    magic: str


def magic(arch: str) -> bytes:
    """The first 20 bytes of the programs of ``arch``: e_ident, e_type EXEC, e_machine."""
    head = struct.pack("<HH", 2, ARCHES[arch].elf_machine)
    return b"\x7fELF\x02\x01\x01" + bytes(9) + head


def parse_entry(name: str, text: str) -> Entry:
    """Read one file of binfmt_misc. Pure."""
    fields = dict(line.partition(" ")[::2] for line in text.splitlines())
    return Entry(
        name=name,
        enabled="enabled" in fields,
        interpreter=fields.get("interpreter", ""),
        flags=fields.get("flags:", ""),
        magic=fields.get("magic", ""),
    )


def suffices(entries: Iterable[Entry], arch: str, major: Callable[[str], int | None]) -> bool:
    """Whether the registered emulators run ``arch`` well: each one for it has flag F and is a qemu
    of at least ``QEMU_MIN`` (the kernel does not show which of several it takes).

    ``major`` returns the major version of the qemu at a path, or None. Pure.
    """
    wanted = magic(arch).hex()
    fitting = [entry for entry in entries if entry.enabled and entry.magic == wanted]
    return bool(fitting) and all(
        "F" in entry.flags and (major(entry.interpreter) or 0) >= QEMU_MIN for entry in fitting
    )


def entries() -> tuple[Entry, ...]:
    """Every emulator that is registered now."""
    registered = []
    for path in sorted(BINFMT.glob("*")):
        if path.name not in ("register", "status"):
            with suppress(OSError):  # removed meanwhile
                registered.append(parse_entry(path.name, path.read_text()))
    return tuple(registered)


def emulated(runner: Runner) -> tuple[str, ...]:
    """The platforms whose programs run here, as ``linux/arm64``: the native one first."""
    native = native_arch()
    return tuple(
        f"linux/{arch}"
        for arch in sorted(ARCHES, key=lambda arch: arch != native)
        if arch == native or probe(arch, runner)
    )


def ensure_emulation(home: Path, runner: Runner, platform: str, say: Callable[[str], None]) -> None:
    """Make programs of ``platform`` ("linux/arm64") run on this machine, in containers too.

    Unless it is the native one or a good qemu is registered, this registers the qemu of the private
    engine's tree, which is installed where it is missing. Raises ``UsageError`` for an unknown
    platform, ``PreflightError`` when this machine cannot emulate it.
    """
    arch = platform.removeprefix("linux/")
    if arch not in ARCHES or not platform.startswith("linux/"):
        raise UsageError(f"platform {platform!r} is unknown", hint="use linux/arm64 or linux/amd64")
    if arch == native_arch():
        return
    if suffices(entries(), arch, lambda path: qemu_major(path, runner)) and probe(arch, runner):
        return
    register(home, runner, arch, say)


def register(home: Path, runner: Runner, arch: str, say: Callable[[str], None]) -> None:
    """Register the tree's qemu for ``arch`` and check that it works.

    Raises ``PreflightError`` when the kernel refuses it.
    """
    place = EnginePlace.of(home)
    debian_tools.install(place, runner, say)
    interpreter = str(place.root / "usr" / "bin" / f"qemu-{ARCHES[arch].machine}")
    say(f"registering {interpreter} for linux/{arch}")
    name = entry_name(place, arch)
    try:
        debian_tools.engine_script(
            runner, "binfmt", name, _escape(magic(arch)), _escape(MASK), interpreter
        )
    except CommandError as error:
        raise PreflightError(
            f"the kernel refused {interpreter} as emulator of linux/{arch}",
            hint="run `sudo modprobe binfmt_misc`; in a container, run this on its host",
            detail=error.detail,
        ) from None
    if not probe(arch, runner):
        raise PreflightError(
            f"a linux/{arch} program does not run, though {name} is registered",
            hint=f"look at {BINFMT / name} and at the other entries beside it",
        )


def unregister(place: EnginePlace, runner: Runner) -> None:
    """Unregister the emulators of this home."""
    names = {entry.name for entry in entries()}
    for arch in ARCHES:
        name = entry_name(place, arch)
        if name in names:
            debian_tools.engine_script(runner, "unbinfmt", name)


def entry_name(place: EnginePlace, arch: str) -> str:
    """The name of this home's entry; every home has its own."""
    return f"sparkimage-{ARCHES[arch].machine}-{place.tag}"


def qemu_major(path: str, runner: Runner) -> int | None:
    """The major version of the qemu at ``path``; None when it cannot be run (an entry may outlive
    its file, come from a container, or be another user's)."""
    if not os.path.isfile(path):
        return None
    output = ""
    with suppress(OSError, CommandError, PreflightError):
        output = runner.run((path, "--version"), check=False, timeout_s=20).stdout
    match = re.search(r"version (\d+)\.", output)
    return int(match[1]) if match else None


def probe(arch: str, runner: Runner) -> bool:
    """Whether a program of ``arch`` runs here, by running one."""
    with TemporaryDirectory(prefix="sparkimage-") as folder:
        path = Path(folder, f"probe-{arch}")
        path.write_bytes(program(arch, ARCHES[arch].exit_42))
        path.chmod(0o755)
        with suppress(OSError, CommandError, PreflightError):  # no emulator, or one that hangs
            return runner.run((str(path),), check=False, timeout_s=20).returncode == PROBE_EXIT
        return False


def program(arch: str, code: bytes) -> bytes:
    """The smallest ELF program for ``arch`` that executes ``code``. Pure.

    An ELF header and one segment that holds the whole file:
    https://man7.org/linux/man-pages/man5/elf.5.html
    """
    base, size = 0x400000, 64 + 56 + len(code)
    header = magic(arch) + struct.pack("<IQQQIHHHHHH", 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return header + segment + code


def _escape(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)
