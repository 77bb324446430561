"""What a machine has for a server of models, from what ``data/node/facts.sh`` says there. Pure,
but for ``ask``.

Everything may be missing: what the machine did not say is None or empty, and no text of a machine
makes this fail.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sparkimage.engines.emulation import MACHINES
from sparkimage.errors import CommandError
from sparkimage.fleets import remote
from sparkimage.fleets.probe import parts_of
from sparkimage.run import Completed

UNLIMITED = -1
"""Of memlock: no limit."""
KIB = 1024
LATE = "@late"
"""A command of the script's that gave no answer in its time."""
ASK_S = 60.0
"""Seconds that the script may take; each of its commands has less."""
STORE = "io.containerd.snapshotter"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface. ``speed`` in Mbit/s and ``mtu`` in bytes; None where it says none."""

    name: str
    addresses: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """The network of each address, as ``192.168.100.0/24``; nothing for one that has none."""
    speed: int | None = None
    mtu: int | None = None
    state: str = ""
    """``up``, ``down``, ``unknown``, ... as /sys/class/net/NAME/operstate has it."""


@dataclass(frozen=True, kw_only=True)
class Rdma:
    """One port of an RDMA device, as /sys/class/infiniband has it."""

    device: str
    """As ``NCCL_IB_HCA`` names it: ``rocep1s0f0``."""
    port: int
    state: str
    """``ACTIVE``, ``DOWN``, ..."""
    layer: str
    """``Ethernet`` (RoCE) or ``InfiniBand``."""
    rate: int | None
    """Gbit/s."""
    interface: str
    """The network interface that it belongs to, or nothing."""

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU; ``memory`` in bytes, None where it is the machine's own (unified)."""

    index: int
    name: str
    memory: int | None
    uuid: str = ""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The Docker of a machine; without a ``version`` it did not answer, ``error`` says why."""

    version: str = ""
    error: str = ""
    root: str = ""
    containerd: bool = False
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""
    cdi_folders: tuple[str, ...] = ()
    """Where it looks for CDI specifications; empty where CDI is off."""
    cdi_devices: tuple[str, ...] = ()
    """The devices that it found there: ``nvidia.com/gpu=all``. Only newer engines say."""
    rootless: bool = False
    """It has no more rights than the user whose it is."""
    late: bool = False
    """It gave no answer in time."""

    @property
    def denied(self) -> bool:
        """It is there, but this user may not talk to it."""
        return not self.version and bool(DENIED.search(self.error))

    @property
    def missing(self) -> bool:
        """There is no docker command."""
        return not self.version and bool(re.search(r"docker.*not found", self.error))


DENIED = re.compile(
    r"permission denied|a password is required|not allowed to execute|not in the sudoers"
)


@dataclass(frozen=True, kw_only=True)
class Cdi:
    """A CDI specification: its file, what it describes, and the driver that it was made for."""

    file: str
    kind: str
    """``nvidia.com/gpu``"""
    driver: str


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system below a folder, in bytes. ``of``: ``docker``, ``containerd``, ``model``."""

    of: str
    at: str
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the model folder, relative to it."""

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The model folder of a machine."""

    state: str
    """``folder``, ``missing``, ``closed`` (not readable, or no folder), or nothing: not asked."""
    files: tuple[File, ...] = ()
    """Sorted by name; hidden ones are left out."""
    named: tuple[str, ...] = ()
    """The shards that the index names."""
    late: bool = False
    """It could not be read in time, so the list is not whole."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)

    @property
    def checksum(self) -> str:
        """Of names and sizes, not of contents: equal where the folders look the same."""
        text = "".join(f"{file.name}\0{file.size}\n" for file in self.files)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Shards that the index names and that are not there."""
        there = {file.name for file in self.files}
        return tuple(name for name in self.named if name not in there)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A machine at one moment. Sizes in bytes."""

    host: str = ""
    boot: str = ""
    """What the kernel calls this run of the machine; with ``host`` no other machine has it."""
    user: str = ""
    groups: tuple[str, ...] = ()
    kernel: str = ""
    os: str = ""
    arch: str = ""
    """As platforms call it: ``arm64``, ``amd64``."""
    product: str = ""
    used_address: str = ""
    """The machine's own address that the commands came to."""
    resolved: tuple[str, ...] = ()
    """What the name of its data address is to the machine itself."""
    interfaces: tuple[Interface, ...] = ()
    rdma: tuple[Rdma, ...] = ()
    infiniband: tuple[str, ...] = ()
    """The names in /dev/infiniband: ``uverbs0``, ``rdma_cm``, ..."""
    gpus: tuple[Gpu, ...] = ()
    processes: tuple[str, ...] = ()
    """What computes on the GPUs: ``PID, NAME``."""
    smi: bool = False
    """There is an ``nvidia-smi``."""
    smi_error: str = ""
    """What it said instead of an answer."""
    module: str = ""
    """The version of the kernel module that is loaded, where one is."""
    driver: str = ""
    """The version of the user-space driver."""
    cuda: str = ""
    """The newest CUDA that the driver takes."""
    docker: Engine = Engine()
    hooks: tuple[str, ...] = ()
    """Paths of the programs of NVIDIA's container toolkit that are in the system's PATH."""
    cdi: tuple[Cdi, ...] = ()
    """The CDI specifications in the usual folders."""
    memlock: int | None = None
    """What a login may lock; ``UNLIMITED``."""
    docker_memlock: int | None = None
    """What systemd gives dockerd, and so its containers; None where there is no systemd."""
    memory: int | None = None
    free: int | None = None
    """Without what the page cache holds."""
    available: int | None = None
    """With what the page cache would give back."""
    swap: int | None = None
    disks: tuple[Disk, ...] = ()
    held: tuple[str, ...] = ()
    """Packages that apt does not change."""
    listening: tuple[tuple[str, int], ...] = ()
    """Address and port of each TCP socket that listens."""
    model: Folder = Folder(state="")
    clock: float | None = None
    """Seconds since 1970, at the end of the asking."""
    skew_s: float | None = None
    """Its clock minus ours at that moment; the way of the answer takes some milliseconds."""
    synced: bool | None = None
    """Whether systemd says that the clock is kept; None where nobody says."""

    def interface_of(self, address: str) -> Interface | None:
        """The network interface that has this address."""
        wanted = address.partition("%")[0]
        return next((one for one in self.interfaces if wanted in one.addresses), None)

    def interface(self, name: str) -> Interface | None:
        """The network interface of this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def hcas_of(self, interface: str) -> tuple[str, ...]:
        """The RDMA devices that belong to a network interface, as ``NCCL_IB_HCA`` names them."""
        return tuple(dict.fromkeys(one.device for one in self.rdma if one.interface == interface))

    def twins_of(self, interface: str) -> tuple[str, ...]:
        """The active RDMA devices behind the same plug as this interface, its own ones first.

        A DGX Spark shows each of its two plugs as two devices that differ in the PCI domain only
        (``rocep1s0f1`` and ``roceP2p1s0f1``), each of them good for half of the rate.
        https://github.com/eugr/spark-vllm-docker/blob/main/docs/NETWORKING.md
        """
        own = self.hcas_of(interface)
        plugs = {DOMAIN.sub("", one) for one in own}
        more = [
            one.device
            for one in self.rdma
            if one.active and one.device not in own and DOMAIN.sub("", one.device) in plugs
        ]
        return (*own, *dict.fromkeys(more))

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs devices of /dev/infiniband, without which no program can use RDMA."""
        return tuple(name for name in self.infiniband if name.startswith("uverbs"))

    @property
    def unified(self) -> bool:
        """CPU and GPU share one memory: nvidia-smi names no size of the GPU's own."""
        return bool(self.gpus) and all(one.memory is None for one in self.gpus)

    @property
    def nvidia_runtime(self) -> bool:
        """``--runtime nvidia`` can work: Docker has a runtime of this name."""
        return "nvidia" in self.docker.runtimes

    @property
    def has_hook(self) -> bool:
        """The program that dockerd calls for ``--gpus`` is there."""
        return any(path.endswith("/nvidia-container-runtime-hook") for path in self.hooks)

    @property
    def has_cdi(self) -> bool:
        """``--device nvidia.com/gpu=all`` can work."""
        if not self.docker.cdi_folders:
            return False
        said = any(one.startswith("nvidia.com/gpu=") for one in self.docker.cdi_devices)
        return said or any(one.kind == "nvidia.com/gpu" for one in self.cdi)

    @property
    def gpus_flag(self) -> bool:
        """``--gpus all`` can work.

        dockerd takes it when it finds nvidia-container-runtime-hook in its PATH as it starts
        (https://github.com/moby/moby/blob/master/daemon/nvidia_linux.go); newer ones also make
        CDI's devices of it, where nvidia-cdi-hook is there
        (https://github.com/moby/moby/pull/50228).
        """
        cdi = any(path.endswith("/nvidia-cdi-hook") for path in self.hooks) and self.has_cdi
        return self.has_hook or (cdi and major(self.docker.version) >= CDI_FOR_GPUS)

    def listens(self, port: int) -> tuple[str, ...]:
        """The addresses on which something listens at this port."""
        return tuple(dict.fromkeys(address for address, at in self.listening if at == port))

    def disk(self, of: str) -> Disk | None:
        """The file system of ``docker``, ``containerd`` or ``model``."""
        return next((one for one in self.disks if one.of == of), None)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``. The model's files are left out, but for their number, size, checksum."""
        made = asdict(self)
        made["model"] = {
            "state": self.model.state,
            "files": len(self.model.files),
            "size": self.model.size,
            "checksum": self.model.checksum if self.model.files else None,
            "lacking": self.model.lacking,
        }
        made["listening"] = sorted({port for _, port in self.listening})
        return made


