"""The commands that work on the nodes of a fleet."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli.base import (
    AllowOption,
    JsonOption,
    console,
    new_table,
    print_json,
    project_folder,
    read_fleet,
    read_matrix,
    resolve_context,
    say,
)
from sparkimage.cli.verify import Reference, tiers_of, to_ship
from sparkimage.core.errors import NodeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from sparkimage.config.matrix import Matrix
    from sparkimage.image.store import Image
    from sparkimage.nodes.distribute import Outcome
    from sparkimage.nodes.maintenance import NodeView
    from sparkimage.verify.plan_record import PlanRecord

NODES = "fleet.yaml"
NodesOption = Annotated[
    str,
    typer.Option(
        "--nodes",
        metavar="FILE|NAMES",
        help="A fleet.yaml, or names that ssh knows, with commas between them.",
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        min=1,
        help="Without any progress for so long, a node counts as hung.",
    ),
]
PartialOption = Annotated[
    bool,
    typer.Option("--partial", help="Go on with the nodes that can: leaves a MIXED fleet."),
]


def distribute(
    reference: Reference,
    nodes: NodesOption = NODES,
    partial: PartialOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the nodes and say what would be sent.")
    ] = False,
    relay: Annotated[
        bool,
        typer.Option(
            "--relay",
            help="Nodes pass layers on to each other: they must reach each other by ssh.",
        ),
    ] = False,
    via: Annotated[
        str,
        typer.Option(
            metavar="REGISTRY/REPOSITORY",
            help="The nodes pull it from there, by digest; nothing is sent from here.",
        ),
    ] = "",
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --via: the publisher's public key (PEM); default: $SPARKIMAGE_PUBLIC_KEY.",
        ),
    ] = None,
    prove: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Run these tiers on every node before the name moves: run,node."
        ),
    ] = "",
    step: Annotated[
        int,
        typer.Option(
            metavar="MB",
            min=1,
            help="A node keeps what has arrived after so many: a lost connection costs no more.",
        ),
    ] = 512,
    allow_unverified: AllowOption = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Bring a proven image to every node, or to none: only the layers that each one lacks."""
    from sparkimage.nodes import ssh

    if key is not None and not via:
        raise UsageError("--key is of what a registry holds", hint="give --via, too")
    folder = project_folder()
    fleet = read_fleet(nodes)
    with ExitStack() as stack, ssh.remotes(fleet.nodes, patience) as remotes:
        # Even what is imported below takes as long as the nodes take to answer.
        owner = ssh.lock_owner()
        for one in remotes:
            one.begin(one.snapshot(ssh.IMAGES, lock=not dry_run, owner=owner))

        from sparkimage.core import paths
        from sparkimage.core.progress import View
        from sparkimage.image.store import Store
        from sparkimage.nodes import receipts
        from sparkimage.nodes.distribute import Distribution

        store = Store.open(paths.store())
        view = View(console(stderr=True), quiet=as_json)
        stack.enter_context(store.in_use(view.say))
        record, held, decision = to_ship(store, reference, allow_unverified=allow_unverified)
        examine = None
        if prove:
            from sparkimage.nodes.examine import examiner

            examine = examiner(record, held, folder, store, tiers_of(prove))
        if via:
            _ask_the_registry(via, key, record, held, allow_unverified=allow_unverified)
        distribution = Distribution(
            image=held,
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
            for warning in distribution.warned():
                typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(outcome.to_dict())
    else:
        console().print(_outcome_table(outcome))
    if outcome.failed:
        raise NodeError(
            f"MIXED FLEET, as --partial allows: {', '.join(n.name for n in outcome.failed)} did "
            f"not get {outcome.name}",
            detail="\n".join(
                f"✗ {one.error.message}" for one in outcome.failed if one.error is not None
            ),
            hint="fix these nodes and run the same command again, without --partial",
        )


def _ask_the_registry(
    via: str,
    key: str | None,
    record: PlanRecord,
    held: Image,
    *,
    allow_unverified: bool,
) -> None:
    """See, before any node pulls, that what is there is this image, signed and proven."""
    from sparkimage.core.errors import NetworkError, PublishedError, RegistryError
    from sparkimage.registry import remote
    from sparkimage.registry.cosign import Trust
    from sparkimage.registry.tools import Tools

    key = key or os.environ.get("SPARKIMAGE_PUBLIC_KEY")
    tools = Tools(outside=resolve_context(None, say))
    trust = Trust(tools=tools) if allow_unverified and not key else Trust.of(key, None, None, tools)
    try:
        remote.verify(
            f"{via}@{held.digest}",
            trust,
            lambda _: record.required,
            digest=held.digest,
            lock=record.plan.lock_checksum,
        )
    except (NetworkError, PublishedError, RegistryError) as error:
        # The nodes may well reach what this machine does not.
        if not allow_unverified:
            raise
        typer.echo(f"WARNING: pulled UNVERIFIED from {via}: {error.message}", err=True)


def _outcome_table(outcome: Outcome) -> Table:

    from sparkimage.core.units import clock, human

    marks = {"moved": "[green]✓[/]", "unchanged": "[green]=[/]", "failed": "[red]✗[/]"}
    planned = any(one.state == "planned" for one in outcome.nodes)
    sent_column = "to send" if planned else "sent"
    table = new_table(
        "", "node", "state", sent_column, "layers", right=[sent_column],
        title=f"{outcome.name} ({outcome.digest[7:19]}), {clock(outcome.seconds)}",
    )  # fmt: skip
    for one in outcome.nodes:
        sent = f"from {one.source}" if one.source else human(one.sent)
        came = "to come" if one.state == "planned" else "came"
        layers = f"{one.layers_sent} {came}, {one.layers_kept} were there"
        if one.state == "failed":
            sent = layers = ""
        table.add_row(marks.get(one.state, "·"), one.name, one.state, sent, layers)
    return table


def nodes(
    variant: Annotated[
        str | None, typer.Argument(help="A variant, or a name of an image; none: all of ours.")
    ] = None,
    nodes: NodesOption = NODES,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show who has what, and whether it is the same everywhere (exit code 15 when it is not)."""
    from sparkimage.core import paths
    from sparkimage.core.errors import MixedFleetError
    from sparkimage.image.store import Store
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.retag import PREVIOUS

    read = read_matrix()
    name = _image_name(read, variant) if variant is not None else None
    views = maintenance.look(
        read_fleet(nodes), Store.open(paths.store()), repository=read.repository,
        only=name, patience_s=patience,
    )  # fmt: skip
    differ = maintenance.differing(views)
    if as_json:
        print_json([view.to_dict() for view in views])
    else:
        console().print(_nodes_table(views))
        if maintenance.names(views):
            console().print("", _images_table(views, differ), sep="\n")
    errors = {view.name: view.error for view in views if view.error is not None}
    if errors:
        from sparkimage.nodes.retag import lines

        raise NodeError(
            f"could not reach {len(errors)} of {len(views)} nodes"
            + (f"; not the same on the others: {', '.join(differ)}" if differ else ""),
            detail="\n".join(lines(errors)),
        )
    # A node that came later has no former image: no reason for an alarm.
    alarming = [name for name in differ if not name.endswith(PREVIOUS)]
    if alarming:
        raise MixedFleetError(
            f"not the same on all nodes: {', '.join(alarming)}",
            hint="bring it everywhere: python build.py distribute VARIANT",
        )


def rollback(
    variant: Annotated[str, typer.Argument(help="A variant, or a name of an image.")],
    nodes: NodesOption = NODES,
    partial: PartialOption = False,
    patience: PatienceOption = 60.0,
) -> None:
    """Go back to the former image, on every node or on none."""
    from sparkimage.core.progress import View
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.retag import lines
    from sparkimage.nodes.ssh import lock_owner

    read, view = read_matrix(), View(console(stderr=True))
    fleet, name = read_fleet(nodes), _image_name(read, variant)
    errors = maintenance.rollback(
        fleet, name, owner=lock_owner(), patience_s=patience, partial=partial, say=view.say
    )
    well = [node for node in fleet.names if node not in errors]
    typer.echo(f"{name} is its former image again on {', '.join(well)}")
    if errors:
        raise NodeError(
            f"MIXED FLEET, as --partial allows: {', '.join(errors)} not rolled back",
            detail="\n".join(lines(errors)),
        )


def gc(
    nodes: NodesOption = NODES,
    keep: Annotated[
        int, typer.Option(min=1, help="Images that stay of each variant, the newest ones.")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Remove old images and what broken runs left from the nodes.

    Never what a container uses, and never what has a name, such as the former image.
    """
    from sparkimage.core.units import human
    from sparkimage.nodes import maintenance
    from sparkimage.nodes.retag import lines
    from sparkimage.nodes.ssh import lock_owner

    came, errors = maintenance.collect(
        read_fleet(nodes),
        keep=keep,
        owner=lock_owner(),
        patience_s=patience,
        dry_run=dry_run,
    )
    if as_json:
        print_json([one.to_dict() for one in came])
    for one in came if not as_json else ():
        what = "would set free at most" if dry_run else "set free"
        typer.echo(f"{one.node}: {what} {human(one.freed)}")
        verb = "would remove" if dry_run else "removed"
        for line in (*(f"{verb} {gone}" for gone in one.removed), *(f"kept {k}" for k in one.kept)):
            typer.echo(f"  {line}")
    if errors:
        raise NodeError(
            f"{len(errors)} of {len(came) + len(errors)} nodes failed",
            detail="\n".join(lines(errors)),
        )


def receipts(
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes",
            metavar="FILE|NAMES",
            help="Those that are kept on these nodes, by whomever they were brought; "
            "none: those that are kept here.",
        ),
    ] = "",
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """List what was brought where, when, by whom, and what was proven.

    "arrival": layers, config and platform are those that were sent, and a container can be made
    of them.
    """
    from sparkimage.core import paths
    from sparkimage.nodes import maintenance
    from sparkimage.nodes import receipts as keeping
    from sparkimage.nodes.retag import lines

    if nodes:
        found, errors = maintenance.receipts(read_fleet(nodes), patience_s=patience)
    else:
        found, errors = keeping.kept(paths.home() / keeping.FOLDER), {}
    if as_json:
        print_json(found)
    elif found:
        console().print(_receipts_table(found))
    else:
        typer.echo("no image was brought anywhere" + (" there" if nodes else " from here"))
    if errors:
        raise NodeError(f"could not reach {len(errors)} nodes", detail="\n".join(lines(errors)))


def _receipts_table(found: Sequence[Mapping[str, Any]]) -> Table:
    from rich.markup import escape

    from sparkimage.nodes import receipts as keeping
    from sparkimage.nodes.distribute import PROVEN

    table = new_table(
        "when (UTC)", "image", "digest", "seal", "proven there", "on",
        whole=["when (UTC)", "image", "digest"],
    )  # fmt: skip
    for one, on in keeping.grouped(found):
        seal, proven = one.get("seal"), list(one.get("proven") or ())
        if set(PROVEN) <= set(proven):
            proven = ["arrival", *(word for word in proven if word not in PROVEN)]
        table.add_row(
            escape(str(one["when"]).replace("T", " ")[:16]), escape(str(one["name"])),
            escape(str(one["digest"])[7:19]),
            escape(f"{seal['result']} {'+'.join(seal['tiers'])}")
            if seal
            else "[red]UNVERIFIED[/]",
            escape("+".join(proven)), escape(", ".join(on)),
        )  # fmt: skip
    return table


def _image_name(read: Matrix, given: str) -> str:
    """The image's name of a variant; what is a name already stays one."""
    from sparkimage.config import validation

    names = [variant.name for variant in read.variants]
    if given.startswith(f"{read.repository}:"):
        return given
    if given not in names:
        raise UsageError(f"no variant is called {given!r}", hint=validation.nearest(given, names))
    return f"{read.repository}:{given}"


def _nodes_table(views: Sequence[NodeView]) -> Table:

    from sparkimage.core.units import human

    columns = ("", "node", "docker", "store", "arch", "free disk", "our images")
    table = new_table(*columns, right=["free disk"])
    for view in views:
        seen = view.snapshot
        if seen is None:
            table.add_row("[red]✗[/]", view.name, "", "", "", "", "[red]unreachable[/]")
            continue
        count = str(len(view.images)) if view.images else "[dim]none[/]"
        table.add_row(
            "", view.name, seen.docker.version, seen.docker.store, seen.arch,
            human(view.free), count,
        )  # fmt: skip
    return table


def _images_table(views: Sequence[NodeView], differ: Sequence[str]) -> Table:
    """Each name with every image that it stands for, and on which nodes."""

    from sparkimage.nodes import maintenance

    asked = [view.name for view in views if view.error is None]
    columns = ("", "image", "digest", "since (UTC)", "on")
    table = new_table(*columns, whole=["digest", "since (UTC)"])
    for name in maintenance.names(views):
        mark, label = "[red]≠[/]" if name in differ else "[green]=[/]", name
        for one in maintenance.tag_states(views, name):
            digest = (
                "[yellow]none[/]"
                if one.identity is None
                else one.digest[7:19]
                if one.digest
                else f"[dim]({one.identity})[/]"
            )
            where = ", ".join(one.nodes)
            if list(one.nodes) == asked:
                those = "nodes" if len(asked) == len(views) else "that were asked"
                where = f"all {len(asked)} {those}" if len(asked) > 1 else where
            since = (one.when or "").replace("T", " ")[:16]
            table.add_row(mark, label, digest, since, where)
            mark = label = ""
    return table
