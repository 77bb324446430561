"""A node's snapshot, read from what ``data/node/snapshot.sh`` says there. Pure.

No text of a node makes ``parse`` fail.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparkimage.config.inventory import Node
from sparkimage.core.arch import arch_name
from sparkimage.core.errors import NodeError
from sparkimage.nodes.snapshot import (
    PULLED,
    UNLIMITED,
    Cdi,
    Disk,
    Engine,
    Folder,
    Gpu,
    Interface,
    NodeImage,
    NodeSnapshot,
    Rdma,
)

KIB = 1024
LATE = "@late"
"""A command of the script's that gave no answer in its time."""
CONTAINERD = "io.containerd.snapshotter"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey."""
CONFIG = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell",
    "StopSignal", "User", "Volumes", "WorkingDir",
)  # fmt: skip


def read(said: str, node: Node, *, now: float) -> NodeSnapshot:
    """Make sense of what the script said; ``now``: our clock when its end came.

    Raises ``NodeError`` where the script did not run to its end.
    """
    if "\n@@ clock\n" not in said:
        raise NodeError(
            f"{node.name}: its shell did not run the script", detail=said[-2000:],
            hint="its login shell must run `sh -c` quietly",
        )  # fmt: skip
    return parse(said, node, now=now)


def parse(said: str, node: Node, *, now: float) -> NodeSnapshot:
    """What can be read of it, whatever it is. Never raises."""
    parts = parts_of(_clean(said))

    def part(name: str) -> list[str]:
        return parts.get(name, [])

    machine, limits, clock = (_pairs(part(name)) for name in ("machine", "limits", "clock"))
    memory = _memory(part("memory"))
    there = _float(clock.get("now", ""))
    connection = machine.get("connection", "").split()
    gpus, driver, complaint = _gpus(part("gpus"))
    content = part("content")
    begun = re.findall(r"^layer-(sha256:\w+)", "\n".join(content), re.MULTILINE)
    failed = next((line[8:] for line in part("containers") if line.startswith("@failed ")), "")
    return NodeSnapshot(
        node=node,
        host=machine.get("host", ""),
        boot=machine.get("boot", ""),
        user=machine.get("user", ""),
        groups=tuple(machine.get("groups", "").split()),
        kernel=machine.get("kernel", ""),
        os=machine.get("os", ""),
        arch=arch_name(machine.get("arch", "")),
        product=machine.get("product", "").strip(),
        used_address=connection[2] if len(connection) > 2 else "",
        docker=_engine(part("docker")),
        disks=_disks(part("disk")),
        interfaces=_interfaces(part("links")),
        lock="\n".join(part("lock")),
        clock=there,
        skew_s=there - now if there is not None else None,
        images=tuple(_image(one) for one in _documents(part("images"))),
        content=frozenset(line for line in content if line.startswith("sha256:"))
        if "@whole" in content
        else None,
        begun=frozenset(begun),
        receipts=tuple(_documents(part("receipts"))),
        caches=next(iter(part("cache")), ""),
        containers=failed or tuple(_documents(part("containers"))),
        resolved=tuple(line for line in part("names") if _address(line)),
        rdma=_rdma(part("rdma")),
        infiniband=tuple(part("infiniband")),
        gpus=gpus,
        processes=tuple(
            line[9:].strip() for line in part("gpus") if line.startswith("@process ")
        ),
        smi="@smi" in part("gpus"),
        smi_error=complaint,
        module=_match(r"@module .*?\b(\d+\.\d+(?:\.\d+)?)\b", part("gpus")),
        driver=driver,
        cuda=_match(r"@CUDA Version *: *([0-9.]+)", part("gpus")),
        hooks=tuple(line for line in part("hooks") if line.startswith("/")),
        cdi=_cdi(part("cdi")),
        memlock=_limit(limits.get("memlock", ""), KIB),
        docker_memlock=_limit(limits.get("docker", ""), 1),
        memory=memory.get("MemTotal"),
        free=memory.get("MemFree"),
        available=memory.get("MemAvailable"),
        swap=memory.get("SwapTotal"),
        held=tuple(line for line in part("held") if re.fullmatch(r"[a-z0-9.+:-]+", line)),
        listening=_listening(part("ports")),
        model=_folder(part("model")),
        synced={"yes": True, "no": False}.get(clock.get("synced", "")),
    )  # fmt: skip


def parts_of(said: str) -> dict[str, list[str]]:
    """The lines of each part of what a script says, by the part's name."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in said.split("\n"):
        if line.startswith("@@ "):
            lines = parts.setdefault(line[3:], [])
        elif line.strip():
            lines.append(line)
    return parts


# Words


def _clean(said: object) -> str:
    return CONTROL.sub("", str(said))


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    return {key: value for key, sep, value in (line.partition("=") for line in lines) if sep}


