"""The gate's refusals, each with its reason and its next action; and the files that ship."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError, PreflightError, StoreError, UsageError
from sparkimage.image.store import Image, Store
from sparkimage.registry import archives
from sparkimage.verify import plan_record, policy, seal
from sparkimage.verify.plan_record import CHECKS_VERSION, PlanRecord
from sparkimage.verify.policy import PolicyDecision, Required
from sparkimage.verify.seal import Check
from tests.unit import good_maker
from tests.unit.oci_maker import LAYERS, make_image
from tests.unit.seal_maker import check, made

RECORD = PlanRecord(
    plan=replace(good_maker.plan(), image="spark:v"),
    checks={"version": CHECKS_VERSION, "files": {}, "rules": "", "ids": ["l/test_a"]},
)
STATIC = check("static/a", tier=Tier.STATIC)
RUN = check("l/test_a")
NAME = "spark:v"


class World:
    """A store with an image in it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "store")
        self.image = make_image(self.store)
        self.store.name(NAME, self.store.descriptor(self.image.digest))
        self.said: list[str] = []

    def seal(self, *checks: Check, of: Image | None = None, **more: Any) -> None:
        digest = (of or self.image).digest
        given = {"plan": RECORD.checksum, **more}
        seal.save(self.store, made(*checks, digest=digest, **given))

    def ask(self, **more: Any) -> PolicyDecision:
        given: dict[str, Any] = {
            "plan_checksum": RECORD.checksum, "required": Required(), "name": NAME,
            "say": self.said.append, **more,
        }  # fmt: skip
        return policy.check(self.store, self.image.digest, **given)

    def file(self, decision: PolicyDecision | None = None, record: PlanRecord = RECORD) -> bytes:
        decision = decision or self.ask()
        return b"".join(archives.chunks(self.image, record, decision, self.store))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_sealed_image_passes(world: World) -> None:
    world.seal(STATIC, RUN)
    decision = world.ask(required=Required(checks=("l/test_a",)))
    assert decision.verdict is not None
    assert decision.verdict.tiers == (Tier.STATIC, Tier.RUN)
    assert (decision.unverified, world.said) == ("", [])


def tampered(world: World) -> None:
    world.seal(STATIC, RUN)
    (statement,) = world.store.get_fact("seal", world.image.digest)
    statement["predicate"]["passedTests"].pop()
    world.store.put_fact("seal", world.image.digest, [statement])


def of_another(world: World) -> None:
    other = make_image(world.store, LAYERS[:1])
    world.seal(STATIC, RUN, of=other)
    world.store.put_fact("seal", world.image.digest, world.store.get_fact("seal", other.digest))


def rebuilt_and_not_sealed(world: World) -> None:
    world.seal(STATIC, RUN)
    world.image = make_image(world.store, LAYERS[:1])
    world.store.name(NAME, world.store.descriptor(world.image.digest))


def rebuilt_and_asked_for_the_old(world: World) -> None:
    world.seal(STATIC, RUN)
    world.store.name(NAME, world.store.descriptor(make_image(world.store, LAYERS[:1]).digest))


def failed_later(world: World) -> None:
    world.seal(STATIC, RUN)
    world.seal(check("l/test_a", "FAILED"), finished=2)


