"""Compiled caches travel: what a warmed-up server has compiled is saved here under its exact key,
and brought to nodes that lack it, so that no node compiles it again.

A push of a model brings the archives (``nodes.model_push``); each node then proves every file, and
puts in place what it does not have itself.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.config.inventory import Fleet
from sparkimage.config.profiles import Profile
from sparkimage.core.errors import NodeError, SparkError, StoreError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.core.units import human, plural
from sparkimage.image.store import Image
from sparkimage.nodes import ssh
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.connection import connections
from sparkimage.nodes.model_push import Push
from sparkimage.nodes.retag import lines
from sparkimage.nodes.session import NodeSession, sessions
from sparkimage.serve import cache_store
from sparkimage.serve.cache_node import CacheNode
from sparkimage.serve.cache_store import CacheStore, Key, Saved
from sparkimage.serve.command import cache_folder

NOT_COMPILING = {
    "variants", "port", "master_port", "shm_size", "restart", "chat_template", "secrets",
}  # fmt: skip
"""What a profile sets that no kernel depends on."""


def settings_of(profile: Profile) -> str:
    """The sha256 of what a profile sets, as far as kernels may depend on it."""
    fields = profile.model_dump(mode="json", exclude=NOT_COMPILING)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(kw_only=True)
class Caches:
    """The caches of one image, profile and model on the nodes of a fleet."""

    store: CacheStore
    image: Image
    variant: str
    profile_name: str
    profile: Profile
    model: str
    """Its path on the nodes."""
    view: View
    warn: Callable[[str], None]
    save: bool = False
    """Save what the server has compiled, once it is proven and warm."""
    replace: bool = False
    """Put what is brought in the place of the nodes' own."""
    patience_s: float = ssh.PATIENCE_S
    nodes: list[CacheNode] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.profile.caches)

    def look(self, sessions: Sequence[NodeSession]) -> Key:
        """See what the nodes have, in the order of their ranks; the key of the set.

        Raises ``NodeError``.
        """
        self.nodes = [self._node(rank, session) for rank, session in enumerate(sessions)]
        errors = run_on_all(self.nodes, lambda node: node.look(self.model), stop=_abandon)
        _check(errors, self.nodes, "its compiled caches cannot be read")
        models = {node.model for node in self.nodes}
        if len(models) > 1 or "" in models:
            without = [node.name for node in self.nodes if not node.model]
            raise NodeError(
                f"{self.model} has no config.json on {', '.join(without)}"
                if without
                else f"{self.model} has not the same config.json on all nodes",
                hint=f"put the model on all nodes: {program()} model push DIR",
            )
        gpus = [node.gpus for node in self.nodes]
        return Key(
            digest=self.image.digest, model=models.pop(), profile=self.profile_name,
            settings=settings_of(self.profile),
            gpus=gpus[0] if len(set(gpus)) == 1 else " | ".join(gpus),
        )  # fmt: skip

    def bring_if_saved(self, sessions: Sequence[NodeSession]) -> None:
        """Before a start: bring the set of this very key, where there is one. What cannot be
        brought is compiled by the nodes: it is only a warning."""
        if not self.names or not self.store.may_have(self.image.digest):
            return
        try:
            key = self.look(sessions)
            if (saved := self.store.find(key)) is not None:
                self.bring(saved)
            elif same_image := [one for one in self.store.all() if one.key.digest == key.digest]:
                other = " and ".join(same_image[-1].key.differences(key))
                self.view.say(f"saved caches of this image are for another {other}: not used")
        except SparkError as error:
            self.warn(f"saved caches were not copied: {error.message}\n  {error.hint}".rstrip())

    def bring(self, saved: Saved) -> list[str]:
        """Bring a set to the nodes that lack it, which ``look`` has seen; their names.

        Raises ``NodeError``, ``StoreError``; each node has all that it had, and of what was brought
        all or nothing in each folder.
        """
        source = self.store.source(saved)
        lacking = [node for node in self.nodes if self.replace or not node.has(saved)]
        lacking = self._without_own(saved, lacking)
        if not lacking:
            return []
        self.view.say(f"caches {saved.key.id} ({human(saved.size)}) to {_names(lacking)}")
        with connections([n.session.remote.node for n in lacking], self.patience_s) as remotes:
            push = Push(
                folder=lacking[0].packs(saved), source=source, remotes=remotes,
                owner=ssh.lock_owner(), view=self.view, hash=lambda: saved.manifest,
            )  # fmt: skip
            try:
                push.run()
            except NodeError as error:
                if str(source.folder) in error.message:
                    what = error.message.partition(";")[0]
                    raise StoreError(what, hint=cache_store.DAMAGED_HINT) from None
                raise
        errors = run_on_all(
            lacking, lambda node: node.unpack(saved, replace=self.replace), stop=_abandon
        )
        _check(errors, lacking, "the caches could not be put in place")
        return [node.name for node in lacking]

    def _without_own(self, saved: Saved, nodes: Sequence[CacheNode]) -> list[CacheNode]:
        """Those of these nodes that really lack files of a set; the others have compiled all of
        them, which is kept there."""
        complete: list[CacheNode] = []

        def act(node: CacheNode) -> None:
            node.make_folder()
            if not self.replace and not node.lacks(self.store.sums(saved, node.rank)):
                node.keep_record(saved)
                complete.append(node)

        errors = run_on_all(nodes, act, stop=_abandon)
        _check(errors, nodes, "its compiled caches cannot be read")
        return [node for node in nodes if node not in complete]

    def save_from(self, sessions: Sequence[NodeSession], *, unfinished: bool) -> None:
        """After a start: save what the ranks have compiled, where that is wanted. What cannot be
        saved is a warning: the server runs. ``unfinished``: it still compiles."""
        if not self.save:
            return
        try:
            if unfinished:
                raise NodeError("the warm-up did not finish", hint="give it more time: --warm-up")
            saved = self._save(self.look(sessions))
        except (SparkError, OSError) as error:
            what = error.message if isinstance(error, SparkError) else str(error)
            hint = error.hint if isinstance(error, SparkError) else ""
            self.warn(f"the caches were not saved: {what}\n  {hint}".rstrip())
            return
        self.view.say(
            f"saved caches {saved.key.id}: {plural(saved.count, 'file')}, {human(saved.size)}"
        )

    def _save(self, key: Key) -> Saved:
        hashes: dict[int, dict[str, str]] = {}

        def read(node: CacheNode) -> None:
            hashes[node.rank] = node.hashes(self.names)

        with self.view.busy("reading the compiled caches"):
            errors = run_on_all(self.nodes, read, stop=_abandon)
        _check(errors, self.nodes, "its compiled caches cannot be read")
        parts = cache_store.split([hashes[node.rank] for node in self.nodes])
        if not parts:
            raise NodeError("nothing was compiled", hint="the profile's `caches` say where")
        self.store.root.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(
                prefix=cache_store.NEW, dir=self.store.root, ignore_cleanup_errors=True
            )
            new = Path(stack.enter_context(temporary), "new")
            new.mkdir()

            def pack(node: CacheNode) -> None:
                own = [f"rank-{node.rank}", *([cache_store.SHARED] if node.rank == 0 else [])]
                for name in own:
                    if name in parts:
                        node.pack(name, parts[name], new)

            with self.view.busy("saving the compiled caches"):
                errors = run_on_all(self.nodes, pack, stop=_abandon)
            _check(errors, self.nodes, "its compiled caches cannot be read")
            saved = self.store.keep(
                new, key, variant=self.variant, model=self.model, ranks=len(self.nodes),
                by=ssh.lock_owner().partition(" ")[0],
            )  # fmt: skip
        run_on_all(self.nodes, lambda node: node.keep_record(saved), stop=_abandon)
        return saved

    def _node(self, rank: int, session: NodeSession) -> CacheNode:
        image = session.has(self.image)
        if image is None:
            raise NodeError(
                f"{session.name} does not have the image {self.image.digest[:19]}",
                hint=f"distribute it: {program()} distribute {self.variant}",
            )
        folder = cache_folder(session.now.caches, self.image.digest)
        return CacheNode(session=session, rank=rank, image=image.id, folder=folder)


