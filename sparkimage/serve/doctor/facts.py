"""What a machine has for a server of models, as ``data/node/facts.sh`` asks for it. Pure.

Everything may be missing: what the machine did not say is None or empty.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

UNLIMITED = -1
"""Of memlock: no limit."""


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


def major(version: str) -> int:
    """The first number of a version; 0 where there is none."""
    found = re.match(r"[0-9]{1,6}", version)
    return int(found[0]) if found else 0
