"""A node's hardware, Docker and images at one moment, from ``data/node/snapshot.sh``. Pure.

Everything may be missing: what the node did not print, or was not asked for, is None or empty.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sparkimage.config.inventory import Node
from sparkimage.core.errors import EngineError, EnginePermissionError
from sparkimage.image.streams import digest_of
from sparkimage.nodes import engines
from sparkimage.nodes.rdma import Interface, Rdma

if TYPE_CHECKING:
    from sparkimage.image.store import Layer

STAGING = "sparkimage-staging"
"""The repository of the names that images have until they are proven."""
PULLED = re.compile(rf"127\.0\.0\.1:\d+/{STAGING}@")
"""The name of an image that was pulled from here, until it has its staging name."""
UNLIMITED = -1
"""The value of a memlock without a limit."""
CDI_GPUS = "nvidia.com/gpu=all"
"""The CDI device with all of a machine's GPUs:
https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/cdi-support.html"""
SKEW_S = 60.0
"""Seconds of clock skew from which on certificates and signatures may be refused."""


@dataclass(frozen=True, kw_only=True)
class NodeImage:
    """An image of a node's engine. ``id`` is the config's digest with overlay2 and the manifest's
    with containerd: it can be compared on its own node only."""

    id: str
    tags: tuple[str, ...]
    """Including the name that a pull from here left."""
    platform: str
    diff_ids: tuple[str, ...]
    size: int
    created: str
    labels: Mapping[str, str]
    config: Mapping[str, Any]
    """The fields of the image's config that a container sees, without the empty ones."""

    @property
    def identity(self) -> str:
        """Equal wherever the image is, whatever the store: of platform, config and layers."""
        text = json.dumps([self.platform, self.diff_ids, self.config], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system below a folder, in bytes. ``of``: ``docker``, ``containerd``, ``model``."""

    of: str
    device: str
    """As df names it."""
    at: str
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU; its memory in bytes, None where it shares the machine's (unified)."""

    index: int
    name: str
    memory: int | None
    uuid: str = ""
    free: int | None = None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A node's Docker; without a ``version`` it did not answer, and ``error`` says why."""

    version: str = ""
    error: str = ""
    root: str = ""
    containerd: bool = False
    """It uses the containerd image store."""
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""
    cdi_folders: tuple[str, ...] = ()
    """The folders of its CDI specifications; empty where CDI is off."""
    cdi_devices: tuple[str, ...] = ()
    """The devices that it found there: ``nvidia.com/gpu=all``. Older engines list none."""
    rootless: bool = False
    """It runs without root."""
    late: bool = False
    """It did not answer in time."""

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
    """A CDI specification: its file, kind, and the driver version that it was made for."""

    file: str
    kind: str
    """``nvidia.com/gpu``"""
    driver: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The model folder of a node."""

    state: str
    """``folder``, ``missing``, ``closed`` (not readable, or no folder); empty: not asked for."""
    files: Mapping[str, int]
    """Bytes of each file by its name, sorted; without hidden ones."""
    named: tuple[str, ...] = ()
    """The shards that the index names."""
    total: int = 0
    """Bytes of the tensors, as the index says; 0 where it does not."""
    pointers: tuple[str, ...] = ()
    """Files that are Git LFS pointers, by their first line."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Bytes that safetensors files must have, by their headers."""
    late: bool = False
    """It could not be listed completely in time."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.files.values())

    @property
    def checksum(self) -> str:
        """Of names and sizes, not of contents."""
        text = "".join(f"{name}\0{size}\n" for name, size in self.files.items())
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Shards that the index names and the folder lacks."""
        return tuple(name for name in self.named if name not in self.files)


@dataclass(frozen=True, kw_only=True)
class Unreached:
    """A port of another node that did not take a connection over the data network."""

    node: str
    address: str
    port: int
    why: str


@dataclass(frozen=True, kw_only=True)
class NodeSnapshot:
    """A node at one moment. Sizes in bytes."""

    node: Node
    """Its entry in the fleet file."""
    # Always
    host: str
    boot: str
    """The kernel's boot ID; unique together with ``host``."""
    user: str
    groups: tuple[str, ...]
    kernel: str
    os: str
    arch: str
    """As platforms call it: ``arm64``, ``amd64``."""
    product: str
    used_address: str
    """The node's own address of the ssh connection."""
    docker: Engine
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    lock: str
    """``held``, ``busy: OWNER``, ``none: REASON``; empty: not asked for."""
    clock: float | None
    """Its time, in seconds since 1970."""
    skew_s: float | None
    """Its clock minus ours, in seconds; includes the time of the answer."""
    # Images
    images: tuple[NodeImage, ...]
    content: frozenset[str] | None
    """Digests of all blobs of a containerd store; None where this user may not list them."""
    incomplete: frozenset[str]
    """Digests of layers that it has in part, from a pull that broke off."""
    receipts: tuple[Mapping[str, Any], ...]
    # Containers
    caches: str
    """The user's cache folder."""
    containers: tuple[Mapping[str, Any], ...] | str
    """Those of `launch`, as ``docker container inspect`` prints them; or why docker lists none."""
    # Machine
    resolved: tuple[str, ...]
    """The addresses to which the node itself resolves its data address."""
    rdma: tuple[Rdma, ...]
    routes: tuple[tuple[str, str], ...]
    """IPv4 networks that it has a route to, each with the interface that leads there."""
    nccl_conf: Mapping[str, Mapping[str, str]]
    """The settings of NCCL in /etc/nccl.conf and the user's own, by file."""
    infiniband: tuple[str, ...]
    """The names in /dev/infiniband: ``uverbs0``, ``rdma_cm``, ..."""
    gpus: tuple[Gpu, ...]
    processes: tuple[str, ...]
    """The processes on the GPUs: ``PID, NAME``."""
    smi: bool
    """There is an ``nvidia-smi``."""
    smi_error: str
    """Its output when it failed."""
    module: str
    """The version of the loaded kernel module, or nothing."""
    driver: str
    """The version of the user-space driver."""
    cuda: str
    """The newest CUDA that the driver supports."""
    hooks: tuple[str, ...]
    """Paths of the NVIDIA container toolkit's programs."""
    cdi: tuple[Cdi, ...]
    memlock: int | None
    """Bytes that the user may lock, or ``UNLIMITED``."""
    docker_memlock: int | None
    """Bytes that Docker's service may lock, and so its containers."""
    memory: int | None
    free: int | None
    available: int | None
    swap: int | None
    cma_total: int | None
    cma_free: int | None
    """Bytes of the kernel's memory for contiguous allocations."""
    kernel_log: tuple[str, ...] | None
    """What the GPU's driver complained of since the boot; None where this user may not read it."""
    held: tuple[str, ...]
    """Packages that apt holds back."""
    listening: tuple[tuple[str, int], ...]
    """Addresses and ports on which something listens (TCP)."""
    model: Folder
    synced: bool | None
    """NTP keeps its clock."""
    unreached: tuple[Unreached, ...] | None = None
    """What it did not reach of the other nodes; None where that was not tried."""

    @property
    def name(self) -> str:
        return self.node.name

    # Docker

    def docker_error(self) -> EngineError | None:
        """Why its Docker cannot be used; None where it can."""
        docker, user, output = self.docker, self.user, self.docker.error
        if docker.version:
            if docker.numbers >= engines.OLDEST:
                return None
            return EngineError(
                f"{self.name}: its Docker {docker.version} is too old",
                hint=f"install {'.'.join(map(str, engines.OLDEST))} or newer: "
                "https://docs.docker.com/engine/install/",
            )
        last, kind = output.splitlines()[-1], EngineError
        if SUDO_DENIED.search(output) or ("permission denied" in output and self.node.sudo):
            kind = EnginePermissionError
            what = f"{user} may not run docker through sudo without a password"
            hint = (
                "there: a NOPASSWD rule for docker in sudoers; or "
                f"`sudo usermod -aG docker {user}` and no `sudo: true` in the fleet file"
            )
        elif "permission denied" in output:
            kind, what = EnginePermissionError, f"{user} has no permission to use its Docker"
            hint = f"there: sudo usermod -aG docker {user}; or `sudo: true` in the fleet file"
        elif re.search(r"docker.*not found", output):
            what = "it has no docker command"
            hint = "install Docker there: https://docs.docker.com/engine/install/"
        else:
            why = "it hangs" if docker.late else DIALED.sub("", last)
            what = f"its Docker does not answer: {why}"
            hint = "there: sudo systemctl restart docker; journalctl -u docker"
            output = output if output != last else ""
        return kind(f"{self.name}: {what}", detail=output, hint=hint)

    def disk(self, of: str) -> Disk | None:
        """The file system of ``docker``, ``containerd`` or ``model``."""
        return next((disk for disk in self.disks if disk.of == of), None)

    @property
    def image_disks(self) -> tuple[Disk, ...]:
        """The file systems that its engine writes images to: Docker's own, and
        /var/lib/containerd where the images are kept there."""
        of = ("docker", "containerd") if self.docker.containerd else ("docker",)
        return tuple({disk.at: disk for disk in self.disks if disk.of in of}.values())

    # Images

    def by_id(self, id: str) -> NodeImage | None:
        return next((image for image in self.images if image.id == id), None)

    def id_of(self, name: str) -> str:
        """The id of the image that has this name, or nothing."""
        return next((image.id for image in self.images if name in image.tags), "")

    def staged(self) -> list[str]:
        """All staging names."""
        return [tag for image in self.images for tag in image.tags if is_staging(tag)]

    def missing(self, layers: Sequence[Layer], known: Mapping[str, Iterable[str]]) -> list[int]:
        """The indexes of the layers that its store lacks; ``known`` as of ``blobs``."""
        if self.docker.containerd:
            keys, there = [layer.digest for layer in layers], self.blobs(known)
        else:
            keys = chain_ids([layer.diff_id for layer in layers])
            there = frozenset(chain for one in self.images for chain in chain_ids(one.diff_ids))
        return [index for index, key in enumerate(keys) if key not in there]

    def blobs(self, known: Mapping[str, Iterable[str]]) -> frozenset[str]:
        """Digests of the layer blobs that a containerd store surely has.

        For a user who may not list the store: those of its images, by their receipts and by
        ``known``, the blobs of manifests by their digest.
        """
        if self.content is not None:
            return self.content
        have: set[str] = set()
        for image in self.images:
            # Without diff_ids it was never unpacked.
            if image.diff_ids:
                have |= {*known.get(image.id, ()), *(self.receipt(image.id).get("layers") or ())}
        return frozenset(have)

    def receipt(self, digest: str | None) -> Mapping[str, Any]:
        """This user's receipt of a manifest; empty where there is none."""
        return next((receipt for receipt in self.receipts if receipt.get("digest") == digest), {})

    def receipt_of(self, image: NodeImage) -> Mapping[str, Any]:
        """The receipt of an image, by its id in either store; empty where there is none."""
        keys = ("digest", "config")
        return next((each for each in self.receipts if image.id in map(each.get, keys)), {})

    # Network

    def interface(self, name: str) -> Interface | None:
        """The interface of this name."""
        return next((each for each in self.interfaces if each.name == name), None)

    def interface_of(self, address: str) -> Interface | None:
        """The interface that has this address."""
        plain = address.partition("%")[0]
        return next((each for each in self.interfaces if plain in each.addresses), None)

    @property
    def verbs(self) -> tuple[str, ...]:
        """The verbs devices of /dev/infiniband, without which no program can use RDMA."""
        return tuple(name for name in self.infiniband if name.startswith("uverbs"))

    def listens(self, port: int) -> tuple[str, ...]:
        """The addresses on which something listens on this port."""
        return tuple(dict.fromkeys(address for address, at in self.listening if at == port))

    # GPU

    @property
    def unified(self) -> bool:
        """CPU and GPU share one memory: nvidia-smi reports no size for the GPU."""
        return bool(self.gpus) and all(gpu.memory is None for gpu in self.gpus)

    @property
    def has_hook(self) -> bool:
        """The program that dockerd runs for ``--gpus`` is installed."""
        return any(path.endswith("/nvidia-container-runtime-hook") for path in self.hooks)

    @property
    def has_cdi(self) -> bool:
        """``--device nvidia.com/gpu=all`` can work: the engine lists the device, or is too old to
        list any and there is a specification."""
        if not self.docker.cdi_folders:
            return False
        if self.docker.cdi_devices:
            return CDI_GPUS in self.docker.cdi_devices
        return any(cdi.kind == CDI_GPUS.partition("=")[0] for cdi in self.cdi)

    @property
    def gpus_flag(self) -> bool:
        """``--gpus all`` can work.

        dockerd accepts it when it finds nvidia-container-runtime-hook in its PATH as it starts
        (https://github.com/moby/moby/blob/master/daemon/nvidia_linux.go); newer ones also map it
        to CDI devices, where nvidia-cdi-hook is installed.
        """
        cdi = any(path.endswith("/nvidia-cdi-hook") for path in self.hooks) and self.has_cdi
        return self.has_hook or (cdi and self.docker.numbers >= engines.CDI_FOR_GPUS)

    @property
    def gives_gpus(self) -> bool:
        """Docker can give its GPUs to a container."""
        return self.gpus_flag or self.has_cdi

    @property
    def gpu_options(self) -> tuple[str, str]:
        """The options of ``docker run`` that give a container all GPUs."""
        if self.has_cdi and not self.gpus_flag:
            return "--device", CDI_GPUS
        return "--gpus", "all"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: the machine; of the model's files their number, size and checksum."""
        model = self.model
        return {
            **{key: value for key, value in asdict(self).items() if key not in NOT_SHOWN},
            "model": {
                "state": model.state,
                "files": len(model.files),
                "size": model.size,
                "checksum": model.checksum if model.files else None,
                "lacking": model.lacking,
                "pointers": model.pointers,
            },
            "listening": sorted({port for _, port in self.listening}),
        }


DIALED = re.compile(r".*failed to open the raw stream connection: ")
"""What docker's command puts before the reason why it does not reach the engine."""
SUDO_DENIED = re.compile(r"a password is required|not allowed to execute|not in the sudoers")
NOT_SHOWN = {
    "node", "lock", "images", "content", "incomplete", "receipts", "caches", "containers",
}  # fmt: skip


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(int(number) for number in re.findall(r"[0-9]{1,9}", text)[:4])


def is_staging(tag: str) -> bool:
    """Whether an image has this name only until it is proven."""
    return tag.startswith(f"{STAGING}:") or PULLED.match(tag) is not None


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain IDs of layers, by which overlay2 knows them: of each layer and all below it.

    https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(digest_of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains
