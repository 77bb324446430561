"""The commands that begin something: a cluster's fleet file, a project of one's own."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.commands import Group
from sparkimage.cli.init_cluster import cluster
from sparkimage.cli.options import flag
from sparkimage.core.errors import UsageError
from sparkimage.core.files import write
from sparkimage.core.program import program

if TYPE_CHECKING:
    # What typer vendors of click.
    from typer._click.core import Context

NAME = "{{ name }}"
"""Stands for the project's name in the files of ``data/project``."""


class _Init(Group):
    """``init`` is ``init cluster``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """As of every group, but that the name of the first command may be left out."""
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = ["cluster", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(help="Find the nodes of your cluster (`init`), or write a project.",
                  cls=_Init)  # fmt: skip
app.command()(cluster)


@app.callback()
def init() -> None:
    """Find the nodes of your cluster (`init HOST…`), or write a project of your own."""


@app.command()
def project(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")] = Path(),
    full: Annotated[bool, flag("--full", "Write all variants of this program, locked.")] = False,
) -> None:
    """Write a small project: a matrix of vLLM from wheels, its layers and a README."""
    import yaml

    small = _package() / "data" / "project"
    source, files = _full() if full else (small, list(small.rglob("*")))
    paths = sorted(path.relative_to(source) for path in files if path.is_file())
    if present := [str(path) for path in paths if (folder / path).exists()]:
        raise UsageError(
            f"{folder} already has {', '.join(present)}",
            hint=f"choose another folder: {program()} init project DIR",
        )
    # https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
    words = re.findall(r"[a-z0-9]+", folder.resolve().name.lower())
    name = "-".join(words) or "images"
    if not isinstance(yaml.safe_load(name), str):
        # A number, say, which is no text in YAML.
        name = f"images-{name}"
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
    steps = ["image"] if full else ["lock", "image"]
    lines = [f"{program()}{option} {step}" for step in steps]
    typer.echo("\nNext: " + "\n      ".join(lines))


def _package() -> Path:
    return Path(str(resources.files("sparkimage")))


def _full() -> tuple[Path, list[Path]]:
    """This program's own project: in the package where pip has installed it, else in the clone; and
    its files."""
    installed = _package() / "data" / "full"
    root = installed if installed.is_dir() else _package().parent
    folders = (path for name in ("images", "patches") for path in (root / name).rglob("*"))
    files = (*folders, root / "matrix.yaml", root / "matrix.lock")
    return root, [path for path in files if path.suffix != ".pyc"]
