"""The commands that prove an image and show what was seen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import (
    JsonOption,
    Settings,
    console,
    plans_of,
    print_json,
    project_folder,
    read_matrix,
)
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core.errors import GateError, LockError, UsageError

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.image.store import Image, Store
    from sparkimage.verify import seal
    from sparkimage.verify.plan_record import PlanRecord
    from sparkimage.verify.policy import PolicyDecision

IMAGE = re.compile(r".*:.*|[0-9a-f]{12,}")
"""What names an image by itself: REPOSITORY:TAG, a digest, or its beginning."""
Reference = Annotated[str, typer.Argument(help="A variant, or a digest (or its beginning).")]


def tiers_of(text: str) -> tuple[Tier, ...]:
    """The tiers of ``static,run``. Raises ``UsageError``."""
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word not in list(Tier)]
    if wrong:
        raise UsageError(
            f"--tier: no such tier: {', '.join(wrong)}", hint=f"there are {', '.join(Tier)}"
        )
    return tuple(tier for tier in Tier if tier in words)


def find(
    store: Store, reference: str, read: Matrix | None = None
) -> tuple[PlanRecord, Image, Matrix | None]:
    """The image that is meant, what it was built from and proven by, and the matrix, where it had
    to be asked for a variant's name. Names of images and digests need none.

    Raises ``ImageMissingError`` for what the store does not hold, ``GateError`` for an image
    without a plan.
    """
    from sparkimage.verify import plan_record

    name = reference
    if not IMAGE.fullmatch(reference) and Settings.matrix_file.is_file():
        read = read or read_matrix()
        full = f"{read.repository}:{reference}"
        # A variant that has left the matrix has its image still.
        known = any(variant.name == reference for variant in read.variants)
        name = full if known or full in store.names() else reference
    held = store.resolve(name)
    return plan_record.kept(store, held.digest), held, read


def to_ship(
    store: Store,
    reference: str,
    *,
    allow_unverified: bool,
    read: Matrix | None = None,
) -> tuple[PlanRecord, Image, PolicyDecision]:
    """The image that is meant and its record, after the gate was asked. Raises ``GateError``."""
    from sparkimage.verify import policy

    record, held, read = find(store, reference, read)
    decision = policy.ask(
        store,
        held.digest,
        plan_checksum=record.current_checksum,
        required=record.required,
        allow_unverified=allow_unverified,
        name=record.plan.image,
    )
    if read is not None and (why := _newer(record, read, reference)):
        typer.echo(f"warning: {why}", err=True)
    return record, held, decision


def _newer(record: PlanRecord, read: Matrix, reference: str) -> str:
    """What to say where a variant's image is of another plan than today's; nothing elsewhere."""
    from sparkimage.verify import plan_record

    variants = [one for one in read.variants if one.name == reference]
    if not variants or plan_record.sources_checksum(read.file) == record.sources:
        return ""
    try:
        (plan,) = plans_of(read, variants)
    except LockError as error:
        return f"{reference} cannot be built as {read.file.name} is now: {error.message}"
    if plan.checksum() == record.plan.checksum():
        return ""
    return (
        f"{reference} is of before {read.file.name} or its lock changed, and goes out as it was "
        f"proven; to build it anew: python build.py image {reference}"
    )


def verify(
    reference: Reference,
    tier: Annotated[
        str, typer.Option(metavar="LIST", help=f"Which tiers, of {', '.join(Tier)}.")
    ] = ",".join(DEFAULT),
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report to read, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run an image's checks again, and add what they came to to its seal."""
    from rich.markup import escape

    from sparkimage.core import paths
    from sparkimage.core.process import Local
    from sparkimage.core.progress import View
    from sparkimage.core.units import clock
    from sparkimage.image.store import Store
    from sparkimage.registry.archives import refuse_target
    from sparkimage.verify import plan_record, seal
    from sparkimage.verify import run_tiers as verifying

    store = Store.open(paths.store())
    kept, held, _read = find(store, reference)
    plan, project = kept.plan, project_folder()
    tiers = tiers_of(tier)
    if html is not None:
        refuse_target(html)
    # The checks are run as they are now.
    record = plan_record.again(kept, project)
    view = View(console(stderr=True), quiet=as_json)

    def live() -> verifying.Live:
        from sparkimage.build.builder import engine_reference
        from sparkimage.build.engine.private import ensure

        engine = ensure(paths.home(), Local(), view.say)
        reference = engine_reference(plan, held, engine)
        return verifying.Live(engine=engine, reference=reference)

    outcome = None
    try:
        with store.in_use(view.say), view.counted("verifying") as progress:
            outcome = verifying.verify(
                record, held, live=live, project=project, store=store, runner=Local(),
                tiers=tiers, progress=progress,
            )  # fmt: skip
    finally:
        verdict = None
        try:
            verdict = seal.verdict(store, held.digest, plan_checksum=record.checksum)
        except GateError as error:
            typer.echo(f"warning: {error.message}", err=True)
        if as_json:
            said = verdict.to_dict() if verdict else {"result": None, "notRun": {}}
            said["notRun"] |= {} if outcome is None else outcome.not_run
            print_json(
                {
                    "digest": held.digest,
                    "variant": plan.variant,
                    **said,
                }
            )
        if html is not None and verdict is not None:
            _write_report(html, record, held, verdict)
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
    from sparkimage.core import paths
    from sparkimage.image.store import Store
    from sparkimage.registry.archives import refuse_target
    from sparkimage.verify import seal

    refuse_target(output)
    store = Store.open(paths.store())
    record, held, _read = find(store, reference)
    verdict = seal.verdict(store, held.digest, plan_checksum=record.checksum)
    if verdict is None:
        raise GateError(
            f"{held.digest[:19]} has no seal of this plan and its checks",
            hint=f"prove it: python build.py verify {held.digest[7:19]}",
        )
    _write_report(output, record, held, verdict)


def _write_report(path: Path, record: PlanRecord, held: Image, verdict: seal.Verdict) -> None:
    from sparkimage.registry.archives import written
    from sparkimage.verify import report as reporting

    project = project_folder()
    with written(path) as sink:
        sink.write(reporting.page(record.plan, held, verdict, project).encode())