REFUSALS: dict[str, tuple[Callable[[World], object], str, str]] = {
    "no seal": (lambda _: None, "has no seal", "verify it: sparkimage verify"),
    "FAILED": (
        lambda w: w.seal(STATIC, check("l/test_a", "FAILED")),
        "says FAILED: 1 of 2 checks",
        "build again",
    ),
    "FAILED later": (
        failed_later,
        "says FAILED: 1 of 2 checks",
        "build again",
    ),
    "a tier missing": (
        lambda w: w.seal(STATIC),
        "lacks the required tier run: it has static",
        "--tier run",
    ),
    "a check missing": (
        lambda w: w.seal(STATIC, check("l/test_b")), "lacks 1 required checks", "run them"
    ),
    "another plan": (
        lambda w: w.seal(STATIC, RUN, plan="9" * 64),
        "another plan or other checks",
        "against the current ones",
    ),
    "another digest": (of_another, "is of another image", "verify the image again"),
    "edited": (tampered, "is not a valid test result", "verify the image again"),
    "rebuilt": (rebuilt_and_not_sealed, "was rebuilt: its seal is of", "verify the new image"),
    "the old one": (rebuilt_and_asked_for_the_old, "was rebuilt: it is now", "ship what it is now"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_why_and_what_next(world: World, name: str) -> None:
    arrange, why, todo = REFUSALS[name]
    arrange(world)
    required = Required(checks=("l/test_a",))
    with pytest.raises(GateError, match=why) as refusal:
        world.ask(required=required)
    assert todo in refusal.value.hint
    # Overruled, it says so, and the reason goes into the file.
    decision = world.ask(required=required, allow_unverified=True)
    assert decision.unverified == refusal.value.message
    assert len(world.said) == 1
    assert world.said[0].startswith("WARNING: ")
    assert refusal.value.message in world.said[0]
    documents = members(world.file(decision))
    assert json.loads(documents[archives.SEAL])["unverified"] == refusal.value.message


def test_the_warning_goes_to_standard_error(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.ask(allow_unverified=True, say=None)
    assert "UNVERIFIED" in capsys.readouterr().err


# Files


def members(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    return found


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def load(data: bytes, store: Store, **more: Any) -> archives.Loaded:
    return archives.load(io.BytesIO(data), store, **more)


def test_a_round_trip(world: World, tmp_path: Path) -> None:
    world.seal(STATIC, RUN)
    store = Store.open(tmp_path / "elsewhere")
    loaded = load(world.file(), store)
    assert (loaded.image.digest, loaded.name) == (world.image.digest, NAME)
    assert store.names() == {NAME: world.image.digest}
    assert store.damaged(world.image.digest) == []
    assert loaded.decision.unverified == ""
    here = policy.check(
        store, world.image.digest, plan_checksum=RECORD.checksum, required=Required(),
    )  # fmt: skip
    assert here.verdict is not None
    # The plan has come along: what it needs to ship on.
    assert plan_record.load(store, world.image.digest) == RECORD
    # Once more adds nothing.
    load(world.file(), store)
    assert len(seal.history(store, world.image.digest)) == 1
    assert not list(store.root.glob("incoming-*"))


def change(world: World, name: str, edit: Callable[[Any], object]) -> bytes:
    files = members(world.file())
    document = json.loads(files[name])
    edit(document)
    files[name] = json.dumps(document).encode()
    return packed(files)


def without(world: World, name: str) -> bytes:
    files = members(world.file())
    return packed({path: data for path, data in files.items() if path != name})


def blob(world: World, edit: Callable[[bytes], bytes]) -> bytes:
    files = members(world.file())
    name = "blobs/" + world.image.layers[1].digest.replace(":", "/")
    return packed({**files, name: edit(files[name])})


AT_LOAD: dict[str, tuple[Callable[[World], bytes], type[Exception], str]] = {
    "no seal": (lambda w: without(w, archives.SEAL), StoreError, "has no plan"),
    "another plan": (
        lambda w: change(w, archives.SEAL, lambda s: s["plan"]["plan"].update(python="3.9")),
        GateError, "another plan or other checks",
    ),
    "a check taken off the plan": (
        lambda w: change(w, archives.SEAL, lambda s: s["plan"]["checks"].update(ids=[])),
        GateError, "another plan or other checks",
    ),
    "a plan of another name": (
        lambda w: change(w, archives.SEAL, lambda s: s["plan"]["plan"].update(image="x:y")),
        StoreError, "plan is of x:y",
    ),
    "empty seal": (
        lambda w: change(w, archives.SEAL, lambda s: s.update(statements=[])), GateError,
        "has no seal",
    ),
    "edited": (
        lambda w: change(
            w, archives.SEAL, lambda s: s["statements"][0]["predicate"].update(result="FAILED")
        ),
        GateError, "is not a valid test result",
    ),
    "another digest": (
        lambda w: change(w, "index.json", lambda s: s["manifests"][0].update(
            digest=f"sha256:{'b' * 64}")),
        GateError, "seal is of",
    ),
    "another digest in both": (
        lambda w: packed({
            path: data.replace(w.image.digest.encode(), b"sha256:" + b"b" * 64)
            if path.endswith(".json") else data for path, data in members(w.file()).items()
        }),
        GateError, "is of another image",
    ),
    "another name": (
        lambda w: change(w, archives.SEAL, lambda s: s.update(name="x:y")), GateError, "seal is of"
    ),
    "shipped unverified": (
        lambda w: w.file(PolicyDecision(digest=w.image.digest, verdict=None, unverified="because")),
        GateError, "was shipped unverified: because",
    ),
    "a blob with a flipped bit": (
        lambda w: blob(w, lambda data: data[:-1] + bytes([data[-1] ^ 1])), StoreError,
        "is corrupt",
    ),
    "a blob missing": (
        lambda w: without(w, "blobs/" + w.image.layers[0].digest.replace(":", "/")), StoreError,
        "is incomplete",
    ),
    "cut off": (lambda w: w.file()[:-3000], StoreError, "incomplete or corrupt|is incomplete"),
    "no archive": (lambda _: b"x" * 4000, StoreError, "incomplete or corrupt"),
    "an empty one": (lambda _: packed({}), StoreError, "not an archive of one image"),
    "a path that is no blob": (
        lambda w: packed({**members(w.file()), "blobs/sha256/../../x": b""}), StoreError,
        "not a sha256 digest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_LOAD)
def test_what_load_refuses_it_does_not_name(world: World, tmp_path: Path, name: str) -> None:
    world.seal(STATIC, RUN)
    arrange, error, why = AT_LOAD[name]
    store = Store.open(tmp_path / "elsewhere")
    with pytest.raises(error, match=why):
        load(arrange(world), store)
    assert store.names() == {}
    assert seal.history(store, world.image.digest) == ()


def test_load_over_the_gate_is_loud(world: World, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "elsewhere")
    data = world.file(world.ask(allow_unverified=True))
    said: list[str] = []
    loaded = load(data, store, allow_unverified=True, say=said.append)
    assert store.names() == {NAME: world.image.digest}
    assert "has no seal" in loaded.decision.unverified
    assert said == [
        f"WARNING: {world.image.digest[:19]} ships UNVERIFIED: {loaded.decision.unverified}"
    ]


def test_what_was_loaded_unverified_ships_no_further(world: World, tmp_path: Path) -> None:
    # Sealed where it comes from, and refused there for a tier: here it would have been enough.
    world.seal(STATIC, RUN)
    more = Required(tiers=(*Tier,))
    data = world.file(world.ask(required=more, allow_unverified=True))
    here = World(tmp_path / "here")
    load(data, here.store, allow_unverified=True, say=here.said.append)
    assert seal.history(here.store, world.image.digest) == ()
    with pytest.raises(GateError, match=r"was loaded unverified: .*lacks the required tier node"):
        here.ask()
    again = here.ask(allow_unverified=True)
    assert "was loaded unverified" in again.unverified
    files = members(here.file(again))
    assert "was loaded unverified" in json.loads(files[archives.SEAL])["unverified"]
    # What takes the mark away: a seal that comes later, or a proof of its own.
    load(world.file(), here.store)
    assert here.ask().unverified == ""
    load(data, here.store, allow_unverified=True, say=here.said.append)
    with pytest.raises(GateError, match="was loaded unverified"):
        here.ask()
    here.seal(STATIC, RUN, finished=9)
    assert here.ask().unverified == ""


def test_a_failed_that_was_loaded_over_the_gate_stays(world: World, tmp_path: Path) -> None:
    world.seal(STATIC, check("l/test_a", "FAILED"))
    data = world.file(world.ask(allow_unverified=True))
    here = World(tmp_path / "here")
    load(data, here.store, allow_unverified=True, say=here.said.append)
    here.seal(STATIC, finished=9)
    with pytest.raises(GateError, match="says FAILED"):
        here.ask()
    here.seal(RUN, finished=10)
    assert here.ask().unverified == ""


def test_a_check_that_the_other_side_requires(world: World, tmp_path: Path) -> None:
    more = replace(RECORD, checks={**RECORD.checks, "ids": ["l/test_a", "l/test_b"]})
    world.seal(STATIC, RUN, plan=more.checksum)
    store = Store.open(tmp_path / "x")
    decision = world.ask(plan_checksum=more.checksum)
    with pytest.raises(GateError, match="lacks 1 required checks"):
        load(world.file(decision, more), store)
    world.seal(STATIC, RUN, check("l/test_b"), plan=more.checksum, finished=2)
    decision = world.ask(plan_checksum=more.checksum)
    load(world.file(decision, more), store)


def test_a_failed_of_ours_outweighs_a_passed_that_comes(world: World, tmp_path: Path) -> None:
    world.seal(STATIC, RUN)
    data = world.file()
    other = World(tmp_path / "other")
    other.store.unname(NAME)
    other.seal(STATIC, check("l/test_a", "FAILED"), finished=9)
    with pytest.raises(GateError, match="says FAILED"):
        load(data, other.store)
    assert other.store.names() == {}
    assert (
        "says FAILED"
        in load(data, other.store, allow_unverified=True, say=lambda _: None).decision.unverified
    )


def test_a_tier_that_the_other_side_requires(world: World, tmp_path: Path) -> None:
    world.seal(STATIC, RUN)
    with pytest.raises(GateError, match="lacks the required tier node"):
        load(world.file(), Store.open(tmp_path / "x"), tiers=tuple(Tier))


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    def write(to: Path, interrupted: bool) -> None:
        with archives.written(to) as sink:
            sink.write(b"whole")
            if interrupted:
                raise Interrupted

    path = tmp_path / "image.tar"
    with pytest.raises(Interrupted):
        write(path, interrupted=True)
    assert os.listdir(tmp_path) == []
    write(path, interrupted=False)
    assert path.read_bytes() == b"whole"
    for wrong, why in ((path / "x", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=why):
            write(wrong, interrupted=False)
    with pytest.raises(PreflightError, match=r"has .* free, the file needs"):
        archives.refuse_target(path, 1 << 60)
