"""Builds, verifies and names the image of a plan.

An image gets its name, in the store and in the engine, when its checks have passed; an interrupted
build leaves the name where it was. It is verified and named by its digest: other processes may move
names meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparkimage.build import builder, capacity, export, layer_files, preflight
from sparkimage.build.builder import Staged, execute, fingerprint
from sparkimage.build.context import BuildContext
from sparkimage.build.engine import content
from sparkimage.build.engine.engine import OWNER
from sparkimage.config.plan import Plan
from sparkimage.config.tier import DEFAULT
from sparkimage.core.errors import EngineError, GateError, VerifyError
from sparkimage.core.locks import owner
from sparkimage.image.store import Image
from sparkimage.verify import plan_record, policy, run_tiers, seal, static
from sparkimage.verify.plan_record import PlanRecord

REFUSED = "-unproven"
"""Suffix of the tag, in the engine only, of an image that failed: for debugging."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One image that was built and verified."""

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
    """Build ``plan``, verify the image, and name it.

    An unchanged image that is verified is kept unless ``rebuild``. ``repair`` first removes damaged
    blobs from the store. Waits for another process that builds for the same name.
    Raises ``BuildError``, ``VerifyError``, ``PreflightError``, ``NetworkError``, ``StoreError``.
    """
    preflight.refuse_unresolved([plan])
    layer_files.refuse(plan, context.matrix_file)
    preflight.refuse_open_steps(plan, context.project)
    static.ready(plan, context.project)
    say = context.view.say
    with context.store.naming(plan.image, say), context.store.in_use(say):
        return _build(plan, context, rebuild=rebuild, repair=repair)


def require_secrets(plans: Sequence[Plan], context: BuildContext, *, rebuild: bool) -> None:
    """Raise ``PreflightError`` for secrets that a build of one of ``plans`` needs and is not given;
    what is unchanged is not built."""
    secret = [plan for plan in plans if any(la.secrets or la.ssh for la in plan.layers)]
    changed = (
        plan
        for plan in secret
        if rebuild or _unchanged(plan, context, fingerprint(plan, context.project)) is None
    )
    context.secrets.require(changed)


def _build(plan: Plan, context: BuildContext, *, rebuild: bool, repair: bool) -> Result:
    started = time.monotonic()
    key = fingerprint(plan, context.project)
    record = plan_record.record(
        plan, context.project, plan_record.sources_checksum(context.matrix_file)
    )
    if repair:
        _repair(plan, context)
    elif not rebuild and (image := _unchanged(plan, context, key)) is not None:
        verdict, kept = _verdict(record, image, context), _kept(image, context)
        if verdict is not None and kept is not None:
            plan = plan.of_origin(kept)
            plan_record.save(context.store, image.digest, replace(record, plan=plan))
            return Result(
                plan=plan, image=image, checks=verdict.checks, not_run=verdict.not_run,
                seconds=time.monotonic() - started, unchanged=True,
            )  # fmt: skip
    lean = preflight.check(plan, context)
    preflight.reachable(plan, context)
    with execute(plan, context, lean=lean) as staged:
        try:
            outcome = _verify(record, staged, context)
        except VerifyError:
            builder.tag(staged.id, plan.image + REFUSED, context.engine)
            raise
        _name(plan, staged, context)
    if lean and context.engine.private and context.engine.containerd_store:
        content.drop_files(context.home, staged.image.manifest["config"]["digest"], context.runner)
    for layer in plan.layers:
        if (fetched := preflight.fetch_key(layer)) is not None:
            context.store.put_fact("fetched", fetched, {"variant": plan.variant})
    capacity.record(plan, context)
    digest = staged.image.digest
    context.store.put_fact("built", key, {"digest": digest, "variant": plan.variant})
    return Result(
        plan=plan,
        image=context.store.resolve(digest),
        checks=outcome.checks,
        seconds=time.monotonic() - started,
        unchanged=False,
        not_run=outcome.not_run,
    )


def _verdict(record: PlanRecord, image: Image, context: BuildContext) -> seal.Verdict | None:
    """The verdict of an image that was verified before, if the gate lets it ship."""
    try:
        decision = policy.check(
            context.store,
            image.digest,
            plan_checksum=record.checksum,
            # Building again runs no checks of the node tier.
            required=policy.Required(tiers=DEFAULT),
        )
    except GateError:
        return None
    return decision.verdict


def _kept(image: Image, context: BuildContext) -> Plan | None:
    """The plan that an image was built from, if the store has it."""
    try:
        return plan_record.load(context.store, image.digest).plan
    except GateError:
        return None


def _unchanged(plan: Plan, context: BuildContext, key: str) -> Image | None:
    """The image of an earlier build of the same inputs, if store and engine still have it."""
    fact = context.store.get_fact("built", key)
    if fact is None or context.store.names().get(plan.image) != fact.get("digest"):
        return None
    if not context.store.holds(fact["digest"]):
        return None
    image = context.store.resolve(fact["digest"])
    engine_id = builder.engine_id(plan.image, context.engine)
    return image if engine_id in builder.ids(image) else None


def _repair(plan: Plan, context: BuildContext) -> None:
    names = context.store.names()
    if plan.image not in names:
        return
    damaged = context.store.damaged(names[plan.image])
    shared = [blob for blob in damaged if context.store.is_shared(blob)]
    if shared:
        # The engine has the same damaged files, and gives them up with all that uses them.
        users = [name for name, digest in names.items() if context.store.uses(digest, shared)]
        for name in users:
            builder.untag(name, context.engine)
        context.view.say(f"removing {', '.join(users)} and the build cache from the engine")
        export.drop_cache(context)
    for blob in damaged:
        context.view.say(f"removing the damaged blob {blob}")
        context.store.discard(blob)


def _verify(record: PlanRecord, staged: Staged, context: BuildContext) -> run_tiers.Outcome:
    def live() -> run_tiers.Live:
        # The containerd store unpacks with the first container. This one is never started; its
        # entrypoint is for images that have no command.
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
    """Give the verified image its name, in the engine and in the store."""
    digest = staged.image.digest
    builder.tag(staged.id, plan.image, context.engine)
    context.store.name(plan.image, context.store.descriptor(digest))
    builder.untag(plan.image + REFUSED, context.engine)
    if builder.engine_id(plan.image, context.engine) != staged.id:
        raise EngineError(
            f"{plan.image} of the engine at {context.engine.host} was moved by another client",
            hint=f"use the image id {staged.id[:19]}, or run the same command again when no other "
            "client tags it",
        )
