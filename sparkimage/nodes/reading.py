"""Parses the output of ``data/node/snapshot.sh``, and what the engine said, into a node's snapshot.
Pure.

No output makes ``parse`` fail.
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
from sparkimage.nodes import rdma
from sparkimage.nodes.rdma import Interface
from sparkimage.nodes.snapshot import (
    PULLED,
    UNLIMITED,
    Cdi,
    Disk,
    Engine,
    Folder,
    Gpu,
    NodeImage,
    NodeSnapshot,
)

KIB = 1024
LATE = "@late"
"""Stands for the output of a command that timed out."""
CONTAINERD = "io.containerd.snapshotter"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, which a terminal would execute."""
CONFIG = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell",
    "StopSignal", "User", "Volumes", "WorkingDir",
)  # fmt: skip


def read(output: str, node: Node, *, now: float) -> NodeSnapshot:
    """The snapshot that the script printed; ``now``: our clock when its output was complete.

    Raises ``NodeError`` where the script did not run to its end.
    """
    if "\n@@ clock\n" not in output:
        raise NodeError(
            f"{node.name}: its shell did not run the script", detail=output[-2000:],
            hint="its login shell must run `sh -c` and print nothing else",
        )  # fmt: skip
    return parse(output, node, now=now)


def parse(output: str, node: Node, *, now: float) -> NodeSnapshot:
    """As ``read``, of any output. Never raises."""
    parts = parts_of(_clean(output))

    def part(name: str) -> list[str]:
        return parts.get(name, [])

    machine, limits, clock = (_pairs(part(name)) for name in ("machine", "limits", "clock"))
    memory = {
        match[1]: int(match[2]) * KIB
        for match in _matches(r"(\w+): *([0-9]{1,18}) kB", part("memory"))
    }
    # Without GNU's date there is no fraction.
    time = _match(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)", [clock.get("now", "")])
    connection = machine.get("connection", "").split()
    gpus, driver, smi_error = _gpus(part("gpus"))
    content = part("content")
    interfaces = _interfaces(part("links"))
    failed = next((line[8:] for line in part("containers") if line.startswith("@failed ")), "")
    return NodeSnapshot(
        node=node,
        host=machine.get("host", ""),
        boot=machine.get("boot", ""),
        user=machine.get("user", ""),
        kernel=machine.get("kernel", ""),
        os=machine.get("os", ""),
        groups=tuple(machine.get("groups", "").split()),
        arch=arch_name(machine.get("arch", "")),
        product=machine.get("product", "").strip(),
        used_address=connection[2] if len(connection) > 2 else "",
        docker=engine(part("docker")),
        disks=tuple(
            Disk(
                of=match[1], device=match[2], total=int(match[3]) * KIB, free=int(match[4]) * KIB,
                at=match[5],
            )
            for match in _matches(
                r"(\w+) +(\S+) +([0-9]{1,18}) +\S+ +([0-9]{1,18}) +\S+ +(.+)", part("disk")
            )
        ),
        interfaces=interfaces,
        lock="\n".join(part("lock")),
        clock=float(time) if time else None,
        skew_s=float(time) - now if time else None,
        images=tuple(_image(document) for document in _documents(part("images"))),
        content=frozenset(line for line in content if line.startswith("sha256:"))
        if "@whole" in content
        else None,
        incomplete=frozenset(match[1] for match in _matches(r"layer-(sha256:\w+)", content)),
        receipts=tuple(_documents(part("receipts"))),
        caches=next(iter(part("cache")), ""),
        containers=failed or tuple(_documents(part("containers"))),
        resolved=tuple(line for line in part("names") if _address(line)),
        rdma=rdma.devices(part("rdma"), interfaces),
        routes=tuple(rdma.routes(part("routes"))),
        nccl_conf=nccl_conf(part("nccl")),
        infiniband=tuple(part("infiniband")),
        gpus=gpus,
        processes=tuple(
            line[9:].strip() for line in part("gpus") if line.startswith("@process ")
        ),
        smi="@smi" in part("gpus"),
        smi_error=smi_error,
        module=_match(r"@module .*?\b(\d+\.\d+(?:\.\d+)?)\b", part("gpus")),
        driver=driver,
        cuda=_match(r"@CUDA Version *: *([0-9.]+)", part("gpus")),
        hooks=tuple(line for line in part("hooks") if line.startswith("/")),
        cdi=tuple(
            Cdi(file=match[1], kind=match[2].strip(), driver=match[3])
            for match in _matches(r"([^|]*)\|([^|]*)\|([^|]*)$", part("cdi"))
        ),
        memlock=_limit(limits.get("memlock", ""), KIB),
        docker_memlock=_limit(limits.get("docker", ""), 1),
        memory=memory.get("MemTotal"),
        free=memory.get("MemFree"),
        available=memory.get("MemAvailable"),
        swap=memory.get("SwapTotal"),
        cma_total=memory.get("CmaTotal"),
        cma_free=memory.get("CmaFree"),
        kernel_log=_kernel_log(part("kernel")),
        held=tuple(line for line in part("held") if re.fullmatch(r"[a-z0-9.+:-]+", line)),
        listening=_listening(part("ports")),
        model=_folder(part("model")),
        synced={"yes": True, "no": False}.get(clock.get("synced", "")),
    )  # fmt: skip


