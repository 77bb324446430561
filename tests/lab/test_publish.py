"""Images on their way into a real registry, and what is read back from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.core.errors import RegistryError
from sparkimage.resolve import auth
from sparkimage.resolve.skopeo import Repository
from tests.lab import servers, tokens
from tests.lab.hostile import Client
from tests.lab.publisher import Publisher, name
from tests.lab.servers import Registry


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with servers.registry(folder) as made:
        yield made


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """With a login, and TLS of a private CA."""
    folder = tmp_path_factory.mktemp("closed")
    with servers.registry(folder / "data", login=True, tls=folder / "tls") as made:
        yield made


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher.make(tmp_path)


def there(registry: Registry, repository: str) -> Client:
    return Client(address=registry.address, repository=repository)


def test_one_image_is_published_bit_for_bit_and_again_changes_nothing(
    publisher: Publisher, open_registry: Registry
) -> None:
    image = publisher.image()
    to = f"{open_registry.address}/first/image"
    done = publisher.run("publish", name("amd64"), "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["digest"] == image.digest
    assert said["changed"] is True
    lock = publisher.plan(name("amd64")).lock_checksum[:8]
    tag = f"0.32.0-cu130-nccl2.30.4-{lock}"
    assert said["tags"] == {tag: "new"}
    held = there(open_registry, "first/image").manifest(tag)
    assert held is not None
    assert held == publisher.store.path(image.digest).read_bytes()
    assert said["platforms"]["linux/amd64"]["uploaded"] == len(dict(image.blobs()))
    again = publisher.run("publish", name("amd64"), "--to", to, "--json")
    assert json.loads(again.stdout)["changed"] is False
    assert json.loads(again.stdout)["sent"] == 0
    assert "already published" in publisher.run("publish", name("amd64"), "--to", to).stdout


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(
    publisher: Publisher, open_registry: Registry
) -> None:
    publisher.image()
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    to = f"{open_registry.address}/proxy/image"
    words = ("publish", name("amd64"), "--to", to)
    with servers.quiet_port() as port:
        proxies = dict.fromkeys(names, f"http://127.0.0.1:{port}")
        done = publisher.run(*words, **proxies, NO_PROXY="", no_proxy="")
    assert done.returncode == 0, done.stderr


def test_only_what_is_missing_travels_and_other_repositories_give_theirs(
    publisher: Publisher, open_registry: Registry
) -> None:
    from tests.lab.publisher import SMALL

    publisher.image()
    at = open_registry.address
    publisher.run("publish", name("amd64"), "--to", f"{at}/second/a")
    publisher.image(payload=SMALL.changed(-1), created="2001-01-01T00:00:00Z")
    done = publisher.run("publish", name("amd64"), "--to", f"{at}/second/b", "--json")
    said = json.loads(done.stdout)["platforms"]["linux/amd64"]
    # The changed layer, and the config that names it.
    assert (said["uploaded"], said["mounted"]) == (2, 3)


def test_a_login_and_a_private_ca_are_used_and_shown_nowhere(
    publisher: Publisher, closed_registry: Registry
) -> None:
    publisher.image()
    to = f"{closed_registry.address}/closed/image"
    words = ("publish", name("amd64"), "--to", to)
    ca = str(closed_registry.ca)
    nobody = str(publisher.folder / "nobody")
    (publisher.folder / "nobody").mkdir()
    # curl and requests would take this one; Docker does not.
    netrc = publisher.folder / "nobody" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login {servers.USER} password {servers.PASSWORD}\n")
    netrc.chmod(0o600)
    untrusted = publisher.run(*words, DOCKER_CONFIG=nobody, HOME=nobody)
    assert untrusted.returncode == 17
    assert "is not trusted here" in untrusted.stderr
    unknown = publisher.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=nobody, HOME=nobody)
    assert unknown.returncode == 17
    assert f"docker login {closed_registry.address}" in unknown.stderr
    wrong = publisher.docker_config(closed_registry.address, servers.USER, "wrong")
    refused = publisher.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=str(wrong))
    assert refused.returncode == 17
    assert "refuses the login of lab" in refused.stderr
    # Said before the minutes that an image of gigabytes takes.
    for early in (untrusted, unknown, refused):
        assert "measuring" not in early.stderr
        assert "SBOM" not in early.stderr
    right = publisher.docker_config(closed_registry.address, servers.USER, servers.PASSWORD)
    done = publisher.run(*words, SSL_CERT_FILE=ca, DOCKER_CONFIG=str(right))
    assert done.returncode == 0, done.stderr
    for said in (done, refused, unknown):
        assert servers.PASSWORD not in said.stdout + said.stderr
    held = [path.read_bytes() for path in (publisher.folder / "home").rglob("*") if path.is_file()]
    assert not any(servers.PASSWORD.encode() in data for data in held)


def test_a_damaged_blob_of_the_store_never_becomes_one_of_the_registry(
    publisher: Publisher, open_registry: Registry
) -> None:
    from tests.unit.oci_maker import flip

    image = publisher.image()
    layer = image.layers[-1]
    flip(publisher.store.path(layer.digest))
    done = publisher.run("publish", name("amd64"), "--to", f"{open_registry.address}/damaged/here")
    assert done.returncode == 8
    assert layer.digest in done.stderr
    repository = there(open_registry, "damaged/here")
    assert repository.blob(layer.digest) is None
    assert repository.tags() == []
    assert hashlib.sha256(publisher.store.path(layer.digest).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def with_tokens(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Registry, tokens.Tokens]]:
    """A registry whose logins are tokens, as those of the large ones are."""
    folder = tmp_path_factory.mktemp("tokens")
    servers.certify(folder)
    with tokens.service(folder) as service:
        auth = (
            f'auth:\n  token: {{realm: "{service.realm}", service: {tokens.SERVICE}, '
            f'issuer: {tokens.ISSUER}, rootcertbundle: "{folder}/ca.crt"}}\n'
        )
        with servers.registry(folder / "data", auth=auth) as made:
            yield made, service


def test_tokens_are_asked_for_what_is_done(
    publisher: Publisher,
    with_tokens: tuple[Registry, tokens.Tokens],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, service = with_tokens
    item = publisher.item(publisher.image())
    config = publisher.docker_config(registry.address, servers.USER, servers.PASSWORD)
    monkeypatch.setenv("DOCKER_CONFIG", str(config))

    def to(repository: str) -> Repository:
        return publisher.repository(f"{registry.address}/{repository}", retries=0)

    publisher.publish(to("tokens/a"), item)
    assert ["repository:tokens/a:pull,push"] in service.scopes
    # Taking over blobs needs a token for the other repository, too.
    taken = publisher.publish(to("tokens/b"), item)
    (platform,) = taken.platforms.values()
    assert (platform.blobs.mounted, platform.blobs.uploaded) == (len(item.image.layers), 1)
    assert any("repository:tokens/a:pull" in scopes for scopes in service.scopes)
    # A token that never begins is refused.
    service.seconds = -3600
    with pytest.raises(RegistryError, match="refuses the login of lab"):
        publisher.publish(to("tokens/d"), item)
    service.seconds = 300
    # One that may not write is told so, with what to do.
    service.writes = False
    with pytest.raises(RegistryError, match="does not allow this login to access tokens/d"):
        publisher.publish(to("tokens/d"), item)
    service.writes = True


def test_an_identity_token_is_a_login(
    publisher: Publisher,
    with_tokens: tuple[Registry, tokens.Tokens],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, _ = with_tokens
    item = publisher.item(publisher.image())
    for token, good in ((tokens.IDENTITY, True), ("another", False)):
        entry = {"auths": {registry.address: {"identitytoken": token}}}
        (publisher.folder / "config.json").write_text(json.dumps(entry))
        monkeypatch.setenv("DOCKER_CONFIG", str(publisher.folder))
        to = publisher.repository(f"{registry.address}/tokens/identity", retries=0)
        if good:
            assert publisher.publish(to, item).changed
        else:
            with pytest.raises(RegistryError, match="refuses the login of the token"):
                publisher.publish(to, item)


def test_a_private_ca_of_docker_is_trusted(
    publisher: Publisher, closed_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert closed_registry.ca is not None
    config = publisher.docker_config(closed_registry.address, servers.USER, servers.PASSWORD)
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    monkeypatch.setattr(auth, "CERTIFICATES", (publisher.folder / "certs.d",))
    item = publisher.item(publisher.image())
    with pytest.raises(RegistryError, match="is not trusted here"):
        _ = publisher.repository(f"{closed_registry.address}/closed/ca").readable
    own = publisher.folder / "certs.d" / closed_registry.address
    own.mkdir(parents=True)
    (own / "ca.crt").write_bytes(closed_registry.ca.read_bytes())
    # skopeo and cosign both.
    assert publisher.publish(
        publisher.repository(f"{closed_registry.address}/closed/ca"), item
    ).changed
