"""Keys of several kinds, and the signed seal of a file."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkimage.core.errors import PreflightError
from sparkimage.registry import archives, cosign
from sparkimage.registry.cosign import Trust
from tests.lab import hostile
from tests.lab.press import Press, name

REFUSED = 14


@pytest.fixture
def press(tmp_path: Path) -> Press:
    (tmp_path / "press").mkdir()
    return Press.make(tmp_path / "press")


@pytest.mark.parametrize("content", [None, "no key"])
def test_what_is_no_key_is_refused(press: Press, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    with (
        pytest.raises(PreflightError, match="is no key to sign with"),
        cosign.signer(str(file), None, None, press.tools),
    ):
        pass
    with pytest.raises(PreflightError, match="is no public key"):
        Trust.of(str(file), None, None, press.tools)


def saved(press: Press, *words: str) -> Path:
    file = press.folder / "image.tar"
    done = press.run("save", name("amd64"), "-o", str(file), *words, SPARKIMAGE_KEY="")
    assert done.returncode == 0, done.stderr
    return file


def load(press: Press, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    more = {"SPARKIMAGE_PUBLIC_KEY": "", "SPARKIMAGE_STORE": str(press.folder / "elsewhere")}
    return press.run("load", str(file), *words, **more)


def test_a_signed_seal_is_of_its_key(press: Press, tmp_path: Path) -> None:
    press.image()
    thief = hostile.make_key(tmp_path / "thief.pem")
    unsigned = saved(press)
    public = str(hostile.public(press.key))
    refused = load(press, unsigned, "--key", public)
    assert (refused.returncode, "is not signed" in refused.stderr) == (REFUSED, True)
    assert load(press, unsigned).returncode == 0
    signed = saved(press, "--key", str(press.key))
    other = load(press, signed, "--key", str(hostile.public(thief)))
    assert (other.returncode, "is not signed by" in other.stderr) == (REFUSED, True)
    assert load(press, signed, "--key", public).returncode == 0
    assert load(press, signed).returncode == 0


def other_result(said: dict[str, Any]) -> None:
    said["predicate"]["host"] = "another"


def other_digest(said: dict[str, Any]) -> None:
    said["subject"][0]["digest"]["sha256"] = "b" * 64


@pytest.mark.parametrize("edit", [other_result, other_digest])
def test_an_edited_seal_is_refused(press: Press, edit: Callable[[dict[str, Any]], None]) -> None:
    press.image()
    file = saved(press, "--key", str(press.key))
    with tarfile.open(file) as tar:
        members = [(one, tar.extractfile(one)) for one in tar.getmembers()]
        found = [(one, content.read() if content else b"") for one, content in members]
    with tarfile.open(file, "w") as tar:
        for member, held in found:
            data = held
            if member.name == archives.SEAL:
                shipped = json.loads(data)
                (envelope,) = shipped["envelopes"]
                said = json.loads(base64.b64decode(envelope["payload"]))
                edit(said)
                envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
                data = json.dumps(shipped).encode()
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    refused = load(press, file, "--key", str(hostile.public(press.key)))
    assert (refused.returncode, "or was edited" in refused.stderr) == (REFUSED, True)
