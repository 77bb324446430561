"""Seals add up by tier; what is of another digest or of no agreement is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError
from sparkimage.image.store import Store
from sparkimage.verify import seal
from tests.unit.seal_maker import DIGEST, PLAN, check, made

STATIC = check("static/a", tier=Tier.STATIC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def verdict(store: Store, plan: str | None = None) -> seal.Verdict:
    found = seal.verdict(store, DIGEST, plan_checksum=plan)
    assert found is not None
    return found


def test_a_seal_reads_as_it_was_written(store: Store) -> None:
    statement = made(check("l/a"), check("l/b", "FAILED"))
    assert seal.verdict(store, DIGEST) is None
    seal.save(store, statement)
    found = verdict(Store.open(store.root))
    assert found.newest.statement == statement
    assert [one.result for one in found.checks] == ["PASSED", "FAILED"]
    assert (found.result, found.tiers, found.newest.finished) == (
        "FAILED",
        (),
        "1970-01-01T00:00:01Z",
    )
    assert json.loads(json.dumps(found.to_dict()))["checks"][1]["tier"] == "run"


def test_tiers_add_up(store: Store) -> None:
    seal.save(store, made(STATIC))
    assert verdict(store).tiers == (Tier.STATIC,)
    seal.save(store, made(check("l/a"), finished=2))
    found = verdict(store)
    assert (found.result, found.tiers) == ("PASSED", (Tier.STATIC, Tier.RUN))
    assert [one.id for one in found.checks] == ["static/a", "l/a"]
    assert len(found.results) == 2


def test_a_later_failed_outweighs_an_earlier_passed(store: Store) -> None:
    seal.save(store, made(STATIC, check("l/a"), check("l/b")))
    seal.save(store, made(check("l/a", "FAILED"), finished=2))
    found = verdict(store)
    assert (found.result, found.tiers) == ("FAILED", (Tier.STATIC,))
    assert [one.id for one in found.failed] == ["l/a"]
    # The other tier's success does not fix it; its own does.
    seal.save(store, made(STATIC, finished=3))
    assert verdict(store).result == "FAILED"
    seal.save(store, made(check("l/a"), finished=4))
    assert (verdict(store).result, len(verdict(store).checks)) == ("PASSED", 3)


def test_only_the_same_plan_adds_up(store: Store) -> None:
    seal.save(store, made(STATIC))
    seal.save(store, made(check("l/a", "FAILED"), plan="3" * 64, finished=2))
    assert verdict(store, PLAN).tiers == (Tier.STATIC,)
    assert verdict(store, "3" * 64).result == "FAILED"
    assert verdict(store).result == "FAILED"
    assert seal.verdict(store, DIGEST, plan_checksum="4" * 64) is None


TAMPERING: dict[str, Callable[[dict[str, Any]], object]] = {
    "no evidence": lambda s: s["predicate"].update(evidence=[]),
    "nothing at all": lambda s: s["predicate"].update(evidence=[], passedTests=[], failedTests=[]),
    "evidence says FAILED": lambda s: s["predicate"]["evidence"][0].update(result="FAILED"),
    "a result of no kind": lambda s: s["predicate"].update(result="FINE"),
    "the other result": lambda s: s["predicate"].update(result="FAILED"),
    "a test more": lambda s: s["predicate"]["passedTests"].append("l/other"),
    "a test less": lambda s: s["predicate"]["passedTests"].pop(),
    "a part of evidence more": lambda s: s["predicate"]["evidence"][0].update(more=1),
    "a part of evidence less": lambda s: s["predicate"]["evidence"][0].pop("seen"),
    "a tier without a check": lambda s: s["predicate"]["tiers"].append("node"),
    "a check without its tier": lambda s: s["predicate"].update(tiers=["run"]),
    "a tier that is none": lambda s: s["predicate"]["evidence"][0].update(tier="moon"),
    "no time": lambda s: s["predicate"].pop("finished"),
    "no configuration": lambda s: s["predicate"].pop("configuration"),
    "a configuration of no form": lambda s: s["predicate"].update(configuration=[{"name": "x"}]),
    "another subject beside": lambda s: s["subject"].append({"digest": {"sha256": "b" * 64}}),
    "no subject": lambda s: s.update(subject=[]),
    "another type": lambda s: s.update(_type="x"),
    "another kind of predicate": lambda s: s.update(predicateType="x"),
    "no predicate": lambda s: s.update(predicate=None),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_what_does_not_agree_is_refused(store: Store, name: str) -> None:
    statement = made()
    TAMPERING[name](statement)
    store.put_fact("seal", DIGEST, [made(), statement])
    with pytest.raises(GateError, match="is not a valid test result of that digest") as error:
        seal.verdict(store, DIGEST)
    assert error.value.hint.endswith(f"sparkimage verify {'a' * 12}")
    assert error.value.exit_code == 14


@pytest.mark.parametrize("kept", [{}, "PASSED", [None], ["PASSED"], [[]], 1, [{"payload": 1}]])
def test_what_is_no_list_of_statements_is_refused(store: Store, kept: object) -> None:
    store.put_fact("seal", DIGEST, kept)
    with pytest.raises(GateError):
        seal.verdict(store, DIGEST)


def test_a_seal_of_another_digest_is_refused(store: Store) -> None:
    store.put_fact("seal", DIGEST, [made(digest=f"sha256:{'b' * 64}")])
    with pytest.raises(GateError, match="is of another image, sha256:bbbbbbbbbbbb"):
        seal.verdict(store, DIGEST)


def test_proving_again_drops_what_is_no_test_result(store: Store) -> None:
    wrong = made(finished=9)
    wrong["predicate"]["passedTests"] = []
    store.put_fact("seal", DIGEST, [made(STATIC), wrong, {"payload": "of an earlier version"}])
    with pytest.raises(GateError, match="is not a valid test result"):
        seal.verdict(store, DIGEST)
    seal.save(store, made(check("l/a"), finished=2))
    assert verdict(store).tiers == (Tier.STATIC, Tier.RUN)
    assert len(verdict(store).results) == 2


def test_a_cut_off_seal_is_refused(store: Store) -> None:
    seal.save(store, made())
    (path,) = (store.root / "facts" / "seal").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GateError, match="is truncated"):
        seal.verdict(store, DIGEST)


def test_only_so_many_are_kept(store: Store) -> None:
    for number in range(seal.KEPT + 5):
        seal.save(store, made(finished=number))
    kept = [one.statement["predicate"]["finished"] for one in seal.history(store, DIGEST)]
    assert len(kept) == seal.KEPT
    assert (kept[0], kept[-1]) == ("1970-01-01T00:00:05Z", "1970-01-01T00:00:24Z")
