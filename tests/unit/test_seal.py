"""Seals whose parts do not agree are none; the newest counts, and only so many are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkimage import seal
from sparkimage.errors import StoreError
from sparkimage.seal import Check
from sparkimage.store import Store

DIGEST = f"sha256:{'a' * 64}"


def made(*results: str, plan: str = "1" * 64, finished: float = 1.0) -> dict[str, Any]:
    checks = [
        Check(id=f"l/test_{i}", layer="l", title="t", result=result, seen=i, expected=i)
        for i, result in enumerate(results)
    ]
    return seal.statement(
        digest=DIGEST,
        platform_name="linux/arm64",
        result="PASSED" if set(results) == {"PASSED"} else "FAILED",
        tiers=("run",),
        checks=checks,
        lock_checksum="2" * 64,
        tools={"tool": "1"},
        host="host",
        started=0,
        finished=finished,
        plan_checksum=plan,
    )


def test_a_seal_reads_as_it_was_written(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    statement = made("PASSED", "FAILED")
    seal.save(store, statement)
    verdict = seal.verdict(Store.open(tmp_path), DIGEST)
    assert verdict is not None
    assert verdict.statement == statement
    assert [check.result for check in verdict.checks] == ["PASSED", "FAILED"]
    assert verdict.result == "FAILED"


TAMPERING: dict[str, Callable[[dict[str, Any]], object]] = {
    "no evidence": lambda s: s["predicate"].update(evidence=[]),
    "nothing at all": lambda s: s["predicate"].update(evidence=[], passedTests=[], failedTests=[]),
    "evidence says FAILED": lambda s: s["predicate"]["evidence"][0].update(result="FAILED"),
    "a test more": lambda s: s["predicate"]["passedTests"].append("l/other"),
    "a test less": lambda s: s["predicate"]["passedTests"].pop(),
    "a part of evidence more": lambda s: s["predicate"]["evidence"][0].update(more=1),
    "a part of evidence less": lambda s: s["predicate"]["evidence"][0].pop("seen"),
    "no time": lambda s: s["predicate"].pop("finished"),
    "no configuration": lambda s: s["predicate"].pop("configuration"),
    "a configuration of no form": lambda s: s["predicate"].update(configuration=[{"name": "x"}]),
    "another subject beside": lambda s: s["subject"].append({"digest": {"sha256": "b" * 64}}),
    "no subject": lambda s: s.update(subject=[]),
    "another type": lambda s: s.update(_type="x"),
    "no predicate": lambda s: s.update(predicate=None),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_what_does_not_agree_is_refused(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path)
    statement = made("PASSED", "PASSED")
    TAMPERING[name](statement)
    store.put_fact("seal", DIGEST, [made("PASSED"), statement])
    with pytest.raises(StoreError, match="is not a test result for that digest") as error:
        seal.verdict(store, DIGEST)
    assert error.value.hint.endswith(f"python build.py verify {'a' * 12}")


@pytest.mark.parametrize("kept", [{}, "PASSED", [None], ["PASSED"], [[]], 1])
def test_what_is_no_list_of_statements_is_refused(tmp_path: Path, kept: object) -> None:
    store = Store.open(tmp_path)
    store.put_fact("seal", DIGEST, kept)
    with pytest.raises(StoreError):
        seal.verdict(store, DIGEST)


def test_the_newest_statement_of_the_plan_counts(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for number, (result, plan) in enumerate(
        [("PASSED", "1"), ("FAILED", "1"), ("PASSED", "2"), ("FAILED", "3")]
    ):
        seal.save(store, made(result, plan=plan * 64, finished=number))
    found = {
        plan: seal.verdict(store, DIGEST, plan_checksum=plan * 64) for plan in ("1", "2", "3", "4")
    }
    assert {plan: one and one.result for plan, one in found.items()} == {
        "1": "FAILED", "2": "PASSED", "3": "FAILED", "4": None,
    }  # fmt: skip
    newest = seal.verdict(store, DIGEST)
    assert newest is not None
    assert newest.when == "1970-01-01T00:00:03Z"


def test_only_so_many_are_kept(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for number in range(seal.KEPT + 5):
        seal.save(store, made("PASSED", finished=number))
    kept = [one["predicate"]["finished"] for one in seal.history(store, DIGEST)]
    assert len(kept) == seal.KEPT
    assert (kept[0], kept[-1]) == ("1970-01-01T00:00:05Z", "1970-01-01T00:00:24Z")
