"""What a node is and has, from what ``data/node/probe.sh`` says there. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.config.inventory import Node
from sparkimage.core.arch import arch_name
from sparkimage.core.errors import EngineError, EnginePermissionError, NodeError
from sparkimage.image.store import digest_of

CONTAINERD = "io.containerd.snapshotter"
STAGING = "sparkimage-staging"
"""The repository of all names that an image has on its way."""
PULLED = re.compile(rf"127\.0\.0\.1:\d+/{STAGING}@")
"""What an image that was pulled from here has until it has a staging name."""


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


CONFIG = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell",
    "StopSignal", "User", "Volumes", "WorkingDir",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system that the engine writes to: bytes free of all."""

    at: str
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Link:
    """A network interface with its addresses; ``speed`` in Mbit/s, None where it says none."""

    name: str
    speed: int | None
    addresses: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A node at one moment."""

    user: str
    groups: tuple[str, ...]
    version: str
    containerd: bool
    arch: str
    root: str
    skew_s: float
    """Its clock minus ours, in seconds; asking takes a part of one."""
    images: tuple[NodeImage, ...]
    content: frozenset[str] | None
    """Digests of all blobs of a containerd store; None where this user may not ask."""
    begun: frozenset[str]
    """Digests of layers of which it has a part: from a pull that was broken off."""
    disks: tuple[Disk, ...]
    links: tuple[Link, ...]
    used_address: str
    """The node's own address that the commands came to."""
    receipts: tuple[Mapping[str, Any], ...]
    stopped: int
    """Containers that are there and do not run; a proof that was killed leaves one."""
    lock: str
    """``held``, ``busy: WHO``, ``none: WHY``, or nothing where it was not asked for."""

    @property
    def store(self) -> str:
        return "containerd" if self.containerd else "overlay2"

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

    @property
    def free(self) -> int:
        """Bytes free where it is tightest."""
        return min((disk.free for disk in self.disks), default=0)


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


def read(said: str, node: Node, *, now: float | None = None) -> Seen:
    """Make sense of what the script said.

    Raises ``EnginePermissionError``, ``EngineError`` or ``NodeError``, with the node's name, when
    its Docker cannot be used.
    """
    parts = parts_of(said)
    about = parts.get("node", [])
    if len(about) < 3:
        raise NodeError(
            f"{node.name}: what it said makes no sense", detail=said[:2000],
            hint="its login shell must run `sh -c` quietly",
        )  # fmt: skip
    info = _info(node, about[0], parts.get("info", []))
    content = parts.get("content", [])
    connection = about[3].split() if len(about) > 3 else []
    drivers = [str(word) for pair in info.get("DriverStatus") or () for word in pair]
    return Seen(
        user=about[0],
        groups=tuple(about[1].split()),
        version=str(info["ServerVersion"]),
        containerd=any(CONTAINERD in word for word in drivers),
        arch=arch_name(str(info["Architecture"])),
        root=str(info["DockerRootDir"]),
        skew_s=int(about[2]) - (time.time() if now is None else now),
        images=tuple(_image(json.loads(line)) for line in parts["images"] if line[:1] == "{"),
        content=frozenset(line for line in content if line.startswith("sha256:"))
        if "@whole" in content
        else None,
        begun=frozenset(re.findall(r"^layer-(sha256:\w+)", "\n".join(content), re.MULTILINE)),
        disks=_disks(parts.get("disk", []), containerd=any(CONTAINERD in w for w in drivers)),
        links=_links(parts.get("links", [])),
        used_address=connection[2] if len(connection) > 2 else "",
        receipts=tuple(_receipts(parts.get("receipts", []))),
        stopped=int(info.get("ContainersStopped") or 0),
        lock="\n".join(parts.get("lock", [])),
    )


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


