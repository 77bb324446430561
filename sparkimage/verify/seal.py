"""The seal: in-toto test results, bound to the digest of one platform manifest.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md

Each verification adds one statement about the tiers that it ran. What counts is their sum over the
statements that were made against the same plan and checks. The store keeps them unsigned: who may
write to the store could sign there as well. They are signed where an image leaves it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError
from sparkimage.image.store import Store

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
UNVERIFIED = "unverified"
"""The kind of fact that marks an image which came without a seal that fits."""
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
    tier: Tier = Tier.RUN

    @classmethod
    def compare(cls, id: str, title: str, seen: Any, expected: Any, *, tier: Tier) -> Check:
        """The check LAYER/NAME, passed where ``seen`` equals ``expected``: as JSON, so that the
        seal holds what was compared."""
        seen, expected = json.loads(json.dumps([seen, expected]))
        return cls(
            id=id, layer=id.partition("/")[0], title=title, seen=seen, expected=expected, tier=tier,
            result="PASSED" if seen == expected else "FAILED",
        )  # fmt: skip

    @property
    def passed(self) -> bool:
        return self.result == "PASSED"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A statement that is a test result for its digest."""

    statement: Mapping[str, Any]

    @property
    def plan(self) -> str:
        """The checksum of the plan and the checks that it was made against."""
        listed = self.statement["predicate"]["configuration"]
        return next((str(c["digest"]["sha256"]) for c in listed if c["name"] == "plan"), "")

    @property
    def checks(self) -> tuple[Check, ...]:
        return tuple(_check(one) for one in self.statement["predicate"]["evidence"])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the statements about an image come to."""

    result: str
    when: str
    """When the newest statement was made."""
    tiers: tuple[Tier, ...]
    """Those that passed."""
    checks: tuple[Check, ...]
    """Of every tier, each with its newest result."""
    statements: tuple[Result, ...]

    @property
    def statement(self) -> Mapping[str, Any]:
        """The newest one."""
        return self.statements[-1].statement

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def not_run(self) -> Mapping[str, str]:
        """Tiers, and checks by their ids, that have no result of any statement, and why."""
        said: dict[str, str] = {}
        for one in self.statements:
            said |= one.statement["predicate"].get("notRun") or {}
        known = {check.id for check in self.checks} | {str(check.tier) for check in self.checks}
        return {name: why for name, why in said.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "result": self.result,
            "when": self.when,
            "tiers": list(self.tiers),
            "notRun": dict(self.not_run),
            "checks": [asdict(check) for check in self.checks],
            "statements": [one.statement for one in self.statements],
        }


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
    image: str = "",
    not_run: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The statement that these checks came to ``result`` (PASSED or FAILED) for ``digest``.

    ``image`` is the name that it was built for; ``not_run`` says why a tier, or
    a check by its id, was left out.
    """
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
            "passedTests": [check.id for check in checks if check.passed],
            "warnedTests": [],
            "failedTests": [check.id for check in checks if not check.passed],
            "image": image,
            "tiers": [str(tier) for tier in tiers],
            "notRun": {str(tier): why for tier, why in (not_run or {}).items()},
            "evidence": [asdict(check) for check in checks],
            "tools": dict(tools),
            "host": host,
            "started": _time(started),
            "finished": _time(finished),
        },
    }


def save(store: Store, made: Mapping[str, Any]) -> None:
    """Keep the statement with the digest that it is about, behind the earlier ones.

    Earlier ones that are no test result for it are dropped, and a mark of an image that was loaded
    unverified is gone: the image is proven anew.
    """
    digest = f"sha256:{made['subject'][0]['digest']['sha256']}"
    with store.locked():
        found = store.get_fact("seal", digest)
        earlier = [one for one in found if fits(one, digest)] if isinstance(found, list) else []
        keep(store, digest, [*earlier, made])
        set_mark(store, digest, None)


def mark(store: Store, digest: str) -> str | None:
    """Why the image was loaded although the gate refused it; None where it was not."""
    found = store.get_fact(UNVERIFIED, digest)
    return str(found.get("why")) if isinstance(found, dict) else None


