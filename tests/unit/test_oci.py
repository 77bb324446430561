"""The parts of the registry client that need no registry."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from sparkimage.errors import RegistryError
from sparkimage.publishing import logins, oci_http
from sparkimage.publishing.oci import Place
from sparkimage.publishing.published import Reference


@pytest.mark.parametrize(
    ("text", "registry", "repository", "loopback"),
    [
        ("r.example:5000/a/b", "r.example:5000", "a/b", False),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", True),
        ("localhost/a", "localhost", "a", True),
        ("[::1]:5000/a", "[::1]:5000", "a", True),
        ("team/image", "docker.io", "team/image", False),
        ("127.0.0.1.example/a", "127.0.0.1.example", "a", False),
    ],
)
def test_places(text: str, registry: str, repository: str, loopback: bool) -> None:
    place = Place.parse(text)
    assert (place.registry, place.repository) == (registry, repository)
    assert place.is_loopback is loopback


def test_references() -> None:
    digest = f"sha256:{'a' * 64}"
    assert Reference.parse("r.example/a").tag == "latest"
    assert Reference.parse(f"r.example/a@{digest}").tag is None
    both = Reference.parse(f"r.example/a:t@{digest}")
    assert (both.tag, both.digest, str(both)) == ("t", digest, f"r.example/a:t@{digest}")


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("", 3.0), ("soon", 3.0), ("-1", 3.0)])
def test_how_long_a_registry_asks_to_wait(said: str, seconds: float) -> None:
    answer = requests.Response()
    answer.headers["Retry-After"] = said
    assert oci_http.retry_after(answer, 3.0) == seconds


def test_a_date_to_wait_for() -> None:
    answer = requests.Response()
    answer.headers["Retry-After"] = formatdate(time.time() + 60, usegmt=True)
    assert 50 < oci_http.retry_after(answer, 3.0) <= 60


def test_a_body_says_what_moved_and_takes_it_back() -> None:
    moved: list[int] = []
    body = oci_http.Body(bytes(1_000_000), moved.append)
    assert len(body) == 1_000_000
    assert sum(len(piece) for piece in body) == sum(moved) == 1_000_000
    body.undo()
    assert sum(moved) == 0


def configured(folder: Path, data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def test_logins_come_from_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auths = {
        "one.example": {"auth": "dTpwOnA="},
        "https://two.example/v1/": {"identitytoken": "t"},
    }
    configured(tmp_path, {"auths": auths}, monkeypatch)
    one, two, none = (logins.of(f"{name}.example") for name in ("one", "two", "none"))
    assert (one.user, one.password) == ("u", "p:p")
    assert two.identity_token == "t"
    assert not none.there
    assert "p:p" not in repr(one)
    assert "'t'" not in repr(two)


def test_logins_come_from_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-lab"
    program.write_text(
        "#!/bin/sh\nread -r host\n"
        '[ "$host" = broken.example ] && { echo secret-words; exit 2; }\n'
        'echo "{\\"ServerURL\\": \\"$host\\", \\"Username\\": \\"u\\", \\"Secret\\": \\"s\\"}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    helpers = {"one.example": "lab", "broken.example": "lab"}
    configured(tmp_path, {"credHelpers": helpers}, monkeypatch)
    assert logins.of("one.example").password == "s"
    with pytest.raises(RegistryError, match=r"gives no login for broken\.example") as caught:
        logins.of("broken.example")
    assert "secret-words" not in caught.value.message + caught.value.detail
