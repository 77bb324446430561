"""The commands that carry images as files."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import AllowOption, console, plans_of, read_matrix
from sparkimage.cli.verify import Reference, to_ship
from sparkimage.errors import StoreError, UsageError

if TYPE_CHECKING:
    from sparkimage.progress import Moved


def save(
    reference: Reference,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE|-")],
    allow_unverified: AllowOption = False,
) -> None:
    """Write an image with its seal as a file that every engine loads (`-`: standard output)."""
    from sparkimage import paths
    from sparkimage.progress import View
    from sparkimage.proof.keys import Keyring
    from sparkimage.publishing import shipping
    from sparkimage.storage.store import Store

    if output == "-" and sys.stdout.isatty():
        raise UsageError("an image is no text for a terminal", hint="-o FILE, or `… -o - | …`")
    read, store, keys = read_matrix(), Store.open(paths.store()), Keyring.user()
    view = View(console(stderr=True))
    plan, held, passage = to_ship(
        read, store, reference, keys=keys, allow_unverified=allow_unverified
    )

    def write(sink: IO[bytes], moved: Moved) -> None:
        for chunk in shipping.chunks(held, plan.image, passage, store, keys):
            sink.write(chunk)
            moved(len(chunk))

    with view.transfer(f"saving {plan.variant}", held.size) as moved:
        if output == "-":
            write(sys.stdout.buffer, moved)
            sys.stdout.buffer.flush()
        else:
            with shipping.written(Path(output)) as sink:
                write(sink, moved)
    typer.echo(f"{plan.image} ({held.digest}) is in {output}", err=True)


def load(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="What `save` wrote.")],
    allow_unverified: AllowOption = False,
) -> None:
    """Take an image and its seal from a file into the store, and name it if the seal fits."""
    from sparkimage import paths
    from sparkimage.progress import View
    from sparkimage.proof import demands, gate
    from sparkimage.proof.keys import Keyring
    from sparkimage.publishing import shipping
    from sparkimage.storage.store import Store

    read, store = read_matrix(), Store.open(paths.store())

    def required(name: str) -> gate.Required:
        # What the matrix knows by this name must have passed its layers' checks too.
        ours = [one for one in read.variants if f"{read.repository}:{one.name}" == name]
        if not ours:
            return gate.Required(tiers=read.requires)
        return demands.required(plans_of(read, ours)[0], read.root)

    view = View(console(stderr=True))
    path = Path(file)
    if file != "-" and not path.is_file():
        raise StoreError(f"{file} is no file", hint="give what `python build.py save` wrote")
    size = path.stat().st_size if file != "-" else 0
    # A socket, as some sshd give it, cannot be opened again as /dev/stdin.
    opened = nullcontext(sys.stdin.buffer) if file == "-" else path.open("rb")
    with opened as source, view.transfer(f"loading {file}", size) as moved:
        loaded = shipping.load(
            _Counting(source, moved),
            store,
            required=required,
            keys=Keyring.user(),
            allow_unverified=allow_unverified,
        )
    sealed = "UNVERIFIED" if loaded.passage.unverified else "its seal says PASSED"
    typer.echo(f"{loaded.name} ({loaded.image.digest}): {sealed}")


class _Counting:
    """A file to read from that says how much was read."""

    def __init__(self, source: IO[bytes], moved: Moved) -> None:
        self.source, self.moved = source, moved

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(size)
        self.moved(len(data))
        return data
