"""The gate: the one question that everything asks before an image ships.

Whatever saves, publishes or distributes calls ``ask`` with a digest. It answers with a
``PolicyDecision``, or raises ``GateError`` with the reason and the next action.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core.errors import GateError
from sparkimage.image.store import Store
from sparkimage.verify import seal
from sparkimage.verify.seal import Result, Verdict


@dataclass(frozen=True, kw_only=True)
class Required:
    """What a seal must say before its image ships."""

    tiers: tuple[Tier, ...] = DEFAULT
    checks: tuple[str, ...] = ()
    """Ids of checks that must have passed."""


@dataclass(frozen=True, kw_only=True)
class PolicyDecision:
    """An image that may ship: with its verdict, or with the reason why it is unverified."""

    digest: str
    verdict: Verdict | None
    unverified: str = ""
    """Why the gate refused, where ``--allow-unverified`` went over it. Goes into what ships."""


def ask(
    store: Store,
    digest: str,
    *,
    plan_checksum: str | None,
    required: Required,
    allow_unverified: bool = False,
    name: str | None = None,
    say: Callable[[str], None] | None = None,
) -> PolicyDecision:
    """Whether the image ``digest`` may ship; under ``name``, where it is to have one.

    ``plan_checksum`` is of the plan and checks that it must have been proven against; None where
    there is no plan at hand. ``say`` takes the warning of ``allow_unverified`` (default: standard
    error). Raises ``GateError``.
    """
    try:
        _same_name(store, digest, name)
        if (why := seal.mark(store, digest)) is not None:
            raise GateError(
                f"{digest[:19]} was loaded unverified: {why}",
                hint=f"prove it here: python build.py verify {digest[7:19]}",
            )
        return judge(seal.history(store, digest), digest, plan_checksum, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return overruled(digest, refusal, say)


def overruled(
    digest: str, refusal: GateError, say: Callable[[str], None] | None = None
) -> PolicyDecision:
    """The decision of an image that ships although it was refused; says so, loudly."""
    warning = f"WARNING: {digest[:19]} ships UNVERIFIED: {refusal.message}"
    (say or (lambda line: print(line, file=sys.stderr)))(warning)
    return PolicyDecision(digest=digest, verdict=None, unverified=refusal.message)


def judge(
    statements: Sequence[Result], digest: str, plan_checksum: str | None, required: Required
) -> PolicyDecision:
    """As ``ask``, of statements that were read already."""
    short, again = digest[:19], f"python build.py verify {digest[7:19]}"
    if not statements:
        raise GateError(f"{short} has no seal", hint=f"prove it: {again}")
    verdict = seal.total(statements, plan_checksum)
    if verdict is None:
        raise GateError(
            f"the seal of {short} was made against another plan or other checks than today's",
            hint=f"prove it against these: {again}",
        )
    if verdict.result != "PASSED":
        failed = verdict.failed
        raise GateError(
            f"the seal of {short} says FAILED: {len(failed)} of {len(verdict.checks)} checks",
            detail="\n".join(f"✗ {check.tier} {check.id}: {check.title}" for check in failed),
            hint="correct the layer that the check stands with, and build again",
        )
    lacking = [tier for tier in required.tiers if tier not in verdict.tiers]
    if lacking:
        passed = ", ".join(verdict.tiers)
        raise GateError(
            f"the seal of {short} lacks the required tier {', '.join(lacking)}: it has {passed}",
            hint=f"{again} --tier {','.join(lacking)}",
        )
    known = {check.id for check in verdict.checks}
    absent = [check for check in required.checks if check not in known]
    if absent:
        raise GateError(
            f"the seal of {short} lacks {len(absent)} required checks", detail="\n".join(absent),
            hint=f"run them: {again}",
        )  # fmt: skip
    return PolicyDecision(digest=digest, verdict=verdict)


def _same_name(store: Store, digest: str, name: str | None) -> None:
    """Refuse an image whose name has come to stand for another one than what was sealed."""
    held = store.names().get(name) if name is not None else None
    if held is None:
        return
    if held != digest:
        raise GateError(
            f"{name} was rebuilt: it stands for {held[:19]} now, not for {digest[:19]}",
            hint=f"ship what it stands for (verify {held[7:19]} first), or build it again",
        )
    if seal.history(store, digest):
        return
    for other in store.fact_keys("seal"):
        try:
            earlier = seal.history(store, other)
        except GateError:
            continue
        if other != digest and any(
            one.statement["predicate"].get("image") == name for one in earlier
        ):
            raise GateError(
                f"{name} was rebuilt: the seal is of {other[:19]}, the name stands for "
                f"{digest[:19]} now, which has no seal",
                hint=f"prove what is there: python build.py verify {digest[7:19]}",
            )
