"""The commands that prove an image and show what was seen."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import (
    JsonOption,
    console,
    plans_of,
    read_matrix,
    workshop,
)
from sparkimage.errors import GateError, UsageError
from sparkimage.tier import DEFAULT, Tier

if TYPE_CHECKING:
    from sparkimage.plans.matrix import Matrix
    from sparkimage.plans.plan import Plan
    from sparkimage.proof import seal
    from sparkimage.proof.gate import Passage
    from sparkimage.proof.keys import Keyring
    from sparkimage.storage.store import Image, Store

Reference = Annotated[str, typer.Argument(help="A variant, or a digest (or its beginning).")]


class Emit(StrEnum):
    """Other programs' configs that a plan can be written as."""

    STRUCTURE_TEST = "container-structure-test"


def tiers_of(text: str) -> tuple[Tier, ...]:
    """The tiers of ``static,run``. Raises ``UsageError``."""
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word not in list(Tier)]
    if wrong:
        raise UsageError(
            f"--tier: no such tier: {', '.join(wrong)}", hint=f"there are {', '.join(Tier)}"
        )
    return tuple(tier for tier in Tier if tier in words)


def find(read: Matrix, store: Store, reference: str) -> tuple[Plan, Image]:
    """The image that is meant, and the plan of its variant."""
    from sparkimage.plans.plan import LABEL

    names = {variant.name: variant for variant in read.variants}
    held = store.resolve(f"{read.repository}:{reference}" if reference in names else reference)
    labels = held.settings.labels
    # What the user calls it goes before what it says of itself: the checks look at its labels.
    name = reference if reference in names else labels.get(f"{LABEL}variant", reference)
    if name not in names:
        raise UsageError(
            f"{held.digest[:19]} was built as {name!r}, which {read.file.name} does not have",
            hint="check out the commit that its revision label names",
        )
    return plans_of(read, [names[name]])[0], held


def to_ship(
    read: Matrix, store: Store, reference: str, *, keys: Keyring, allow_unverified: bool
) -> tuple[Plan, Image, Passage]:
    """The image that is meant and its plan, after the gate was asked. Raises ``GateError``."""
    from sparkimage.proof import demands, gate

    plan, held = find(read, store, reference)
    passage = gate.ask(
        store,
        held.digest,
        plan_checksum=demands.checksum(plan, read.root),
        required=demands.required(plan, read.root),
        allow_unverified=allow_unverified,
        name=plan.image,
        keys=keys,
    )
    return plan, held, passage


def verify(
    reference: Reference,
    tier: Annotated[
        str, typer.Option(metavar="LIST", help=f"Which tiers, of {', '.join(Tier)}.")
    ] = ",".join(DEFAULT),
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report to read, too.")
    ] = None,
    emit: Annotated[
        Emit | None, typer.Option(help="Print this config of the plan, and verify nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run an image's checks again, and add what they came to to its seal."""
    from rich.markup import escape

    from sparkimage import paths
    from sparkimage.progress import View
    from sparkimage.proof import demands, seal
    from sparkimage.proof import emit as emitting
    from sparkimage.proof import verify as verifying
    from sparkimage.proof.keys import Keyring
    from sparkimage.run import Local
    from sparkimage.storage.store import Store
    from sparkimage.units import clock

    read, store = read_matrix(), Store.open(paths.store())
    plan, held = find(read, store, reference)
    if emit is not None:
        typer.echo(emitting.structure_test(plan, held.config), nl=False)
        return
    tiers, keys = tiers_of(tier), Keyring.user()

    def live() -> verifying.Live:
        from sparkimage.building.builder import engine_reference

        shop = workshop(read, quiet=as_json)
        return verifying.Live(engine=shop.engine, reference=engine_reference(plan, held, shop))

    outcome = None
    try:
        with View(console(stderr=True), quiet=as_json).busy(f"verifying: {', '.join(tiers)}"):
            outcome = verifying.verify(
                plan, held, live=live, project=read.root, store=store, runner=Local(), keys=keys,
                tiers=tiers,
            )  # fmt: skip
    finally:
        verdict = None
        try:
            verdict = seal.verdict(
                store, held.digest, plan_checksum=demands.checksum(plan, read.root), keys=keys
            )
        except GateError as error:
            typer.echo(f"warning: {error.message}", err=True)
        if as_json:
            said = verdict.to_dict() if verdict else {"result": None, "notRun": {}}
            said["notRun"] |= {} if outcome is None else outcome.not_run
            typer.echo(
                json.dumps(
                    {
                        "digest": held.digest,
                        "variant": plan.variant,
                        **said,
                    },
                    indent=1,
                )
            )
        if html is not None and verdict is not None:
            _write_report(html, plan, held, verdict, read.root)
    if as_json:
        return
    terminal = console()
    for check in outcome.checks:
        terminal.print(
            f"[green]✓[/] {check.tier} {check.id}  [dim]{escape(check.title)}[/]", highlight=False
        )
    for left, why in outcome.not_run.items():
        terminal.print(f"[yellow]·[/] {left}: {escape(why)}", highlight=False)
    assert verdict is not None
    terminal.print(
        f"{plan.variant} ({held.digest[:19]}): {len(outcome.checks)} checks passed in "
        f"{clock(outcome.seconds)}; the seal says {verdict.result} "
        f"({', '.join(verdict.tiers)})",
        highlight=False,
    )


def report(
    reference: Reference,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE")],
) -> None:
    """Write what an image's seal says as a page to read; verifies nothing."""
    from sparkimage import paths
    from sparkimage.proof import demands, seal
    from sparkimage.storage.store import Store

    read, store = read_matrix(), Store.open(paths.store())
    plan, held = find(read, store, reference)
    verdict = seal.verdict(store, held.digest, plan_checksum=demands.checksum(plan, read.root))
    if verdict is None:
        raise GateError(
            f"{held.digest[:19]} has no seal of this plan and its checks",
            hint=f"prove it: python build.py verify {held.digest[7:19]}",
        )
    _write_report(output, plan, held, verdict, read.root)


def _write_report(
    path: Path, plan: Plan, held: Image, verdict: seal.Verdict, project: Path
) -> None:
    from sparkimage.proof import report as reporting
    from sparkimage.publishing.shipping import written

    with written(path) as sink:
        sink.write(reporting.page(plan, held, verdict, project).encode())
