"""What a stranger must refuse of a registry, each for its own reason."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.tier import Tier
from sparkimage.core import paths
from sparkimage.core.errors import GateError, PublishedError
from sparkimage.core.process import Completed, Local
from sparkimage.image.store import INDEX
from sparkimage.image.streams import digest_of
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.cosign import Trust
from sparkimage.registry.publish import Item, Outcome, index_of
from sparkimage.resolve.skopeo import Repository
from sparkimage.verify import seal
from sparkimage.verify.policy import Required
from tests.lab import faulty, hostile, servers
from tests.lab.faulty import Answer
from tests.lab.hostile import Client, Layer
from tests.lab.publisher import SMALL, Publisher, name
from tests.lab.servers import Registry
from tests.unit import seal_maker
from tests.unit.oci_maker import flip


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with servers.registry(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher.make(tmp_path_factory.mktemp("publisher"))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Two images of one platform that were published well, and the means to do harm."""

    publisher: Publisher
    registry: Registry
    to: Repository
    first: Item
    second: Item
    outcome: Outcome
    other: Outcome

    @property
    def raw(self) -> Client:
        return Client(address=self.registry.address, repository=self.to.place.repository)

    @property
    def thief(self) -> Path:
        return hostile.make_key(self.publisher.folder / "thief.pem")

    @property
    def tag(self) -> str:
        return next(iter(self.outcome.tags))

    def document(self, item: Item) -> bytes:
        return self.publisher.store.path(item.image.digest).read_bytes()

    def attached(self, item: Item, kind: str) -> list[Layer]:
        return self.raw.attached(item.image.digest, kind)

    def attach(self, item: Item, kind: str, layers: list[Layer]) -> None:
        self.raw.attach(item.image.digest, kind, layers)

    def result(self, *checks: seal.Check, lock: str = "") -> Layer:
        """A seal that our own key signs."""
        made = seal_maker.made(
            *checks, digest=self.first.image.digest,
            plan=self.first.verdict.newest.checksum("plan"),
            lock=lock or self.first.plan.lock_checksum, finished=2,
        )  # fmt: skip
        return hostile.attestation(made, self.publisher.key)

    def beside(self, kind: str) -> list[Layer]:
        """What is attached to the first image but of this kind."""
        return [
            (listed, data) for listed, data in self.attached(self.first, "att")
            if listed["annotations"]["predicateType"] != kind
        ]  # fmt: skip

    def remove(self, reference: str) -> None:
        self.raw.delete_manifest(reference)

    def file(self, digest: str) -> Path:
        value = digest.removeprefix("sha256:")
        blobs = self.registry.folder / "docker/registry/v2/blobs/sha256"
        return blobs / value[:2] / value / "data"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Both scenes as they were published, and the registry's files as they were then."""

    scene: Scene
    two: Scene
    files: Mapping[Path, bytes | None]

    def restored(self, scene: Scene) -> Scene:
        """The scene, with all harm undone: the registry keeps nothing but files."""
        now = files(scene.registry)
        for path in sorted(now.keys() - self.files.keys(), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        for path, data in self.files.items():
            if data is None:
                path.mkdir(exist_ok=True)
            elif now.get(path) != data:
                path.write_bytes(data)
        return scene


def files(registry: Registry) -> dict[Path, bytes | None]:
    """What the registry keeps; None is a folder, and comes before what is in it."""
    found = registry.folder.rglob("*")
    return {path: None if path.is_dir() else path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def well(publisher: Publisher, registry: Registry) -> Published:
    return Published(
        scene=_scene(publisher, registry), two=_two(publisher, registry), files=files(registry)
    )


@pytest.fixture
def scene(well: Published) -> Scene:
    return well.restored(well.scene)


@pytest.fixture
def two(well: Published) -> Scene:
    return well.restored(well.two)


def _scene(publisher: Publisher, registry: Registry) -> Scene:
    to = publisher.repository(f"{registry.address}/hostile/one")
    first = publisher.item(publisher.image())
    outcome = publisher.publish(to, first)
    # Content of its own: the registry keeps one copy of equal blobs.
    second = publisher.item(publisher.image(payload=SMALL.changed(0), vllm="0.33.0"))
    other = publisher.publish(to, second)
    return Scene(
        publisher=publisher, registry=registry, to=to, first=first, second=second, outcome=outcome,
        other=other,
    )  # fmt: skip


def ask(scene: Scene, reference: str | None = None, *, trust: Trust | None = None,
        deep: bool = False, tiers: tuple[Tier, ...] = (Tier.STATIC, Tier.RUN)) -> None:  # fmt: skip
    remote.verify(
        f"{scene.to.place}:{reference or scene.tag}", trust or scene.publisher.trust,
        lambda _: Required(tiers=tiers), deep=deep,
    )  # fmt: skip


def unsigned(scene: Scene) -> None:
    scene.remove(f"{scene.outcome.digest.replace(':', '-')}.sig")


def another_key_signed(scene: Scene) -> None:
    layer = hostile.signature(scene.outcome.digest, [scene.tag], scene.thief)
    scene.attach(scene.first, "sig", [layer])


def another_key_sealed(scene: Scene) -> None:
    said = scene.first.verdict.newest.statement
    scene.attach(
        scene.first, "att",
        [*scene.beside(seal.TEST_RESULT), hostile.attestation(said, scene.thief)],
    )  # fmt: skip


def signature_moved(scene: Scene) -> None:
    scene.attach(scene.first, "sig", scene.attached(scene.second, "sig"))


def failed(scene: Scene) -> None:
    bad = scene.result(seal_maker.check("payload/test_runs", "FAILED"))
    scene.attach(scene.first, "att", [*scene.beside(seal.TEST_RESULT), bad])


def failed_beside_passed(scene: Scene) -> None:
    bad = scene.result(seal_maker.check("payload/test_runs", "FAILED"))
    scene.attach(scene.first, "att", [bad, *scene.attached(scene.first, "att")])


def attestation_moved(scene: Scene) -> None:
    moved = [
        layer for layer in scene.attached(scene.second, "att")
        if layer[0]["annotations"]["predicateType"] == seal.TEST_RESULT
    ]  # fmt: skip
    scene.attach(scene.first, "att", [*scene.beside(seal.TEST_RESULT), *moved])


def sbom_moved(scene: Scene) -> None:
    moved = [
        layer for layer in scene.attached(scene.second, "att")
        if layer[0]["annotations"]["predicateType"] == sbom.PREDICATE
    ]  # fmt: skip
    scene.attach(scene.first, "att", [*scene.beside(sbom.PREDICATE), *moved])


def tag_moved(scene: Scene) -> None:
    scene.raw.put_manifest(scene.tag, scene.document(scene.second))


def tier_missing(scene: Scene) -> None:
    static = scene.result(seal_maker.check("static/payload", tier=Tier.STATIC))
    scene.attach(scene.first, "att", [*scene.beside(seal.TEST_RESULT), static])


def no_seal(scene: Scene) -> None:
    scene.attach(scene.first, "att", scene.beside(seal.TEST_RESULT))


def no_sbom(scene: Scene) -> None:
    scene.attach(scene.first, "att", scene.beside(sbom.PREDICATE))


def two_provenances(scene: Scene) -> None:
    made = seal.in_toto(provenance.PREDICATE, "x", scene.outcome.digest, {})
    more = hostile.attestation(made, scene.publisher.key)
    scene.attach(scene.first, "att", [*scene.attached(scene.first, "att"), more])


def sbom_edited(scene: Scene) -> None:
    layers = scene.attached(scene.first, "att")
    (bill,) = [one for one in layers if one not in scene.beside(sbom.PREDICATE)]
    envelope = json.loads(bill[1])
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["predicate"]["packages"] = said["predicate"]["packages"][1:]
    envelope["payload"] = base64.b64encode(hostile.payload(said)).decode()
    edited = hostile.enveloped(envelope, sbom.PREDICATE)
    scene.attach(scene.first, "att", [*scene.beside(sbom.PREDICATE), edited])


def sbom_edited_on_the_disk(scene: Scene) -> None:
    layers = scene.attached(scene.first, "att")
    (bill,) = [one for one in layers if one not in scene.beside(sbom.PREDICATE)]
    flip(scene.file(bill[0]["digest"]))


def blob_truncated(scene: Scene) -> None:
    file = scene.file(scene.first.image.layers[2].digest)
    file.write_bytes(file.read_bytes()[:-1000])


def blob_gone(scene: Scene) -> None:
    scene.raw.ask("DELETE", f"blobs/{scene.first.image.layers[2].digest}", ok=202)


def config_damaged(scene: Scene) -> None:
    flip(scene.file(str(scene.first.image.manifest["config"]["digest"])))


def manifest_damaged(scene: Scene) -> None:
    # A space is JSON all the same: nothing but the digest tells.
    file = scene.file(scene.outcome.digest)
    file.write_bytes(file.read_bytes() + b" ")


def another_lock(scene: Scene) -> None:
    made = scene.result(
        seal_maker.check("static/payload", tier=Tier.STATIC),
        seal_maker.check("payload/test_runs"),
        lock="9" * 64,
    )
    scene.attach(scene.first, "att", [*scene.beside(seal.TEST_RESULT), made])


CASES: dict[Callable[[Scene], None], str] = {
    unsigned: "is unsigned",
    another_key_signed: "is signed by a key that is not trusted here",
    another_key_sealed: "the seal of .* is signed by a key that is not trusted here",
    signature_moved: "the signature of .* is of another image",
    failed: "the seal of .* says FAILED: 1 checks",
    failed_beside_passed: "says FAILED beside one that says PASSED",
    attestation_moved: r"\(the seal\) is of another image",
    sbom_moved: r"\(the SBOM\) is of another image",
    tag_moved: "was moved: it is now .*0.33.0-cu130",
    tier_missing: "lacks the required tier run",
    no_seal: "has no seal",
    no_sbom: "has no verified SBOM",
    two_provenances: "has 2 verified provenance",
    sbom_edited: "the SBOM of .* is signed by a key that is not trusted here, or was edited",
    sbom_edited_on_the_disk: "are damaged in .*: they are corrupt",
    blob_truncated: r"is damaged in .*: \d+ bytes of \d+",
    blob_gone: "lacks the blob",
    config_damaged: "is damaged in .*: it is corrupt",
    another_lock: "the lock's checksums of .* differ",
}


@pytest.mark.parametrize("harm", CASES, ids=lambda harm: harm.__name__)
def test_harm_is_refused_for_its_own_reason(scene: Scene, harm: Callable[[Scene], None]) -> None:
    ask(scene)
    harm(scene)
    with pytest.raises(PublishedError, match=CASES[harm]) as caught:
        ask(scene)
    assert caught.value.hint
    # What is beside it is as good as before.
    ask(scene, next(iter(scene.other.tags)))


def test_a_damaged_manifest_is_refused_by_its_digest(scene: Scene) -> None:
    manifest_damaged(scene)
    with pytest.raises(PublishedError, match=r"returns .* for the manifest"):
        remote.verify(
            f"{scene.to.place}@{scene.outcome.digest}", scene.publisher.trust,
            lambda _: Required(),
        )  # fmt: skip


def test_the_same_size_with_other_bytes_is_found_by_whole(scene: Scene) -> None:
    flip(scene.file(scene.first.image.layers[2].digest))
    ask(scene)
    with pytest.raises(PublishedError, match="it is corrupt"):
        ask(scene, deep=True)


def test_the_command_line_refuses_with_its_own_exit_code(scene: Scene) -> None:
    reference = f"{scene.to.place}:{scene.tag}"
    assert scene.publisher.run("verify-published", reference).returncode == 0
    key = str(hostile.public(scene.publisher.key))
    assert scene.publisher.run("verify-published", reference, "--key", key).returncode == 0
    node = scene.publisher.run("verify-published", reference, "--requires", "node")
    assert (node.returncode, "lacks the required tier node" in node.stderr) == (16, True)
    none = scene.publisher.run("verify-published", f"{scene.to.place}:none")
    assert none.returncode == 16
    assert scene.tag in none.stderr


# Several platforms


def _two(publisher: Publisher, registry: Registry) -> Scene:
    to = publisher.repository(f"{registry.address}/hostile/two")
    payload = SMALL.changed(0, seed=9000)
    items = [publisher.item(publisher.image(arch, payload), arch) for arch in ("amd64", "arm64")]
    outcome = publisher.publish(to, *items, channels=["stable"])
    return Scene(
        publisher=publisher, registry=registry, to=to, first=items[0], second=items[1],
        outcome=outcome, other=outcome,
    )  # fmt: skip


def test_an_index_of_two_platforms_is_believed(two: Scene) -> None:
    ask(two)
    ask(two, "stable")
    held = two.to.manifest(two.tag)
    assert held is not None
    assert held.data == index_of([two.first, two.second], two.publisher.store)
    again = two.publisher.publish(two.to, two.first, two.second, channels=["stable"])
    assert again.changed is False


def test_an_index_that_names_an_absent_platform(two: Scene) -> None:
    two.remove(two.second.image.digest)
    with pytest.raises(PublishedError, match=r"lists linux/arm64, but its image .* does not exist"):
        ask(two)


def test_an_index_that_calls_a_platform_by_another_name(two: Scene) -> None:
    made = json.loads(index_of([two.first, two.second], two.publisher.store))
    made["manifests"][0]["platform"] = {"architecture": "riscv64", "os": "linux"}
    data = json.dumps(made).encode()
    two.raw.put_manifest("other", data, INDEX)
    layer = hostile.signature(digest_of(data), ["other"], two.publisher.key)
    two.raw.attach(digest_of(data), "sig", [layer])
    with pytest.raises(PublishedError, match="lists linux/riscv64, but its image is for"):
        ask(two, "other")


def test_a_tag_that_names_one_platform_of_two(two: Scene) -> None:
    two.raw.put_manifest("stable", two.document(two.first))
    with pytest.raises(PublishedError, match="stable was moved"):
        ask(two, "stable")


def test_an_unsigned_index_of_signed_platforms(two: Scene) -> None:
    made = json.loads(index_of([two.first, two.second], two.publisher.store))
    two.raw.put_manifest("stable", json.dumps(made, indent=1).encode(), INDEX)
    with pytest.raises(PublishedError, match="is unsigned"):
        ask(two, "stable")


# Channels


def test_a_channel_moves_on_and_never_back(publisher: Publisher, registry: Registry) -> None:
    from sparkimage.core.errors import RegistryError

    to = publisher.repository(f"{registry.address}/hostile/channel")
    raw = Client(address=registry.address, repository="hostile/channel")
    old, new = (
        publisher.item(publisher.image(vllm=version)) for version in ("0.32.0", "0.33.0rc1")
    )
    first = publisher.publish(to, old, channels=["stable"])
    second = publisher.publish(to, new, channels=["stable"])
    assert (str(first.tags["stable"]), str(second.tags["stable"])) == ("new", "moved")
    with pytest.raises(RegistryError, match="is newer: it is"):
        publisher.publish(to, old, channels=["stable"])
    assert to.digest_of("stable") == new.image.digest
    # What is not ours is not moved at all.
    empty = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    raw.put_manifest("other", json.dumps(empty).encode(), INDEX)
    with pytest.raises(RegistryError, match="was not published with this key"):
        publisher.publish(to, new, channels=["other"])


def test_a_failed_result_of_our_key_is_not_published_over(scene: Scene) -> None:
    failed_beside_passed(scene)
    with pytest.raises(PublishedError, match="says FAILED"):
        scene.publisher.publish(scene.to, scene.first)


def test_what_others_attached_stays(scene: Scene) -> None:
    scan = hostile.attestation(
        seal.in_toto("https://example.org/scan", "x", scene.outcome.digest, {}),
        scene.thief,
    )
    scene.attach(scene.first, "att", [scan, *scene.attached(scene.first, "att")])
    ask(scene)
    again = scene.publisher.publish(scene.to, scene.first)
    assert again.changed is False
    assert scan[1] in [data for _, data in scene.attached(scene.first, "att")]


@dataclass
class Counting:
    """The runner of this machine, which keeps the commands that it starts."""

    commands: list[str]

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.commands.append(" ".join(argv))
        return Local().run(argv, **options)


def counted(scene: Scene) -> tuple[Trust, list[str]]:
    """The publisher's trust, and the commands that are started with it."""
    runner = Counting([])
    tools = scene.publisher.tools
    tools = replace(tools, outside=replace(tools.outside, runner=runner))
    return replace(scene.publisher.trust, tools=tools), runner.commands


def test_attestations_of_unknown_types_start_no_process(scene: Scene) -> None:
    trust, usual = counted(scene)
    ask(scene, trust=trust)
    foreign = [
        hostile.attestation(
            seal.in_toto(f"https://example.org/{number}", "x", scene.outcome.digest, {}),
            scene.thief,
        )
        for number in range(30)
    ]
    scene.attach(scene.first, "att", [*foreign, *scene.attached(scene.first, "att")])
    trust, commands = counted(scene)
    ask(scene, trust=trust)
    assert len(commands) == len(usual)
    assert sum(" verify-attestation " in command for command in commands) == 3


def test_an_index_of_many_images_is_refused_before_they_are_read(two: Scene) -> None:
    index = json.loads(index_of([two.first, two.second], two.publisher.store))
    index["manifests"] *= 9
    two.raw.put_manifest("many", json.dumps(index).encode(), INDEX)
    trust, commands = counted(two)
    with pytest.raises(PublishedError, match="has 18 images, not 1 to 16"):
        ask(two, "many", trust=trust)
    assert len(commands) < 5


@pytest.mark.parametrize("manifests", [5, [], [5], [{"platform": [], "digest": 1}]])
def test_an_index_without_valid_images_is_refused(two: Scene, manifests: object) -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    # The registry itself neither takes nor serves such an index.
    answer = Answer(status=200, body=data, headers={"Content-Type": INDEX})
    with faulty.proxy(two.registry.address) as proxy:
        proxy.rule = lambda asked: answer if asked.path.endswith(f"/{two.tag}") else None
        with pytest.raises(PublishedError, match=r"is not valid|has 0 images"):
            remote.verify(
                f"{proxy.address}/{two.to.place.repository}:{two.tag}", two.publisher.trust,
                lambda _: Required(),
            )  # fmt: skip


def test_the_sbom_is_the_same_each_time_and_knows_nccl(scene: Scene) -> None:
    from sparkimage.image.layerindex import image_files

    store = scene.publisher.store
    item = scene.publisher.item(scene.first.image, real_sbom=True)
    again = sbom.normalize(sbom.scan(item.image, store, Local()), item.image)
    files = image_files(store, item.image)
    assert sbom.with_packages(again, [*sbom.nccl(item.plan, files)]) == item.sbom
    (nccl,) = [one for one in item.sbom["packages"] if one["name"].startswith("libnccl")]
    assert nccl["versionInfo"] == "2.30.4"
    found = files.final[nccl["packageFileName"].lstrip("/")]
    assert nccl["checksums"][0]["checksumValue"] == found.seen["sha256"]


def test_inspect_says_what_it_is_from_the_registry_alone(scene: Scene) -> None:
    nccl = {"path": "usr/lib/libnccl.so.2", "version": "2.30.4", "build_id": "4" * 40}
    builds = seal_maker.check("static/nccl-builds", tier=Tier.STATIC)
    sealed = scene.result(
        replace(builds, seen=[nccl], expected=[nccl]), seal_maker.check("payload/test_runs")
    )
    scene.attach(scene.first, "att", [*scene.beside(seal.TEST_RESULT), sealed])
    # A machine that has neither the project nor its store.
    reference = f"{scene.to.place}:{scene.tag}"
    home = scene.publisher.folder / "elsewhere"
    home.mkdir()
    (home / "tools").symlink_to(paths.home() / "tools")
    nothing = {"SPARKIMAGE_HOME": str(home)}
    key = str(hostile.public(scene.publisher.key))
    argv = scene.publisher.argv("inspect", reference)
    argv[argv.index("--matrix-file") + 1] = "none.yaml"
    said = subprocess.run(
        [*argv, "--key", key, "--json"], env={**os.environ, **nothing}, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    found = json.loads(said)
    assert found["verified"] is True
    (one,) = found["platforms"].values()
    assert one["versions"] == {"vllm": "0.32.0", "cuda": "13.0", "nccl": "2.30.4"}
    assert one["lock"] == scene.first.plan.lock_checksum
    assert [seal["result"] for seal in one["seal"]] == ["PASSED"]
    page = subprocess.run(
        argv, env={**os.environ, **nothing}, capture_output=True, text=True, check=True
    ).stdout
    assert "not verified" in page
    assert "signed by a key that is not trusted here" in page
    assert "2 passed (static, run)" in page
    assert one["nccl"] == [nccl]
    assert f"usr/lib/libnccl.so.2 2.30.4, Build ID {'4' * 40}" in " ".join(page.split())


def test_distribute_via_asks_before_any_node(scene: Scene) -> None:
    publisher = scene.publisher
    first = publisher.plan(name("amd64")).image
    publisher.store.name(first, publisher.store.descriptor(scene.first.image.digest))
    # The node does not exist: exit code 13 says that the registry was believed.
    words = ("distribute", "small-amd64", "--nodes", "no-such-node.invalid", "--dry-run", "--via")
    good = publisher.run(*words, str(scene.to.place))
    assert good.returncode == 13, good.stderr
    unsigned(scene)
    refused = publisher.run(*words, str(scene.to.place))
    assert (refused.returncode, "is unsigned" in refused.stderr) == (16, True)
    absent = publisher.run(*words, f"{scene.registry.address}/hostile/nothing")
    assert absent.returncode == 16


def test_only_what_says_passed_is_published(publisher: Publisher, registry: Registry) -> None:
    image = publisher.image(payload=SMALL.changed(0, seed=20_000))
    plan, store = publisher.plan(name("amd64")), publisher.store
    about: dict[str, Any] = {
        "digest": image.digest, "lock": plan.lock_checksum,
        "plan": publisher.item(image).verdict.newest.checksum("plan"),
    }  # fmt: skip
    static = seal_maker.check("static/payload", tier=Tier.STATIC)
    run = [seal_maker.check("payload/test_runs", result) for result in ("FAILED", "PASSED")]

    def history(*made: dict[str, Any]) -> None:
        store.put_fact("seal", image.digest, [])
        for one in made:
            seal.save(store, one)

    to = publisher.repository(f"{registry.address}/hostile/passed")
    # The static tier passed in a run that failed otherwise: a stranger would have to weigh that.
    history(
        seal_maker.made(static, run[0], finished=1, **about),
        seal_maker.made(run[1], finished=2, **about),
    )
    with pytest.raises(GateError, match="lacks the required tier static"):
        publisher.publish(to, publisher.item(image))
    assert [tag for tag in to.tags() if not tag.startswith("sha256-")] == []
    # Both proven anew.
    seal.save(store, seal_maker.made(static, run[1], finished=3, **about))
    publisher.publish(to, publisher.item(image))
    at = remote.Reference.parse(f"{to.place}@{image.digest}")
    (one,) = remote.read(at, to, publisher.trust).images
    assert [result.passed for result in remote.results(one)] == [True, True]
