"""The run and node tiers on a node of the fleet, through its own engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sparkimage.build.engine import engine
from sparkimage.build.engine.engine import Engine
from sparkimage.config.tier import Tier
from sparkimage.core import paths
from sparkimage.core.errors import NodeError, PreflightError, VerifyError
from sparkimage.core.process import Local
from sparkimage.image.store import Image, Store
from sparkimage.nodes.session import NodeSession
from sparkimage.verify import plan_record, run_tiers
from sparkimage.verify.plan_record import PlanRecord
from sparkimage.verify.run_tiers import Live

SOCKET = "/var/run/docker.sock"


def examiner(
    record: PlanRecord, image: Image, project: Path, store: Store, tiers: Sequence[Tier]
) -> Callable[[NodeSession, str], Sequence[str]]:
    """What proves an image on a node by these tiers, and names them.

    What it finds is about the node as much as about the image (a disk may be damaged), so that it
    goes into the node's receipt and not into the image's seal. Raises ``UsageError`` where the
    checks are not in ``project``.
    """
    plan = plan_record.again(record, project).plan

    def examine(session: NodeSession, reference: str) -> Sequence[str]:
        at = _engine(session)
        hint = "fix the node, or leave that tier out of --prove"
        try:
            outcome = run_tiers.run(
                plan, image, live=lambda: Live(engine=at, reference=reference), project=project,
                store=store, runner=Local(), tiers=tiers,
            )  # fmt: skip
            if outcome.failed:
                raise run_tiers.failed(
                    plan.variant, image.digest, outcome.failed, len(outcome.checks)
                )
        except (VerifyError, PreflightError) as error:
            raise NodeError(
                f"{session.name}: {error.message}", detail=error.detail, hint=hint
            ) from None
        if outcome.not_run:
            # It was asked for: what did not run has proven nothing.
            why = "; ".join(f"{tier}: {why}" for tier, why in outcome.not_run.items())
            raise NodeError(f"{session.name}: {why}", hint=hint)
        ran = {check.tier for check in outcome.checks}
        return [str(tier) for tier in Tier if tier in ran]

    return examine


def _engine(session: NodeSession) -> Engine:
    """The node's engine, through our connection, with the docker program that is here."""
    if session.remote.node.sudo:
        raise NodeError(
            f"{session.name}: --prove needs its Docker's socket, which `sudo: true` hides",
            hint="there: sudo usermod -aG docker USER, and leave out `sudo: true`",
        )
    runner = Local()
    here = engine.find(paths.home(), runner)
    socket = session.remote.forward(SOCKET)
    program, *_ = here.docker
    config = here.docker[1:3] if here.docker[1:2] == ("--config",) else ()
    there = engine.describe(
        f"unix://{socket}", (program, *config, "--host", f"unix://{socket}"), runner,
        is_private=here.private, folder=here.bin,
    )  # fmt: skip
    return replace(there, private=here.private)