def _names(nodes: Sequence[CacheNode]) -> str:
    return ", ".join(node.name for node in nodes)


def _abandon(node: CacheNode) -> None:
    node.session.abandon()


def _check(errors: Errors, nodes: Sequence[object], what: str) -> None:
    """Raises ``NodeError`` with all errors."""
    if len(nodes) == 1 and errors:
        (error,) = errors.values()
        raise error
    if errors:
        first = next(iter(errors.values()))
        raise NodeError(
            f"{len(errors)} of {plural(len(nodes), 'node')}: {what}: {first.message}",
            detail="\n".join(lines(errors)), hint=first.hint,
        )  # fmt: skip


def bring_all(
    store: CacheStore, image: Image, profiles: Mapping[str, Profile], fleet: Fleet, view: View,
    *, patience_s: float,
) -> None:  # fmt: skip
    """Bring all saved sets of an image to the nodes that lack them, those whose profile, model and
    GPU are the nodes'. Raises ``NodeError``, ``StoreError``."""
    wanted = [saved for saved in store.all() if saved.key.digest == image.digest]
    if not wanted:
        view.say("no caches of this image are saved: launch --save-caches")
    for saved in wanted:
        name = saved.key.profile
        if name not in profiles or settings_of(profiles[name]) != saved.key.settings:
            view.say(f"caches {saved.key.id} are for another profile than {name} is now: not used")
            continue
        ranks = fleet.ranks(profiles[name].nodes)
        caches = Caches(
            store=store, image=image, variant=saved.variant, profile_name=name,
            profile=profiles[name], model=saved.model, view=view, warn=view.say,
            patience_s=patience_s,
        )  # fmt: skip
        with sessions(Fleet(nodes=ranks, file=fleet.file), patience_s) as nodes:
            opened = run_on_all(nodes, _open, stop=NodeSession.abandon)
            _check(opened, nodes, "did not answer")
            key = caches.look(nodes)
            if key != saved.key:
                other = " and ".join(saved.key.differences(key))
                view.say(f"caches {saved.key.id} are for another {other}: not used")
            elif not caches.bring(saved):
                view.say(f"caches {saved.key.id} are on all nodes")


def _open(node: NodeSession) -> None:
    node.open(ssh.IMAGES, ssh.CONTAINERS, ssh.MACHINE)
