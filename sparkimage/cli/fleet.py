"""The commands that bring images to the nodes of a fleet, and show and clean up what is there."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli import base, complete, options
from sparkimage.cli.options import flag, value
from sparkimage.cli.references import image_name
from sparkimage.cli.verify import tiers_of, to_ship
from sparkimage.core import paths
from sparkimage.core.errors import (
    MixedFleetError,
    NetworkError,
    PublishedError,
    RegistryError,
    UsageError,
)
from sparkimage.core.program import program
from sparkimage.core.progress import waiting
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sparkimage.core.tables import Table
    from sparkimage.image.store import Image
    from sparkimage.nodes.distribute import Outcome
    from sparkimage.nodes.maintenance import NodeView
    from sparkimage.nodes.session import NodeSession
    from sparkimage.verify.plan_record import PlanRecord

MARKS = {"moved": base.OK, "unchanged": base.SAME, "failed": base.FAILED}


def distribute(
    reference: options.Reference,
    nodes: options.Nodes = options.FLEET_FILE,
    partial: options.Partial = False,
    dry_run: Annotated[bool, flag("--dry-run", "Only show what would be sent.")] = False,
    relay: Annotated[bool, flag("--relay", "Nodes pass layers on to each other by ssh.")] = False,
    via: Annotated[str, value("REGISTRY/REPOSITORY", "Nodes pull from there, by digest.")] = "",
    key: Annotated[
        str | None, value("FILE", "With --via: the trusted public key (or $SPARKIMAGE_PUBLIC_KEY).")
    ] = None,
    prove: Annotated[str, value("LIST", "Run these tiers on each node first: run,node.")] = "",
    step: Annotated[int, value("MB", "A retry resends at most MB.", min=1)] = 512,
    with_caches: Annotated[
        bool, flag("--with-caches", "Copy what `launch --save-caches` saved, too.")
    ] = False,
    allow_unverified: options.AllowUnverified = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Send a verified image to all nodes or to none; only the layers that a node lacks."""
    from sparkimage.nodes import ssh
    from sparkimage.nodes.connection import begun

    if key is not None and not via:
        raise UsageError("--key needs --via", hint="pass --via REGISTRY/REPOSITORY, or drop --key")
    fleet = base.read_fleet(nodes)
    owner = ssh.lock_owner()
    with ExitStack() as stack:
        remotes = stack.enter_context(
            begun(fleet.nodes, patience, ssh.IMAGES, lock=not dry_run, owner=owner)
        )
        from sparkimage.nodes import receipts
        from sparkimage.nodes.distribute import Distribution

        store, view = base.open_store(), base.new_view(quiet=as_json)
        stack.enter_context(store.in_use(view.say))
        record, image, decision = to_ship(store, reference, allow_unverified=allow_unverified)
        examine = None
        if prove:
            from sparkimage.nodes.examine import examiner

            examine = examiner(record, image, base.project_folder(), store, tiers_of(prove))
        if via:
            _verify_in_registry(via, key, record, image, allow_unverified=allow_unverified)
        distribution = Distribution(
            image=image,
            name=record.plan.image,
            decision=decision,
            store=store,
            remotes=remotes,
            owner=owner,
            view=view,
            partial=partial,
            dry_run=dry_run,
            relay=relay,
            via=via,
            step=step * 1_000_000,
            examine=examine,
            receipts_folder=paths.home() / receipts.FOLDER,
        )
        try:
            outcome = distribution.run()
        finally:
            for warning in distribution.update.warned():
                base.warn(warning)
    base.print_result(outcome.to_dict(), _outcome_table(outcome), as_json=as_json)
    if outcome.failed:
        raise base.node_error(
            f"MIXED FLEET (--partial): {', '.join(one.node for one in outcome.failed)} did "
            f"not get {outcome.name}",
            {one.node: one.error for one in outcome.failed if one.error is not None},
            hint="fix these nodes and run the same command again without --partial",
        )
    if with_caches and not dry_run:
        from sparkimage.serve import caches
        from sparkimage.serve.cache_store import CacheStore

        caches.bring_all(
            CacheStore.of(store), image, dict(base.read_matrix().profiles), fleet, view,
            patience_s=patience,
        )  # fmt: skip


def _verify_in_registry(
    via: str, key: str | None, record: PlanRecord, image: Image, *, allow_unverified: bool
) -> None:
    """Verify, before any node pulls, that the registry has this image, signed and sealed."""
    from sparkimage.registry import remote
    from sparkimage.registry.cosign import Trust

    key = key or os.environ.get("SPARKIMAGE_PUBLIC_KEY")
    tools = base.registry_tools()
    trust = Trust(tools=tools) if allow_unverified and not key else Trust.of(key, None, None, tools)
    try:
        remote.verify(
            f"{via}@{image.digest}",
            trust,
            lambda _: record.required,
            digest=image.digest,
            lock=record.plan.lock_checksum,
        )
    except (NetworkError, PublishedError, RegistryError) as error:
        # The nodes may reach a registry that this machine does not.
        if not allow_unverified:
            raise
        base.warn_loudly(f"WARNING: pulling UNVERIFIED from {via}: {error.message}")


