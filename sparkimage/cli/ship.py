"""The commands that carry images as files."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import (
    AllowOption,
    Settings,
    SignKeyOption,
    TrustKeyOption,
    console,
    read_matrix,
    resolve_context,
)
from sparkimage.cli.verify import Reference, to_ship
from sparkimage.core.errors import StoreError, UsageError

if TYPE_CHECKING:
    from sparkimage.core.progress import Moved


def save(
    reference: Reference,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE|-")],
    key: SignKeyOption = None,
    allow_unverified: AllowOption = False,
) -> None:
    """Write an image with its seal as a file that every engine loads (`-`: standard output)."""
    from sparkimage.core import paths
    from sparkimage.core.progress import View
    from sparkimage.image.store import Store
    from sparkimage.registry import archives, cosign
    from sparkimage.registry.tools import Tools

    if output == "-" and sys.stdout.isatty():
        raise UsageError("an image is no text for a terminal", hint="-o FILE, or `… -o - | …`")
    if output != "-":
        archives.refuse_target(Path(output))
    store = Store.open(paths.store())
    view = View(console(stderr=True))
    record, held, decision = to_ship(store, reference, allow_unverified=allow_unverified)
    if output != "-":
        archives.refuse_target(Path(output), held.size)

    def write(sink: IO[bytes], moved: Moved) -> None:
        for chunk in archives.chunks(held, record, decision, store, signer):
            sink.write(chunk)
            moved(len(chunk))

    with ExitStack() as stack:
        stack.enter_context(store.in_use(view.say))
        signer = None
        if key is not None:
            tools = Tools(outside=resolve_context(None, view.say))
            signer = stack.enter_context(cosign.signer(key, None, None, tools))
        moved = stack.enter_context(view.transfer(f"saving {record.plan.variant}", held.size))
        if output == "-":
            write(sys.stdout.buffer, moved)
            sys.stdout.buffer.flush()
        else:
            with archives.written(Path(output)) as sink:
                write(sink, moved)
    typer.echo(f"{record.plan.image} ({held.digest}) is in {output}", err=True)


def load(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="What `save` wrote.")],
    key: TrustKeyOption = None,
    allow_unverified: AllowOption = False,
) -> None:
    """Take an image and its seal from a file into the store, and name it if the seal fits."""
    from sparkimage.core import paths
    from sparkimage.core.progress import View
    from sparkimage.image.store import Store
    from sparkimage.registry import archives
    from sparkimage.registry.cosign import Trust
    from sparkimage.registry.tools import Tools

    # Where there is a matrix here, it says what must have passed.
    tiers = read_matrix().requires if Settings.matrix_file.is_file() else None
    store, view = Store.open(paths.store()), View(console(stderr=True))
    trust = None
    if key is not None:
        trust = Trust.of(key, None, None, Tools(outside=resolve_context(None, view.say)))
    path = Path(file)
    if file != "-" and not path.is_file():
        raise StoreError(f"{file} is no file", hint="give what `python build.py save` wrote")
    size = path.stat().st_size if file != "-" else 0
    # A socket, as some sshd give it, cannot be opened again as /dev/stdin.
    opened = nullcontext(sys.stdin.buffer) if file == "-" else path.open("rb")
    with opened as source, view.transfer(f"loading {file}", size) as moved:
        loaded = archives.load(
            _Counting(source, moved),
            store,
            tiers=tiers,
            trust=trust,
            allow_unverified=allow_unverified,
        )
    sealed = "UNVERIFIED" if loaded.decision.unverified else "its seal says PASSED"
    typer.echo(f"{loaded.name} ({loaded.image.digest}): {sealed}")


class _Counting:
    """A file to read from that says how much was read."""

    def __init__(self, source: IO[bytes], moved: Moved) -> None:
        self.source, self.moved = source, moved

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(size)
        self.moved(len(data))
        return data
