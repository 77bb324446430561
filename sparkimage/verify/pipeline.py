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
from sparkimage.build.context import Workshop
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


def build(plan: Plan, shop: Workshop, *, rebuild: bool = False, repair: bool = False) -> Result:
    """Build ``plan``, prove the image, and give it its name.

    An image that is there, proven and unchanged is left alone unless ``rebuild``. ``repair`` first
    removes what is damaged in the store. Waits for another process that builds for the same name.
    Raises ``BuildError``, ``VerifyError``, ``PreflightError``, ``NetworkError``, ``StoreError``.
    """
    preflight.refuse_unresolved([plan])
    preflight.refuse_open_steps(plan, shop.project)
    say = shop.view.say
    with shop.store.naming(plan.image, say), shop.store.in_use(say):
        return _build(plan, shop, rebuild=rebuild, repair=repair)


def _build(plan: Plan, shop: Workshop, *, rebuild: bool, repair: bool) -> Result:
    began = time.monotonic()
    key = fingerprint(plan, shop.project)
    record = plan_record.record(plan, shop.project, plan_record.sources_checksum(shop.matrix_file))
    if repair:
        _repair(plan, shop)
    elif not rebuild and (image := _unchanged(plan, shop, key)) is not None:
        verdict = _sealed(record, image, shop)
        if verdict is not None:
            plan_record.keep(shop.store, image.digest, record)
            return Result(
                plan=plan, image=image, checks=tuple(verdict.checks),
                seconds=time.monotonic() - began, unchanged=True, not_run=verdict.not_run,
            )  # fmt: skip
    preflight.check(plan, shop)
    preflight.reachable(plan, shop)
    with execute(plan, shop) as staged:
        try:
            outcome = _prove(record, staged, shop)
        except VerifyError:
            builder.tag(staged.id, plan.image + REFUSED, shop.engine)
            raise
        _name(plan, staged, shop)
    for layer in plan.layers:
        if (fetched := preflight.fetch_key(layer)) is not None:
            shop.store.put_fact("fetched", fetched, {"variant": plan.variant})
    digest = staged.image.digest
    shop.store.put_fact("built", key, {"digest": digest, "variant": plan.variant})
    return Result(
        plan=plan,
        image=shop.store.resolve(digest),
        checks=outcome.checks,
        seconds=time.monotonic() - began,
        unchanged=False,
        not_run=outcome.not_run,
    )


def _sealed(record: PlanRecord, image: Image, shop: Workshop) -> seal.Verdict | None:
    """The seal of an image that was built and proven, where the gate would let it ship."""
    try:
        decision = policy.ask(
            shop.store,
            image.digest,
            plan_checksum=record.checksum,
            # What only a node can prove is not proven by building again.
            required=policy.Required(tiers=DEFAULT),
        )
    except GateError:
        return None
    return decision.verdict


def _unchanged(plan: Plan, shop: Workshop, key: str) -> Image | None:
    """The image of an earlier build of the very same inputs, if store and engine still hold it."""
    fact = shop.store.get_fact("built", key)
    if fact is None or shop.store.names().get(plan.image) != fact.get("digest"):
        return None
    if not shop.store.holds(fact["digest"]):
        return None
    image = shop.store.resolve(fact["digest"])
    held = builder.engine_id(plan.image, shop.engine)
    return image if held in builder.ids(image) else None


def _repair(plan: Plan, shop: Workshop) -> None:
    digest = shop.store.names().get(plan.image)
    if digest is None:
        return
    for damaged in shop.store.damaged(digest):
        shop.view.say(f"removing the damaged blob {damaged}")
        shop.store.discard(damaged)


def _prove(record: PlanRecord, staged: Staged, shop: Workshop) -> run_tiers.Outcome:
    def live() -> run_tiers.Live:
        # The containerd store unpacks with the first container. This one is never started; an
        # image without a command of its own asks for one.
        with shop.engine.cli() as docker:
            docker.container.create(
                staged.id, entrypoint="none", platform=record.plan.platform, pull="never",
                labels={OWNER: owner()},
            ).remove()  # fmt: skip
        return run_tiers.Live(engine=shop.engine, reference=staged.id)

    with shop.view.counted("verifying") as progress:
        return run_tiers.verify(
            record,
            staged.image,
            live=live,
            project=shop.project,
            store=shop.store,
            runner=shop.runner,
            progress=progress,
        )


def _name(plan: Plan, staged: Staged, shop: Workshop) -> None:
    """Let the name stand for what was proven, in the engine and in the store."""
    digest = staged.image.digest
    builder.tag(staged.id, plan.image, shop.engine)
    shop.store.name(plan.image, shop.store.descriptor(digest))
    builder.untag(plan.image + REFUSED, shop.engine)
    if builder.engine_id(plan.image, shop.engine) != staged.id:
        raise EngineError(
            f"{plan.image} was moved to another image in the engine at {shop.engine.host} while it "
            "was named",
            hint=f"run it by its id, {staged.id[:19]}; or the same command again, when nobody else "
            "tags it",
        )
