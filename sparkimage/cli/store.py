"""The commands of the image store, and those that save images to files and load them."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli import base, options
from sparkimage.cli.commands import Group
from sparkimage.cli.options import value
from sparkimage.cli.verify import to_ship
from sparkimage.core.errors import GateError, StoreError, UsageError
from sparkimage.core.program import program
from sparkimage.core.progress import waiting
from sparkimage.core.units import human, plural

if TYPE_CHECKING:
    from sparkimage.core.progress import Moved
    from sparkimage.image.store import Store

app = typer.Typer(
    cls=Group, help="Check the image store, or free space in it.", no_args_is_help=True
)
STDIO = "-"


@app.command("check")
def check(as_json: options.Json = False) -> None:
    """Read every blob of every image and report corrupt ones."""
    store = base.open_store()
    corrupt = {}
    with store.in_use(base.say):
        for name, digest in sorted(store.names().items()):
            with waiting(f"reading {name}"):
                corrupt[name] = store.damaged(digest)
    if as_json:
        base.print_json([{"name": name, "corrupt": blobs} for name, blobs in corrupt.items()])
    else:
        for name, blobs in corrupt.items():
            typer.echo(f"{name}: {'corrupt: ' + ', '.join(blobs) if blobs else 'OK'}")
    broken = [name for name, blobs in corrupt.items() if blobs]
    if broken:
        raise StoreError(
            f"the store has corrupt blobs of {len(broken)} of {plural(len(corrupt), 'image')}",
            hint=f"{program()} image {broken[0].rpartition(':')[2]} --repair",
        )


@app.command("gc")
def collect() -> None:
    """Delete the blobs and saved caches of no image; waits for commands that use the store."""
    from sparkimage.serve.cache_store import CacheStore

    store = base.open_store()
    freed = store.gc(base.say)
    freed += CacheStore.of(store).collect(list(store.names().values()))
    typer.echo(f"{human(freed)} freed")


def images(as_json: options.Json = False) -> None:
    """List the images in the image store."""
    store = base.open_store()
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "digest": digest,
            "platform": image.platform,
            "size": image.size,
            "layers": len(image.layers),
            "seal": _seal(store, digest),
        }
        for name, digest in sorted(store.names().items())
        for image in [store.resolve(digest)]
    ]
    table = base.new_table(
        "name", "digest", "platform", "size", "layers", "seal",
        right=["size", "layers"], drop=["layers", "platform", "size"],
    )  # fmt: skip
    if not (rows or as_json):
        base.say(f"no images yet; build the default one: {program()} image")
    for row in rows:
        cells = {**row, "digest": base.short(row["digest"]), "size": human(row["size"])}
        table.add_row(*(str(cell or "none") for cell in cells.values()))
    base.print_result(rows, table, as_json=as_json)


def _seal(store: Store, digest: str) -> str | None:
    from sparkimage.verify import plan_record, seal

    try:
        if not seal.history(store, digest):
            return None
        plan = plan_record.load(store, digest).current_checksum
        verdict = seal.verdict(store, digest, plan_checksum=plan)
    except GateError:
        return "refused"
    return f"{verdict.result} {'+'.join(verdict.tiers)}".strip() if verdict else "outdated"


def save(
    reference: options.Reference,
    output: Annotated[str, value("FILE|-", "Write to FILE or stdout.", "--output", "-o")],
    key: options.SignKey = None,
    allow_unverified: options.AllowUnverified = False,
) -> None:
    """Save an image and its seal to an archive, which `docker load` reads, too."""
    from sparkimage.registry import archives, cosign

    if output == STDIO and sys.stdout.isatty():
        raise UsageError("refusing to write an archive to the terminal", hint="pass -o FILE")
    if output != STDIO:
        archives.refuse_target(Path(output))
    store, view = base.open_store(), base.new_view()
    record, image, decision = to_ship(store, reference, allow_unverified=allow_unverified)
    if output != STDIO:
        archives.refuse_target(Path(output), image.size)
    with ExitStack() as stack:
        stack.enter_context(store.in_use(view.say))
        signer = None
        if key is not None:
            tools = base.registry_tools(say=view.say)
            signer = stack.enter_context(cosign.signer(key, None, None, tools))
        moved = stack.enter_context(view.transfer(f"saving {record.plan.variant}", image.size))
        sink = stack.enter_context(
            nullcontext(sys.stdout.buffer) if output == STDIO else archives.written(Path(output))
        )
        for chunk in archives.chunks(image, record, decision, store, signer):
            sink.write(chunk)
            moved(len(chunk))
        sink.flush()
    base.say(f"saved {record.plan.image} ({image.digest}) to {output}")


def load(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="An archive of `save`, or `-` for stdin.")
    ],
    key: options.TrustKey = None,
    allow_unverified: options.AllowUnverified = False,
) -> None:
    """Load an archive of `save` into the image store if its seal is valid, and tag the image."""
    from sparkimage.registry import archives
    from sparkimage.registry.cosign import Trust

    matrix = base.read_matrix_if_any()
    store, view, path = base.open_store(), base.new_view(), Path(file)
    trust = None
    if key is not None:
        trust = Trust.of(key, None, None, base.registry_tools(say=view.say))
    if file != STDIO and not path.is_file():
        raise UsageError(
            f"no such file: {file}", hint=f"pass an archive written by `{program()} save`"
        )
    size = path.stat().st_size if file != STDIO else 0
    # A socket, as some sshd give it, cannot be opened again as /dev/stdin.
    opened = nullcontext(sys.stdin.buffer) if file == STDIO else path.open("rb")
    with opened as source, view.transfer(f"loading {file}", size) as moved:
        loaded = archives.load(
            _CountingReader(source, moved),
            store,
            tiers=matrix.requires if matrix is not None else None,
            trust=trust,
            allow_unverified=allow_unverified,
            say=base.warn_loudly,
        )
    seal = "UNVERIFIED" if loaded.decision.unverified else "seal PASSED"
    typer.echo(f"loaded {loaded.name} ({loaded.image.digest}): {seal}")


class _CountingReader:
    """Reads from a file and reports the bytes read."""

    def __init__(self, source: IO[bytes], moved: Moved) -> None:
        self.source, self.moved = source, moved

    def read(self, size: int = -1) -> bytes:
        data = self.source.read(size)
        self.moved(len(data))
        return data
