"""What reaching a registry needs, without a registry."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors, Place
from sparkimage.core.errors import NetworkError, RegistryError, UsageError
from sparkimage.core.process import Local
from sparkimage.registry.cosign import Attestation, Trust, signer
from sparkimage.registry.remote import Reference
from sparkimage.resolve import outputs
from sparkimage.resolve.auth import HUB, Access
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.skopeo import Manifest, Repository
from sparkimage.resolve.tools import USABLE, Tools

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(
        outside=ResolveContext(home=tmp_path, runner=Local(), mirrors=Mirrors(), say=print)
    )


def configured(folder: Path, data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def access(address: str) -> Access:
    return Access(place=Place.parse(address))


def given(one: Access) -> dict[str, dict[str, str]]:
    """What the programs read."""
    file = Path(one.environment["DOCKER_CONFIG"], "config.json")
    assert f"--authfile={file}" in one.skopeo
    read: dict[str, dict[str, str]] = json.loads(file.read_bytes())["auths"]
    return read


def test_references() -> None:
    assert Reference.parse("r.example/a").tag == "latest"
    assert Reference.parse(f"r.example/a@{DIGEST}").tag is None
    both = Reference.parse(f"r.example/a:t@{DIGEST}")
    assert (both.tag, both.digest, str(both)) == ("t", DIGEST, f"r.example/a:t@{DIGEST}")


def test_logins_come_from_the_configuration_and_lie_on_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auths = {
        "one.example": {"auth": "dTpwOnA="},
        "https://two.example/v1/": {"identitytoken": "t"},
        HUB: {"auth": "aDpo"},
    }
    configured(tmp_path, {"auths": auths}, monkeypatch)
    one, two, none, hub = (
        access(name) for name in ("one.example/a", "two.example/a", "none.example/a", "a/b")
    )
    assert given(one) == {"one.example": {"auth": "dTpwOnA="}}
    assert given(two)["two.example"]["identitytoken"] == "t"
    assert (given(none), none.user) == ({}, "")
    assert list(given(hub)) == [HUB]
    assert (one.user, two.user) == ("u", "the token")
    assert "p:p" not in repr(one)
    folder = Path(one.environment["DOCKER_CONFIG"])
    assert str((folder / "config.json").readlink()).startswith("/proc/")
    del one
    assert not folder.exists()


def test_logins_come_from_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "docker-credential-lab"
    program.write_text(
        "#!/bin/sh\nread -r host\n"
        '[ "$host" = broken.example ] && { echo secret-words; exit 2; }\n'
        'echo "{\\"ServerURL\\": \\"$host\\", \\"Username\\": \\"u\\", \\"Secret\\": \\"s\\"}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for how in ({"credHelpers": {"one.example": "lab", "broken.example": "lab"}},
                {"credsStore": "lab"}):  # fmt: skip
        configured(tmp_path, how, monkeypatch)
        entry = given(access("one.example/a"))["one.example"]
        assert base64.b64decode(entry["auth"]) == b"u:s"
        with pytest.raises(
            RegistryError, match=r"credential store fails for broken\.example"
        ) as caught:
            _ = access("broken.example/a").environment
        assert "secret-words" not in caught.value.message + caught.value.detail


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        (
            "tls: failed to verify certificate: x509: unknown authority",
            RegistryError,
            "not trusted",
        ),
        ("reading manifest: authentication required", RegistryError, "requires a login"),
        ("requested access to the resource is denied", RegistryError, "does not allow this login"),
        ("unexpected HTTP status: 507", RegistryError, "no space left"),
        ("unexpected HTTP status: 503 Service Unavailable", NetworkError, "does not answer"),
        ("toomanyrequests: slow down", NetworkError, "does not answer"),
        ("dial tcp: lookup r.example: no such host", NetworkError, "does not answer"),
        ("something else", RegistryError, "refuses an upload"),
    ],
)
def test_what_a_failure_means(
    said: str, kind: type[Exception], says: str,
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    configured(tmp_path, {}, monkeypatch)
    repository = Repository(place=Place.parse("r.example:5000/a/b"), tools=tools)
    for line in (f'time="x" level=fatal msg="{said}"', f"Error: {said}\nerror during {said}"):
        found = repository.error(f"Copying blob {DIGEST}\n{line}\n", "an upload")
        assert type(found) is kind
        assert says in found.message
        assert found.detail == said
        assert found.hint


def test_an_address_of_an_upload_says_nothing_of_a_failure(tools: Tools) -> None:
    repository = Repository(place=Place.parse("r.example:5000/a/b"), tools=tools)
    said = 'Patch "http://r.example/v2/x?_state=a 401-denied-507": EOF'.replace("a 4", "a-4")
    found = repository.error(f"level=fatal msg={said}", "an upload")
    assert isinstance(found, NetworkError)
    assert "_state" not in found.detail


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("registry", "registry repository what certificates login"),
        ("git", "title address commit login"),
        ("images", "title update image moved registry"),
        ("uv", "title projects from_source"),
        ("wheel", "title gone project"),
        ("apt", "title address components key_missing key_hint"),
    ],
)
def test_every_error_has_its_placeholders(program: str, names: str) -> None:
    for known in outputs._known()[program]:
        facts = dict.fromkeys((*names.split(), *re.compile(known.pattern).groupindex), "x")
        assert "{" not in known.message.format(**facts) + known.hint.format(**facts)
        assert known.error in outputs.ERRORS


def test_what_a_manifest_is() -> None:
    assert Manifest(data=b'{"manifests": []}').is_index
    assert not Manifest(data=b'{"layers": []}').is_index
    for data in (b"", b"[]", b"{"):
        assert Manifest(data=data).content == {}


def test_a_subject_of_several_is_none() -> None:
    subject = {"digest": {"sha256": "a" * 64}}
    one = Attestation(statement={"subject": [subject]}, verified=True)
    assert (one.subject, one.predicate_type, one.predicate) == (DIGEST, "", {})
    assert Attestation(statement={"subject": [subject, subject]}, verified=True).subject == ""


@pytest.mark.parametrize(
    ("name", "said", "good"),
    [
        ("skopeo", "skopeo version 1.18.0", True), ("skopeo", "skopeo version 1.9.3", False),
        ("cosign", "GitVersion:    v2.5.0", True), ("cosign", "GitVersion:    v3.0.1", False),
        ("cosign", "GitVersion:    devel", False),
    ],
)  # fmt: skip
def test_which_programs_of_the_machine_are_used(name: str, said: str, good: bool) -> None:
    assert (USABLE[name][1].search(said) is not None) is good


def test_somebody_must_be_named(tools: Tools) -> None:
    with pytest.raises(UsageError, match="no key to verify"):
        Trust.of(None, None, None, tools)
    with pytest.raises(UsageError, match="belong together"):
        Trust.of(None, "job", None, tools)
    with pytest.raises(UsageError, match="no key to sign with"), signer(None, None, None, tools):
        pass
    with pytest.raises(UsageError, match="exclude each other"), signer("k", "i", "u", tools):
        pass
