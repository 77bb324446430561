"""The commands that bring images into a registry, and look at what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli.base import (
    JsonOption,
    MirrorOption,
    Settings,
    SignKeyOption,
    TrustKeyOption,
    console,
    new_table,
    print_json,
    read_matrix,
    resolve_context,
    say,
    use_mirrors,
)
from sparkimage.cli.verify import tiers_of, to_ship

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from sparkimage.registry.cosign import Trust
    from sparkimage.registry.publish import Outcome
    from sparkimage.registry.remote import Reading
    from sparkimage.registry.tools import Tools
    from sparkimage.verify.policy import Required


IdentityOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGEXP", help="Without a key: the subject of the CI job's certificate (cosign)."
    ),
]
IssuerOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Without a key: who vouches for that identity.")
]
PublishedReference = Annotated[
    str, typer.Argument(metavar="REF", help="REGISTRY/REPOSITORY:TAG, or …@sha256:DIGEST.")
]


def publish(
    variant: Annotated[
        list[str],
        typer.Argument(
            help="A variant or a digest; several, where they are the platforms of one image."
        ),
    ],
    to: Annotated[str, typer.Option(metavar="REGISTRY/REPOSITORY", help="Where to.")],
    key: SignKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    mirror: MirrorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a proven image into a registry, signed, and give it its tags when all is there."""
    from sparkimage.config.address import Place
    from sparkimage.core import paths
    from sparkimage.core.process import Local
    from sparkimage.core.progress import View
    from sparkimage.image import layerindex
    from sparkimage.image.store import Store
    from sparkimage.registry import cosign, sbom, tags
    from sparkimage.registry import publish as publishing
    from sparkimage.registry.skopeo import Repository
    from sparkimage.registry.tools import Tools

    use_mirrors(mirror)
    read = read_matrix() if Settings.matrix_file.is_file() else None
    store = Store.open(paths.store())
    view = View(console(stderr=True), quiet=as_json)
    tools = Tools(outside=resolve_context(read, view.say))
    repository = Repository(place=Place.parse(to), tools=tools)
    with store.in_use(view.say), cosign.signer(key, identity, issuer, tools) as signer:
        asked = [to_ship(store, one, allow_unverified=False, read=read) for one in variant]
        channels = publishing.channels(read, [record.plan for record, _, _ in asked])
        # Before the minutes of an SBOM.
        with view.busy(f"asking {repository.place.registry}"):
            repository.ready()
        items = []
        for record, held, decision in asked:
            plan = record.plan
            assert decision.verdict is not None
            with view.busy(f"measuring {plan.variant}"):
                files = layerindex.image_files(store, held)
            with view.busy(f"SBOM of {plan.variant}"):
                item = publishing.Item(
                    plan=plan,
                    image=held,
                    measured=tags.measure(files),
                    verdict=decision.verdict,
                    required=record.required,
                    bill=sbom.make(plan, held, files, store, Local()),
                )
            items.append(item)
        outcome = publishing.Publication(
            items=items,
            store=store,
            to=repository,
            view=view,
            signer=signer,
            channels=channels,
        ).run()
    if as_json:
        print_json(outcome.to_dict())
    else:
        _show(outcome)


