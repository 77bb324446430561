"""The parts of the registry client that need no registry."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from pathlib import Path

import pytest
import requests

from sparkimage.config.address import Place
from sparkimage.core.errors import RegistryError
from sparkimage.registry import auth, oci_http
from sparkimage.registry.oci_auth import Authorizer
from sparkimage.registry.remote import Reference


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
    one, two, none = (auth.of(f"{name}.example") for name in ("one", "two", "none"))
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
    assert auth.of("one.example").password == "s"
    with pytest.raises(RegistryError, match=r"gives no login for broken\.example") as caught:
        auth.of("broken.example")
    assert "secret-words" not in caught.value.message + caught.value.detail


def authorizer(*, writes: bool = False) -> Authorizer:
    place = Place(registry="r.example:5000", repository="a/b")
    return Authorizer(place=place, host=place.registry, writes=writes)


def refused(status: int, challenge: str) -> requests.Response:
    answer = requests.Response()
    answer.status_code = status
    answer.headers["WWW-Authenticate"] = challenge
    return answer


def test_a_login_is_shown_to_the_registry_alone() -> None:
    auth = authorizer()

    def shown(url: str) -> str | None:
        return auth.show(requests.Request("GET", url).prepare()).headers.get("Authorization")

    assert shown("https://r.example:5000/v2/") is None
    auth.header = "Bearer of today"
    assert shown("https://r.example:5000/v2/") == "Bearer of today"
    assert shown("https://r.example/v2/") is None
    assert shown("https://storage.example/r.example:5000/") is None
    assert "of today" not in repr(auth)


def test_a_basic_login_answers_its_challenge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auths = {"r.example:5000": {"auth": "dTpwOnA="}}
    configured(tmp_path, {"auths": auths}, monkeypatch)
    auth = authorizer()
    assert not auth.renew(refused(401, ""), requests.Session())
    assert auth.renew(refused(401, 'Basic realm="r"'), requests.Session())
    assert auth.header == "Basic dTpwOnA="
    # It holds for every repository; a token is asked for anew.
    auth.read_too("a/c")
    assert auth.header == "Basic dTpwOnA="
    auth.header = "Bearer of today"
    auth.read_too("a/c")
    assert auth.header == "Bearer of today"
    auth.read_too("a/d")
    assert auth.header == ""


def test_no_login_goes_out_in_the_clear() -> None:
    challenge = 'Bearer realm="http://tokens.example/token",service="r"'
    with pytest.raises(
        RegistryError, match=r"sends logins to http://tokens\.example, which is not"
    ):
        authorizer().renew(refused(401, challenge), requests.Session())


@pytest.mark.parametrize(
    ("status", "challenge", "writes", "says"),
    [
        (401, "Basic", False, "wants a login, and Docker's credential store has none"),
        (401, 'Bearer error="insufficient_scope"', True, "does not let this login write to a/b"),
        (403, "", False, "does not let this login read a/b (its tags)"),
        (404, "", False, None),
        (503, "", False, None),
    ],
)
def test_refusals(
    status: int, challenge: str, writes: bool, says: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    configured(tmp_path, {}, monkeypatch)
    found = authorizer(writes=writes).refusal(refused(status, challenge), "no", "its tags")
    if says is None:
        assert found is None
    else:
        assert found is not None
        assert says in found.message
        assert "docker login r.example:5000" in found.hint
