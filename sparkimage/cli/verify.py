"""The commands that verify an image and report what was seen; and what lets an image ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sparkimage.cli import base, options
from sparkimage.cli.options import value
from sparkimage.cli.references import IMAGE, find
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core import paths
from sparkimage.core.errors import GateError, LockError, UsageError
from sparkimage.core.process import Local
from sparkimage.core.program import program
from sparkimage.core.units import clock, plural

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.image.store import Image, Store
    from sparkimage.verify import run_tiers, seal
    from sparkimage.verify.plan_record import PlanRecord
    from sparkimage.verify.policy import PolicyDecision


def tiers_of(text: str) -> tuple[Tier, ...]:
    """The tiers of ``static,run``. Raises ``UsageError``."""
    words = [word.strip() for word in text.split(",")]
    unknown = [word for word in words if word not in list(Tier)]
    if unknown:
        raise UsageError(
            f"--tier: no such tier: {', '.join(unknown)}", hint=f"the tiers are {', '.join(Tier)}"
        )
    return tuple(tier for tier in Tier if tier in words)


def to_ship(
    store: Store, reference: str, *, allow_unverified: bool = False, matrix: Matrix | None = None
) -> tuple[PlanRecord, Image, PolicyDecision]:
    """An image that the gate lets ship, with its record. Raises ``GateError``."""
    from sparkimage.verify import policy

    record, image, matrix = find(store, reference, matrix)
    decision = policy.check(
        store,
        image.digest,
        plan_checksum=record.current_checksum,
        required=record.required,
        allow_unverified=allow_unverified,
        name=record.plan.image,
        say=base.warn_loudly,
    )
    if matrix is not None and not IMAGE.fullmatch(reference):
        _warn_if_stale(record, matrix)
    return record, image, decision


def _warn_if_stale(record: PlanRecord, matrix: Matrix) -> None:
    """Print a warning for a variant whose image was built from an older plan."""
    from sparkimage.verify import plan_record

    name = record.plan.variant
    variants = [variant for variant in matrix.variants if variant.name == name]
    if not variants or plan_record.sources_checksum(matrix.file) == record.sources:
        return
    try:
        (plan,) = base.plans_of(matrix, variants)
    except LockError as error:
        base.warn(f"{name} cannot be built from the present {matrix.file.name}: {error.message}")
        return
    if plan.checksum() != record.plan.checksum():
        base.warn(
            f"{name} was built before {matrix.file.name} or its lock changed, and ships as it was "
            f"verified; to rebuild it: {program()} image {name}"
        )


def verify(
    reference: options.Reference,
    tier: Annotated[str, value("LIST", f"Run these tiers, of {', '.join(Tier)}.")] = ",".join(
        DEFAULT
    ),
    html: Annotated[Path | None, value("FILE", "Write an HTML report, too.")] = None,
    as_json: options.Json = False,
) -> None:
    """Run an image's checks again and add the results to its seal."""
    from sparkimage.registry.archives import refuse_target
    from sparkimage.verify import plan_record, run_tiers, seal

    store = base.open_store()
    kept, image, _matrix = find(store, reference)
    plan, project = kept.plan, base.project_folder()
    tiers = tiers_of(tier)
    if html is not None:
        refuse_target(html)
    # The checks run as they are now.
    record = plan_record.refresh(kept, project)
    view = base.new_view(quiet=as_json)

    def live() -> run_tiers.Live:
        from sparkimage.build.builder import engine_reference
        from sparkimage.build.engine.private import ensure

        engine = ensure(paths.home(), Local(), view.say)
        return run_tiers.Live(engine=engine, reference=engine_reference(plan, image, engine))

    outcome = None
    try:
        with store.in_use(view.say), view.counted("verifying") as progress:
            outcome = run_tiers.verify(
                record, image, live=live, project=project, store=store, runner=Local(),
                tiers=tiers, progress=progress,
            )  # fmt: skip
    finally:
        verdict = None
        try:
            verdict = seal.verdict(store, image.digest, plan_checksum=record.checksum)
        except GateError as error:
            base.warn(error.message)
        if as_json:
            result = verdict.to_dict() if verdict else {"result": None, "notRun": {}}
            result["notRun"] |= outcome.not_run if outcome is not None else {}
            base.print_json({"digest": image.digest, "variant": plan.variant, **result})
        if html is not None and verdict is not None:
            _write_report(html, record, image, verdict)
    if not as_json:
        assert verdict is not None
        _print_outcome(outcome, verdict, f"{plan.variant} ({image.digest[:19]})")


def _print_outcome(outcome: run_tiers.Outcome, verdict: seal.Verdict, title: str) -> None:
    for check in outcome.checks:
        base.show(f"{base.OK} {check.tier} {check.id}  [dim]{base.plain(check.title)}[/]")
    for name, reason in outcome.not_run.items():
        base.show(f"[yellow]·[/] {name}: {base.plain(reason)}")
    base.show(
        f"{title}: {plural(len(outcome.checks), 'check')} passed in "
        f"{clock(outcome.seconds)}; seal: {verdict.result} ({', '.join(verdict.tiers)})"
    )


def report(
    reference: options.Reference,
    output: Annotated[Path, value("FILE", "Write the report to FILE.", "--output", "-o")],
) -> None:
    """Write the results in an image's seal as an HTML report; runs no checks."""
    from sparkimage.registry.archives import refuse_target
    from sparkimage.verify import seal

    refuse_target(output)
    store = base.open_store()
    record, image, _matrix = find(store, reference)
    verdict = seal.verdict(store, image.digest, plan_checksum=record.checksum)
    if verdict is None:
        raise GateError(
            f"{image.digest[:19]} has no seal for its plan and the checks as they are now",
            hint=f"{program()} verify {base.short(image.digest)}",
        )
    _write_report(output, record, image, verdict)


def _write_report(path: Path, record: PlanRecord, image: Image, verdict: seal.Verdict) -> None:
    from sparkimage.registry.archives import written
    from sparkimage.verify import report

    with written(path) as sink:
        sink.write(report.page(record.plan, image, verdict, base.project_folder()).encode())