def set_mark(store: Store, digest: str, why: str | None) -> None:
    """Say that the image was loaded unverified, or take that back."""
    if why is not None or store.has_fact(UNVERIFIED, digest):
        store.put_fact(UNVERIFIED, digest, None if why is None else {"why": why})


def keep(store: Store, digest: str, statements: Sequence[Mapping[str, Any]]) -> None:
    """Keep these statements, oldest first, as the ones of ``digest``."""
    store.put_fact("seal", digest, list(statements)[-KEPT:])


def history(store: Store, digest: str) -> tuple[Result, ...]:
    """Every statement about ``digest``, oldest first.

    Raises ``GateError`` for one that is no test result, or is of another digest.
    """
    found = store.get_fact("seal", digest)
    if found is None and store.has_fact("seal", digest):
        raise _refusal(digest, "cannot be read: it was cut off or edited")
    return read([] if found is None else found, digest)


def read(statements: Any, digest: str) -> tuple[Result, ...]:
    """These statements, oldest first; raises as ``history``."""
    if not isinstance(statements, list):
        raise _refusal(digest, "is no list of statements")
    for one in statements:
        other = _subject(one)
        if other is not None and other != digest:
            raise _refusal(digest, f"is of another image, {other[:19]}")
        if not fits(one, digest):
            raise _refusal(digest, "is not a test result for that digest")
    return tuple(Result(statement=one) for one in statements)


def _refusal(digest: str, why: str) -> GateError:
    return GateError(
        f"the seal of {digest[:19]} {why}",
        hint=f"prove the image again: python build.py verify {digest[7:19]}",
    )


def _subject(said: Any) -> str | None:
    try:
        (subject,) = said["subject"]
        return f"sha256:{subject['digest']['sha256']}"
    except (KeyError, TypeError, ValueError):
        return None


def _check(one: Mapping[str, Any]) -> Check:
    return Check(**{**one, "tier": Tier(one["tier"])})


def fits(one: Any, digest: str) -> bool:
    """Whether ``one`` is a test result for ``digest`` whose parts agree with each other."""
    try:
        predicate = one["predicate"]
        checks = [_check(check) for check in predicate["evidence"]]
        passed = [check.id for check in checks if check.passed]
        failed = [check.id for check in checks if not check.passed]
        return bool(
            checks
            and one["_type"] == STATEMENT
            and one["predicateType"] == TEST_RESULT
            and [s["digest"]["sha256"] for s in one["subject"]] == [digest[7:]]
            and (predicate["passedTests"], predicate["failedTests"]) == (passed, failed)
            and predicate["result"] == ("FAILED" if failed else "PASSED")
            and {Tier(tier) for tier in predicate["tiers"]} == {check.tier for check in checks}
            and isinstance(predicate["finished"], str)
            and all(c["name"] and c["digest"]["sha256"] for c in predicate["configuration"])
        )
    except (KeyError, TypeError, ValueError):
        return False


def verdict(store: Store, digest: str, *, plan_checksum: str | None = None) -> Verdict | None:
    """What the statements about ``digest`` come to; None where there is none.

    Only those made against ``plan_checksum`` count, or those that are of one with the newest.
    """
    return total(history(store, digest), plan_checksum)


def total(statements: Sequence[Result], plan_checksum: str | None = None) -> Verdict | None:
    """The sum of these statements, oldest first, as ``verdict`` says it."""
    if plan_checksum is None and statements:
        plan_checksum = statements[-1].plan
    count = tuple(one for one in statements if one.plan == plan_checksum)
    if not count:
        return None
    newest: dict[tuple[Tier, str], Check] = {}
    for one in count:
        newest |= {(check.tier, check.id): check for check in one.checks}
    ran = {tier for tier, _ in newest}
    failed = {tier for (tier, _), check in newest.items() if not check.passed}
    return Verdict(
        result="FAILED" if failed else "PASSED",
        when=count[-1].statement["predicate"]["finished"],
        tiers=tuple(tier for tier in Tier if tier in ran - failed),
        checks=tuple(check for tier in Tier for (of, _), check in newest.items() if of is tier),
        statements=count,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
