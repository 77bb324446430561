"""The command that lists the compiled caches that were saved."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import value
from sparkimage.core.progress import waiting
from sparkimage.core.units import human

if TYPE_CHECKING:
    from sparkimage.nodes.session import NodeSession


def caches(
    nodes: Annotated[
        str, value("FILE|NAMES", "Show which of these nodes have them; default: none.")
    ] = "",
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """List the compiled caches that `launch --save-caches` saved."""
    from sparkimage.nodes.concurrent import run_on_all
    from sparkimage.nodes.session import NodeSession, sessions
    from sparkimage.nodes.ssh import CONTAINERS
    from sparkimage.serve.cache_node import CacheNode
    from sparkimage.serve.cache_store import CacheStore
    from sparkimage.serve.command import cache_folder

    saved = CacheStore.of(base.open_store()).all()
    fleet = base.read_fleet(nodes) if nodes else None
    found: dict[str, list[str]] = {one.key.id: [] for one in saved}
    errors = {}

    def look(session: NodeSession) -> None:
        now = session.open(CONTAINERS)
        for one in saved:
            folder = cache_folder(now.caches, one.key.digest)
            node = CacheNode(session=session, rank=0, image="", folder=folder)
            node.look(one.model)
            if node.has(one):
                found[one.key.id].append(session.name)

    if fleet is not None:
        with sessions(fleet, patience) as all_, waiting("looking at the nodes"):
            errors = run_on_all(all_, look, stop=NodeSession.abandon)
    rows, facts = [], []
    for one in saved:
        names = [name for name in fleet.names if name in found[one.key.id]] if fleet else None
        rows.append((one, names))
        fact = {"id": one.key.id, **asdict(one.key), **asdict(one)}
        for left_out in ("key", "entries", "settings"):
            del fact[left_out]
        facts.append({**fact, **({"nodes": names} if names is not None else {})})
    table = base.new_table(
        "caches", "saved (UTC)", "variant", "profile", "model", "GPU", "size",
        *(["nodes"] if fleet else []), right=["size"], wrap=["nodes"],
        drop=["GPU", "saved (UTC)", "profile", "model"],
    )  # fmt: skip
    for one, names in rows:
        cells = [
            one.key.id, base.date(one.when), one.variant, one.key.profile, one.model,
            one.key.gpus, human(one.size),
        ]  # fmt: skip
        table.add_row(*map(base.plain, cells), *([", ".join(names)] if names is not None else []))
    if not saved and not as_json:
        typer.echo("no caches are saved here: launch --save-caches")
        return
    base.print_result(facts, table, as_json=as_json)
    if errors and fleet is not None:
        raise base.unreachable(errors, len(fleet.nodes))