def _info(node: Node, user: str, lines: list[str]) -> dict[str, Any]:
    text = "\n".join(line for line in lines if not line.startswith(("{", "@root")))
    found: dict[str, Any] = {}
    for line in lines:
        if line.startswith("{"):
            found = json.loads(line)
    errors = "\n".join(dict.fromkeys([*text.splitlines(), *(found.get("ServerErrors") or ())]))
    if found.get("ServerVersion") and found.get("DockerRootDir"):
        return found
    if re.search(r"a password is required|not allowed to execute|not in the sudoers", errors):
        raise EnginePermissionError(
            f"{node.name}: {user} may not call docker through sudo without a password",
            detail=errors,
            hint=f"there: sudo usermod -aG docker {user}, and leave out `sudo: true` of the fleet "
            "file; or a NOPASSWD rule for docker in sudoers",
        )
    if "permission denied" in errors:
        raise EnginePermissionError(
            f"{node.name}: {user} may not talk to its Docker",
            detail=errors,
            hint=f"there: sudo usermod -aG docker {user}; or `sudo: true` for this node in the "
            "fleet file, where sudo asks for no password",
        )
    if re.search(r"not found", errors) and "docker" in errors:
        raise EngineError(
            f"{node.name}: it has no docker command", detail=errors, hint="install Docker there"
        )
    raise EngineError(
        f"{node.name}: its Docker does not answer", detail=errors,
        hint="there: sudo systemctl restart docker; journalctl -u docker",
    )  # fmt: skip


def _image(said: Mapping[str, Any]) -> NodeImage:
    """What is missing in one that was made elsewhere is left empty."""
    config = said.get("Config") or {}
    config = {key: config[key] for key in CONFIG if config.get(key)}
    return NodeImage(
        id=str(said["Id"]),
        tags=(
            *(said.get("RepoTags") or ()),
            *(name for name in said.get("RepoDigests") or () if PULLED.match(name)),
        ),
        platform=f"{said.get('Os')}/{said.get('Architecture')}",
        diff_ids=tuple((said.get("RootFS") or {}).get("Layers") or ()),
        size=int(said.get("Size") or 0),
        created=str(said.get("Created") or ""),
        labels=dict(config.get("Labels", {})),
        config=config,
    )


def _disks(lines: list[str], *, containerd: bool) -> tuple[Disk, ...]:
    """Docker's own, and /var/lib/containerd where the images are kept there."""
    found = {}
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[3].isdecimal():
            found[fields[5]] = Disk(at=fields[5], free=int(fields[3]), total=int(fields[1]))
    disks = tuple(found.values())
    return disks if containerd else disks[:1]


def _links(lines: list[str]) -> tuple[Link, ...]:
    speeds: dict[str, int | None] = {}
    addresses: dict[str, list[str]] = {}
    for line in lines:
        words = line.split()
        if words[0] == "@" and len(words) == 3:
            addresses.setdefault(words[1].partition("@")[0], []).append(words[2])
        elif len(words) == 2 and words[0] != "@":
            value = int(words[1]) if re.fullmatch(r"-?\d+", words[1]) else -1
            speeds[words[0]] = value if value > 0 else None
    return tuple(
        Link(name=name, speed=speed, addresses=tuple(addresses.get(name, ())))
        for name, speed in speeds.items()
        if name != "lo"
    )


def _receipts(lines: list[str]) -> Iterable[Mapping[str, Any]]:
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            yield one


def slow(node: Node, seen: Seen) -> str | None:
    """What to say when the layers would go over a slower interface than the node has."""

    def of(address: str) -> Link | None:
        return next((link for link in seen.links if address in link.addresses), None)

    def usable(address: str) -> bool:
        found = ipaddress.ip_address(address.partition("%")[0])
        return not found.is_link_local and not found.is_loopback

    used = of(node.data or seen.used_address)
    if used is None or used.speed is None:
        return None
    better = [
        (link.speed, link.name, address)
        for link in seen.links
        for address in link.addresses
        if link.speed is not None and link.speed > used.speed and usable(address)
    ]
    if not better:
        return None
    speed, name, address = max(better)
    return (
        f"{node.name}: layers go over {used.name} ({used.speed} Mbit/s), but {name} has "
        f"{speed} Mbit/s: set `data: {address}` in the fleet file"
    )
