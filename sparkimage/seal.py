"""The seal: an in-toto test result, bound to the digest of one platform manifest.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sparkimage.errors import StoreError
from sparkimage.store import Store

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
KEPT = 20
"""Statements kept for one digest; the oldest go first."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check's result, with what was seen in the image and what was expected."""

    id: str
    layer: str
    title: str
    result: str
    seen: Any
    expected: Any


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the newest statement about an image says."""

    result: str
    when: str
    checks: tuple[Check, ...]
    statement: Mapping[str, Any]


def statement(
    *,
    digest: str,
    platform_name: str,
    result: str,
    tiers: Sequence[str],
    checks: Sequence[Check],
    lock_checksum: str,
    tools: Mapping[str, str],
    host: str,
    started: float,
    finished: float,
    plan_checksum: str,
) -> dict[str, Any]:
    """The statement that these checks came to ``result`` (PASSED or FAILED) for ``digest``."""
    algorithm, _, value = digest.partition(":")
    return {
        "_type": STATEMENT,
        "subject": [{"name": platform_name, "digest": {algorithm: value}}],
        "predicateType": TEST_RESULT,
        "predicate": {
            "result": result,
            "configuration": [
                {"name": "lock", "digest": {"sha256": lock_checksum}},
                {"name": "plan", "digest": {"sha256": plan_checksum}},
            ],
            "passedTests": [check.id for check in checks if check.result == "PASSED"],
            "warnedTests": [],
            "failedTests": [check.id for check in checks if check.result != "PASSED"],
            "tiers": list(tiers),
            "evidence": [asdict(check) for check in checks],
            "tools": dict(tools),
            "host": host,
            "started": _time(started),
            "finished": _time(finished),
        },
    }


def save(store: Store, made: Mapping[str, Any]) -> None:
    """Keep the statement with the digest that it is about; earlier ones stay before it."""
    digest = f"sha256:{made['subject'][0]['digest']['sha256']}"
    store.put_fact("seal", digest, [*history(store, digest), made][-KEPT:])


def history(store: Store, digest: str) -> list[dict[str, Any]]:
    """Every statement about ``digest``, oldest first. Raises ``StoreError`` for a foreign one."""
    found = store.get_fact("seal", digest)
    if found is None:
        return []
    statements: list[Any] = found if isinstance(found, list) else [None]
    for one in statements:
        if not _fits(one, digest):
            raise StoreError(
                f"the seal kept for {digest} is not a test result for that digest",
                hint=f"prove the image again: python build.py verify {digest[7:19]}",
            )
    return list(found)


def _fits(one: Any, digest: str) -> bool:
    """Whether ``one`` is a test result for ``digest`` whose parts agree with each other."""
    try:
        predicate = one["predicate"]
        checks = [Check(**check) for check in predicate["evidence"]]
        passed = [check.id for check in checks if check.result == "PASSED"]
        failed = [check.id for check in checks if check.result != "PASSED"]
        return bool(
            checks
            and one["_type"] == STATEMENT
            and one["predicateType"] == TEST_RESULT
            and [s["digest"]["sha256"] for s in one["subject"]] == [digest[7:]]
            and (predicate["passedTests"], predicate["failedTests"]) == (passed, failed)
            and predicate["result"] == ("FAILED" if failed else "PASSED")
            and isinstance(predicate["finished"], str)
            and all(c["name"] and c["digest"]["sha256"] for c in predicate["configuration"])
        )
    except (KeyError, TypeError):
        return False


def verdict(store: Store, digest: str, *, plan_checksum: str | None = None) -> Verdict | None:
    """What the newest statement says; None where there is none.

    With ``plan_checksum``, only statements made against that plan and those checks count.
    """
    for one in reversed(history(store, digest)):
        predicate = one["predicate"]
        plans = {c["name"]: c["digest"]["sha256"] for c in predicate["configuration"]}
        if plan_checksum is None or plans.get("plan") == plan_checksum:
            return Verdict(
                result=predicate["result"],
                when=predicate["finished"],
                checks=tuple(Check(**check) for check in predicate["evidence"]),
                statement=one,
            )
    return None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
