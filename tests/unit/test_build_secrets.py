"""Build secrets: what a build needs, where the values come from, and that none is shown."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sparkimage.build.secrets import MAX_BYTES, BuildSecrets
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.core.errors import PreflightError, UsageError

NAME, VALUE = "SPARKIMAGE_TEST_TOKEN", "tok-3f9a-very-secret"
LAYER = LayerPlan(name="up", dockerfile="Dockerfile", args={}, secrets=(NAME,))


def plan(*layers: LayerPlan) -> Plan:
    return Plan(
        variant="v", image="r:v", platform="linux/amd64", layers=layers, entrypoint=(), cmd=(),
        versions={}, python=None, labels={}, lock_checksum="",
    )  # fmt: skip


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket where the ssh agent's is."""
    # A socket's path has at most 107 bytes.
    with (
        TemporaryDirectory(prefix="agent-", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        path = Path(folder, "socket")
        listening.bind(str(path))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield path


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_not_given_is_said_at_once_with_the_ways_to_give_it() -> None:
    other = replace(LAYER, name="top", secrets=(NAME, "OTHER_TOKEN_OF_TEST"), ssh=True)
    with pytest.raises(PreflightError) as error:
        BuildSecrets().require([plan(LAYER, other)])
    missing = f"the secret {NAME}, the secret OTHER_TOKEN_OF_TEST, an ssh agent"
    assert error.value.message == f"not given to the build: {missing}"
    assert f"the secret {NAME}: layer up of v, layer top of v" in error.value.detail
    assert f"export {NAME}=…, or pass --secret id={NAME},src=FILE" in error.value.hint
    assert 'eval "$(ssh-agent)"; ssh-add' in error.value.hint
    BuildSecrets().require([plan(replace(LAYER, secrets=()))])


def test_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")
    with pytest.raises(PreflightError, match=NAME):
        BuildSecrets().require([plan(LAYER)])
    monkeypatch.setenv(NAME, VALUE)
    BuildSecrets().require([plan(LAYER)])
    assert BuildSecrets().of(LAYER) == {"secret": [f"id={NAME},env={NAME}"]}


def test_a_secret_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / 'to,k"en'
    path.write_text(f"{VALUE}\n")
    given = BuildSecrets.parse([f"id={NAME},src={path}"], {NAME})
    given.require([plan(LAYER)])
    quoted = str(path).replace('"', '""')
    assert given.of(LAYER) == {"secret": [f'id={NAME},"src={quoted}"']}
    assert given.hide(plan(LAYER))(f"x={VALUE}!") == "x=***!"
    assert given.hide(plan(replace(LAYER, secrets=())))(VALUE) == VALUE


def test_the_lines_of_a_secret_are_hidden_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first-line-of-key\nshort\n  second-line-of-key\n")
    given = BuildSecrets.parse([f"id={NAME},src={path}"], {NAME})
    hide = given.hide(plan(LAYER))
    assert hide("short: second-line-of-key first-line-of-key") == "short: *** ***"


@pytest.mark.parametrize(
    ("word", "what", "todo"),
    [
        (NAME, "is not id=NAME,src=FILE", "for instance"),
        (f"id={NAME}", "is not id=NAME,src=FILE", "for instance"),
        (f"id={NAME},env=", "is not id=NAME,src=FILE", "for instance"),
        (f"id={NAME},env=NO_{NAME}", f"the environment has no NO_{NAME}", f"export NO_{NAME}=…"),
        (f"src=/x,id={NAME}", "the file cannot be read", "correct it"),
        (f"id={NAME},src=", "is not id=NAME,src=FILE", "for instance"),
        (f"id={NAME},src=/no/such/file", "the file cannot be read", "correct it"),
        (f"id={NAME}X,src=/dev/null", f"no layer has the secret '{NAME}X'", f"mean '{NAME}'"),
    ],
)
def test_an_option_that_gives_no_secret(word: str, what: str, todo: str) -> None:
    with pytest.raises(UsageError) as error:
        BuildSecrets.parse([word], {NAME})
    assert what in error.value.message
    assert todo in error.value.hint


def test_a_secret_whose_id_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = replace(LAYER, secrets=("aws-key-id",))
    with pytest.raises(PreflightError) as error:
        BuildSecrets().require([plan(layer)])
    ways = "pass --secret id=aws-key-id,src=FILE or --secret id=aws-key-id,env=VARIABLE"
    assert error.value.hint == ways
    monkeypatch.setenv(NAME, VALUE)
    given = BuildSecrets.parse([f"id=aws-key-id,env={NAME}"], {"aws-key-id"})
    given.require([plan(layer)])
    assert given.of(layer) == {"secret": [f"id=aws-key-id,env={NAME}"]}
    assert given.hide(plan(layer))(f"x={VALUE}!") == "x=***!"
    with pytest.raises(UsageError, match="'aws-key-id' is given twice"):
        BuildSecrets.parse([f"id=aws-key-id,env={NAME}"] * 2, {"aws-key-id"})


def test_a_file_that_buildkit_does_not_take(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * MAX_BYTES)
    BuildSecrets.parse([f"id={NAME},src={path}"], {NAME})
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="larger than 500 KiB"):
        BuildSecrets.parse([f"id={NAME},src={path}"], {NAME})


def test_an_agent_is_used_by_steps(agent: Path) -> None:
    steps = replace(LAYER, secrets=(), ssh=True)
    assert BuildSecrets().of(steps) == {"ssh": ["default"]}
    BuildSecrets().require([plan(steps)])
    assert BuildSecrets().of(replace(steps, ssh=False)) == {}
    agent.unlink()
    with pytest.raises(PreflightError, match="an ssh agent"):
        BuildSecrets().require([plan(steps)])
