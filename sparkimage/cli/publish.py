"""The commands that publish images to a registry, and verify published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag, value
from sparkimage.cli.verify import tiers_of, to_ship
from sparkimage.core.process import Local
from sparkimage.core.units import clock, human

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparkimage.registry.cosign import Trust
    from sparkimage.registry.publish import Outcome
    from sparkimage.registry.remote import PlatformImage
    from sparkimage.verify.policy import Required


Identity = Annotated[
    str | None, value("REGEXP", "Keyless: the subject of the CI job's certificate.")
]
Issuer = Annotated[str | None, value("URL", "Keyless: the OIDC issuer of that certificate.")]
PublishedReference = Annotated[
    str, typer.Argument(metavar="REF", help="REGISTRY/REPOSITORY:TAG, or @sha256:DIGEST.")
]


def publish(
    variant: Annotated[
        list[str], typer.Argument(help="Variants or digests: the platforms of one image.")
    ],
    to: Annotated[str, value("REGISTRY/REPOSITORY", "Publish to this repository.")],
    key: options.SignKey = None,
    identity: Identity = None,
    issuer: Issuer = None,
    _mirror: options.Mirror = None,
    as_json: options.Json = False,
) -> None:
    """Push a verified image to a registry, sign it with its seal, SBOM and provenance, and tag it.

    Tags are set last, once all of it is there.
    """
    from sparkimage.config.address import Place
    from sparkimage.image import layerindex
    from sparkimage.registry import cosign, sbom, tags
    from sparkimage.registry.publish import Item, Publication, channels
    from sparkimage.resolve.skopeo import Repository

    matrix = base.read_matrix_if_any()
    store, view = base.open_store(), base.new_view(quiet=as_json)
    tools = base.registry_tools(matrix, view.say)
    repository = Repository(place=Place.parse(to), tools=tools)
    with store.in_use(view.say), cosign.signer(key, identity, issuer, tools) as signer:
        images = [to_ship(store, reference, matrix=matrix) for reference in variant]
        channel_names = channels(matrix, [record.plan for record, _, _ in images])
        # Before the minutes of an SBOM.
        with view.busy(f"checking {repository.place.registry}"):
            _ = repository.readable
        items = []
        for record, image, decision in images:
            plan = record.plan
            assert decision.verdict is not None
            with view.busy(f"measuring {plan.variant}"):
                files = layerindex.image_files(store, image)
            with view.busy(f"SBOM of {plan.variant}"):
                item = Item(
                    plan=plan,
                    image=image,
                    measured=tags.measure(files, plan.expect),
                    verdict=decision.verdict,
                    required=record.required,
                    sbom=sbom.create(plan, image, files, store, Local()),
                )
            items.append(item)
        outcome = Publication(
            items=items,
            store=store,
            to=repository,
            view=view,
            signer=signer,
            channels=channel_names,
        ).run()
    if as_json:
        base.print_json(outcome.to_dict())
    else:
        _print_outcome(outcome)


def verify_published(
    reference: PublishedReference,
    key: options.TrustKey = None,
    identity: Identity = None,
    issuer: Issuer = None,
    requires: Annotated[
        str | None, value("LIST", "Required tiers. Default: those of the matrix.")
    ] = None,
    whole: Annotated[bool, flag("--whole", "Download and check every blob, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Verify that a published image is signed, sealed and complete, and that its tag is true."""
    from sparkimage.registry import remote

    trust = trust_of(key, identity, issuer)
    view = base.new_view(quiet=as_json or not whole)
    with view.transfer(f"reading {remote.Reference.parse(reference)}", 0) as moved:
        image, platforms = remote.verify(
            reference, trust, requirement(requires), deep=whole, moved=moved
        )
    results: dict[str, dict[str, Any]] = {
        platform.image.platform: {
            "digest": platform.image.digest,
            "tiers": list(platform.verdict.tiers),
            "checks": len(platform.verdict.checks),
            "lock": platform.image.lock,
        }
        for platform in platforms
    }
    if as_json:
        head = {"reference": reference, "digest": image.digest, "result": "PASSED"}
        base.print_json({**head, "platforms": results})
        return
    for name, result in results.items():
        typer.echo(
            f"✓ {name} {result['digest']}: signed, {result['checks']} checks passed "
            f"({', '.join(result['tiers'])}), lock {result['lock'][:8]}"
        )


def trust_of(key: str | None, identity: str | None, issuer: str | None) -> Trust:
    """Whose signature counts: an identity that was passed overrides a key of the environment."""
    from sparkimage.registry.cosign import Trust

    return Trust.of(None if identity or issuer else key, identity, issuer, base.registry_tools())


def requirement(requires: str | None) -> Callable[[PlatformImage], Required]:
    """The tiers that a published image must have passed: as passed, as the matrix of this folder
    says, or the default."""
    from sparkimage.config.tier import DEFAULT
    from sparkimage.verify.policy import Required

    if requires is not None:
        tiers = tiers_of(requires)
    else:
        matrix = base.read_matrix_if_any()
        tiers = matrix.requires if matrix is not None else DEFAULT
    return lambda _: Required(tiers=tiers)


def _print_outcome(outcome: Outcome) -> None:
    state = "published" if outcome.changed else "already published"
    lines = [
        f"[bold]{outcome.repository}@{outcome.digest}[/]",
        f"{state}, {clock(outcome.seconds)}",
    ]
    for tag, change in outcome.tags.items():
        mark = base.SAME if change == "unchanged" else base.OK
        lines.append(f"{mark} {outcome.repository}:{tag}  [dim]{change}[/]")
    base.show("\n".join(lines))
    table = base.new_table("", "what", "blobs", wrap=["blobs"], header=False)
    for name, platform in outcome.platforms.items():
        blobs = platform.blobs
        table.add_row(
            "·", f"{name} {base.short(platform.digest)}",
            f"{blobs.uploaded} blobs pushed ({human(blobs.bytes)}), {blobs.mounted} mounted, "
            f"{blobs.existing} present",
        )  # fmt: skip
    for attachment in outcome.added:
        table.add_row("[green]+[/]", attachment, "")
    base.print_table(table)
