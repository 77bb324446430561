"""The commands that bring images into a registry, and look at what is there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli_base import JsonOption, console, read_matrix
from sparkimage.cli_verify import find

if TYPE_CHECKING:
    from rich.table import Table

    from sparkimage.publish import Outcome


def publish(
    variant: Annotated[
        list[str],
        typer.Argument(help="A variant; several, where they are the platforms of one image."),
    ],
    to: Annotated[str, typer.Option(metavar="REGISTRY/REPOSITORY", help="Where to.")],
    as_json: JsonOption = False,
) -> None:
    """Bring a proven image into a registry, and give it its tags when all is there."""
    from sparkimage import gate, layerindex, matrix, naming, paths
    from sparkimage import publish as publishing
    from sparkimage import verify as verifying
    from sparkimage.keys import Keyring
    from sparkimage.oci import Place, Repository
    from sparkimage.progress import View
    from sparkimage.store import Store

    read, store, keys = read_matrix(), Store.open(paths.store()), Keyring.user()
    chosen = matrix.select(read, names=variant)
    channels = publishing.channels(read, chosen)
    view = View(console(stderr=True), quiet=as_json)
    items = []
    for one in chosen:
        plan, held = find(read, store, one.name)
        gate.ask(
            store,
            held.digest,
            plan_checksum=verifying.checksum(plan, read.root),
            required=verifying.required(plan, read.root),
            name=plan.image,
            keys=keys,
        )
        with view.busy(f"measuring {plan.variant}"):
            measured = naming.measure(layerindex.image_files(store, held))
        items.append(publishing.Item(plan=plan, image=held, measured=measured))
    outcome = publishing.Publication(
        items=items,
        store=store,
        to=Repository(place=Place.parse(to), writes=True),
        view=view,
        channels=channels,
    ).run()
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), indent=1))
    else:
        console().print(_table(outcome))


def _table(outcome: Outcome) -> Table:
    from rich.table import Table

    from sparkimage.progress import clock, human

    said = "published" if outcome.changed else "nothing changed: all of it was there"
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left", show_header=False,
        title=f"{outcome.repository}@{outcome.digest}\n{said}, {clock(outcome.seconds)}",
        title_style="bold",
    )  # fmt: skip
    for tag, change in outcome.tags.items():
        mark = "=" if change == "unchanged" else "✓"
        table.add_row(f"[green]{mark}[/]", f"{outcome.repository}:{tag}", str(change))
    for platform, (digest, blobs) in outcome.platforms.items():
        table.add_row(
            "·", f"{platform} {digest[7:19]}",
            f"{blobs.uploaded} blobs sent ({human(blobs.bytes)}), {blobs.mounted} taken over, "
            f"{blobs.there} there",
        )  # fmt: skip
    for what in outcome.added:
        table.add_row("[green]+[/]", what, "")
    return table
