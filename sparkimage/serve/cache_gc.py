"""Removes the compiled caches of images that a node has no more."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparkimage.config.defaults import LABEL
from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import NodeError
from sparkimage.image.store import Store
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.refusals import last_line
from sparkimage.nodes.session import NodeSession, sessions
from sparkimage.nodes.snapshot import NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import CONTAINERS, IMAGES
from sparkimage.serve import deployments
from sparkimage.serve.cache_node import READ_S
from sparkimage.serve.command import Mount, cache_folder

FOLDER = re.compile(r"(\d+)\s+([0-9a-f]{12})")
"""A line of `du`, of the folder of an image's caches."""
LIST = 'cd "$1" 2>/dev/null && du -sk -- * 2>/dev/null || :'
REMOVE = """
cd "$1" && shift || exit 1
rm -rf -- "$@" 2>/dev/null
for folder in "$@"; do [ ! -e "$folder" ] || echo "$folder"; done
"""
"""Removes folders; those that stay, as they are another user's."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The caches that were removed from a node, or would be."""

    node: str
    folders: Mapping[str, int] = field(default_factory=dict)
    """Bytes by folder, as far as this user may read them."""
    unknown: str = ""
    """An image whose digest nobody knows: then all caches stay."""


def collect(
    fleet: Fleet, store: Store, *, patience_s: float, dry_run: bool
) -> tuple[list[Removed], Errors]:
    """Remove from every node the caches of images that it does not have. ``store`` knows more
    images than the nodes' receipts."""
    removed: list[Removed] = []
    known = {
        id: image.digest
        for image in store.images()
        for id in (image.digest, image.manifest["config"]["digest"])
    }

    def act(session: NodeSession) -> None:
        now = session.open(IMAGES, CONTAINERS)
        root = posixpath.dirname(cache_folder(now.caches, "-"))
        unknown = _unknown(now, known)
        if unknown:
            removed.append(Removed(node=session.name, unknown=unknown))
            return
        kept = _kept(now, known)
        listed = session.remote.run(["sh", "-c", LIST, "list", root], timeout_s=READ_S).stdout
        matches = [match for line in listed.splitlines() if (match := FOLDER.fullmatch(line))]
        folders = {match[2]: 1024 * int(match[1]) for match in matches if match[2] not in kept}
        if folders and not dry_run:
            _remove(session, root, list(folders))
        removed.append(Removed(node=session.name, folders=folders))

    with sessions(fleet, patience_s) as nodes:
        errors = run_on_all(nodes, act, stop=NodeSession.abandon)
    return sorted(removed, key=lambda one: fleet.names.index(one.node)), errors


def _digest(image: NodeImage, now: NodeSnapshot, known: Mapping[str, str]) -> str:
    """The digest of an image's manifest, or nothing."""
    own = image.id if now.docker.containerd else ""
    return str(now.receipt_of(image).get("digest") or known.get(image.id) or own)


def _unknown(now: NodeSnapshot, known: Mapping[str, str]) -> str:
    """An image of ours whose digest nobody knows, or nothing."""
    ours = (image for image in now.images if f"{LABEL}variant" in image.labels)
    return next((image.id for image in ours if not _digest(image, now, known)), "")


def _kept(now: NodeSnapshot, known: Mapping[str, str]) -> set[str]:
    """How the folders of the images are called that are there, or run. Raises ``NodeError``."""
    found = {member.digest for member in deployments.members(now)}
    found |= {_digest(image, now, known) for image in now.images}
    return {posixpath.basename(cache_folder("", digest)) for digest in found}


def _remove(session: NodeSession, root: str, folders: Sequence[str]) -> None:
    """Remove folders; what belongs to a server's user, as that one."""
    words = ["sh", "-c", REMOVE, "remove", root, *folders]
    left = session.remote.run(words, timeout_s=READ_S).stdout.split()
    if not left:
        return
    images = [one.id for one in session.now.images if f"{LABEL}variant" in one.labels]
    if not images:
        raise NodeError(
            f"{session.name}: {root}/{left[0]} belongs to another user",
            hint=f"{session.remote.ssh} sudo rm -r {root}/{left[0]}",
        )
    done = session.remote.run(
        [
            *session.remote.docker.split(), "run", "--rm", "--network", "none", "--user", "0",
            "--entrypoint", "rm", "--env", "LD_PRELOAD=", "--env", "NVIDIA_VISIBLE_DEVICES=void",
            "--mount", str(Mount(source=root, target="/caches")), images[0],
            "-rf", "--", *(f"/caches/{folder}" for folder in left),
        ],
        check=False, timeout_s=READ_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise NodeError(
            f"{session.name}: {root}/{left[0]} could not be removed: {last_line(done.stderr)}",
            hint=f"{session.remote.ssh} sudo rm -r {root}/{left[0]}",
        )
