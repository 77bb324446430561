"""The command line: commands, global options, and how errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

# What typer vendors of click, and has no other name for.
from typer._click.exceptions import ClickException, NoArgsIsHelpError

from sparkimage.cli import base, interrupted, options
from sparkimage.cli.commands import Commands
from sparkimage.cli.options import flag, value
from sparkimage.cli.os_errors import refusal
from sparkimage.core import interrupts
from sparkimage.core.errors import SparkError, UsageError
from sparkimage.core.files import work_in
from sparkimage.core.program import program

ALONE = ("--matrix", "--only")
"""Options that take the place of a command."""
BEFORE = ("--matrix-file", "-C")
"""Options of the program that stand before a command, and that no command has."""

app = typer.Typer(
    name=program(),
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparkimage.cli import version

        typer.echo("\n".join(version.lines()))
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    matrix: Annotated[bool, flag("--matrix", "Build every variant.")] = False,
    only: Annotated[list[str] | None, value("GLOB", "Build the variants that match GLOB.")] = None,
    print_: options.Print = None,
    builder: options.Builder = None,
    secret: options.Secret = None,
    lean: options.Lean = False,
    _mirror: options.Mirror = None,
    matrix_file: Annotated[
        Path, value("FILE", "Read this matrix. Default: that of this folder or a parent.")
    ] = Path("matrix.yaml"),
    directory: Annotated[Path | None, value("DIR", "Run in DIR.", "-C")] = None,
    _debug: Annotated[
        bool, flag("--debug", "Print tracebacks; may be anywhere on the line.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print version, commit and pins.",
        ),
    ] = False,
) -> None:
    """Build, verify and ship container images for clusters of Docker nodes."""
    if directory is not None:
        try:
            work_in(directory)
        except OSError as error:
            raise UsageError(
                f"-C {directory}: {error.strerror}", hint="pass a folder that exists"
            ) from None
    base.Settings.matrix_file = matrix_file
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
    variants = select(project, only=only or ())
    if print_ == "github" and not only:
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
    words = list(sys.argv[1:] if argv is None else argv)
    # It may stand anywhere but among the words of another program.
    own = words[: words.index("--")] if "--" in words else words
    if "--debug" in own:
        base.Settings.debug = True
        words.remove("--debug")
    try:
        code = app(args=words, prog_name=program(), standalone_mode=False)
    except ClickException as error:
        _print_usage_error(error)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(1)
    except SparkError as error:
        if base.Settings.debug:
            raise
        base.print_error(error)
        sys.exit(error.exit_code)
    except interrupts.Interrupted as interrupt:
        notes = getattr(interrupt, "__notes__", ())
        base.print_interrupted(interrupted.sentence(base.Settings.command, notes))
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        # sys.exit would wait for threads that wait for a server's answer.
        os._exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if base.Settings.debug:
            raise
        if isinstance(error, OSError) and (refused := refusal(error)) is not None:
            base.print_error(refused)
            sys.exit(refused.exit_code)
        name = base.plain(f"{type(error).__name__}: {error}")
        base.show(f"[red]error:[/] {name}\n→ run it again with --debug", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _print_usage_error(error: ClickException) -> None:
    """What is wrong with the command line, in the form of all errors."""
    context = getattr(error, "ctx", None)
    if isinstance(error, NoArgsIsHelpError) and context is not None:
        typer.echo(context.get_help(), err=True)
        return
    message = error.format_message().rstrip(".")
    message = message.replace("Value error, ", "").replace("Input should be", "it must be")
    message = message[:1].lower() + message[1:]
    called = context.command_path if context is not None else program()
    option = getattr(error, "option_name", None)
    hint = f"{called} --help"
    if option in ALONE:
        hint = f"without a command: {program()} --matrix; {program()} --matrix --only 'GLOB'"
    elif option in BEFORE:
        hint = f"before the command: {program()} {option} … {called.removeprefix(f'{program()} ')}"
    if option in (*ALONE, *BEFORE):
        message = message.partition(" (Possible")[0]
    base.print_error(SparkError(message, hint=hint))
