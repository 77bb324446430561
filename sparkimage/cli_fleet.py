"""The commands that work on the nodes of a fleet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli_base import AllowOption, JsonOption, console, read_matrix
from sparkimage.cli_verify import Reference, find, tiers_of
from sparkimage.errors import NodeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sparkimage.distribute import Outcome
    from sparkimage.gate import Required
    from sparkimage.keys import Keyring
    from sparkimage.matrix import Matrix
    from sparkimage.plan import Plan
    from sparkimage.store import Image
    from sparkimage.upkeep import NodeView

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
    nodes: NodesOption = "fleet.yaml",
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
            help="With --via: the publisher's public key (PEM); default: the keys whose seals are "
            "believed here.",
        ),
    ] = None,
    prove: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Run these tiers on every node before the name moves: run,node."
        ),
    ] = "",
    allow_unverified: AllowOption = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Bring a proven image to every node, or to none: only the layers that each one lacks."""
    from sparkimage import fleet as fleets
    from sparkimage import gate, paths, receipts
    from sparkimage import verify as verifying
    from sparkimage.distribute import Distribution, Options
    from sparkimage.examine import examiner
    from sparkimage.keys import Keyring
    from sparkimage.progress import View
    from sparkimage.store import Store

    read, store, keys = read_matrix(), Store.open(paths.store()), Keyring.user()
    fleet = fleets.read(nodes, read.root)
    plan, held = find(read, store, reference)
    passage = gate.ask(
        store,
        held.digest,
        plan_checksum=verifying.checksum(plan, read.root),
        required=verifying.required(plan, read.root),
        allow_unverified=allow_unverified,
        name=plan.image,
        keys=keys,
    )
    if key is not None and not via:
        raise UsageError("--key is of what a registry holds", hint="give --via, too")
    if via:
        _ask_the_registry(via, key, plan, held, verifying.required(plan, read.root), keys,
                          allow_unverified=allow_unverified)  # fmt: skip
    outcome = Distribution(
        image=held,
        name=plan.image,
        passage=passage,
        store=store,
        fleet=fleet,
        view=View(console(stderr=True), quiet=as_json),
        options=Options(
            partial=partial, patience_s=patience, dry_run=dry_run, relay=relay, via=via
        ),
        examine=examiner(plan, held, read.root, store, keys, tiers_of(prove)) if prove else None,
        receipts_folder=paths.home() / receipts.FOLDER,
    ).run()
    for warning in outcome.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), indent=1))
    else:
        console().print(_outcome_table(outcome))
    if outcome.failed:
        raise NodeError(
            f"MIXED FLEET, as --partial allows: {', '.join(n.name for n in outcome.failed)} did "
            f"not get {outcome.name}",
            detail="\n".join(
                f"✗ {one.error.message}" for one in outcome.failed if one.error is not None
            ),
            hint="mend these nodes and run the same command again, without --partial",
        )


def _ask_the_registry(
    via: str,
    key: str | None,
    plan: Plan,
    held: Image,
    required: Required,
    keys: Keyring,
    *,
    allow_unverified: bool,
) -> None:
    """See, before any node pulls, that what is there is this image, signed and proven."""
    from sparkimage import published, signing
    from sparkimage.errors import PublishedError

    try:
        published.verify(
            f"{via}@{held.digest}",
            signing.trusted(key, keys),
            lambda _: required,
            digest=held.digest,
            lock=plan.lock_checksum,
        )
    except PublishedError as error:
        if not allow_unverified:
            raise
        typer.echo(f"WARNING: pulled UNVERIFIED from {via}: {error.message}", err=True)


def _outcome_table(outcome: Outcome) -> Table:
    from rich.table import Table

    from sparkimage.progress import clock, human

    marks = {"moved": "[green]✓[/]", "unchanged": "[green]=[/]", "failed": "[red]✗[/]"}
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left",
        title=f"{outcome.name} ({outcome.digest[7:19]}), {clock(outcome.seconds)}",
        title_style="bold",
    )  # fmt: skip
    for column in ("", "node", "state", "sent", "layers"):
        table.add_column(column, justify="right" if column == "sent" else "left")
    for one in outcome.nodes:
        verb = "to send" if one.state == "planned" else "sent"
        table.add_row(
            marks.get(one.state, "·"), one.name, one.state, human(one.sent),
            f"{one.layers_sent} {verb}, {one.layers_kept} there",
        )  # fmt: skip
    return table


