"""The seal: in-toto test results, bound to the digest of one platform manifest.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md

Each verification adds one statement about the tiers that it ran. The verdict combines the
statements that were made against the same plan and checks. The store keeps them unsigned: whoever
can write to the store could sign there as well. They are signed when an image leaves the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError
from sparkimage.core.program import program
from sparkimage.image.store import Store

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
SEAL = "seal"
UNVERIFIED = "unverified"
NCCL_BUILDS = "nccl-builds"
"""The static check whose evidence lists every libnccl of the image."""
"""Facts of the store about a digest: its statements, and why it was loaded unverified."""
KEPT = 20
"""Statements kept for one digest; the oldest are dropped first."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one check, with what was seen in the image and what was expected."""

    id: str
    layer: str
    title: str
    result: str
    seen: Any
    expected: Any
    tier: Tier = Tier.RUN

    @classmethod
    def compare(
        cls, id: str, title: str, seen: Any, expected: Any, *, tier: Tier, layer: str | None = None
    ) -> Check:
        """The check LAYER/NAME, passed where ``seen`` equals ``expected``: as JSON, so that the
        seal holds what was compared. ``layer``: another one than its id begins with."""
        seen, expected = json.loads(json.dumps([seen, expected]))
        return cls(
            id=id, layer=layer or id.partition("/")[0], title=title, seen=seen, expected=expected,
            tier=tier, result="PASSED" if seen == expected else "FAILED",
        )  # fmt: skip

    @property
    def passed(self) -> bool:
        return self.result == "PASSED"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One in-toto test result statement of an image."""

    statement: Mapping[str, Any]

    @property
    def predicate(self) -> Mapping[str, Any]:
        predicate: Mapping[str, Any] = self.statement["predicate"]
        return predicate

    @property
    def passed(self) -> bool:
        return bool(self.predicate["result"] == "PASSED")

    @property
    def finished(self) -> str:
        return str(self.predicate["finished"])

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(_check(entry) for entry in self.predicate["evidence"])

    def checksum(self, name: str) -> str:
        """sha256 of an input of the checks: ``lock``, or ``plan`` (the plan and its checks)."""
        inputs = self.predicate["configuration"]
        return next((str(c["digest"]["sha256"]) for c in inputs if c["name"] == name), "")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The combined result of the statements of one image."""

    result: str
    """PASSED or FAILED."""
    tiers: tuple[Tier, ...]
    """The tiers that passed."""
    checks: tuple[Check, ...]
    """The newest result of each check, of every tier."""
    results: tuple[Result, ...]
    """The statements that count, oldest first."""

    @property
    def newest(self) -> Result:
        return self.results[-1]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def not_run(self) -> Mapping[str, str]:
        """Tiers, and ids of checks, without a result in any statement, and why."""
        reasons: dict[str, str] = {}
        for result in self.results:
            reasons |= result.predicate.get("notRun") or {}
        known = {check.id for check in self.checks} | {str(check.tier) for check in self.checks}
        return {name: why for name, why in reasons.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "result": self.result,
            "when": self.newest.finished,
            "tiers": list(self.tiers),
            "notRun": dict(self.not_run),
            "checks": [asdict(check) for check in self.checks],
            "statements": [result.statement for result in self.results],
        }