def _outcome_table(outcome: Outcome) -> Table:
    planned = any(node.state == "planned" for node in outcome.nodes)
    sent = "to send" if planned else "sent"
    table = base.new_table(
        "", "node", "state", sent, "layers", right=[sent], wrap=["layers"],
        title=f"{outcome.name} ({base.short(outcome.digest)}), {clock(outcome.seconds)}",
    )  # fmt: skip
    for one in outcome.nodes:
        cells = [MARKS.get(one.state, "·"), one.node, one.state]
        if one.state != "failed":
            cells += [
                f"from {one.source}" if one.source else human(one.sent),
                f"{one.layers_sent} {sent}, {one.layers_kept} present",
            ]
        table.add_row(*cells)
    return table


def nodes(
    variant: Annotated[
        str | None,
        typer.Argument(
            help="A variant or an image name; default: all our images.",
            autocompletion=complete.references,
        ),
    ] = None,
    nodes: options.Nodes = options.FLEET_FILE,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Show which images and pushed models the nodes have (exit code 15 if they differ)."""
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.retag import PREVIOUS

    store = base.open_store()
    pushed = base.pushed_models() if variant is None else []

    def compare(session: NodeSession) -> None:
        for comparison in pushed:
            comparison.look(session)

    fleet = base.read_fleet(nodes)
    with waiting("looking at the nodes"):
        views = maintenance.look(
            fleet, store, only=image_name(store, variant) if variant is not None else None,
            patience_s=patience, also=compare,
        )  # fmt: skip
    differing = maintenance.differing(views)
    tables = [_nodes_table(views)]
    if maintenance.names(views):
        tables.append(_images_table(views, differing))
    found = {one.model.folder: [*one.found.values()] for one in pushed if one.found}
    if found:
        from sparkimage.cli.model import models_table

        models = [one.model for one in pushed if one.found]
        tables.append(models_table(models, found))
    facts = [
        {
            **view.to_dict(),
            "models": {
                folder: list(one.differences)
                for folder, ones in found.items()
                for one in ones
                if one.node == view.name
            },
        }
        for view in views
    ]
    base.print_result(facts, *tables, as_json=as_json)
    differing += [path for path, ones in found.items() if any(one.differences for one in ones)]
    errors = {view.name: view.error for view in views if view.error is not None}
    if errors:
        others = f"; the others differ: {', '.join(differing)}" if differing else ""
        raise base.unreachable(errors, len(views), others)
    # A node that joined later has no previous image, which is no reason for an alarm.
    alarming = [name for name in differing if not name.endswith(PREVIOUS)]
    if alarming:
        raise MixedFleetError(
            f"nodes differ: {', '.join(alarming)}",
            hint=f"{program()} distribute VARIANT, or model push DIR",
        )


def rollback(
    variant: Annotated[
        str,
        typer.Argument(help="A variant or an image name.", autocompletion=complete.references),
    ],
    nodes: options.Nodes = options.FLEET_FILE,
    partial: options.Partial = False,
    patience: options.Patience = 60,
) -> None:
    """Tag the previous image again, on all nodes or on none."""
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.ssh import lock_owner

    fleet, name = base.read_fleet(nodes), image_name(base.open_store(), variant)
    errors = maintenance.rollback(
        fleet, name, owner=lock_owner(), patience_s=patience, partial=partial,
        say=base.new_view().say,
    )  # fmt: skip
    done = [node for node in fleet.names if node not in errors]
    typer.echo(f"{name} rolled back on {', '.join(done)}")
    if errors:
        raise base.node_error(
            f"MIXED FLEET (--partial): {', '.join(errors)} not rolled back", errors
        )


def gc(
    nodes: options.Nodes = options.FLEET_FILE,
    keep: Annotated[int, value("N", "Keep the N newest images of each variant.", min=1)] = 2,
    dry_run: Annotated[bool, flag("--dry-run", "Only show what would be removed.")] = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Remove old images, their compiled caches and what failed runs left from the nodes.

    Images that a container uses, and tagged ones such as the previous image, stay.
    """
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.ssh import lock_owner
    from sparkimage.serve import cache_gc

    fleet = base.read_fleet(nodes)
    with waiting("looking for what can be removed" if dry_run else "removing"):
        results, errors = maintenance.collect(
            fleet, keep=keep, owner=lock_owner(), patience_s=patience, dry_run=dry_run
        )
        removed, failed = cache_gc.collect(
            fleet, base.open_store(), patience_s=patience, dry_run=dry_run
        )
    caches = {one.node: one for one in removed}
    errors = {**failed, **errors}
    if as_json:
        base.print_json(
            [
                {
                    **vars(result),
                    "caches": dict(caches[result.node].folders) if result.node in caches else None,
                }
                for result in results
            ]
        )
    else:
        frees, removes = ("would free up to", "would remove") if dry_run else ("freed", "removed")
        for result in results:
            typer.echo(f"{result.node}: {frees} {human(result.freed)}")
            for image in result.removed:
                typer.echo(f"  {removes} {image}")
            for image in result.kept:
                typer.echo(f"  kept {image}")
            if result.node in caches:
                for folder, size in caches[result.node].folders.items():
                    typer.echo(f"  {removes} compiled caches of {folder} ({human(size)})")
                if unknown := caches[result.node].unknown:
                    typer.echo(f"  kept all compiled caches: which image is {unknown[:19]}?")
    if errors:
        total = len(results) + len(errors)
        raise base.unreachable(errors, total)


def receipts(
    nodes: Annotated[str, value("FILE|NAMES", "Of these nodes; default: this machine.")] = "",
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """List what was distributed where, when and by whom, and what was verified there.

    "arrival": the node has the layers, config and platform that were sent, and can create a
    container of the image.
    """
    from sparkimage.nodes import maintenance
    from sparkimage.nodes import receipts as files

    fleet = base.read_fleet(nodes) if nodes else None
    if fleet is not None:
        with waiting("looking at the nodes"):
            found, errors = maintenance.receipts(fleet, patience_s=patience)
    else:
        found, errors = files.kept(paths.home() / files.FOLDER), {}
    if as_json:
        base.print_json(found)
    elif found:
        base.print_table(_receipts_table(found))
    elif fleet is None or len(errors) < len(fleet.nodes):
        where = "this machine" if fleet is None else "the nodes" + " that answered" * bool(errors)
        typer.echo(f"no receipts on {where}")
    if fleet is not None and errors:
        raise base.unreachable(errors, len(fleet.nodes))


def _receipts_table(receipts: Sequence[Mapping[str, Any]]) -> Table:
    from sparkimage.nodes.distribute import PROVEN
    from sparkimage.nodes.receipts import grouped

    table = base.new_table(
        "when (UTC)", "image", "digest", "seal", "verified there", "nodes",
        wrap=["verified there", "nodes"], drop=["verified there", "seal"],
    )  # fmt: skip
    for receipt, names in grouped(receipts):
        seal, proven = receipt.get("seal"), list(receipt.get("proven") or ())
        if set(PROVEN) <= set(proven):
            proven = ["arrival", *(tier for tier in proven if tier not in PROVEN)]
        result = f"{seal['result']} {'+'.join(seal['tiers'])}" if seal else "UNVERIFIED"
        cells = [
            base.date(str(receipt["when"])), receipt["name"], base.short(str(receipt["digest"])),
            result, "+".join(proven), ", ".join(names),
        ]  # fmt: skip
        table.add_row(*map(base.plain, cells), style="" if seal else "red")
    return table


def _nodes_table(views: Sequence[NodeView]) -> Table:
    columns = ("", "node", "docker", "store", "arch", "free disk", "our images")
    table = base.new_table(*columns, right=["free disk"], drop=["arch", "store"])
    for view in views:
        node = view.snapshot
        if node is None:
            table.add_row(base.FAILED, view.name, *[""] * 4, "[red]unreachable[/]")
            continue
        table.add_row(
            "", view.name, node.docker.version, node.docker.store, node.arch, human(view.free),
            str(len(view.images)) if view.images else "[dim]none[/]",
        )  # fmt: skip
    return table


def _images_table(views: Sequence[NodeView], differing: Sequence[str]) -> Table:
    """Each name with all images that it stands for, and on which nodes."""
    from sparkimage.nodes import maintenance

    reached = [view.name for view in views if view.error is None]
    everywhere = f"all {len(reached)} {'nodes' if len(reached) == len(views) else 'reachable'}"
    columns = ("", "image", "digest", "since (UTC)", "nodes")
    table = base.new_table(*columns, wrap=["nodes"], drop=["since (UTC)"])
    for name in maintenance.names(views):
        mark, label = "[red]≠[/]" if name in differing else base.SAME, name
        for state in maintenance.tag_states(views, name):
            if state.identity is None:
                digest = "[yellow]none[/]"
            else:
                digest = base.short(state.digest or "") or f"[dim]({state.identity})[/]"
            same = len(reached) > 1 and list(state.nodes) == reached
            nodes = everywhere if same else ", ".join(state.nodes)
            table.add_row(mark, label, digest, base.date(state.when or ""), nodes)
            mark = label = ""
    return table
