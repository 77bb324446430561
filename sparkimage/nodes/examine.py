"""Verifies an image on a node of the fleet, in the run and node tiers, through its own engine."""

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


def examiner(
    record: PlanRecord, image: Image, project: Path, store: Store, tiers: Sequence[Tier]
) -> Callable[[NodeSession, str], Sequence[str]]:
    """A function that verifies an image on a node in these tiers, and returns those that ran.

    A failure may be the node's (a damaged disk): the result goes into the node's receipt and not
    into the image's seal. Raises ``UsageError`` where the checks are not in ``project``.
    """
    current = plan_record.refresh(record, project)

    def examine(session: NodeSession, reference: str) -> Sequence[str]:
        at = _engine(session)
        hint = "fix the node, or leave that tier out of --prove"
        try:
            outcome = run_tiers.verify(
                current, image, live=lambda: Live(engine=at, reference=reference), project=project,
                store=store, runner=Local(), tiers=tiers, write_seal=False,
            )  # fmt: skip
        except (VerifyError, PreflightError) as error:
            raise NodeError(
                f"{session.name}: {error.message}", detail=error.detail, hint=hint
            ) from None
        if outcome.not_run:
            # A tier that was requested and did not run proves nothing.
            why = "; ".join(f"{tier}: {why}" for tier, why in outcome.not_run.items())
            raise NodeError(f"{session.name}: {why}", hint=hint)
        ran = {check.tier for check in outcome.checks}
        return [str(tier) for tier in Tier if tier in ran]

    return examine


def _engine(session: NodeSession) -> Engine:
    """The node's engine, through the ssh connection, with this machine's docker program."""
    if session.remote.node.sudo:
        raise NodeError(
            f"{session.name}: --prove needs its Docker's socket, which `sudo: true` does not open",
            hint="there: sudo usermod -aG docker USER, and leave out `sudo: true`",
        )
    runner = Local()
    local = engine.find(paths.home(), runner)
    socket = session.remote.engine.link.engine
    program, *_ = local.docker
    config = local.docker[1:3] if local.docker[1:2] == ("--config",) else ()
    remote = engine.describe(
        f"unix://{socket}", (program, *config, "--host", f"unix://{socket}"), runner,
        is_private=local.private, folder=local.bin,
    )  # fmt: skip
    return replace(remote, private=local.private)
