"""What is done with images that are on the nodes already: who has what, back to the former one,
and away with the old ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.config.inventory import Fleet
from sparkimage.config.plan import LABEL
from sparkimage.core.errors import NodeError
from sparkimage.image.store import Store
from sparkimage.nodes import receipts as keeping
from sparkimage.nodes import retag, snapshot
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.retag import PREVIOUS, Retag
from sparkimage.nodes.session import NodeReport, NodeSession, sessions, survey
from sparkimage.nodes.snapshot import NodeImage, NodeSnapshot
from sparkimage.nodes.ssh import IMAGES


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a name stands for on a node."""

    name: str
    identity: str
    """What is equal where the images are: platform, config and layers."""
    digest: str | None
    """The manifest's, where our store or a receipt knows the image."""
    when: str | None
    """When it was brought there, by the node's receipt."""


@dataclass(frozen=True, kw_only=True)
class NodeView(NodeReport):
    """A node as the table shows it."""

    images: tuple[Held, ...] = ()

    @property
    def free(self) -> int:
        """Bytes free where it is tightest."""
        disks = self.snapshot.image_disks if self.snapshot is not None else ()
        return min((disk.free for disk in disks), default=0)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        seen = self.snapshot
        return {
            "node": self.name,
            "error": self.error.message if self.error is not None else None,
            "docker": seen.docker.version if seen is not None else None,
            "store": seen.docker.store if seen is not None else None,
            "arch": seen.arch if seen is not None else None,
            "free": self.free if seen is not None else None,
            "images": [asdict(held) for held in self.images],
        }


@dataclass(frozen=True, kw_only=True)
class TagState:
    """An image that a name stands for, and where; without an identity: where for none."""

    identity: str | None
    digest: str | None
    when: str | None
    """The last time that it was brought to one of them."""
    nodes: tuple[str, ...]


def names(views: Sequence[NodeView]) -> list[str]:
    """All names that stand for something somewhere."""
    return sorted({held.name for view in views for held in view.images})


def tag_states(views: Sequence[NodeView], name: str) -> list[TagState]:
    """What a name stands for on the nodes that could be asked, the commonest first."""
    groups: dict[str | None, list[tuple[str, Held | None]]] = {}
    for view in views:
        if view.error is None:
            held = next((one for one in view.images if one.name == name), None)
            identity = held.identity if held is not None else None
            groups.setdefault(identity, []).append((view.name, held))
    found = [
        TagState(
            identity=identity,
            digest=next((held.digest for _, held in group if held and held.digest), None),
            when=max((held.when for _, held in group if held and held.when), default=None),
            nodes=tuple(node for node, _ in group),
        )
        for identity, group in groups.items()
    ]
    return sorted(found, key=lambda one: (one.identity is None, -len(one.nodes)))


def differing(views: Sequence[NodeView]) -> list[str]:
    """The names that do not stand for one and the same image on all nodes."""
    return [name for name in names(views) if len(tag_states(views, name)) > 1]


def look(
    fleet: Fleet, store: Store, *, repository: str, only: str | None, patience_s: float
) -> tuple[NodeView, ...]:
    """Every node with its images of the repository, or (``only``) those of one name and its
    former one. Errors stand with their nodes."""
    reports = survey(fleet, IMAGES, patience_s=patience_s)
    # By what either store calls them.
    digests = {
        id: one.digest
        for one in store.images()
        for id in (one.digest, one.manifest["config"]["digest"])
    }

    def images(snapshot: NodeSnapshot | None) -> Iterator[Held]:
        for held in _held(snapshot, repository, digests) if snapshot is not None else ():
            if only is None or held.name in (only, only + PREVIOUS):
                yield held

    return tuple(
        NodeView(
            node=one.node, snapshot=one.snapshot, error=one.error,
            images=tuple(images(one.snapshot)),
        )
        for one in reports
    )  # fmt: skip


def _held(snapshot: NodeSnapshot, repository: str, digests: Mapping[str, str]) -> tuple[Held, ...]:
    found = []
    for image in snapshot.images:
        for tag in image.tags:
            if tag.startswith(f"{repository}:"):
                known = snapshot.receipt_of(image).get("digest")
                digest = digests.get(image.id) or (str(known) if known else None)
                when = snapshot.receipt(digest).get("when")
                found.append(
                    Held(
                        name=tag, identity=image.identity, digest=digest,
                        when=str(when) if when is not None else None,
                    )
                )  # fmt: skip
    return tuple(sorted(found, key=lambda held: held.name))


def receipts(fleet: Fleet, *, patience_s: float) -> tuple[list[Mapping[str, Any]], Errors]:
    """What the nodes keep of it themselves, the oldest first. Errors stand with their nodes."""
    reports = survey(fleet, IMAGES, patience_s=patience_s)
    found = [
        # The name may have been another one when it was brought.
        {**receipt, "node": one.name}
        for one in reports
        for receipt in (one.snapshot.receipts if one.snapshot is not None else ())
        if keeping.is_one(receipt)
    ]
    errors = {one.name: one.error for one in reports if one.error is not None}
    return sorted(found, key=lambda one: str(one.get("when"))), errors


# Back


