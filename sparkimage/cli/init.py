"""The commands that begin something."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from sparkimage.core.errors import UsageError
from sparkimage.core.files import write
from sparkimage.core.program import program

app = typer.Typer(help="Begin a project of your own.", no_args_is_help=True)
NAME = "{{ name }}"
"""Stands for the project's name in the files of ``data/project``."""


@app.callback()
def init() -> None:
    """Begin a project of your own."""


@app.command()
def project(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")] = Path(),
) -> None:
    """Write a small project: a matrix of vLLM from wheels, its layers and a README."""
    source = Path(str(resources.files("sparkimage"))) / "data" / "project"
    paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    if present := [str(path) for path in paths if (folder / path).exists()]:
        raise UsageError(
            f"{folder} already has {', '.join(present)}",
            hint=f"choose another folder: {program()} init project DIR",
        )
    # https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
    words = re.findall(r"[a-z0-9]+", folder.resolve().name.lower())
    name = "-".join(words) or "images"
    try:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write(folder / path, (source / path).read_text().replace(NAME, name).encode())
    except OSError as error:
        raise UsageError(
            f"{error.filename or folder} cannot be written: {error.strerror}",
            hint=f"choose another folder: {program()} init project DIR",
        ) from None
    for path in paths:
        typer.echo(folder / path)
    option = "" if folder == Path() else f" --matrix-file {folder / 'matrix.yaml'}"
    typer.echo(f"\nNext: {program()}{option} lock\n      {program()}{option} image")
