"""The commands of the private engine."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.commands import Group
from sparkimage.cli.options import flag
from sparkimage.core import paths
from sparkimage.core.process import Local
from sparkimage.core.program import program
from sparkimage.core.units import human

app = typer.Typer(
    cls=Group, help="Start, stop or inspect the private Docker Engine.", no_args_is_help=True
)


@app.command("up")
def up() -> None:
    """Start the private engine; the first start downloads Debian's packages."""
    from sparkimage.build.engine import private

    engine = private.up(paths.home(), Local(), typer.echo)
    typer.echo(f"Docker Engine {engine.version} with buildx {engine.buildx} is up at {engine.host}")


@app.command("down")
def down(
    purge: Annotated[bool, flag("--purge", "Delete its data and packages, too.")] = False,
) -> None:
    """Stop the private engine."""
    from sparkimage.build.engine import private

    private.down(paths.home(), Local(), purge)
    typer.echo(f"private engine stopped{' and removed' * purge}")


@app.command("env")
def env() -> None:
    """Print what a shell needs to use the private engine by `docker`.

    Example: `eval "$(sparkimage engine env)"`
    """
    from sparkimage.build.engine import engine

    used = engine.find(paths.home(), Local())
    if not used.private:
        typer.echo(f"# nothing to set: the engine is your own, at {used.host}")
        return
    for name, value in used.environment.items():
        if name == "PATH":
            typer.echo(f'export PATH={shlex.quote(str(used.bin))}:"$PATH"')
        else:
            typer.echo(f"export {name}={shlex.quote(value)}")
    if sys.stdout.isatty():
        base.say(f'run: eval "$({program()} engine env)"')


@app.command("status")
def status(as_json: options.Json = False) -> None:
    """Show which engine is used, why, and what it can do."""
    from sparkimage.build.engine import private

    engine = private.status(paths.home(), Local())
    used = engine.used
    rows = {
        "engine": f"{used.version} at {used.host}" if used else "none",
        "why": engine.why,
        "buildx": used.buildx if used else "",
        "image store": ("containerd" if used.containerd_store else "classic") if used else "",
        "data root": used.data_root if used else "",
        "private engine": "running" if engine.running else "stopped",
        "size on disk": human(engine.size_bytes),
        "free disk": human(engine.free_bytes),
        "bridge": engine.bridge or "",
        "emulates": ", ".join(engine.platforms) or "nothing",
    }
    facts = {
        "version": used.version if used else None,
        "host": used.host if used else None,
        "why": engine.why,
        "buildx": used.buildx if used else None,
        "containerd_store": used.containerd_store if used else None,
        "data_root": used.data_root if used else None,
        "private_running": engine.running,
        "size": engine.size_bytes,
        "free": engine.free_bytes,
        "emulates": list(engine.platforms),
    }
    table = base.new_fields((name, base.plain(value)) for name, value in rows.items() if value)
    base.print_result(facts, table, as_json=as_json)
