"""The images that nodes have: listing them, back to the previous one, removing old ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.config.defaults import LABEL
from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import NodeError
from sparkimage.core.program import program
from sparkimage.image.store import Store
from sparkimage.nodes import receipts as local_receipts
from sparkimage.nodes import refusals
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.engine_api import RefusedError
from sparkimage.nodes.refusals import Act
from sparkimage.nodes.retag import FIX, PREVIOUS, FleetUpdate, Retag
from sparkimage.nodes.session import NodeReport, NodeSession, sessions, survey
from sparkimage.nodes.snapshot import STAGING, NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import IMAGES


@dataclass(frozen=True, kw_only=True)
class TaggedImage:
    """The image that a name refers to on a node."""

    name: str
    identity: str
    """Equal where the images are: platform, config and layers."""
    digest: str | None
    """The manifest's, where our store or a receipt knows the image."""
    when: str | None
    """When it was distributed, by the node's receipt."""


@dataclass(frozen=True, kw_only=True)
class NodeView(NodeReport):
    """A node as the table shows it."""

    images: tuple[TaggedImage, ...] = ()

    @property
    def free(self) -> int:
        """Free bytes on the fullest disk."""
        disks = self.snapshot.image_disks if self.snapshot is not None else ()
        return min((disk.free for disk in disks), default=0)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        snapshot = self.snapshot
        return {
            "node": self.name,
            "error": self.error.message if self.error is not None else None,
            "docker": snapshot.docker.version if snapshot is not None else None,
            "store": snapshot.docker.store if snapshot is not None else None,
            "arch": snapshot.arch if snapshot is not None else None,
            "free": self.free if snapshot is not None else None,
            "images": [asdict(image) for image in self.images],
        }


@dataclass(frozen=True, kw_only=True)
class TagState:
    """An image that a name refers to, and the nodes where it does; without an identity: the nodes
    that lack the name."""

    identity: str | None
    digest: str | None
    when: str | None
    """When it was last distributed to one of them."""
    nodes: tuple[str, ...]


def names(views: Sequence[NodeView]) -> list[str]:
    """All names of images on these nodes."""
    return sorted({image.name for view in views for image in view.images})


def tag_states(views: Sequence[NodeView], name: str) -> list[TagState]:
    """The images that a name refers to on the nodes that answered, the most frequent first."""
    groups: dict[str | None, list[tuple[str, TaggedImage | None]]] = {}
    for view in views:
        if view.error is None:
            image = next((image for image in view.images if image.name == name), None)
            identity = image.identity if image is not None else None
            groups.setdefault(identity, []).append((view.name, image))
    states = [
        TagState(
            identity=identity,
            digest=next((image.digest for _, image in group if image and image.digest), None),
            when=max((image.when for _, image in group if image and image.when), default=None),
            nodes=tuple(node for node, _ in group),
        )
        for identity, group in groups.items()
    ]
    return sorted(states, key=lambda state: (state.identity is None, -len(state.nodes)))


def differing(views: Sequence[NodeView]) -> list[str]:
    """The names that do not refer to the same image on all nodes."""
    return [name for name in names(views) if len(tag_states(views, name)) > 1]


def look(
    fleet: Fleet,
    store: Store,
    *,
    only: str | None,
    patience_s: float,
    also: Callable[[NodeSession], None] = lambda _session: None,
) -> tuple[NodeView, ...]:
    """Every node with our images, or (``only``) those of one name and its previous one, and what
    ``also`` looks at. A node that failed has an ``error``.

    Ours are the names in the repositories of this machine's store and of the nodes' receipts, and
    those of an image that has the labels of one, where it has no such name.
    """
    reports = survey(fleet, IMAGES, patience_s=patience_s, also=also)
    # An engine's id is one or the other.
    digests = {
        id: image.digest
        for image in store.images()
        for id in (image.digest, image.manifest["config"]["digest"])
    }

    shown = None if only is None else (only, only + PREVIOUS)
    seen = [report.snapshot for report in reports if report.snapshot is not None]
    given = [str(receipt.get("name")) for node in seen for receipt in node.receipts]
    repositories = {name.rpartition(":")[0] for name in (*store.names(), *given)}

    def ours(image: NodeImage) -> list[str]:
        known = [tag for tag in image.tags if tag.rpartition(":")[0] in repositories]
        labelled = f"{LABEL}variant" in image.labels
        return known or [tag for tag in image.tags if labelled and STAGING not in tag]

    def tagged(snapshot: NodeSnapshot) -> Iterator[TaggedImage]:
        for image in snapshot.images:
            digest = digests.get(image.id) or snapshot.receipt_of(image).get("digest")
            when = snapshot.receipt(digest).get("when")
            for tag in ours(image):
                if shown is None or tag in shown:
                    yield TaggedImage(
                        name=tag, identity=image.identity,
                        digest=str(digest) if digest else None,
                        when=str(when) if when is not None else None,
                    )  # fmt: skip

    return tuple(
        NodeView(
            node=report.node, snapshot=report.snapshot, error=report.error,
            images=tuple(sorted(tagged(report.snapshot), key=lambda image: image.name))
            if report.snapshot is not None
            else (),
        )
        for report in reports
    )  # fmt: skip


def receipts(fleet: Fleet, *, patience_s: float) -> tuple[list[Mapping[str, Any]], Errors]:
    """The receipts that lie on the nodes, the oldest first, and the errors of nodes that failed."""
    reports = survey(fleet, IMAGES, patience_s=patience_s)
    receipts = [
        # The node may have had another name when the receipt was written.
        {**receipt, "node": report.name}
        for report in reports
        for receipt in (report.snapshot.receipts if report.snapshot is not None else ())
        if local_receipts.is_receipt(receipt)
    ]
    errors = {report.name: report.error for report in reports if report.error is not None}
    return sorted(receipts, key=lambda receipt: str(receipt.get("when"))), errors


