"""The command that shows an image: of the store, or of a registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli import base, options
from sparkimage.cli.publish import Identity, Issuer, requirement, trust_of
from sparkimage.cli.references import find
from sparkimage.core.errors import ImageMissingError
from sparkimage.core.program import program
from sparkimage.core.units import human

if TYPE_CHECKING:
    from sparkimage.core.tables import Table


def inspect(
    reference: Annotated[
        str,
        typer.Argument(help="A variant, a name or digest of the store; or REGISTRY/NAME:TAG."),
    ],
    key: options.TrustKey = None,
    identity: Identity = None,
    issuer: Issuer = None,
    as_json: options.Json = False,
) -> None:
    """Show an image: versions, lock, NCCL, entrypoint and seal.

    An image of the store is shown as it is here; any other one by its registry alone, with its
    SBOM and signature.
    """
    facts = None if key or identity or issuer else _stored(reference)
    if facts is not None:
        rows = [("name", ", ".join(facts["names"]) or "none"), *_rows(facts, "versions")]
        if not facts["seal"]:
            verify = f"{program()} verify {reference}"
            rows[-1] = ("seal", f"none for its plan and today's checks: {verify}")
        title = f"{facts['platform']}\n{facts['digest']}"
        base.print_result(facts, _table(rows, title), as_json=as_json)
        return
    _show_published(reference, key, identity, issuer, as_json=as_json)


def _stored(reference: str) -> dict[str, Any] | None:
    """What the store has of this name; None for that of a registry. Raises ``ImageMissingError``
    for what can be none."""
    host, slash, _ = reference.partition("/")
    if "@" in reference or (slash and ("." in host or ":" in host or host == "localhost")):
        return None
    from sparkimage.verify import seal, summary

    store = base.open_store()
    try:
        record, image, _matrix = find(store, reference)
    except ImageMissingError:
        if ":" in reference or slash:
            return None
        raise
    verdict = seal.verdict(store, image.digest, plan_checksum=record.current_checksum)
    return summary.stored(image, record, verdict)


def _show_published(
    reference: str, key: str | None, identity: str | None, issuer: str | None, *, as_json: bool
) -> None:
    from sparkimage.registry import inspect, remote
    from sparkimage.registry.cosign import Trust
    from sparkimage.resolve.skopeo import Repository

    # An image can be shown without trusting it.
    signed = key or identity or issuer
    trust = trust_of(key, identity, issuer) if signed else Trust(tools=base.registry_tools())
    at = remote.Reference.parse(reference)
    image = remote.read(at, Repository(place=at.place, tools=trust.tools), trust)
    facts = inspect.describe(image, requirement(None))
    if as_json:
        base.print_json(facts)
        return
    signature = facts["signature"]
    lines = [
        f"[bold]{facts['reference']}[/]",
        facts["digest"],
        f"{base.OK} verified: {signature['state']}"
        if facts["verified"]
        else f"{base.FAILED} not verified: {facts['why']}",
    ]
    if signature["tags"]:
        lines.append(f"signed for {', '.join(signature['tags'])}")
    base.show("\n".join(lines))
    for name, platform in facts["platforms"].items():
        bill = platform["sbom"]
        packages = ", ".join(f"{count} {kind}" for kind, count in bill["packages"].items())
        files = (f"{one['path']} {one['version']}, {one['origin']}" for one in bill["files"])
        rows = [
            *_rows(platform, "measured"),
            ("materials", f"{platform['materials']} of the lock"),
            ("SBOM", packages or "none"),
            *(("", file) for file in files),
        ]
        base.print_table(_table(rows, f"\n{name}\n{platform['digest']}"))


def _rows(facts: dict[str, Any], versions: str) -> list[tuple[str, str]]:
    """What the store and a registry know alike."""
    seals = [("seal", _seal(seal)) for seal in facts["seal"]]
    return [
        ("variant", facts["variant"]),
        (versions, ", ".join(f"{pin} {one}" for pin, one in facts["versions"].items()) or "none"),
        ("lock", facts["lock"] or "none"),
        ("source", f"{facts['source'] or 'unknown'} at {facts['revision'] or 'unknown'}"),
        ("created", facts["created"]),
        *(
            ("NCCL", f"{one['path']} {one['version']}, Build ID {one['build_id']}")
            for one in facts["nccl"]
        ),
        ("entrypoint", " ".join(facts["entrypoint"])),
        ("layers", f"{facts['layers']}, {human(facts['size'])}"),
        *(seals or [("seal", "none")]),
    ]


def _table(rows: list[tuple[str, str]], title: str) -> Table:
    return base.new_fields(((name, base.plain(value)) for name, value in rows), title=title)


def _seal(seal: dict[str, Any]) -> str:
    trust = "" if seal["verified"] else " (NOT VERIFIED)"
    failed = f", {len(seal['failed'])} failed" if seal["failed"] else ""
    counts = f"{seal['passed']} passed{failed} ({', '.join(seal['tiers'])})"
    return f"{seal['result']}{trust}: {counts}, {seal['when']}, on {seal['where']}"