def statement(
    *,
    digest: str,
    image: str,
    platform: str,
    checks: Sequence[Check],
    lock_checksum: str,
    plan_checksum: str,
    tools: Mapping[str, str],
    host: str,
    started: float,
    finished: float,
    not_run: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The test result of these checks of the image ``digest``: PASSED if all of them passed.

    ``image`` is the name that it was built for, ``started`` and ``finished`` are Unix times in
    seconds; ``not_run`` says why a tier, or a check by its id, was left out.
    """
    passed = [check.id for check in checks if check.passed]
    failed = [check.id for check in checks if not check.passed]
    tiers = {check.tier for check in checks}
    predicate = {
        "result": "FAILED" if failed else "PASSED",
        "configuration": [
            {"name": "lock", "digest": {"sha256": lock_checksum}},
            {"name": "plan", "digest": {"sha256": plan_checksum}},
        ],
        "passedTests": passed,
        "warnedTests": [],
        "failedTests": failed,
        "image": image,
        "tiers": [str(tier) for tier in Tier if tier in tiers],
        "notRun": {str(name): why for name, why in not_run.items()},
        "evidence": [asdict(check) for check in checks],
        "tools": dict(tools),
        "host": host,
        "started": _time(started),
        "finished": _time(finished),
    }
    return in_toto(TEST_RESULT, platform, digest, predicate)


def in_toto(
    predicate_type: str, name: str, digest: str, predicate: Mapping[str, Any]
) -> dict[str, Any]:
    """An in-toto statement about the image ``digest``."""
    algorithm, _, value = digest.partition(":")
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {algorithm: value}}],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def subject(statement: Any) -> str:
    """The digest of the one image that a statement is about; empty for none, or for several."""
    try:
        (only,) = statement["subject"]
        return f"sha256:{only['digest']['sha256']}"
    except (KeyError, TypeError, ValueError):
        return ""


def save(store: Store, statement: Mapping[str, Any]) -> None:
    """Append a statement to those of its digest.

    Earlier ones that are not a valid test result of that digest are dropped. The image is no longer
    marked as loaded unverified: it has been verified here.
    """
    digest = subject(statement)
    with store.locked():
        stored = store.get_fact(SEAL, digest)
        earlier = [s for s in stored if is_valid(s, digest)] if isinstance(stored, list) else []
        replace(store, digest, [*earlier, statement])
        set_unverified(store, digest, None)


def unverified(store: Store, digest: str) -> str | None:
    """Why the gate refused the image when it was loaded with --allow-unverified; else None."""
    fact = store.get_fact(UNVERIFIED, digest)
    return str(fact.get("why")) if isinstance(fact, dict) else None


def set_unverified(store: Store, digest: str, why: str | None) -> None:
    """Mark the image as loaded unverified, or remove that mark."""
    if why is not None or store.has_fact(UNVERIFIED, digest):
        store.put_fact(UNVERIFIED, digest, None if why is None else {"why": why})


def replace(store: Store, digest: str, statements: Sequence[Mapping[str, Any]]) -> None:
    """Store these statements, oldest first, as the seal of ``digest``."""
    store.put_fact(SEAL, digest, list(statements)[-KEPT:])


def history(store: Store, digest: str) -> tuple[Result, ...]:
    """All test results of ``digest``, oldest first.

    Raises ``GateError`` for a statement that is no valid test result, or of another digest.
    """
    statements = store.get_fact(SEAL, digest)
    if statements is None and store.has_fact(SEAL, digest):
        raise _refusal(digest, "is truncated or was edited")
    return parse([] if statements is None else statements, digest)


def parse(statements: Any, digest: str) -> tuple[Result, ...]:
    """The test results of these statements, in their order. Raises as ``history``."""
    if not isinstance(statements, list):
        raise _refusal(digest, "is not a list of statements")
    for statement in statements:
        other = subject(statement)
        if other and other != digest:
            raise _refusal(digest, f"is of another image, {other[:19]}")
        if not is_valid(statement, digest):
            raise _refusal(digest, "is not a valid test result of that digest")
    return tuple(Result(statement=statement) for statement in statements)


def _refusal(digest: str, why: str) -> GateError:
    return GateError(
        f"the seal of {digest[:19]} {why}",
        hint=f"verify the image again: {program()} verify {digest[7:19]}",
    )


def _check(evidence: Mapping[str, Any]) -> Check:
    return Check(**{**evidence, "tier": Tier(evidence["tier"])})


def is_valid(statement: Any, digest: str) -> bool:
    """Whether this is a test result of ``digest`` whose parts agree with each other."""
    try:
        predicate = statement["predicate"]
        checks = [_check(entry) for entry in predicate["evidence"]]
        passed = [check.id for check in checks if check.passed]
        failed = [check.id for check in checks if not check.passed]
        return bool(
            checks
            and statement["_type"] == STATEMENT
            and statement["predicateType"] == TEST_RESULT
            and subject(statement) == digest
            and (predicate["passedTests"], predicate["failedTests"]) == (passed, failed)
            and predicate["result"] == ("FAILED" if failed else "PASSED")
            and {Tier(tier) for tier in predicate["tiers"]} == {check.tier for check in checks}
            and isinstance(predicate["finished"], str)
            and all(c["name"] and c["digest"]["sha256"] for c in predicate["configuration"])
        )
    except (KeyError, TypeError, ValueError):
        return False


def verdict(store: Store, digest: str, *, plan_checksum: str | None = None) -> Verdict | None:
    """The combined result of the stored statements of ``digest``; None where there are none.

    Only statements made against ``plan_checksum`` count (default: that of the newest one).
    """
    return combine(history(store, digest), plan_checksum)


def combine(results: Sequence[Result], plan_checksum: str | None = None) -> Verdict | None:
    """The combined result of these test results, oldest first; see ``verdict``."""
    if plan_checksum is None and results:
        plan_checksum = results[-1].checksum("plan")
    counted = tuple(result for result in results if result.checksum("plan") == plan_checksum)
    if not counted:
        return None
    newest: dict[tuple[Tier, str], Check] = {}
    for result in counted:
        newest |= {(check.tier, check.id): check for check in result.checks}
    ran = {tier for tier, _ in newest}
    failed = {tier for (tier, _), check in newest.items() if not check.passed}
    return Verdict(
        result="FAILED" if failed else "PASSED",
        tiers=tuple(tier for tier in Tier if tier in ran - failed),
        checks=tuple(check for tier in Tier for check in newest.values() if check.tier is tier),
        results=counted,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
