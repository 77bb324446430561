"""The commands of the patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.commands import Group
from sparkimage.cli.options import value
from sparkimage.core.errors import UsageError
from sparkimage.core.files import write

app = typer.Typer(
    cls=Group, help="List patches and what each one is to each variant, or export them."
)


@app.callback(invoke_without_command=True)
def patches(context: typer.Context, as_json: options.Json = False) -> None:
    """List patches and which variants apply them, or export patched files."""
    if context.invoked_subcommand is not None:
        return
    from sparkimage.config.patch_planning import PatchPlanner

    matrix = base.read_matrix()
    lock = base.read_lock(matrix)
    rows = [
        {
            "patch": one.patch,
            "variant": variant.name,
            "layer": one.layer,
            "number": one.number,
            "of": one.count,
            "pin": one.pin,
            "state": one.verdict.state,
            "reason": one.verdict.reason,
        }
        for variant in matrix.variants
        for one in PatchPlanner(matrix=matrix, variant=variant, lock=lock).states()
    ]
    if as_json:
        base.print_json(rows)
        return
    for name, patch in sorted(matrix.patches.items()):
        licence = f" ({patch.origin.licence})" if patch.origin else ""
        base.paragraph(f"[bold]{name}[/]: {base.plain(patch.purpose)}")
        base.paragraph(f"[dim]{patch.kind}: {base.plain(patch.place + licence)}[/]", indent="  ")
    if rows:
        table = base.new_table(
            "variant", "layer", "number", "patch", "of", "state", "why",
            wrap=["why"], drop=["of", "layer", "number", "patch"],
        )  # fmt: skip
        for row in rows:
            place = f"{row['number']}/{row['of']}" if row["layer"] else ""
            table.add_row(
                *(base.plain(str(text or "")) for text in (
                    row["variant"], row["layer"], place, row["patch"], row["pin"],
                    row["state"], row["reason"],
                ))
            )  # fmt: skip
        base.print_table(table)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Write the files to DIR.")],
    variant: Annotated[str | None, value("NAME", "Required if several apply patches.")] = None,
    _mirror: options.Mirror = None,
) -> None:
    """Write the patched files of a variant for `docker run -v`, to edit them without a build."""
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.config.matrix import select
    from sparkimage.resolve import fetch

    matrix = base.read_matrix()
    # What a source is built from is no file of the image.
    layers = {
        name for name, layer in matrix.layers.items() if layer.patches and layer.source is None
    }
    patched = [one for one in matrix.variants if layers & set(one.layers)]
    chosen = select(matrix, names=[variant]) if variant else tuple(patched)
    if len(chosen) != 1 or chosen[0] not in patched:
        raise UsageError(
            f"{variant} applies no patches to installed files"
            if variant
            else f"{len(patched)} variants apply patches to installed files",
            hint="pass one with --variant: " + ", ".join(one.name for one in patched),
        )
    plans = base.plans_of(matrix, chosen)
    refuse_unresolved(plans)
    context = base.resolve_context(matrix, base.say)
    files = fetch.patched(plans[0], matrix.root, context)
    folder.mkdir(parents=True, exist_ok=True)
    typer.echo("add to docker run:")
    for path, content in files.items():
        file = folder.absolute() / Path(path).name
        write(file, content)
        typer.echo(f"  -v {file}:{path}:ro")
