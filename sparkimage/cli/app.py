"""The command line: commands, global options, and how errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparkimage import __version__
from sparkimage.cli import base, options
from sparkimage.cli.commands import Commands
from sparkimage.cli.options import flag, value
from sparkimage.core import interrupts
from sparkimage.core.errors import ConfigError, SparkError, UsageError
from sparkimage.core.program import program

app = typer.Typer(
    name=program(),
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    matrix: Annotated[bool, flag("--matrix", "Build every variant.")] = False,
    only: Annotated[str | None, value("GLOB", "Build the variants that match GLOB.")] = None,
    print_: options.Print = None,
    builder: options.Builder = None,
    secret: options.Secret = None,
    lean: options.Lean = False,
    _mirror: options.Mirror = None,
    matrix_file: Annotated[
        Path, value("FILE", "Read this matrix. Default: that of this folder or a parent.")
    ] = Path("matrix.yaml"),
    directory: Annotated[Path | None, value("DIR", "Run in DIR.", "-C")] = None,
    debug: Annotated[bool, flag("--debug", "Print tracebacks.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Build, verify and ship container images for clusters of Docker nodes."""
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as error:
            raise UsageError(
                f"-C {directory}: {error.strerror}", hint="pass a folder that exists"
            ) from None
    base.Settings.matrix_file = matrix_file
    base.Settings.debug = debug
    if context.invoked_subcommand is not None:
        if matrix or only or print_ or builder or secret or lean:
            raise UsageError(
                "--matrix, --only, --print, --builder, --secret and --lean cannot be combined with "
                "a command",
                hint=f"{program()} --matrix --only 'GLOB'; {program()} image NAME --print FORMAT",
            )
        return
    if not matrix and not only and not print_:
        typer.echo(context.get_help())
        raise typer.Exit
    from sparkimage.cli import image
    from sparkimage.config.matrix import select

    project = base.read_matrix()
    variants = select(project, only=only)
    if print_ == "github" and only is None:
        image.print_jobs(project, base.plans_of(project, variants))
        return
    image.build(
        project, variants, print_, builder=builder, secrets=secret or (), lean=lean,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the only place where errors become messages and exit codes."""
    interrupts.install()
    # Looking for plugins reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        app(args=list(argv) if argv is not None else None, prog_name=program())
    except SparkError as error:
        if base.Settings.debug:
            raise
        _print_error(error)
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        state = ", ".join(getattr(interrupt, "__notes__", ())) or "no name was changed"
        base.say(f"interrupted: {state}; run the same command again to continue")
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        # sys.exit would wait for threads that wait for a server's answer.
        os._exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if base.Settings.debug:
            raise
        base.say(f"error: {type(error).__name__}: {error}\n→ run it again with --debug")
        sys.exit(1)


def _print_error(error: SparkError) -> None:
    lines = [f"error: {error.message}", *(f"  {line}" for line in error.detail.splitlines())]
    if error.hint:
        lines.append(f"→ {error.hint}")
    elif isinstance(error, ConfigError):
        lines.append("→ correct the file, then run the same command again")
    base.say("\n".join(lines))