def rollback(
    fleet: Fleet,
    name: str,
    *,
    owner: str,
    patience_s: float,
    partial: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Errors:
    """Let ``name`` refer to its previous image again, on every node or on none.

    The image that had the name becomes the previous one. ``say`` gets a line about each phase.
    Returns the errors that ``partial`` allows.
    Raises ``NodeError`` when no name was moved, or all were moved back.
    """
    previous = name + PREVIOUS

    def prepare(session: NodeSession) -> None:
        session.open(IMAGES, lock=True, owner=owner)
        session.target = session.now.id_of(previous)
        if not session.target:
            raise NodeError(
                f"{session.name}: it has no {previous}",
                hint=f"distribute the image that you want: {program()} distribute DIGEST",
            )
        session.create(session.target)

    with sessions(fleet, patience_s) as nodes:
        update = FleetUpdate(name=name, sessions=nodes, partial=partial, say=say)
        update.look(prepare, "no name was moved", FIX)
        images = [session.now.by_id(session.target) for session in update.ready]
        if len({image.identity for image in images if image is not None}) > 1 and not partial:
            raise NodeError(
                f"{previous} is not the same image on all nodes; no name was moved",
                hint=f"see which: {program()} nodes; distribute the one that you want",
            )
        update.move([Retag(session=session, tag=name) for session in update.ready])
        update.check("the move was undone", FIX)
    return update.errors


CLEAN_S = 600.0
"""Seconds that a node may take to remove images: those of 25 GB have many files."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The images that were removed from a node, or would be."""

    node: str
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Those that its engine did not remove, with its reason."""
    freed: int = 0
    """Bytes that its disks gained; in a dry run, the most that they can."""


def plan_removal(snapshot: NodeSnapshot, keep: int) -> list[str]:
    """Staging names, and our untagged images but the newest: ``keep`` of each variant stay, tagged
    ones included. Tagged images always stay. Pure."""
    staging = snapshot.staged()
    tagged: dict[str, int] = {}
    untagged: dict[str, list[NodeImage]] = {}
    for image in snapshot.images:
        variant = image.labels.get(f"{LABEL}variant")
        if variant is None or (image.tags and set(image.tags) <= set(staging)):
            continue
        if image.tags:
            tagged[variant] = tagged.get(variant, 0) + 1
        else:
            untagged.setdefault(variant, []).append(image)
    old = []
    for variant, images in untagged.items():
        images.sort(
            key=lambda image: str(snapshot.receipt_of(image).get("when") or image.created),
            reverse=True,
        )
        old += [image.id for image in images[max(0, keep - tagged.get(variant, 0)) :]]
    return staging + old


def collect(
    fleet: Fleet, *, keep: int, owner: str, patience_s: float, dry_run: bool = False
) -> tuple[tuple[Removal, ...], Errors]:
    """Remove from every node what ``plan_removal`` says; never what a container uses."""
    removals: dict[str, Removal] = {}

    def clean(session: NodeSession) -> None:
        session.open(IMAGES, lock=not dry_run, owner=owner)
        references = plan_removal(session.now, keep)
        if dry_run:
            with session.refused(Act.RUN):
                sizes = {image["Id"]: image["Size"] for image in session.remote.engine.images()}
            removals[session.name] = Removal(
                node=session.name, removed=tuple(references),
                freed=_at_most(session.now, references, sizes),
            )  # fmt: skip
            return
        kept = _remove(session, references)
        removals[session.name] = Removal(
            node=session.name,
            removed=tuple(reference for reference in references if reference not in kept),
            kept=tuple(f"{reference} {why}" for reference, why in kept.items()),
            freed=max(0, _free(session.look()) - _free(session.now)),
        )

    with sessions(fleet, patience_s) as nodes:
        errors = run_on_all(nodes, clean, stop=NodeSession.abandon)
    return tuple(removals[name] for name in fleet.names if name in removals), errors


def _remove(session: NodeSession, references: Sequence[str]) -> dict[str, str]:
    """Remove these images, what killed proofs left, and the receipts of images that are gone; why
    the engine kept some. Raises ``NodeError``."""
    engine, kept = session.remote.engine, {}
    with session.refused(Act.RUN):
        session.remove_proofs()
        for reference in references:
            try:
                engine.ask("DELETE", f"/images/{reference}", limit_s=CLEAN_S)
            except RefusedError as error:
                kept[reference] = refusals.last_line(str(error))
        ids = {image["Id"] for image in engine.images()}
    gone = [
        local_receipts.file_of(receipt)
        for receipt in session.now.receipts
        if re.fullmatch(r"sha256:[0-9a-f]{64}", str(receipt.get("digest")))
        and ids.isdisjoint((receipt["digest"], receipt.get("config")))
    ]
    if gone:
        session.remote.run(["sh", "-c", local_receipts.FORGET, "forget", *gone], check=False)
    return kept


def _free(snapshot: NodeSnapshot) -> int:
    """Free bytes of its image disks; two folders may be on one, under two mount points."""
    return sum({(disk.device, disk.total): disk.free for disk in snapshot.image_disks}.values())


def _at_most(snapshot: NodeSnapshot, references: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Bytes of the images that would be removed; layers that others share would stay."""
    return sum(
        max(image.size, sizes.get(image.id, 0))
        for image in snapshot.images
        if image.id in references or (image.tags and set(image.tags) <= set(references))
    )