def _documents(lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON documents, one a line; what is none is left out."""
    for line in lines:
        try:
            one = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(one, dict):
            yield one


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_clean(one) for one in _list(value))


def _match(pattern: str, lines: Sequence[str]) -> str:
    return next((str(one[1]) for one in _matches(pattern, lines)), "")


def _matches(pattern: str, lines: Sequence[str]) -> Iterator[re.Match[str]]:
    """Of the lines that are of this form from their beginning."""
    found = (re.match(pattern, line) for line in lines)
    return (one for one in found if one is not None)


def _int(word: str) -> int | None:
    """A number as the kernel writes one, of a length that it may have."""
    return int(word) if re.fullmatch(r"[0-9]{1,18}", word) else None


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(word: str) -> float | None:
    # Without GNU's date there is no fraction.
    found = _match(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)", [word])
    return float(found) if found else None


def _limit(word: str, unit: int) -> int | None:
    # systemd writes 2^64-1 for no limit in places.
    if word in ("unlimited", "infinity", "18446744073709551615"):
        return UNLIMITED
    count = _int(word)
    return count * unit if count is not None else None


def _address(word: str) -> tuple[str, str] | None:
    """An address of ``ADDRESS/PREFIX``, and its network."""
    try:
        found = ipaddress.ip_interface(word)
    except ValueError:
        return None
    alone = found.network.num_addresses == 1 or (found.version == 6 and found.is_link_local)
    return str(found.ip), "" if alone else str(found.network)


# Parts


def _engine(lines: Sequence[str]) -> Engine:
    found = next(_documents([line for line in lines if line.startswith("{")]), {})
    words = [line for line in lines if not line.startswith("{") and line != LATE]
    errors = list(dict.fromkeys([*words, *_texts(found.get("ServerErrors"))]))
    version, root = found.get("ServerVersion"), found.get("DockerRootDir")
    late = LATE in lines
    if not version or not root:
        return Engine(error="\n".join(errors).strip()[:2000] or "it says nothing", late=late)
    pairs = [word for pair in _list(found.get("DriverStatus")) for word in _texts(pair)]
    devices = [_map(one) for one in _list(found.get("DiscoveredDevices"))]
    return Engine(
        version=_clean(version),
        root=_clean(root),
        containerd=any(CONTAINERD in word for word in pairs),
        stopped=_count(found.get("ContainersStopped")),
        runtimes=tuple(sorted(map(_clean, _map(found.get("Runtimes"))))),
        default_runtime=_clean(found.get("DefaultRuntime") or ""),
        cdi_folders=_texts(found.get("CDISpecDirs")),
        cdi_devices=tuple(_clean(one.get("ID")) for one in devices if one.get("Source") == "cdi"),
        rootless=any("rootless" in one for one in _texts(found.get("SecurityOptions"))),
        late=late,
    )


def _image(said: Mapping[str, Any]) -> NodeImage:
    """What is missing in one that was made elsewhere is left empty."""
    config = {key: value for key in CONFIG if (value := _map(said.get("Config")).get(key))}
    pulled = [name for name in _texts(said.get("RepoDigests")) if PULLED.match(name)]
    return NodeImage(
        id=str(said.get("Id")),
        tags=(*_texts(said.get("RepoTags")), *pulled),
        platform=f"{said.get('Os')}/{said.get('Architecture')}",
        diff_ids=_texts(_map(said.get("RootFS")).get("Layers")),
        size=_count(said.get("Size")),
        created=str(said.get("Created") or ""),
        labels=_map(config.get("Labels")),
        config=config,
    )


def _memory(lines: Sequence[str]) -> dict[str, int]:
    return {one[1]: int(one[2]) * KIB for one in _matches(r"(\w+): *([0-9]{1,18}) kB", lines)}


def _interfaces(lines: Sequence[str]) -> tuple[Interface, ...]:
    addresses: dict[str, dict[str, str]] = {}
    for one in _matches(r"@ ([^ @]+)\S* (\S+)$", lines):
        if found := _address(one[2]):
            addresses.setdefault(one[1], {}).update([found])
    return tuple(
        Interface(
            name=one[1],
            addresses=tuple(addresses.get(one[1], ())),
            networks=tuple(addresses.get(one[1], {}).values()),
            # It says -1, or 2^32-1, when it knows none.
            speed=(speed if (speed := _int(one[2])) and speed < 2**31 else None),
            mtu=_int(one[3]),
            state=one[4],
        )
        for one in _matches(r"(?!@ |lo )([^ ]+) ([^ ]*) ([^ ]*) ([^ ]*)$", lines)
    )


def _rdma(lines: Sequence[str]) -> tuple[Rdma, ...]:
    form = r"([^|]*)\|([0-9]{1,18})\|(?:[^|]*: *)?([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)$"
    return tuple(
        Rdma(
            device=one[1],
            port=int(one[2]),
            state=one[3].strip(),
            layer=one[4],
            rate=_int(_match(r"([0-9]{1,6})(?:\.[0-9]+)? *Gb", [one[5]])),
            interface=one[6],
        )
        for one in _matches(form, lines)
    )


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


def _cdi(lines: Sequence[str]) -> tuple[Cdi, ...]:
    return tuple(
        Cdi(file=one[1], kind=one[2].strip(), driver=one[3])
        for one in _matches(r"([^|]*)\|([^|]*)\|([^|]*)$", lines)
    )


def _disks(lines: Sequence[str]) -> tuple[Disk, ...]:
    form = r"(\w+) +\S+ +([0-9]{1,18}) +\S+ +([0-9]{1,18}) +\S+ +(.+)"
    return tuple(
        Disk(of=one[1], at=one[4], free=int(one[3]) * KIB, total=int(one[2]) * KIB)
        for one in _matches(form, lines)
    )


def _listening(lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Of /proc/net/tcp: the address as hexadecimal words in the machine's order of bytes.

    https://docs.kernel.org/networking/proc_net_tcp.html
    """
    found: dict[tuple[str, int], None] = {}
    for one in _matches(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})$", lines):
        raw = bytes.fromhex(one[1])
        # All machines that are known here are little-endian.
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
        found[str(ipaddress.ip_address(raw)), int(one[2], 16)] = None
    return tuple(found)


def _folder(lines: Sequence[str]) -> Folder:
    files = {one[2]: int(one[1]) for one in _matches(r"([0-9]{1,18}) \./(.+)", lines)}
    return Folder(
        state=_match(r"@(folder|missing|closed)$", lines),
        files=dict(sorted(files.items())),
        named=tuple(sorted({one[1] for one in _matches(r'"([^"]+)"$', lines)})),
        late=LATE in lines,
    )
