"""The command that prints the manual page, made from the commands' own help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from sparkimage import __version__
from sparkimage.cli.examples import EXAMPLES, PAGES
from sparkimage.core import errors
from sparkimage.core.program import NAME

EXITS = {
    0: "Done.",
    1: "An error of the program itself; run it again with `--debug`.",
    130: "Interrupted (Ctrl-C); the last line says what is left.",
    141: "What reads the output has ended, such as `head`.",
}
"""Exit codes that no error has."""


def man() -> None:
    """Print the manual page, for `man -l` or a folder of manual pages.

    To install it: `sparkimage man > ~/.local/share/man/man1/sparkimage.1`
    """
    typer.echo("\n".join(page()))


def page() -> Iterator[str]:
    """The lines of sparkimage(1): https://man7.org/linux/man-pages/man7/groff_man.7.html."""
    from sparkimage.cli.app import app
    from sparkimage.cli.commands import PANELS, Commands, name_of

    root = typer.main.get_command(app)
    assert isinstance(root, Commands)
    yield f'.TH {NAME.upper()} 1 "" "{NAME} {__version__}" "User Commands"'
    what = (root.help or "").rstrip(".")
    yield from [".SH NAME", f"{NAME} \\- {what[:1].lower()}{_text(what[1:])}"]
    yield from [".SH SYNOPSIS", f".B {NAME}", "[OPTIONS] COMMAND [ARGUMENTS]"]
    yield from [".SH OPTIONS", *_options(root)]
    for panel, paths in PANELS.items():
        yield f".SH {panel.upper()}"
        for name in map(name_of, paths):
            yield from _command(name, root.commands[name])
    yield ".SH EXIT STATUS"
    for code, text in sorted(exit_codes().items()):
        yield from [".TP", f".B {code}", _text(text)]


def exit_codes() -> dict[int, str]:
    """What each exit code means: the first words of the errors that have it."""
    codes = dict(EXITS)
    for kind in vars(errors).values():
        is_error = isinstance(kind, type) and issubclass(kind, errors.SparkError)
        if is_error and "exit_code" in vars(kind) and kind.exit_code != 1:
            text = " ".join((kind.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."
            before = codes.get(kind.exit_code)
            codes[kind.exit_code] = f"{before} {text}" if before else text
    return codes


def _command(words: str, command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    yield f".SS {words} {' '.join(one.metavar for one in arguments)}".rstrip()
    for paragraph in (command.help or "").split("\n\n"):
        yield from [".PP", _text(paragraph)]
    yield from _options(command)
    if examples := EXAMPLES.get(words):
        yield from [".PP", ".nf", *map(_text, examples), ".fi"]
    if page_name := PAGES.get(words):
        yield from [".PP", f"More: docs/{page_name}.md"]
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(f"{words} {name}", below)


def _options(command: Any) -> Iterator[str]:
    context = typer.Context(command)
    for one in command.params:
        # What --help has of it: names, values, default. None where it is hidden.
        if record := one.get_help_record(context):
            names, text = map(_text, record)
            yield from [".TP", f".B {names}", text]


def _text(text: str) -> str:
    """Text for troff: a backslash, a hyphen and a dot that begins a line mean something there."""
    line = " ".join(text.replace("`", "").split())
    return re.sub(r"^([.'])", r"\\&\1", line.replace("\\", "\\e").replace("-", "\\-"))
