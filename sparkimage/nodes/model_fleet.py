"""What the nodes of a fleet have of the models that were pushed: looks, proves again, cleans up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import SparkError
from sparkimage.core.progress import View
from sparkimage.core.units import plural
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.model_manifest import Manifest
from sparkimage.nodes.model_node import ModelNode
from sparkimage.nodes.model_plan import FolderState, differences
from sparkimage.nodes.model_store import Model
from sparkimage.nodes.session import NodeSession, sessions


@dataclass(frozen=True, kw_only=True)
class NodeModel:
    """A model on a node, or why nothing is known of it."""

    node: str
    state: FolderState | None = None
    differences: tuple[str, ...] = ()
    error: SparkError | None = None


Act = Callable[[ModelNode, Model], NodeModel]
Found = dict[str, list[NodeModel]]
"""The nodes in their order, by the path of the model."""


def _on_all(
    fleet: Fleet, models: Sequence[Model], act: Act, *, owner: str, patience_s: float
) -> Found:
    """What ``act`` finds of each model on each node; with ``owner`` the nodes are locked."""
    found: dict[tuple[str, str], NodeModel] = {}

    def run(session: NodeSession) -> None:
        session.open(lock=bool(owner), owner=owner)
        for model in models:
            node = ModelNode(session=session, folder=model.folder)
            node.look()
            found[model.folder, node.name] = act(node, model)

    with sessions(fleet, patience_s) as nodes:
        errors = run_on_all(nodes, run, stop=NodeSession.abandon)
    return {
        model.folder: [
            found.get((model.folder, name), NodeModel(node=name, error=errors.get(name)))
            for name in fleet.names
        ]
        for model in models
    }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model as it was pushed, and how that on each node differs."""

    model: Model
    found: dict[str, NodeModel] = field(default_factory=dict)
    """By node, of those that it was pushed to."""

    @property
    def differences(self) -> Mapping[str, Sequence[str]] | None:
        """By node; None where nothing was pushed to any of the nodes."""
        return {name: one.differences for name, one in self.found.items()} or None

    def look(self, session: NodeSession) -> None:
        """Compare on a connected node, by its record there. Raises ``NodeError``."""
        if session.name in self.model.nodes:
            node = ModelNode(session=session, folder=self.model.folder)
            node.look()
            self.found[node.name] = _inspect(node, self.model.manifest)


def _inspect(node: ModelNode, manifest: Manifest) -> NodeModel:
    return NodeModel(
        node=node.name, state=node.now, differences=tuple(differences(manifest, node.now))
    )


def status(fleet: Fleet, models: Sequence[Model], *, patience_s: float) -> Found:
    """The models on every node, by the records there: what has changed since it was proven
    differs."""
    return _on_all(
        fleet, models, lambda node, model: _inspect(node, model.manifest),
        owner="", patience_s=patience_s,
    )  # fmt: skip


def verify(
    fleet: Fleet, models: Sequence[Model], view: View, *, owner: str, patience_s: float
) -> Found:
    """Hash all files of the models on every node. What differs has no record any more, so that the
    next push sends it again."""
    title = f"hashing on {plural(len(fleet.nodes), 'node')}"
    with view.board(fleet.names, title) as board:

        def act(node: ModelNode, model: Model) -> NodeModel:
            node.seen = replace(node.now, known={})
            board.total(node.name, node.unhashed(model.manifest))
            board.state(node.name, f"hashing {model.folder}")
            node.hash(model.manifest, lambda count: board.moved(node.name, count))
            result = _inspect(node, model.manifest)
            if result.differences:
                node.call("distrust")
                board.state(node.name, "failed")
            else:
                node.record(model.manifest)
                board.state(node.name, "proven")
            return result

        return _on_all(fleet, models, act, owner=owner, patience_s=patience_s)


@dataclass(frozen=True, kw_only=True)
class Freed:
    """What was removed from a node, in bytes, or would be."""

    node: str
    folder: str
    freed: int


def collect(
    fleet: Fleet, folders: Sequence[str], *, owner: str, patience_s: float, dry_run: bool
) -> tuple[list[Freed], Errors]:
    """Remove what failed pushes of these folders left, and the folders before them."""
    freed: list[Freed] = []

    def act(session: NodeSession) -> None:
        session.open(lock=not dry_run, owner=owner)
        for folder in folders:
            node = ModelNode(session=session, folder=folder)
            done = node.call("collect", *(["dry"] if dry_run else []))
            (line,) = done.stdout.splitlines()
            freed.append(Freed(node=node.name, folder=folder, freed=1024 * int(line.split()[-1])))

    with sessions(fleet, patience_s) as nodes:
        errors = run_on_all(nodes, act, stop=NodeSession.abandon)
    return sorted(freed, key=lambda one: (fleet.names.index(one.node), one.folder)), errors
