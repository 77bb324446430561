"""The commands of the engine."""

from __future__ import annotations

from typing import Annotated

import typer

from sparkimage.cli.base import console, new_table

app = typer.Typer(help="The Docker engine to build with.", no_args_is_help=True)


@app.command("up")
def engine_up() -> None:
    """Start the private engine; the first time, fetch Debian's packages for it."""
    from sparkimage.build.engine import private
    from sparkimage.core import paths
    from sparkimage.core.process import Local

    made = private.up(paths.home(), Local(), typer.echo)
    typer.echo(f"Docker Engine {made.version} with buildx {made.buildx} answers at {made.host}")


@app.command("down")
def engine_down(
    purge: Annotated[bool, typer.Option(help="Remove its data and its packages too.")] = False,
) -> None:
    """Stop the private engine."""
    from sparkimage.build.engine import private
    from sparkimage.core import paths
    from sparkimage.core.process import Local

    private.down(paths.home(), Local(), purge)
    typer.echo("the private engine is stopped" + (" and removed" if purge else ""))


@app.command("status")
def engine_status() -> None:
    """Say which engine is used, why, and what it has."""

    from sparkimage.build.engine import private
    from sparkimage.core import paths
    from sparkimage.core.process import Local
    from sparkimage.core.units import human

    status = private.status(paths.home(), Local())
    table = new_table(header=False)
    used = status.used
    rows = {
        "engine": f"{used.version} at {used.host}" if used else "none",
        "why": status.why,
        "buildx": used.buildx if used else "",
        "image store": ("containerd" if used.containerd_store else "classic") if used else "",
        "data root": used.data_root if used else "",
        "private engine": "running" if status.running else "stopped",
        "size on disk": human(status.size_bytes),
        "free disk": human(status.free_bytes),
        "bridge": status.bridge or "",
        "emulated": ", ".join(status.platforms) or "nothing",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console().print(table, highlight=False)
