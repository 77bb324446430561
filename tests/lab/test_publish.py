"""Images on their way into a real registry, and what is read back from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage import paths
from sparkimage.oci import Place, Repository
from tests.lab import servers
from tests.lab.press import Press, name
from tests.lab.servers import Registry


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with servers.registry(folder, home=paths.home()) as made:
        yield made


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """With a login, and TLS of a private CA."""
    folder = tmp_path_factory.mktemp("closed")
    with servers.registry(
        folder / "data", home=paths.home(), login=True, tls=folder / "tls"
    ) as made:
        yield made


@pytest.fixture
def press(tmp_path: Path) -> Press:
    return Press.make(tmp_path)


def there(registry: Registry, repository: str) -> Repository:
    return Repository(place=Place.parse(f"{registry.address}/{repository}"))


def test_one_image_is_published_bit_for_bit_and_again_changes_nothing(
    press: Press, open_registry: Registry
) -> None:
    image = press.image()
    to = f"{open_registry.address}/first/image"
    done = press.run("publish", name("amd64"), "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["digest"] == image.digest
    assert said["changed"] is True
    lock = press.plan("amd64").lock_checksum[:8]
    tag = f"0.32.0-cu130-nccl2.30.4-{lock}"
    assert said["tags"] == {tag: "new"}
    held = there(open_registry, "first/image").manifest(tag)
    assert held is not None
    assert held.data == press.store.path(image.digest).read_bytes()
    assert said["platforms"]["linux/amd64"]["uploaded"] == len(dict(image.blobs()))
    again = press.run("publish", name("amd64"), "--to", to, "--json")
    assert json.loads(again.stdout)["changed"] is False
    assert json.loads(again.stdout)["sent"] == 0
    assert "nothing changed" in press.run("publish", name("amd64"), "--to", to).stdout


def test_only_what_is_missing_travels_and_other_repositories_give_theirs(
    press: Press, open_registry: Registry
) -> None:
    from tests.lab.press import SMALL

    press.image()
    at = open_registry.address
    press.run("publish", name("amd64"), "--to", f"{at}/second/a")
    press.image(payload=SMALL.changed(-1), created="2001-01-01T00:00:00Z")
    done = press.run("publish", name("amd64"), "--to", f"{at}/second/b", "--json")
    said = json.loads(done.stdout)["platforms"]["linux/amd64"]
    # The changed layer, and the config that names it.
    assert (said["uploaded"], said["mounted"]) == (2, 3)


def test_a_login_and_a_private_ca_are_used_and_shown_nowhere(
    press: Press, closed_registry: Registry
) -> None:
    press.image()
    to = f"{closed_registry.address}/closed/image"
    words = ("publish", name("amd64"), "--to", to)
    ca = str(closed_registry.ca)
    nobody = str(press.folder / "nobody")
    untrusted = press.run(*words, DOCKER_CONFIG=nobody, HOME=nobody)
    assert untrusted.returncode == 17
    assert "is not trusted here" in untrusted.stderr
    unknown = press.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=nobody, HOME=nobody)
    assert unknown.returncode == 17
    assert f"docker login {closed_registry.address}" in unknown.stderr
    wrong = press.docker_config(closed_registry.address, servers.USER, "wrong")
    refused = press.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=str(wrong))
    assert refused.returncode == 17
    assert "refuses the login of lab" in refused.stderr
    right = press.docker_config(closed_registry.address, servers.USER, servers.PASSWORD)
    done = press.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=str(right))
    assert done.returncode == 0, done.stderr
    for said in (done, refused, unknown):
        assert servers.PASSWORD not in said.stdout + said.stderr
    held = [path.read_bytes() for path in (press.folder / "home").rglob("*") if path.is_file()]
    assert not any(servers.PASSWORD.encode() in data for data in held)


def test_a_damaged_blob_of_the_store_never_becomes_one_of_the_registry(
    press: Press, open_registry: Registry
) -> None:
    from tests.unit.oci_maker import flip

    image = press.image()
    layer = image.layers[-1]
    flip(press.store.path(layer.digest))
    done = press.run("publish", name("amd64"), "--to", f"{open_registry.address}/damaged/here")
    assert done.returncode == 8
    assert layer.digest in done.stderr
    repository = there(open_registry, "damaged/here")
    assert repository.blob_size(layer.digest) is None
    assert repository.tags() == []
    assert hashlib.sha256(press.store.path(layer.digest).read_bytes()).hexdigest()
