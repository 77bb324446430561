"""The facts of a machine, read from what ``data/node/facts.sh`` says there. Pure.

No text of a machine makes this fail.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any

from sparkimage.core.arch import arch_name
from sparkimage.nodes.snapshot import parts_of
from sparkimage.serve.doctor.facts import (
    UNLIMITED,
    Cdi,
    Disk,
    Engine,
    Facts,
    File,
    Folder,
    Gpu,
    Interface,
    Rdma,
)

KIB = 1024
LATE = "@late"
"""A command of the script's that gave no answer in its time."""
STORE = "io.containerd.snapshotter"


def read(said: str, *, now: float) -> Facts:
    """Make sense of what the script said; ``now``: our clock when it came. Never raises."""
    parts = parts_of(_clean(said))
    machine = _pairs(parts.get("machine", []))
    limits = _pairs(parts.get("limits", []))
    memory = _memory(parts.get("memory", []))
    clock = _pairs(parts.get("clock", []))
    time_there = _float(clock.get("now", ""))
    connection = machine.get("connection", "").split()
    gpus = parts.get("gpus", [])
    found, driver, complaint = _gpus(gpus)
    info = _info(parts.get("docker", []))
    arch = machine.get("arch", "")
    return Facts(
        host=machine.get("host", ""),
        boot=machine.get("boot", ""),
        user=machine.get("user", ""),
        groups=tuple(machine.get("groups", "").split()),
        kernel=machine.get("kernel", ""),
        os=machine.get("os", ""),
        arch=arch_name(arch),
        product=machine.get("product", "").strip(),
        used_address=connection[2] if len(connection) > 2 else "",
        resolved=tuple(line for line in parts.get("names", []) if _address(line)),
        interfaces=_interfaces(parts.get("links", [])),
        rdma=_rdma(parts.get("rdma", [])),
        infiniband=tuple(parts.get("infiniband", [])),
        gpus=found,
        processes=tuple(line[9:].strip() for line in gpus if line.startswith("@process ")),
        smi="@smi" in gpus,
        smi_error=complaint,
        module=_match(r"@module .*?\b(\d+\.\d+(?:\.\d+)?)\b", gpus),
        driver=driver,
        cuda=_match(r"@CUDA Version *: *([0-9.]+)", gpus),
        docker=info,
        hooks=tuple(line for line in parts.get("hooks", []) if line.startswith("/")),
        cdi=_cdi(parts.get("cdi", [])),
        memlock=_limit(limits.get("memlock", ""), KIB),
        docker_memlock=_limit(limits.get("docker", ""), 1),
        memory=memory.get("MemTotal"),
        free=memory.get("MemFree"),
        available=memory.get("MemAvailable"),
        swap=memory.get("SwapTotal"),
        disks=_disks(parts.get("disk", [])),
        held=tuple(line for line in parts.get("held", []) if re.fullmatch(r"[a-z0-9.+:-]+", line)),
        listening=_listening(parts.get("ports", [])),
        model=_folder(parts.get("model", [])),
        clock=time_there,
        skew_s=time_there - now if time_there is not None else None,
        synced={"yes": True, "no": False}.get(clock.get("synced", "")),
    )


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey."""


def _clean(said: object) -> str:
    return CONTROL.sub("", str(said))


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    return {key: value for key, sep, value in (line.partition("=") for line in lines) if sep}


def _match(pattern: str, lines: Sequence[str]) -> str:
    found = (re.match(pattern, line) for line in lines)
    return next((str(one[1]) for one in found if one), "")


def _int(word: str) -> int | None:
    """A number as the kernel writes one, of a length that it may have."""
    return int(word) if re.fullmatch(r"[0-9]{1,18}", word) else None


def _float(word: str) -> float | None:
    # Without GNU's date there is no fraction.
    found = re.match(r"[0-9]{1,12}(\.[0-9]{1,9})?", word)
    return float(found[0]) if found else None


def _limit(word: str, unit: int) -> int | None:
    # systemd writes 2^64-1 for no limit in places.
    if word in ("unlimited", "infinity", "18446744073709551615"):
        return UNLIMITED
    count = _int(word)
    return count * unit if count is not None else None


def _memory(lines: Sequence[str]) -> dict[str, int]:
    found = {}
    for line in lines:
        words = line.split()
        size = _int(words[1]) if len(words) > 1 else None
        if size is not None:
            found[words[0].rstrip(":")] = size * KIB
    return found


def _interfaces(lines: Sequence[str]) -> tuple[Interface, ...]:
    addresses: dict[str, dict[str, str]] = {}
    for line in lines:
        words = line.split()
        if words[0] == "@" and len(words) == 3 and (found_one := _address(words[2])):
            addresses.setdefault(words[1].partition("@")[0], {}).update([found_one])
    found = []
    for line in lines:
        name, *words = line.split(" ")
        if name in ("@", "lo", "") or len(words) != 3:
            continue
        found.append(
            Interface(
                name=name,
                addresses=tuple(addresses.get(name, ())),
                networks=tuple(addresses.get(name, {}).values()),
                # It says -1, or 2^32-1, when it knows none.
                speed=(speed if (speed := _int(words[0])) and speed < 2**31 else None),
                mtu=_int(words[1]),
                state=words[2],
            )
        )
    return tuple(found)


def _address(word: str) -> tuple[str, str] | None:
    """An address of ``ADDRESS/PREFIX``, and its network."""
    try:
        found = ipaddress.ip_interface(word)
    except ValueError:
        return None
    alone = found.network.num_addresses == 1 or (found.version == 6 and found.is_link_local)
    return str(found.ip), "" if alone else str(found.network)


def _rdma(lines: Sequence[str]) -> tuple[Rdma, ...]:
    found = []
    for line in lines:
        words = line.split("|")
        port = _int(words[1]) if len(words) == 6 else None
        if port is None:
            continue
        rate = re.match(r"([0-9]{1,6})(\.[0-9]+)? *Gb", words[4])
        found.append(
            Rdma(
                device=words[0],
                port=port,
                state=words[2].rpartition(":")[2].strip(),
                layer=words[3],
                rate=int(rate[1]) if rate else None,
                interface=words[5],
            )
        )
    return tuple(found)


def _gpus(lines: Sequence[str]) -> tuple[tuple[Gpu, ...], str, str]:
    """The GPUs, their driver, and what was said instead."""
    found: list[Gpu] = []
    driver, complaint = "", []
    for line in lines:
        words = [word.strip() for word in line.split(",")]
        index = _int(words[0])
        if len(words) == 5 and index is not None:
            # "[N/A]" where the memory is the machine's own, as on GB10.
            size = _int(words[3])
            memory = size * KIB * KIB if size is not None else None
            found.append(Gpu(index=index, name=words[1], memory=memory, uuid=words[4]))
            driver = words[2]
        elif line == LATE:
            complaint.append("no answer in time")
        elif not line.startswith("@"):
            complaint.append(line.strip())
    return tuple(found), driver, "\n".join(complaint[:5])


def _info(lines: Sequence[str]) -> Engine:
    words, found = [], {}
    for line in lines:
        if line.startswith("{"):
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                continue
            found = said if isinstance(said, dict) else {}
        elif line != LATE:
            words.append(line)
    errors = list(dict.fromkeys([*words, *_texts(found.get("ServerErrors"))]))
    version, root = found.get("ServerVersion"), found.get("DockerRootDir")
    late = LATE in lines
    if not version or not root:
        return Engine(error="\n".join(errors)[:2000] or "it says nothing", late=late)
    pairs = [word for pair in _list(found.get("DriverStatus")) for word in _texts(pair)]
    runtimes = found.get("Runtimes")
    devices = [one for one in _list(found.get("DiscoveredDevices")) if isinstance(one, dict)]
    return Engine(
        version=_clean(version),
        root=_clean(root),
        containerd=any(STORE in word for word in pairs),
        runtimes=tuple(sorted(map(_clean, runtimes))) if isinstance(runtimes, dict) else (),
        default_runtime=_clean(found.get("DefaultRuntime") or ""),
        cdi_folders=_texts(found.get("CDISpecDirs")),
        cdi_devices=tuple(_clean(one.get("ID")) for one in devices if one.get("Source") == "cdi"),
        rootless=any("rootless" in one for one in _texts(found.get("SecurityOptions"))),
        late=late,
    )


def _cdi(lines: Sequence[str]) -> tuple[Cdi, ...]:
    rows = [line.split("|") for line in lines]
    return tuple(
        Cdi(file=words[0], kind=words[1].strip(), driver=words[2])
        for words in rows
        if len(words) == 3
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_clean(one) for one in _list(value))


def _disks(lines: Sequence[str]) -> tuple[Disk, ...]:
    found = []
    for line in lines:
        words = line.split()
        if len(words) < 7:
            continue
        total, free = _int(words[2]), _int(words[4])
        if total is not None and free is not None:
            found.append(
                Disk(of=words[0], at=" ".join(words[6:]), free=free * KIB, total=total * KIB)
            )
    return tuple(found)


def _listening(lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Of /proc/net/tcp: the address as hexadecimal words in the machine's order of bytes.

    https://docs.kernel.org/networking/proc_net_tcp.html
    """
    found: dict[tuple[str, int], None] = {}
    for line in lines:
        match = re.fullmatch(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})", line)
        if match:
            raw = bytes.fromhex(match[1])
            # All machines that are known here are little-endian.
            raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
            found[str(ipaddress.ip_address(raw)), int(match[2], 16)] = None
    return tuple(found)


def _folder(lines: Sequence[str]) -> Folder:
    state = next((line[1:] for line in lines if line in ("@folder", "@missing", "@closed")), "")
    files: dict[str, int] = {}
    named: dict[str, None] = {}
    for line in lines:
        match = re.fullmatch(r"([0-9]{1,18}) \./(.+)", line)
        if match:
            files[match[2]] = int(match[1])
        elif re.fullmatch(r'"[^"]+"', line):
            named[line[1:-1]] = None
    return Folder(
        state=state,
        files=tuple(File(name=name, size=files[name]) for name in sorted(files)),
        named=tuple(sorted(named)),
        late=LATE in lines,
    )