def rollback(
    fleet: Fleet,
    name: str,
    *,
    owner: str,
    patience_s: float,
    partial: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Errors:
    """Let ``name`` stand for its former image again, on every node or on none.

    The one that it stood for becomes the former one. ``say`` takes a line about what begins now.
    Returns the errors that ``partial`` allows.
    Raises ``NodeError`` when nothing was moved, or all was moved back.
    """
    previous = name + PREVIOUS
    with sessions(fleet, patience_s) as all_:

        def prepare(session: NodeSession) -> None:
            session.open(IMAGES, lock=True, owner=owner)
            former = session.now.by_tag(previous)
            if former is None:
                raise NodeError(
                    f"{session.name}: it has no {previous}",
                    hint="distribute the image that you want: python build.py distribute DIGEST",
                )
            session.call("prove", former.id)
            session.target = former.id

        say(f"looking at {retag.nodes(all_)}")
        errors = run_on_all(all_, prepare, stop=NodeSession.abandon)
        ready = [one for one in all_ if one.name not in errors]
        formers = [one.now.by_id(one.target) for one in ready]
        if len({one.identity for one in formers if one is not None}) > 1 and not partial:
            raise NodeError(
                f"{previous} is not the same image on all nodes; nothing was moved",
                hint="see which: python build.py nodes; distribute the one that you want",
            )
        again = "correct it and run the same command again"
        retag.decide(name, len(all_), errors, "no name was moved", partial=partial, again=again)
        moves = []
        for one in ready:
            named = one.now.by_tag(name)
            now = named.id if named is not None else ""
            moves.append(
                Retag(
                    session=one, name=name, previous=previous, target=one.target, former=now,
                    before=one.target,
                )
            )  # fmt: skip
        retag.move(moves, errors, partial=partial, say=say)
        retag.decide(
            name, len(all_), errors, "what was moved has been moved back", partial=partial,
            again=again,
        )  # fmt: skip
    return errors


# Away


CLEAN_S = 600.0
"""Seconds that a node may take to remove images: those of 25 GB have many files."""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed from a node, what its engine kept, and the bytes that its disk gained."""

    node: str
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    freed: int = 0
    """Bytes that its disks have gained; when nothing was to be done yet, the most they can."""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def plan_removal(seen: NodeSnapshot, keep: int) -> list[str]:
    """What a node can do without: staging names, and our nameless images beyond ``keep`` newest.

    Of each variant the newest ``keep`` stay, those with a name counted; what has a name stays in
    any case. Pure.
    """
    staging = [tag for image in seen.images for tag in image.tags if snapshot.is_staging(tag)]
    named: dict[str, int] = {}
    nameless: dict[str, list[NodeImage]] = {}
    for image in seen.images:
        variant = image.labels.get(f"{LABEL}variant")
        if variant is None or (all(tag in staging for tag in image.tags) and image.tags):
            continue
        if image.tags:
            named[variant] = named.get(variant, 0) + 1
        else:
            nameless.setdefault(variant, []).append(image)
    old = []
    for variant, images in nameless.items():
        images.sort(
            key=lambda image: str(seen.receipt_of(image).get("when") or image.created),
            reverse=True,
        )
        old += [image.id for image in images[max(0, keep - named.get(variant, 0)) :]]
    return staging + old


def collect(
    fleet: Fleet, *, keep: int, owner: str, patience_s: float, dry_run: bool = False
) -> tuple[tuple[Collected, ...], Errors]:
    """Remove from every node what it can do without; never what a container uses."""
    came: dict[str, Collected] = {}

    def one(session: NodeSession) -> None:
        session.open(IMAGES, lock=not dry_run, owner=owner)
        wanted = plan_removal(session.now, keep)
        if dry_run:
            words = [*session.remote.docker.split(), *SIZES]
            sizes = read_sizes(session.remote.run(words).stdout)
            came[session.name] = Collected(
                node=session.name, removed=tuple(wanted), freed=_at_most(session.now, wanted, sizes)
            )
            return
        done = session.clean(wanted, timeout_s=CLEAN_S)
        said = done.stdout.splitlines()
        if "@@ free after" not in said:
            raise session.refusal(done.returncode, done.stdout + done.stderr)
        came[session.name] = Collected(
            node=session.name,
            removed=tuple(line[11:] for line in said if line.startswith("@@ removed ")),
            kept=tuple(line[8:] for line in said if line.startswith("@@ kept ")),
            freed=max(0, _free(said, "after") - _free(said, "before")),
        )

    with sessions(fleet, patience_s) as all_:
        errors = run_on_all(all_, one, stop=NodeSession.abandon)
    return tuple(came[one.name] for one in all_ if one.name in came), errors


def _free(said: Sequence[str], when: str) -> int:
    """What the disks had free then, as ``df`` has it."""
    disks = {}
    for line in said[said.index(f"@@ free {when}") + 1 :]:
        fields = line.split()
        if len(fields) < 6 or not fields[3].isdecimal():
            break
        # Two folders may be on one disk, under two mount points.
        disks[fields[0], fields[1]] = int(fields[3])
    return sum(disks.values())


SIZES = ("image", "ls", "--all", "--no-trunc", "--format", "{{.ID}} {{.Size}}")
"""Asks docker for what ``image inspect`` leaves out in containerd's store: the unpacked files."""
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def read_sizes(said: str) -> dict[str, int]:
    """Bytes of each image by its id, rounded as docker says them. Pure."""
    found = {}
    for line in said.splitlines():
        match = re.fullmatch(r"(sha256:[0-9a-f]{64}) ([0-9.]+)([kMGT]?B)", line.strip())
        if match:
            found[match[1]] = round(float(match[2]) * UNITS[match[3]])
    return found


def _at_most(seen: NodeSnapshot, references: Sequence[str], sizes: Mapping[str, int]) -> int:
    """The size of the images that would be gone; what others share of it stays."""
    return sum(
        max(image.size, sizes.get(image.id, 0))
        for image in seen.images
        if image.id in references or (image.tags and set(image.tags) <= set(references))
    )
