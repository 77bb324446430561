"""Makes statements and seals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparkimage.config.tier import Tier
from sparkimage.verify import seal
from sparkimage.verify.seal import Check

DIGEST = f"sha256:{'a' * 64}"
PLAN = "1" * 64


def check(id: str, result: str = "PASSED", tier: Tier = Tier.RUN) -> Check:
    return Check(
        id=id, layer=id.split("/", maxsplit=1)[0], title="t", result=result, seen=1,
        expected=1 if result == "PASSED" else 2, tier=tier,
    )  # fmt: skip


def made(
    *checks: Check,
    digest: str = DIGEST,
    plan: str = PLAN,
    finished: float = 1.0,
    image: str = "spark:v",
    not_run: Mapping[str, str] | None = None,
    lock: str = "2" * 64,
) -> dict[str, Any]:
    checks = checks or (check("static/a", tier=Tier.STATIC), check("l/test_a"))
    return seal.statement(
        digest=digest,
        platform="linux/arm64",
        checks=checks,
        lock_checksum=lock,
        tools={"tool": "1"},
        host="host",
        started=0,
        finished=finished,
        plan_checksum=plan,
        image=image,
        not_run=not_run or {},
    )
