"""The commands of the patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparkimage.cli.base import (
    JsonOption,
    MirrorOption,
    console,
    new_table,
    plans_of,
    print_json,
    read_lock,
    read_matrix,
    resolve_context,
    say,
    use_mirrors,
)
from sparkimage.core.errors import UsageError
from sparkimage.core.files import write

app = typer.Typer(help="Patches: what each one is to each variant.")


@app.callback(invoke_without_command=True)
def patches(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the patches, and what each one is to each variant of a fork."""
    if context.invoked_subcommand is not None:
        return
    from rich.markup import escape

    from sparkimage.config import planning

    read = read_matrix()
    held = read_lock(read)
    rows = [
        {"patch": name, "variant": variant.name, "state": verdict.state, "reason": verdict.reason}
        for variant in read.variants
        for name, verdict in planning.judge_patches(read, variant, held).items()
    ]
    if as_json:
        print_json(rows)
        return
    terminal = console()
    for name, patch in sorted(read.patches.items()):
        address, commit, path = patch.place
        where = f"{path} of {address} at {commit[:12]}" if commit else f"patches/{path}"
        licence = f" ({patch.origin.licence})" if patch.origin else ""
        terminal.print(f"[bold]{name}[/]: {escape(patch.purpose)}", highlight=False)
        terminal.print(f"  [dim]{patch.kind}: {escape(where + licence)}[/]", highlight=False)
        table = new_table("  variant", "state", "why")
        for row in rows:
            if row["patch"] == name:
                table.add_row(f"  {row['variant']}", row["state"], escape(row["reason"]))
        terminal.print(table)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where the files are written.")],
    variant: Annotated[
        str | None, typer.Option(help="The variant; needed when several apply patches.")
    ] = None,
    mirror: MirrorOption = None,
) -> None:
    """Write the patched files of a variant where `docker run -v` can take them.

    So that a patch can be changed live, without a build.
    """
    from sparkimage.build.preflight import refuse_unresolved
    from sparkimage.config.matrix import select
    from sparkimage.resolve import fetch as inputs

    use_mirrors(mirror)
    read = read_matrix()
    applying = [
        one for one in read.variants if any(read.layers[layer].patches for layer in one.layers)
    ]
    chosen = select(read, names=[variant]) if variant else tuple(applying)
    if len(chosen) != 1 or chosen[0] not in applying:
        raise UsageError(
            f"{variant or 'the matrix'} has {len(applying) if not variant else 'no'} "
            "variants with patches",
            hint="name one with --variant: " + ", ".join(one.name for one in applying),
        )
    plans = plans_of(read, chosen)
    refuse_unresolved(plans)
    reached = resolve_context(read, say)
    mounts = []
    for path, content in inputs.patched(plans[0], read.root, reached).items():
        made = folder.absolute() / Path(path).name
        made.parent.mkdir(parents=True, exist_ok=True)
        write(made, content)
        mounts.append(f"-v {made}:{path}:ro")
    typer.echo("written; give these to docker run:")
    for mount in mounts:
        typer.echo(f"  {mount}")
