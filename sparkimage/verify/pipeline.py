"""From a plan to a named image: build it, verify it, and only then set its name.

An image gets its name, in the store and in the engine, when its checks have passed; an interrupted
build leaves the name where it was. What is verified and named is the image of one digest, never
what a name stands for: other processes may move names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sparkimage.build import builder, preflight
from sparkimage.build.builder import Staged, execute, fingerprint
from sparkimage.build.context import BuildContext
from sparkimage.build.engine.engine import OWNER
from sparkimage.config.plan import Plan
from sparkimage.config.tier import DEFAULT
from sparkimage.core.errors import EngineError, GateError, VerifyError
from sparkimage.core.locks import owner
from sparkimage.image.store import Image
from sparkimage.verify import plan_record, policy, run_tiers, seal
from sparkimage.verify.plan_record import PlanRecord

REFUSED = "-unproven"
"""Follows the name of an image that was refused, in the engine alone, for whoever looks into it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One image that was built and proven."""

    plan: Plan
    image: Image
    checks: tuple[seal.Check, ...]
    seconds: float
    unchanged: bool
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Checks that could not run here, and why."""


def build(
    plan: Plan, context: BuildContext, *, rebuild: bool = False, repair: bool = False
) -> Result:
    """Build ``plan``, prove the image, and give it its name.

    An image that is there, proven and unchanged is left alone unless ``rebuild``. ``repair`` first
    removes what is damaged in the store. Waits for another process that builds for the same name.
    Raises ``BuildError``, ``VerifyError``, ``PreflightError``, ``NetworkError``, ``StoreError``.
    """
    preflight.refuse_unresolved([plan])
    preflight.refuse_open_steps(plan, context.project)
    say = context.view.say
    with context.store.naming(plan.image, say), context.store.in_use(say):
        return _build(plan, context, rebuild=rebuild, repair=repair)


def _build(plan: Plan, context: BuildContext, *, rebuild: bool, repair: bool) -> Result:
    began = time.monotonic()
    key = fingerprint(plan, context.project)
    record = plan_record.record(
        plan, context.project, plan_record.sources_checksum(context.matrix_file)
    )
    if repair:
        _repair(plan, context)
    elif not rebuild and (image := _unchanged(plan, context, key)) is not None:
        verdict = _sealed(record, image, context)
        if verdict is not None:
            plan_record.keep(context.store, image.digest, record)
            return Result(
                plan=plan, image=image, checks=tuple(verdict.checks),
                seconds=time.monotonic() - began, unchanged=True, not_run=verdict.not_run,
            )  # fmt: skip
    preflight.check(plan, context)
    preflight.reachable(plan, context)
    with execute(plan, context) as staged:
        try:
            outcome = _prove(record, staged, context)
        except VerifyError:
            builder.tag(staged.id, plan.image + REFUSED, context.engine)
            raise
        _name(plan, staged, context)
    for layer in plan.layers:
        if (fetched := preflight.fetch_key(layer)) is not None:
            context.store.put_fact("fetched", fetched, {"variant": plan.variant})
    digest = staged.image.digest
    context.store.put_fact("built", key, {"digest": digest, "variant": plan.variant})
    return Result(
        plan=plan,
        image=context.store.resolve(digest),
        checks=outcome.checks,
        seconds=time.monotonic() - began,
        unchanged=False,
        not_run=outcome.not_run,
    )


def _sealed(record: PlanRecord, image: Image, context: BuildContext) -> seal.Verdict | None:
    """The seal of an image that was built and proven, where the gate would let it ship."""
    try:
        decision = policy.ask(
            context.store,
            image.digest,
            plan_checksum=record.checksum,
            # What only a node can prove is not proven by building again.
            required=policy.Required(tiers=DEFAULT),
        )
    except GateError:
        return None
    return decision.verdict


def _unchanged(plan: Plan, context: BuildContext, key: str) -> Image | None:
    """The image of an earlier build of the very same inputs, if store and engine still hold it."""
    fact = context.store.get_fact("built", key)
    if fact is None or context.store.names().get(plan.image) != fact.get("digest"):
        return None
    if not context.store.holds(fact["digest"]):
        return None
    image = context.store.resolve(fact["digest"])
    held = builder.engine_id(plan.image, context.engine)
    return image if held in builder.ids(image) else None


def _repair(plan: Plan, context: BuildContext) -> None:
    digest = context.store.names().get(plan.image)
    if digest is None:
        return
    for damaged in context.store.damaged(digest):
        context.view.say(f"removing the damaged blob {damaged}")
        context.store.discard(damaged)


def _prove(record: PlanRecord, staged: Staged, context: BuildContext) -> run_tiers.Outcome:
    def live() -> run_tiers.Live:
        # The containerd store unpacks with the first container. This one is never started; an
        # image without a command of its own asks for one.
        with context.engine.cli() as docker:
            docker.container.create(
                staged.id, entrypoint="none", platform=record.plan.platform, pull="never",
                labels={OWNER: owner()},
            ).remove()  # fmt: skip
        return run_tiers.Live(engine=context.engine, reference=staged.id)

    with context.view.counted("verifying") as progress:
        return run_tiers.verify(
            record,
            staged.image,
            live=live,
            project=context.project,
            store=context.store,
            runner=context.runner,
            progress=progress,
        )


def _name(plan: Plan, staged: Staged, context: BuildContext) -> None:
    """Let the name stand for what was proven, in the engine and in the store."""
    digest = staged.image.digest
    builder.tag(staged.id, plan.image, context.engine)
    context.store.name(plan.image, context.store.descriptor(digest))
    builder.untag(plan.image + REFUSED, context.engine)
    if builder.engine_id(plan.image, context.engine) != staged.id:
        raise EngineError(
            f"{plan.image} in the engine at {context.engine.host} was tagged by somebody else, too",
            hint=f"run the image by its id, {staged.id[:19]}, or run the same command again when "
            "nobody else tags it",
        )