def nodes(
    variant: Annotated[
        str | None, typer.Argument(help="A variant, or a name of an image; none: all of ours.")
    ] = None,
    nodes: NodesOption = "fleet.yaml",
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show who has what, and whether it is the same everywhere (exit code 15 when it is not)."""
    from sparkimage import fleet as fleets
    from sparkimage import paths, upkeep
    from sparkimage.errors import MixedFleetError
    from sparkimage.store import Store

    read = read_matrix()
    name = _image_name(read, variant) if variant is not None else None
    views = upkeep.look(
        fleets.read(nodes, read.root), Store.open(paths.store()), repository=read.repository,
        only=name, patience_s=patience,
    )  # fmt: skip
    differ = upkeep.differing(views)
    if as_json:
        typer.echo(json.dumps([view.to_dict() for view in views], indent=1))
    else:
        console().print(_nodes_table(views, differ))
    errors = {view.name: view.error for view in views if view.error is not None}
    if errors:
        from sparkimage.moving import lines

        raise NodeError(
            f"{len(errors)} of {len(views)} nodes cannot be asked", detail="\n".join(lines(errors))
        )
    if differ:
        raise MixedFleetError(
            f"not the same on all nodes: {', '.join(differ)}",
            hint="bring it everywhere: python build.py distribute VARIANT",
        )


def rollback(
    variant: Annotated[str, typer.Argument(help="A variant, or a name of an image.")],
    nodes: NodesOption = "fleet.yaml",
    partial: PartialOption = False,
    patience: PatienceOption = 60.0,
) -> None:
    """Go back to the former image, on every node or on none."""
    from sparkimage import fleet as fleets
    from sparkimage import upkeep
    from sparkimage.distribute import who
    from sparkimage.moving import lines

    read = read_matrix()
    fleet, name = fleets.read(nodes, read.root), _image_name(read, variant)
    errors = upkeep.rollback(fleet, name, who=who(), patience_s=patience, partial=partial)
    well = [node for node in fleet.names if node not in errors]
    typer.echo(f"{name} is its former image again on {', '.join(well)}")
    if errors:
        raise NodeError(
            f"MIXED FLEET, as --partial allows: {', '.join(errors)} not rolled back",
            detail="\n".join(lines(errors)),
        )


def gc(
    nodes: NodesOption = "fleet.yaml",
    keep: Annotated[
        int, typer.Option(min=1, help="Images that stay of each variant, the newest ones.")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    patience: PatienceOption = 60.0,
) -> None:
    """Remove old images and what broken runs left from the nodes.

    Never what a container uses, and never what has a name, such as the former image.
    """
    from sparkimage import fleet as fleets
    from sparkimage import upkeep
    from sparkimage.distribute import who
    from sparkimage.moving import lines

    read = read_matrix()
    came, errors = upkeep.collect(
        fleets.read(nodes, read.root), keep=keep, who=who(), patience_s=patience, dry_run=dry_run
    )
    for one in came:
        verb = "would remove" if dry_run else "removed"
        typer.echo(f"{one.node}: {verb} {len(one.removed)}" + (", kept:" if one.kept else ""))
        for line in (*one.removed, *(f"kept {kept}" for kept in one.kept)):
            typer.echo(f"  {line}")
    if errors:
        raise NodeError(f"{len(errors)} nodes failed", detail="\n".join(lines(errors)))


def receipts(as_json: JsonOption = False) -> None:
    """List what was brought where from this machine, when, and what was proven."""
    from rich.table import Table

    from sparkimage import paths
    from sparkimage import receipts as keeping

    found = keeping.kept(paths.home() / keeping.FOLDER)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("when", "node", "name", "digest", "proven there", "seal"):
        table.add_column(column, overflow="fold")
    for one in found:
        seal = one.get("seal")
        table.add_row(
            str(one["when"]), str(one["node"]), str(one["name"]), str(one["digest"])[7:19],
            ", ".join(one.get("proven") or ()),
            f"{seal['result']} {'+'.join(seal['tiers'])}" if seal else "UNVERIFIED",
        )  # fmt: skip
    console().print(table)


def _image_name(read: Matrix, given: str) -> str:
    """The image's name of a variant; what is a name already stays one."""
    from sparkimage import wellformed

    names = [variant.name for variant in read.variants]
    if given.startswith(f"{read.repository}:"):
        return given
    if given not in names:
        raise UsageError(f"no variant is called {given!r}", hint=wellformed.nearest(given, names))
    return f"{read.repository}:{given}"


def _nodes_table(views: Sequence[NodeView], differ: Sequence[str]) -> Table:
    from rich.table import Table

    from sparkimage.progress import human

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("node", "docker", "store", "free", "image", "digest", "since", ""):
        table.add_column(column, overflow="fold", no_wrap=column in ("node", "docker", "store"))
    for view in views:
        if view.seen is None:
            table.add_row(view.name, "[red]✗[/]", "", "", "[red]cannot be asked[/]", "", "", "")
            continue
        about = (view.name, view.seen.version, view.seen.store, human(view.seen.free))
        if not view.images:
            table.add_row(*about, "[dim]none of ours[/]", "", "", "")
        for held in view.images:
            mark = "[red]≠[/]" if held.name in differ else "[green]=[/]"
            digest = held.digest[7:19] if held.digest else f"[dim]({held.identity})[/]"
            table.add_row(*about, held.name, digest, held.when or "", mark)
            about = ("", "", "", "")
    return table
