"""Seals add up by tier; what is edited, foreign or of no agreement is refused."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError, PreflightError
from sparkimage.image.store import Store
from sparkimage.verify import dsse, seal
from sparkimage.verify.keys import VARIABLE, Keyring
from tests.unit.seal_maker import DIGEST, PLAN, check, made

STATIC = check("static/a", tier=Tier.STATIC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    return Keyring(folder=tmp_path / "keys")


def signed(statement: dict[str, Any], keys: Keyring) -> dict[str, Any]:
    return dsse.sign(json.dumps(statement).encode(), seal.PAYLOAD_TYPE, keys.signer())


def verdict(store: Store, keys: Keyring, plan: str | None = None) -> seal.Verdict:
    found = seal.verdict(store, DIGEST, plan_checksum=plan, keys=keys)
    assert found is not None
    return found


def test_a_seal_reads_as_it_was_written(store: Store, keys: Keyring) -> None:
    statement = made(check("l/a"), check("l/b", "FAILED"))
    assert seal.verdict(store, DIGEST, keys=keys) is None
    seal.save(store, statement, keys)
    found = verdict(Store.open(store.root), keys)
    assert found.statement == statement
    assert [one.result for one in found.checks] == ["PASSED", "FAILED"]
    assert (found.result, found.tiers, found.when) == ("FAILED", (), "1970-01-01T00:00:01Z")
    assert found.statements[0].key in keys.trusted()
    assert json.loads(json.dumps(found.to_dict()))["checks"][1]["tier"] == "run"


def test_tiers_add_up(store: Store, keys: Keyring) -> None:
    seal.save(store, made(STATIC), keys)
    assert verdict(store, keys).tiers == (Tier.STATIC,)
    seal.save(store, made(check("l/a"), finished=2), keys)
    found = verdict(store, keys)
    assert (found.result, found.tiers) == ("PASSED", (Tier.STATIC, Tier.RUN))
    assert [one.id for one in found.checks] == ["static/a", "l/a"]
    assert len(found.statements) == 2


def test_a_later_failed_outweighs_an_earlier_passed(store: Store, keys: Keyring) -> None:
    seal.save(store, made(STATIC, check("l/a"), check("l/b")), keys)
    seal.save(store, made(check("l/a", "FAILED"), finished=2), keys)
    found = verdict(store, keys)
    assert (found.result, found.tiers) == ("FAILED", (Tier.STATIC,))
    assert [one.id for one in found.failed] == ["l/a"]
    # The other tier's success does not mend it; its own does.
    seal.save(store, made(STATIC, finished=3), keys)
    assert verdict(store, keys).result == "FAILED"
    seal.save(store, made(check("l/a"), finished=4), keys)
    assert (verdict(store, keys).result, len(verdict(store, keys).checks)) == ("PASSED", 3)


def test_only_the_same_plan_adds_up(store: Store, keys: Keyring) -> None:
    seal.save(store, made(STATIC), keys)
    seal.save(store, made(check("l/a", "FAILED"), plan="3" * 64, finished=2), keys)
    assert verdict(store, keys, PLAN).tiers == (Tier.STATIC,)
    assert verdict(store, keys, "3" * 64).result == "FAILED"
    assert verdict(store, keys).result == "FAILED"
    assert seal.verdict(store, DIGEST, plan_checksum="4" * 64, keys=keys) is None


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
def test_what_does_not_agree_is_refused(store: Store, keys: Keyring, name: str) -> None:
    statement = made()
    TAMPERING[name](statement)
    store.put_fact("seal", DIGEST, [signed(made(), keys), signed(statement, keys)])
    with pytest.raises(GateError, match="is not a test result for that digest") as error:
        seal.verdict(store, DIGEST, keys=keys)
    assert error.value.hint.endswith(f"python build.py verify {'a' * 12}")
    assert error.value.exit_code == 14


@pytest.mark.parametrize("kept", [{}, "PASSED", [None], ["PASSED"], [[]], 1, [{"payload": 1}]])
def test_what_is_no_list_of_envelopes_is_refused(store: Store, keys: Keyring, kept: object) -> None:
    store.put_fact("seal", DIGEST, kept)
    with pytest.raises(GateError):
        seal.verdict(store, DIGEST, keys=keys)


def test_a_seal_of_another_digest_is_refused(store: Store, keys: Keyring) -> None:
    store.put_fact("seal", DIGEST, [signed(made(digest=f"sha256:{'b' * 64}"), keys)])
    with pytest.raises(GateError, match="is of another image, sha256:bbbbbbbbbbbb"):
        seal.verdict(store, DIGEST, keys=keys)


def test_old_unsigned_statements_are_no_seal(store: Store, keys: Keyring) -> None:
    store.put_fact("seal", DIGEST, [made()])
    assert seal.verdict(store, DIGEST, keys=keys) is None


def test_another_key_is_refused_until_it_is_trusted(
    store: Store, keys: Keyring, tmp_path: Path
) -> None:
    other = Keyring(folder=tmp_path / "other")
    seal.save(store, made(), other)
    with pytest.raises(GateError, match="which is not trusted here") as error:
        seal.verdict(store, DIGEST, keys=keys)
    assert str(keys.trusted_folder) in error.value.hint
    # Looking made no key.
    assert not keys.file.exists()
    keys.trusted_folder.mkdir(parents=True)
    public = (other.folder / "seal.pub.pem").read_bytes()
    (keys.trusted_folder / "other.pem").write_bytes(public)
    assert verdict(store, keys).result == "PASSED"
    (keys.trusted_folder / "broken.pem").write_text("x")
    with pytest.raises(PreflightError, match=r"broken\.pem is no public key"):
        seal.verdict(store, DIGEST, keys=keys)


def test_proving_again_drops_what_is_not_believed(store: Store, keys: Keyring) -> None:
    envelope = signed(made(), keys)
    envelope["payload"] = signed(made(finished=9), keys)["payload"]
    store.put_fact("seal", DIGEST, [signed(made(STATIC), keys), envelope])
    with pytest.raises(GateError, match="was edited"):
        seal.verdict(store, DIGEST, keys=keys)
    seal.save(store, made(check("l/a"), finished=2), keys)
    assert verdict(store, keys).tiers == (Tier.STATIC, Tier.RUN)
    assert len(verdict(store, keys).statements) == 2


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(place=st.integers(0, 1 << 16), change=st.integers(1, 255))
def test_no_byte_of_an_envelope_can_be_changed(
    store: Store, keys: Keyring, place: int, change: int
) -> None:
    seal.save(store, made(), keys)
    (path,) = (store.root / "facts" / "seal").iterdir()
    whole = path.read_bytes()
    at = place % len(whole)
    path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
    try:
        with pytest.raises(GateError):
            seal.verdict(store, DIGEST, keys=keys)
    finally:
        path.unlink()


def test_a_cut_off_seal_is_refused(store: Store, keys: Keyring) -> None:
    seal.save(store, made(), keys)
    (path,) = (store.root / "facts" / "seal").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GateError, match="cannot be read"):
        seal.verdict(store, DIGEST, keys=keys)


def test_only_so_many_are_kept(store: Store, keys: Keyring) -> None:
    for number in range(seal.KEPT + 5):
        seal.save(store, made(finished=number), keys)
    kept = [one.statement["predicate"]["finished"] for one in seal.history(store, DIGEST, keys)]
    assert len(kept) == seal.KEPT
    assert (kept[0], kept[-1]) == ("1970-01-01T00:00:05Z", "1970-01-01T00:00:24Z")


def test_the_key_is_made_once_and_for_one_user(keys: Keyring) -> None:
    made_keys: list[str] = []

    def sign() -> None:
        made_keys.append(dsse.key_id(keys.signer().public_key()))

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made_keys) == 8
    assert len(set(made_keys)) == 1
    assert stat.S_IMODE(keys.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert {one.name for one in keys.folder.iterdir()} == {"seal", "seal.pub.pem", "trusted"}
    public = dsse.public_key((keys.folder / "seal.pub.pem").read_bytes())
    assert dsse.key_id(public) == made_keys[0]


def pem(key: Any) -> bytes:
    done: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return done


def test_a_key_of_the_users_own(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.pem"
    file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    monkeypatch.setenv(VARIABLE, str(file))
    keys = Keyring.of(tmp_path)
    seal.save(store, made(), keys)
    assert verdict(store, keys).result == "PASSED"
    assert not keys.folder.exists()
    edited = seal.history(store, DIGEST, keys)[0].envelope
    edited = {**edited, "payload": signed(made(finished=3), keys)["payload"]}
    store.put_fact("seal", DIGEST, [edited])
    with pytest.raises(GateError, match="was edited"):
        seal.verdict(store, DIGEST, keys=keys)
    for wrong in (
        b"nothing",
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(65537, 2048)),
    ):
        file.write_bytes(wrong)
        with pytest.raises(PreflightError, match=r"mine\.pem is no key to sign with"):
            keys.signer()
    file.unlink()
    with pytest.raises(PreflightError, match=r"mine\.pem is no key to sign with"):
        keys.trusted()


def test_the_protocols_own_example() -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/implementation/signing_spec.py
    said = dsse.encoded("http://example.com/HelloWorld", b"hello world")
    assert said == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
