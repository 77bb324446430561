"""The gate: decides whether an image may ship.

Everything that saves, publishes or distributes calls ``check`` with a digest. It returns a
``PolicyDecision``, or raises ``GateError`` with the reason and the next action.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core.errors import GateError
from sparkimage.core.program import program
from sparkimage.image.store import Store
from sparkimage.verify import seal
from sparkimage.verify.seal import Result, Verdict


@dataclass(frozen=True, kw_only=True)
class Required:
    """What must have passed before an image ships."""

    tiers: tuple[Tier, ...] = DEFAULT
    checks: tuple[str, ...] = ()
    """Ids of checks."""


@dataclass(frozen=True, kw_only=True)
class PolicyDecision:
    """An image that may ship: with its verdict, or with the reason why it is unverified."""

    digest: str
    verdict: Verdict | None
    unverified: str = ""
    """Why the gate refused, where ``--allow-unverified`` overrode it. Recorded in what ships."""


def check(
    store: Store,
    digest: str,
    *,
    plan_checksum: str | None,
    required: Required,
    allow_unverified: bool = False,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
) -> PolicyDecision:
    """Decide whether the image ``digest`` may ship (under ``name``, if given).

    ``plan_checksum`` is of the plan and checks that it must have been verified against; None takes
    those of its newest statement. ``say`` takes the warning of ``allow_unverified`` (default:
    standard error). Raises ``GateError``.
    """
    try:
        if name is not None:
            _check_name(store, digest, name)
        if (why := seal.unverified(store, digest)) is not None:
            raise GateError(
                f"{digest[:19]} was loaded unverified: {why}",
                hint=f"verify it here: {program()} verify {digest[7:19]}",
            )
        return judge(seal.history(store, digest), digest, plan_checksum, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return override(digest, refusal, say)


def override(
    digest: str, refusal: GateError, say: Callable[[str], None] | None = None
) -> PolicyDecision:
    """The decision for an image that ships although the gate refused it; prints a warning."""
    warning = f"WARNING: {digest[:19]} ships UNVERIFIED: {refusal.message}"
    (say or (lambda line: print(line, file=sys.stderr)))(warning)
    return PolicyDecision(digest=digest, verdict=None, unverified=refusal.message)


def judge(
    results: Sequence[Result], digest: str, plan_checksum: str | None, required: Required
) -> PolicyDecision:
    """As ``check``, of test results that were read already."""
    short, verify = digest[:19], f"{program()} verify {digest[7:19]}"
    if not results:
        raise GateError(f"{short} has no seal", hint=f"verify it: {verify}")
    verdict = seal.combine(results, plan_checksum)
    if verdict is None:
        raise GateError(
            f"the seal of {short} was made against another plan or other checks",
            hint=f"verify it against the current ones: {verify}",
        )
    if failed := verdict.failed:
        raise GateError(
            f"the seal of {short} says FAILED: {len(failed)} of {len(verdict.checks)} checks",
            detail="\n".join(
                f"✗ {check.tier} {check.id} (not true: {check.title})" for check in failed
            ),
            hint="fix the layer that the check belongs to, and build again",
        )
    missing = [tier for tier in required.tiers if tier not in verdict.tiers]
    if missing:
        passed = ", ".join(verdict.tiers)
        raise GateError(
            f"the seal of {short} lacks the required tier {', '.join(missing)}: it has {passed}",
            hint=f"{verify} --tier {','.join(missing)}",
        )
    known = {check.id for check in verdict.checks}
    absent = [check for check in required.checks if check not in known]
    if absent:
        raise GateError(
            f"the seal of {short} lacks {len(absent)} required checks", detail="\n".join(absent),
            hint=f"run them: {verify}",
        )  # fmt: skip
    return PolicyDecision(digest=digest, verdict=verdict)


def _check_name(store: Store, digest: str, name: str) -> None:
    """Refuse an image whose name has moved to another image since it was verified."""
    current = store.names().get(name)
    if current is None:
        return
    if current != digest:
        raise GateError(
            f"{name} was rebuilt: it is now {current[:19]}, not {digest[:19]}",
            hint=f"ship what it is now (verify {current[7:19]} first), or build it again",
        )
    if seal.history(store, digest):
        return
    for other in store.fact_keys(seal.SEAL):
        try:
            results = seal.history(store, other)
        except GateError:
            continue
        if other != digest and any(result.predicate.get("image") == name for result in results):
            raise GateError(
                f"{name} was rebuilt: its seal is of {other[:19]}, but it is now {digest[:19]}, "
                "which has no seal",
                hint=f"verify the new image: {program()} verify {digest[7:19]}",
            )
