"""The commands of the image store."""

from __future__ import annotations

import typer

from sparkimage.cli.base import say

app = typer.Typer(help="The image store.", no_args_is_help=True)


@app.command("check")
def store_check() -> None:
    """Read every blob of every named image, and say which are damaged."""
    from sparkimage.core import paths
    from sparkimage.core.errors import StoreError
    from sparkimage.image.store import Store

    store = Store.open(paths.store())
    with store.in_use(say):
        wrong = {name: store.damaged(digest) for name, digest in sorted(store.names().items())}
    for name, blobs in wrong.items():
        typer.echo(f"{name}: {'whole' if not blobs else 'damaged: ' + ', '.join(blobs)}")
    broken = [name for name, blobs in wrong.items() if blobs]
    if broken:
        raise StoreError(
            f"{len(broken)} of {len(wrong)} images in the store are damaged",
            hint=f"python build.py image {broken[0].rpartition(':')[2]} --repair",
        )


@app.command("gc")
def store_gc() -> None:
    """Remove the blobs that no named image uses; waits for commands that use the store."""
    from sparkimage.core import paths
    from sparkimage.core.units import human
    from sparkimage.image.store import Store

    typer.echo(f"{human(Store.open(paths.store()).gc(say))} set free")