def verify_published(
    reference: PublishedReference,
    key: TrustKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    requires: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Tiers that must have passed; default: as the matrix says."
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Read every blob, too, and prove it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a registry whether an image is signed, proven, whole, and what its tag says."""
    from sparkimage.core.progress import View
    from sparkimage.registry import remote

    trust = _trust(key, identity, issuer)
    view = View(console(stderr=True), quiet=as_json or not whole)
    at = remote.Reference.parse(reference)
    with view.transfer(f"reading {at}", 0) as moved:
        found, facts = remote.verify(
            reference, trust, requirement(requires), deep=whole, moved=moved
        )
    if as_json:
        said = {
            "reference": reference,
            "digest": found.digest,
            "result": "PASSED",
            "platforms": {
                one.reading.platform: {
                    "digest": one.reading.digest,
                    "tiers": list(one.verdict.tiers),
                    "checks": len(one.verdict.checks),
                    "lock": one.reading.lock,
                }
                for one in facts
            },
        }
        print_json(said)
        return
    for one in facts:
        typer.echo(
            f"✓ {one.reading.platform} {one.reading.digest}: signed, "
            f"{len(one.verdict.checks)} checks passed ({', '.join(one.verdict.tiers)}), "
            f"lock {one.reading.lock[:8]}"
        )


def inspect(
    reference: PublishedReference,
    key: TrustKeyOption = None,
    identity: IdentityOption = None,
    issuer: IssuerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a published image is, by what the registry has of it alone."""
    from sparkimage.registry import inspect, remote
    from sparkimage.registry.cosign import Trust
    from sparkimage.registry.skopeo import Repository

    # What it is can be shown without believing it.
    trust = _trust(key, identity, issuer) if key or identity or issuer else Trust(tools=_tools())
    at = remote.Reference.parse(reference)
    found = remote.read(at, Repository(place=at.place, tools=trust.tools), trust)
    said = inspect.describe(found, requirement(None))
    if as_json:
        print_json(said)
        return
    terminal = console()
    terminal.print(
        f"[bold]{said['reference']}[/]\n{said['digest']}", highlight=False, soft_wrap=True
    )
    signature = said["signature"]
    terminal.print(
        f"[green]✓ believed[/]: {signature['state']}" if said["believed"]
        else f"[red]✗ not believed[/]: {said['why']}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if signature["tags"]:
        tags = ", ".join(signature["tags"])
        terminal.print(f"signed for {tags}", highlight=False, soft_wrap=True)
    for platform, one in said["platforms"].items():
        terminal.print(_page(platform, one))


def _page(platform: str, one: dict[str, Any]) -> Table:
    from rich.markup import escape

    from sparkimage.core.units import human

    table = new_table(header=False, title=f"\n{platform}\n{one['digest']}")
    versions = ", ".join(f"{name} {value}" for name, value in one["versions"].items())
    rows = [
        ("variant", str(one["variant"])),
        ("measured", versions or "nothing"),
        ("lock", one["lock"] or "none"),
        ("source", f"{one['source'] or 'unknown'} at {one['revision'] or 'unknown'}"),
        ("created", str(one["created"])),
        ("entrypoint", " ".join(one["entrypoint"])),
        ("layers", f"{one['layers']}, {human(one['size'])}"),
        ("materials", f"{one['materials']} of the lock"),
    ]
    for seal in one["seal"] or [None]:
        if seal is None:
            rows.append(("seal", "none"))
            continue
        failed = f", {len(seal['failed'])} failed" if seal["failed"] else ""
        believed = "" if seal["believed"] else " (NOT BELIEVED)"
        tiers = ", ".join(seal["tiers"])
        said = f"{seal['result']}{believed}: {seal['passed']} passed{failed} ({tiers})"
        rows.append(("seal", f"{said}, {seal['when']}, on {seal['where']}"))
    bill = one["sbom"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in bill["packages"].items())
    rows.append(("SBOM", kinds or "none"))
    rows += [("", f"{file['path']} {file['version']}, {file['origin']}") for file in bill["files"]]
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _trust(key: str | None, identity: str | None, issuer: str | None) -> Trust:
    """Whose signature counts."""
    from sparkimage.registry.cosign import Trust

    # The identity is asked for by name, and goes before a key of the environment.
    key = None if identity or issuer else key
    return Trust.of(key, identity, issuer, _tools())


def _tools() -> Tools:
    from sparkimage.registry.tools import Tools

    return Tools(outside=resolve_context(None, say))


def requirement(given: str | None) -> Callable[[Reading], Required]:
    """What a published image must have passed: as said, as the matrix here says, or by default."""
    from sparkimage.config.tier import DEFAULT
    from sparkimage.verify.policy import Required

    if given is not None:
        return lambda _: Required(tiers=tiers_of(given))
    tiers = read_matrix().requires if Settings.matrix_file.is_file() else DEFAULT
    return lambda _: Required(tiers=tiers)


def _show(outcome: Outcome) -> None:

    from sparkimage.core.units import clock, human

    terminal = console()
    said = "published" if outcome.changed else "nothing changed: all of it was there"
    terminal.print(
        f"[bold]{outcome.repository}@{outcome.digest}[/]\n{said}, {clock(outcome.seconds)}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for tag, change in outcome.tags.items():
        mark = "=" if change == "unchanged" else "✓"
        terminal.print(
            f"[green]{mark}[/] {outcome.repository}:{tag}  [dim]{change}[/]",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    table = new_table(header=False)
    for platform, (digest, blobs) in outcome.platforms.items():
        table.add_row(
            "·", f"{platform} {digest[7:19]}",
            f"{blobs.uploaded} blobs sent ({human(blobs.bytes)}), {blobs.mounted} taken over, "
            f"{blobs.there} there",
        )  # fmt: skip
    for what in outcome.added:
        table.add_row("[green]+[/]", what, "")
    terminal.print(table)
