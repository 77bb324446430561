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
from tests.lab.publisher import Publisher, name

REFUSED = 14


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    (tmp_path / "publisher").mkdir()
    return Publisher.make(tmp_path / "publisher")


@pytest.mark.parametrize("content", [None, "no key"])
def test_what_is_no_key_is_refused(
    publisher: Publisher, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    with (
        pytest.raises(PreflightError, match="cannot be used to sign"),
        cosign.signer(str(file), None, None, publisher.tools),
    ):
        pass
    with pytest.raises(PreflightError, match="is not a public key"):
        Trust.of(str(file), None, None, publisher.tools)


def saved(publisher: Publisher, *words: str) -> Path:
    file = publisher.folder / "image.tar"
    done = publisher.run("save", name("amd64"), "-o", str(file), *words, SPARKIMAGE_KEY="")
    assert done.returncode == 0, done.stderr
    return file


def load(publisher: Publisher, file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    more = {"SPARKIMAGE_PUBLIC_KEY": "", "SPARKIMAGE_STORE": str(publisher.folder / "elsewhere")}
    return publisher.run("load", str(file), *words, **more)


def test_a_signed_seal_is_of_its_key(publisher: Publisher, tmp_path: Path) -> None:
    publisher.image()
    thief = hostile.make_key(tmp_path / "thief.pem")
    unsigned = saved(publisher)
    public = str(hostile.public(publisher.key))
    refused = load(publisher, unsigned, "--key", public)
    assert (refused.returncode, "is not signed" in refused.stderr) == (REFUSED, True)
    assert load(publisher, unsigned).returncode == 0
    signed = saved(publisher, "--key", str(publisher.key))
    other = load(publisher, signed, "--key", str(hostile.public(thief)))
    assert (other.returncode, "is not signed by" in other.stderr) == (REFUSED, True)
    assert load(publisher, signed, "--key", public).returncode == 0
    assert load(publisher, signed).returncode == 0


def other_result(said: dict[str, Any]) -> None:
    said["predicate"]["host"] = "another"


def other_digest(said: dict[str, Any]) -> None:
    said["subject"][0]["digest"]["sha256"] = "b" * 64


@pytest.mark.parametrize("edit", [other_result, other_digest])
def test_an_edited_seal_is_refused(
    publisher: Publisher, edit: Callable[[dict[str, Any]], None]
) -> None:
    publisher.image()
    file = saved(publisher, "--key", str(publisher.key))
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
    refused = load(publisher, file, "--key", str(hostile.public(publisher.key)))
    assert (refused.returncode, "or was edited" in refused.stderr) == (REFUSED, True)