def parts_of(output: str) -> dict[str, list[str]]:
    """The lines of each part of the output, by the part's name."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output.split("\n"):
        if line.startswith("@@ "):
            lines = parts.setdefault(line[3:], [])
        elif line.strip():
            lines.append(line)
    return parts


# Values


def _clean(value: object) -> str:
    return CONTROL.sub("", str(value))


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    return {key: value for key, sep, value in (line.partition("=") for line in lines) if sep}


def _documents(lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON objects, one a line; other lines are left out."""
    for line in lines:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_clean(item) for item in _list(value))


def _matches(pattern: str, lines: Sequence[str]) -> Iterator[re.Match[str]]:
    """The matches of the lines that begin with the pattern."""
    return (match for line in lines if (match := re.match(pattern, line)) is not None)


def _match(pattern: str, lines: Sequence[str]) -> str:
    return next((str(match[1]) for match in _matches(pattern, lines)), "")


def _int(word: str) -> int | None:
    """A number of the kernel's, of a sane length."""
    return int(word) if re.fullmatch(r"[0-9]{1,18}", word) else None


def _mib(word: str) -> int | None:
    count = _int(word)
    return count * KIB * KIB if count is not None else None


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _limit(word: str, unit: int) -> int | None:
    # systemd prints 2^64-1 for no limit in places.
    if word in ("unlimited", "infinity", "18446744073709551615"):
        return UNLIMITED
    count = _int(word)
    return count * unit if count is not None else None


def _address(word: str) -> tuple[str, str] | None:
    """An address of ``ADDRESS/PREFIX``, and its network."""
    try:
        interface = ipaddress.ip_interface(word)
    except ValueError:
        return None
    network = interface.network
    alone = network.num_addresses == 1 or (interface.version == 6 and interface.is_link_local)
    return str(interface.ip), "" if alone else str(network)


# Parts


def engine(lines: Sequence[str]) -> Engine:
    """The engine that says this of itself, or does not answer."""
    info = next(_documents([line for line in lines if line.startswith("{")]), {})
    messages = [line for line in lines if not line.startswith("{") and line != LATE]
    errors = list(dict.fromkeys([*messages, *_texts(info.get("ServerErrors"))]))
    version, root, late = info.get("ServerVersion"), info.get("DockerRootDir"), LATE in lines
    if not version or not root:
        return Engine(error="\n".join(errors).strip()[:2000] or "no output", late=late)
    status = [word for pair in _list(info.get("DriverStatus")) for word in _texts(pair)]
    devices = [_map(device) for device in _list(info.get("DiscoveredDevices"))]
    return Engine(
        version=_clean(version),
        root=_clean(root),
        containerd=any(CONTAINERD in word for word in status),
        runtimes=tuple(sorted(map(_clean, _map(info.get("Runtimes"))))),
        default_runtime=_clean(info.get("DefaultRuntime") or ""),
        cdi_folders=_texts(info.get("CDISpecDirs")),
        cdi_devices=tuple(
            _clean(device.get("ID")) for device in devices if device.get("Source") == "cdi"
        ),
        rootless=any("rootless" in option for option in _texts(info.get("SecurityOptions"))),
        late=late,
    )


