"""Registries and ways to them that fail: a finished publish or a clear message, and never a tag
that names less than it says."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.core.errors import NetworkError, RegistryError, SparkError
from sparkimage.image.store import Image
from sparkimage.registry import remote
from sparkimage.registry.publish import Outcome
from sparkimage.verify.policy import Required
from tests.lab import faulty, sampling, servers
from tests.lab.faulty import Answer, Asked, Cut, Fault, Proxy, once
from tests.lab.hostile import Client
from tests.lab.node import READY_S
from tests.lab.payload import PLAIN, Payload
from tests.lab.publisher import Publisher
from tests.lab.servers import Registry

BIG = Payload.of(3_000_000, packed=PLAIN)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with servers.registry(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    with faulty.proxy(registry.address) as made:
        yield made


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher.make(tmp_path)


class Way:
    """To one repository, through the proxy; it waits for nothing and says for how long it would."""

    def __init__(self, publisher: Publisher, address: str, name: str) -> None:
        self.waits: list[float] = []
        self.to = publisher.repository(f"{address}/faults/{name}", pause=self.waits.append)

    def publish(self, publisher: Publisher, image: Image) -> Outcome:
        return publisher.publish(self.to, publisher.item(image))


@pytest.fixture
def way(publisher: Publisher, proxy: Proxy, request: pytest.FixtureRequest) -> Way:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Way(publisher, proxy.address, name)


def is_whole(publisher: Publisher, registry: Registry, way: Way, image: Image) -> None:
    """What the registry has is what a stranger believes, every byte of it."""
    raw = Client(address=registry.address, repository=way.to.place.repository)
    (tag,) = raw.tags()
    found, _ = remote.verify(
        f"{registry.address}/{raw.repository}:{tag}", publisher.trust, lambda _: Required(),
        deep=True, digest=image.digest,
    )  # fmt: skip
    assert found.digest == image.digest


def no_tag(registry: Registry, way: Way) -> None:
    assert Client(address=registry.address, repository=way.to.place.repository).tags() == []


def brings_a_blob(asked: Asked) -> bool:
    return asked.method in ("PATCH", "PUT") and "/blobs/uploads/" in asked.path


def test_a_registry_that_is_down(publisher: Publisher) -> None:
    with servers.quiet_port() as port:
        way = Way(publisher, f"{servers.LOOPBACK}:{port}", "down")
        with pytest.raises(NetworkError, match="does not answer") as caught:
            way.publish(publisher, publisher.image())
    assert "refused" in caught.value.detail
    assert way.waits == [1, 2, 4, 8]


def test_403_is_definite(publisher: Publisher, proxy: Proxy, registry: Registry, way: Way) -> None:
    proxy.rule = lambda asked: Answer(status=403) if asked.method == "POST" else None
    with pytest.raises(RegistryError, match="does not allow this login to access") as caught:
        way.publish(publisher, publisher.image())
    assert "docker login" in caught.value.hint
    assert way.waits == []
    no_tag(registry, way)


def test_a_new_repository_that_cannot_be_read_yet(
    publisher: Publisher,
    proxy: Proxy,
    registry: Registry,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As Docker Hub answers.
    config = publisher.docker_config(proxy.address, servers.USER, servers.PASSWORD)
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    denied = {"code": "DENIED", "message": "requested access to the resource is denied"}

    def rule(asked: Asked) -> Fault:
        made = any(a.method == "PUT" and "/manifests/" in a.path for a in proxy.seen)
        if made or "/manifests/" not in asked.path or asked.method == "PUT":
            return None
        return Answer(status=401, body=json.dumps({"errors": [denied]}).encode())

    proxy.rule = rule
    image = publisher.image()
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)


def test_429_is_waited_for(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way
) -> None:
    busy = Answer(status=429, headers={"Retry-After": "1"})
    proxy.rule = once(lambda asked: busy if asked.method == "PUT" else None)
    image = publisher.image()
    way.publish(publisher, image)
    assert any(asked.method == "PUT" for asked in proxy.seen)
    is_whole(publisher, registry, way, image)


@pytest.mark.parametrize("status", sampling.params("publish-status", [500, 502, 503]))
def test_5xx_in_the_middle(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way, status: int
) -> None:
    image = publisher.image(payload=BIG)
    proxy.rule = once(lambda asked: Answer(status=status) if brings_a_blob(asked) else None)
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)


def test_5xx_for_ever(publisher: Publisher, proxy: Proxy, registry: Registry, way: Way) -> None:
    image = publisher.image(payload=BIG)
    proxy.rule = lambda asked: Answer(status=502) if brings_a_blob(asked) else None
    with pytest.raises(NetworkError, match="does not answer") as caught:
        way.publish(publisher, image)
    assert "502" in caught.value.detail
    no_tag(registry, way)


@pytest.mark.parametrize("passed_on", [False, True])
def test_a_cut_in_a_blob_sends_it_again(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way, passed_on: bool
) -> None:
    image = publisher.image(payload=BIG)
    cut = Cut(after=1 << 18, passed_on=passed_on)
    proxy.rule = once(lambda asked: cut if brings_a_blob(asked) else None)
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)


@pytest.mark.parametrize(
    "method", sampling.params("publish-method", ["PATCH", "PUT", "HEAD", "GET", "POST"])
)
def test_a_lost_answer(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way, method: str
) -> None:
    image = publisher.image(payload=BIG)
    proxy.rule = once(lambda asked: Cut(answered=True) if asked.method == method else None)
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)


@pytest.mark.parametrize(
    "part",
    sampling.params(
        "publish-manifest", ["/manifests/sha256:", ".att", ".sig", "/manifests/0.32.0"]
    ),
)
def test_a_refused_manifest_leaves_no_tag(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way, part: str
) -> None:
    proxy.rule = lambda asked: (
        Answer(status=500) if asked.method == "PUT" and part in asked.path else None
    )
    image = publisher.image()
    with pytest.raises(NetworkError, match="does not answer"):
        way.publish(publisher, image)
    no_tag(registry, way)
    # And the next run goes on.
    proxy.rule = lambda _: None
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)


def test_a_full_disk(publisher: Publisher, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "lab-small", str(folder)], check=True)
    try:
        with servers.registry(folder) as full:
            way = Way(publisher, full.address, "full")
            # skopeo shows the status of the answer alone, and not what the registry says of it.
            with pytest.raises(NetworkError, match="does not answer") as caught:
                way.publish(publisher, publisher.image(payload=BIG))
            assert "500" in caught.value.detail
            assert Client(address=full.address, repository="faults/full").tags() == []
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_two_publishers_of_one_tag(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way
) -> None:
    older, newer = publisher.image(), publisher.image(created="2002-01-01T00:00:00Z")
    first, second = publisher.item(older), publisher.item(newer)
    # Between the first one's PUT of the tag and its reading back, the second one publishes.
    done: list[Outcome] = []
    straight = publisher.repository(f"{registry.address}/{way.to.place.repository}")

    def rule(asked: Asked) -> Fault:
        put = any(a.method == "PUT" and "/manifests/0.32" in a.path for a in proxy.seen)
        if put and asked.method == "GET" and "/manifests/0.32" in asked.path and not done:
            done.append(publisher.publish(straight, second))
        return None

    proxy.rule = rule
    with pytest.raises(RegistryError, match="by another client"):
        publisher.publish(way.to, first)
    is_whole(publisher, registry, way, newer)
    # Nor does it go back when the first one tries again.
    with pytest.raises(RegistryError, match="is newer: it is"):
        publisher.publish(way.to, first)
    is_whole(publisher, registry, way, newer)


def test_two_publishers_at_once(publisher: Publisher, registry: Registry) -> None:
    images = [publisher.image(), publisher.image(created="2002-01-01T00:00:00Z")]
    items = [publisher.item(image) for image in images]
    ways = [Way(publisher, registry.address, "at-once") for _ in images]
    errors: list[SparkError] = []

    def one(n: int) -> None:
        try:
            publisher.publish(ways[n].to, items[n])
        except SparkError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, RegistryError) for error in errors)
    (tag,) = Client(address=registry.address, repository="faults/at-once").tags()
    now = ways[0].to.digest_of(tag)
    assert now in [image.digest for image in images]
    is_whole(publisher, registry, ways[0], next(i for i in images if i.digest == now))


def test_the_next_run_sends_only_what_is_missing(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way
) -> None:
    image = publisher.image(payload=BIG)
    # All blobs arrive, and no manifest does.
    proxy.rule = lambda asked: (
        Answer(status=403) if asked.method == "PUT" and "/manifests/" in asked.path else None
    )
    with pytest.raises(RegistryError):
        way.publish(publisher, image)
    no_tag(registry, way)
    proxy.rule = lambda _: None
    (platform,) = way.publish(publisher, image).platforms.values()
    assert (platform.blobs.uploaded, platform.blobs.existing) == (0, len(dict(image.blobs())))
    is_whole(publisher, registry, way, image)


def test_a_command_that_is_interrupted_leaves_no_tag_and_waits_for_no_registry(
    publisher: Publisher, proxy: Proxy, registry: Registry, way: Way
) -> None:
    image = publisher.image(payload=BIG)
    stopped, ended = threading.Event(), threading.Event()

    def rule(asked: Asked) -> Fault:
        if asked.method in ("PATCH", "PUT") and "/blobs/uploads/" in asked.path:
            stopped.set()
            # Silent for as long as the command runs.
            ended.wait(READY_S)
        return None

    proxy.rule = rule
    process = subprocess.Popen(
        publisher.argv("publish", "small-amd64", "--to", str(way.to.place)),
        env=publisher.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert stopped.wait(READY_S)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=READY_S)
    finally:
        ended.set()
    assert process.returncode == 130, said
    no_tag(registry, way)
    proxy.rule = lambda _: None
    way.publish(publisher, image)
    is_whole(publisher, registry, way, image)
