"""From the seal to the nodes by way of a registry: published, asked for, pulled, moved."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.fleet import Fleet
from tests.lab.mirror import REPOSITORY, Mirror, mirror
from tests.lab.payload import Payload
from tests.lab.publisher import Publisher, name

VARIANT = name("amd64")
NAME = f"r:{VARIANT}"
PAYLOAD = Payload.of(200_000, 50_000)
REFUSED = 16


@pytest.fixture
def publisher(tmp_path: Path, fleet: Fleet) -> Publisher:
    made = Publisher.make(tmp_path)
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet.data()))
    return made


@pytest.fixture
def registry(tmp_path: Path, fleet: Fleet) -> Iterator[Mirror]:
    with mirror(tmp_path / "registry", fleet) as made:
        yield made


def test_what_is_published_reaches_every_node_and_nothing_else_does(
    publisher: Publisher, fleet: Fleet, registry: Mirror
) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return publisher.run(*words, SSL_CERT_FILE=str(registry.authority), **fleet.environment)

    def there() -> set[tuple[str, ...]]:
        return {node.diff_ids(NAME) if NAME in node.images() else () for node in fleet}

    first = publisher.image(payload=PAYLOAD)
    before = run("distribute", VARIANT, "--via", registry.repository)
    assert before.returncode == REFUSED, before.stderr
    assert there() == {()}

    done = run("publish", VARIANT, "--to", f"{registry.here}/{REPOSITORY}")
    assert done.returncode == 0, done.stderr
    done = run("distribute", VARIANT, "--via", registry.repository, "--json")
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    assert {one["state"] for one in nodes} == {"moved"}
    assert {one["sent"] for one in nodes} == {0}
    layers = tuple(layer.diff_id for layer in first.layers)
    assert there() == {layers}

    # What lies there without a signature is not pulled.
    second = publisher.image(payload=PAYLOAD.changed(-1))
    registry.push(publisher.store, second)
    done = run("distribute", VARIANT, "--via", registry.repository)
    assert done.returncode == REFUSED, done.stderr
    assert there() == {layers}