def _image(document: Mapping[str, Any]) -> NodeImage:
    """An image of ``docker image inspect``; fields that it lacks are empty."""
    config = {key: value for key in CONFIG if (value := _map(document.get("Config")).get(key))}
    names = *_texts(document.get("RepoTags")), *_texts(document.get("RepoDigests"))
    return NodeImage(
        id=str(document.get("Id")),
        # Docker 29 lists references by digest among the tags, too.
        tags=tuple(dict.fromkeys(each for each in names if "@" not in each or PULLED.match(each))),
        platform=f"{document.get('Os')}/{document.get('Architecture')}",
        diff_ids=_texts(_map(document.get("RootFS")).get("Layers")),
        size=_count(document.get("Size")),
        created=str(document.get("Created") or ""),
        labels=_map(config.get("Labels")),
        config=config,
    )


def _interfaces(lines: Sequence[str]) -> tuple[Interface, ...]:
    addresses: dict[str, dict[str, str]] = {}
    for match in _matches(r"@ ([^ @]+)\S* (\S+)$", lines):
        if address := _address(match[2]):
            addresses.setdefault(match[1], {}).update([address])
    return tuple(
        Interface(
            name=match[1],
            addresses=tuple(addresses.get(match[1], ())),
            networks=tuple(addresses.get(match[1], {}).values()),
            # An unknown speed is -1, or 2^32-1.
            speed=(speed if (speed := _int(match[2])) and speed < 2**31 else None),
            mtu=_int(match[3]),
            state=match[4],
        )
        for match in _matches(r"(?!@ |lo )([^ ]+) ([^ ]*) ([^ ]*) ([^ ]*)$", lines)
    )


def nccl_conf(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """NCCL's settings by file; each file's lines follow ``@file PATH``."""
    files: dict[str, dict[str, str]] = {}
    settings: dict[str, str] = {}
    for line in lines:
        if line.startswith("@file "):
            settings = files.setdefault(line[6:], {})
        elif match := re.match(r"(NCCL_\w+)=(.*)", line):
            # NCCL takes the first one of several.
            settings.setdefault(match[1], match[2].strip())
    return files


def _kernel_log(lines: Sequence[str]) -> tuple[str, ...] | None:
    if "@read" not in lines:
        return None
    return tuple(line for line in lines if not line.startswith("@"))


def _gpus(lines: Sequence[str]) -> tuple[tuple[Gpu, ...], str, str]:
    """The GPUs, their driver, and the error of nvidia-smi."""
    gpus: list[Gpu] = []
    driver, errors = "", []
    for line in lines:
        words = [word.strip() for word in line.split(",")]
        index = _int(words[0])
        if len(words) == 6 and index is not None:
            # "[N/A]" where the GPU shares the machine's memory, as on GB10.
            memory, free = _mib(words[3]), _mib(words[5])
            gpu = Gpu(index=index, name=words[1], memory=memory, uuid=words[4], free=free)
            gpus.append(gpu)
            driver = words[2]
        elif line == LATE:
            errors.append("no answer in time")
        elif not line.startswith("@"):
            errors.append(line.strip())
    return tuple(gpus), driver, "\n".join(errors[:5])


def _listening(lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """From /proc/net/tcp, where an address is hexadecimal words in the machine's byte order.

    https://docs.kernel.org/networking/proc_net_tcp.html
    """
    listening: dict[tuple[str, int], None] = {}
    for match in _matches(r"([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})$", lines):
        raw = bytes.fromhex(match[1])
        # arm64 and amd64 are little-endian.
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
        listening[str(ipaddress.ip_address(raw)), int(match[2], 16)] = None
    return tuple(listening)


def _folder(lines: Sequence[str]) -> Folder:
    files = {match[2]: int(match[1]) for match in _matches(r"([0-9]{1,18}) \./(.+)", lines)}
    return Folder(
        state=_match(r"@(folder|missing|closed)$", lines),
        files=dict(sorted(files.items())),
        named=tuple(sorted({match[1] for match in _matches(r'"([^"]+)"$', lines)})),
        total=sum(int(match[1]) for match in _matches(r"@total ([0-9]{1,18})$", lines)),
        pointers=tuple(sorted(match[1] for match in _matches(r"@pointer (.+)", lines))),
        lengths={
            match[2]: int(match[1]) for match in _matches(r"@length ([0-9]{1,18}) \./(.+)", lines)
        },
        late=LATE in lines,
    )