DOMAIN = re.compile(r"P[0-9]+(?=p[0-9])")
"""The PCI domain in the name of an RDMA device: P2 of ``roceP2p1s0f0``."""
CDI_FOR_GPUS = 29
"""The first engine that surely answers ``--gpus`` with CDI's devices, where there is no hook."""


class Asked(Protocol):
    """A machine that runs commands: this one (``Local``), or a node (``Remote``)."""

    def run(
        self, argv: Sequence[str], /, *, timeout_s: float | None = None, check: bool = True
    ) -> Completed:
        """As ``Runner.run``."""


def ask(
    machine: Asked, docker: str, model: str = "", *, name: str = "", timeout_s: float = ASK_S
) -> Facts:
    """Run the script on a machine and make sense of it; one connection, or one that is open.

    ``docker``: the words that call docker there; ``model``: the folder of the model there, or
    nothing; ``name``: its data address, which may be a name that it is to look up, or nothing.
    Raises ``UnreachableError`` and ``NodeError`` of a node, ``CommandError`` where the machine
    has no shell for it.
    """
    words = remote.script("facts", docker, model, name)
    done = machine.run(words, check=False, timeout_s=timeout_s)
    if "@@ clock" not in done.stdout:
        raise CommandError(
            ["sh", "-c", "facts.sh"], done.returncode, (done.stdout + done.stderr)[-2000:],
            hint="its login shell must run `sh -c` quietly",
        )  # fmt: skip
    return read(done.stdout, now=time.time())


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
        arch=MACHINES.get(arch, arch),
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


def major(version: str) -> int:
    """The first number of a version; 0 where there is none."""
    found = re.match(r"[0-9]{1,6}", version)
    return int(found[0]) if found else 0


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
