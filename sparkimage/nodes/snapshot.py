"""What a node is and has at one moment, as ``data/node/snapshot.sh`` says it. Pure.

Everything may be missing: what the node did not say, or was not asked for, is None or empty.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.config.inventory import Node
from sparkimage.core.errors import EngineError, EnginePermissionError
from sparkimage.image.store import digest_of

STAGING = "sparkimage-staging"
"""The repository of all names that an image has on its way."""
PULLED = re.compile(rf"127\.0\.0\.1:\d+/{STAGING}@")
"""What an image that was pulled from here has until it has a staging name."""
UNLIMITED = -1
"""Of memlock: no limit."""
MIN_DOCKER = (20, 10)
"""The first engine that loads an OCI layout's layers by what manifest.json says."""
TELLS_UNPACKED = (28, 0)
"""The first engine that says when it has unpacked a layer into containerd's store."""
CDI_FOR_GPUS = (29,)
"""The first engine that surely answers ``--gpus`` with CDI's devices, where there is no hook."""
MIN_CUDA = (13, 0)
"""The CUDA of our images; a driver that takes none of this major version runs none of them.
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""
SKEW_S = 60.0
"""Seconds from our clock from which on certificates and signatures may be refused."""


@dataclass(frozen=True, kw_only=True)
class NodeImage:
    """An image of a node's engine. ``id`` is the config's digest in one store, the manifest's in
    the other: it means something on its own node only."""

    id: str
    tags: tuple[str, ...]
    """With what it was pulled from here as, where that is left."""
    platform: str
    diff_ids: tuple[str, ...]
    size: int
    created: str
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    """Of the image's own config what a container sees, where it says something."""

    @property
    def identity(self) -> str:
        """What is equal wherever the image is, whatever the store: platform, config, layers."""
        text = json.dumps([self.platform, self.diff_ids, self.config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system below a folder, in bytes. ``of``: ``docker``, ``containerd``, ``model``."""

    of: str
    at: str
    free: int
    total: int


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

    @property
    def rate(self) -> str:
        """Its speed in words."""
        return "speed unknown" if self.speed is None else f"{self.speed / 1000:g} Gbit/s"

    def __str__(self) -> str:
        return f"{self.name} ({self.rate})"


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
    """The Docker of a node; without a ``version`` it did not answer, ``error`` says why."""

    version: str = ""
    error: str = ""
    root: str = ""
    containerd: bool = False
    """Its images are in containerd's store."""
    stopped: int = 0
    """Containers that do not run; a proof that was killed leaves one."""
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
    def store(self) -> str:
        """Its image store."""
        return "containerd" if self.containerd else "overlay2"

    @property
    def numbers(self) -> tuple[int, ...]:
        """Its version, to compare."""
        return version(self.version)


@dataclass(frozen=True, kw_only=True)
class Cdi:
    """A CDI specification: its file, what it describes, and the driver that it was made for."""

    file: str
    kind: str
    """``nvidia.com/gpu``"""
    driver: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The model folder of a node."""

    state: str
    """``folder``, ``missing``, ``closed`` (not readable, or no folder), or nothing: not asked."""
    files: Mapping[str, int]
    """Sizes in bytes by name, sorted; hidden ones are left out."""
    named: tuple[str, ...] = ()
    """The shards that the index names."""
    late: bool = False
    """It could not be read in time, so the list is not complete."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.files.values())

    @property
    def checksum(self) -> str:
        """Of names and sizes, not of contents: equal where the folders look the same."""
        text = "".join(f"{name}\0{size}\n" for name, size in self.files.items())
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Shards that the index names and that are not there."""
        return tuple(name for name in self.named if name not in self.files)


@dataclass(frozen=True, kw_only=True)
class NodeSnapshot:
    """A node at one moment. Sizes in bytes."""

    node: Node
    """Its entry in the fleet file."""
    # What it always says
    host: str
    boot: str
    """What the kernel calls this run of the machine; with ``host`` no other machine has it."""
    user: str
    groups: tuple[str, ...]
    kernel: str
    os: str
    arch: str
    """As platforms call it: ``arm64``, ``amd64``."""
    product: str
    used_address: str
    """The node's own address that the commands came to."""
    docker: Engine
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    lock: str
    """``held``, ``busy: WHO``, ``none: WHY``, or nothing where it was not asked for."""
    clock: float | None
    """Its time, in seconds since 1970."""
    skew_s: float | None
    """Its clock minus ours, in seconds; asking takes a part of one."""
    # Images
    images: tuple[NodeImage, ...]
    content: frozenset[str] | None
    """Digests of all blobs of a containerd store; None where this user may not ask."""
    begun: frozenset[str]
    """Digests of layers of which it has a part: from a pull that was broken off."""
    receipts: tuple[Mapping[str, Any], ...]
    # Containers
    caches: str
    """The user's folder for caches."""
    containers: tuple[Mapping[str, Any], ...] | str
    """Those that `launch` has made, as ``docker container inspect`` has them; or why not."""
    # Machine
    resolved: tuple[str, ...]
    """What the name of its data address is to the node itself."""
    rdma: tuple[Rdma, ...]
    infiniband: tuple[str, ...]
    """The names in /dev/infiniband: ``uverbs0``, ``rdma_cm``, ..."""
    gpus: tuple[Gpu, ...]
    processes: tuple[str, ...]
    """What computes on the GPUs: ``PID, NAME``."""
    smi: bool
    """There is an ``nvidia-smi``."""
    smi_error: str
    """What it said instead of an answer."""
    module: str
    """The version of the kernel module that is loaded, where one is."""
    driver: str
    """The version of the user-space driver."""
    cuda: str
    """The newest CUDA that the driver takes."""
    hooks: tuple[str, ...]
    """Paths of the NVIDIA container toolkit's programs."""
    cdi: tuple[Cdi, ...]
    memlock: int | None
    """Bytes that the user may lock; ``UNLIMITED``."""
    docker_memlock: int | None
    """Bytes that Docker's service may lock, and so a container."""
    memory: int | None
    free: int | None
    available: int | None
    swap: int | None
    held: tuple[str, ...]
    """Packages that apt holds back."""
    listening: tuple[tuple[str, int], ...]
    """Addresses and ports on which something listens (TCP)."""
    model: Folder
    synced: bool | None
    """NTP keeps its clock."""

    @property
    def name(self) -> str:
        return self.node.name

    # Docker

    def docker_error(self) -> EngineError | None:
        """Why its Docker cannot be used; None where it can."""
        docker, user, name = self.docker, self.user, self.name
        if docker.version and docker.numbers < MIN_DOCKER:
            return EngineError(
                f"{name}: its Docker {docker.version} is too old",
                hint=f"install {'.'.join(map(str, MIN_DOCKER))} or newer: "
                "https://docs.docker.com/engine/install/",
            )
        if docker.version:
            return None
        said, last = docker.error, docker.error.splitlines()[-1]
        if SUDO_DENIED.search(said) or ("permission denied" in said and self.node.sudo):
            return EnginePermissionError(
                f"{name}: {user} may not call docker through sudo without a password", detail=said,
                hint="there: a NOPASSWD rule for docker in sudoers; or "
                f"`sudo usermod -aG docker {user}` and no `sudo: true` in the fleet file",
            )  # fmt: skip
        if "permission denied" in said:
            return EnginePermissionError(
                f"{name}: {user} may not talk to its Docker", detail=said,
                hint=f"there: sudo usermod -aG docker {user}; or `sudo: true` in the fleet file",
            )  # fmt: skip
        if re.search(r"docker.*not found", said):
            return EngineError(
                f"{name}: it has no docker command", detail=said,
                hint="install Docker there: https://docs.docker.com/engine/install/",
            )  # fmt: skip
        what = "gives no answer: it hangs" if docker.late else f"does not answer: {last}"
        return EngineError(
            f"{name}: its Docker {what}", detail=said if said != last else "",
            hint="there: sudo systemctl restart docker; journalctl -u docker",
        )  # fmt: skip

    def disk(self, of: str) -> Disk | None:
        """The file system of ``docker``, ``containerd`` or ``model``."""
        return next((one for one in self.disks if one.of == of), None)

    @property
    def image_disks(self) -> tuple[Disk, ...]:
        """The file systems that its engine writes images to: Docker's own, and
        /var/lib/containerd where the images are kept there."""
        of = ("docker", "containerd") if self.docker.containerd else ("docker",)
        return tuple({one.at: one for one in self.disks if one.of in of}.values())

    # Images

    def by_tag(self, name: str) -> NodeImage | None:
        """The image that has this name."""
        return next((image for image in self.images if name in image.tags), None)

    def by_id(self, id: str) -> NodeImage | None:
        return next((image for image in self.images if image.id == id), None)

    def chains(self) -> frozenset[str]:
        """The chain ID of every layer that some image here has."""
        return frozenset(chain for one in self.images for chain in chain_ids(one.diff_ids))

    def blobs(self, known: Mapping[str, Iterable[str]]) -> frozenset[str]:
        """Digests of the layer blobs that a containerd store surely holds.

        ``known`` are the blobs of manifests by their digest, for a user who may not list the
        store itself; what the node's receipts say is added.
        """
        if self.content is not None:
            return self.content
        have: set[str] = set()
        # One that says nothing of its layers was never unpacked.
        for image in (one for one in self.images if one.diff_ids):
            have |= set(known.get(image.id, ())) | set(self.receipt(image.id).get("layers") or ())
        return frozenset(have)

    def receipt(self, digest: str | None) -> Mapping[str, Any]:
        """The receipt that it has of this manifest, for this user; empty where it has none."""
        return next((one for one in self.receipts if one.get("digest") == digest), {})

    def receipt_of(self, image: NodeImage) -> Mapping[str, Any]:
        """The receipt of an image, whatever its store calls it; empty where it has none."""
        keys = ("digest", "config")
        found = (one for one in self.receipts if image.id in map(one.get, keys))
        return next(found, {})

    # Network

    def interface(self, name: str) -> Interface | None:
        """The interface of this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def interface_of(self, address: str) -> Interface | None:
        """The interface that has this address."""
        plain = address.partition("%")[0]
        return next((one for one in self.interfaces if plain in one.addresses), None)

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs devices of /dev/infiniband, without which no program can use RDMA."""
        return tuple(name for name in self.infiniband if name.startswith("uverbs"))

    def listens(self, port: int) -> tuple[str, ...]:
        """The addresses on which something listens at this port."""
        return tuple(dict.fromkeys(address for address, at in self.listening if at == port))

    # GPU

    @property
    def unified(self) -> bool:
        """CPU and GPU share one memory: nvidia-smi names no size of the GPU's own."""
        return bool(self.gpus) and all(one.memory is None for one in self.gpus)

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
        return self.has_hook or (cdi and self.docker.numbers >= CDI_FOR_GPUS)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: the machine. The model's files are left out, but for their number,
        size, checksum."""
        made = {key: value for key, value in asdict(self).items() if key not in NOT_SHOWN}
        model = self.model
        made["model"] = {
            "state": model.state,
            "files": len(model.files),
            "size": model.size,
            "checksum": model.checksum if model.files else None,
            "lacking": model.lacking,
        }
        made["listening"] = sorted({port for _, port in self.listening})
        return made


SUDO_DENIED = re.compile(r"a password is required|not allowed to execute|not in the sudoers")
NOT_SHOWN = {
    "node", "lock", "images", "content", "begun", "receipts", "caches", "containers",
}  # fmt: skip


def version(words: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(int(one) for one in re.findall(r"[0-9]{1,9}", words)[:4])


def is_staging(tag: str) -> bool:
    """Whether an image has this name only on its way."""
    return tag.startswith(f"{STAGING}:") or PULLED.match(tag) is not None


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """What overlay2 knows each layer by: it stands for all below it too.

    https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    found: list[str] = []
    for diff_id in diff_ids:
        below = f"{found[-1]} {diff_id}" if found else None
        found.append(diff_id if below is None else digest_of(below.encode()))
    return found
