"""Files of web servers: on a real server that answers as it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors
from sparkimage.config.lock_items import File
from sparkimage.core.errors import Locked, LockError, NetworkError
from sparkimage.core.files import DATE
from sparkimage.core.process import Local
from sparkimage.resolve import files
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.files import Download
from tests.lab import servers

CONTENT = b"words\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
URL = "https://files.example/a/words.txt"
UPDATE = "sparkimage lock --update 'words==v1'"


@dataclass
class Script:
    """What the server answers: a status each, or ``CUT``, and then always the content."""

    answers: list[int] = field(default_factory=list)
    asked: int = 0


CUT = 0


class Handler(BaseHTTPRequestHandler):
    def __init__(self, *args: object, script: Script) -> None:
        self.script = script
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.script.asked += 1
        answer = self.script.answers.pop(0) if self.script.answers else 200
        self.send_response(answer or 200)
        self.send_header("Retry-After", "3600")
        self.send_header("Content-Length", str(len(CONTENT) if answer in (CUT, 200) else 0))
        self.end_headers()
        if answer in (CUT, 200):
            self.wfile.write(CONTENT if answer else CONTENT[:100])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def download(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Download]:
    monkeypatch.setattr(files, "BACKOFF_S", 0)
    with servers.answering(partial(Handler, script=script)) as port:
        mirrors = Mirrors(rules={"https://files.example": f"http://127.0.0.1:{port}"})
        yield Download(
            locked=Locked.pin("words", "v1"),
            url=URL,
            name="words.txt",
            context=ResolveContext(
                home=tmp_path, runner=Local(), mirrors=mirrors, say=lambda _line: None
            ),
        )


def test_a_file_is_fetched_once_and_alone_in_its_folder(download: Download, script: Script) -> None:
    assert download.resolve(None) == File(size=len(CONTENT), sha256=SHA256, name="words.txt")
    folder = download.fetch(SHA256)
    (path,) = folder.iterdir()
    assert (path.name, path.read_bytes()) == ("words.txt", CONTENT)
    assert path.stat().st_mtime == DATE
    assert path.stat().st_mode & 0o777 == 0o644
    assert download.resolve(SHA256).size == len(CONTENT)
    assert script.asked == 1
    # What was changed in the cache is fetched anew.
    path.write_bytes(b"other")
    assert (download.fetch(SHA256) / "words.txt").read_bytes() == CONTENT
    assert script.asked == 2


@pytest.mark.parametrize("answers", [[503], [500, 429], [CUT], [502, CUT, CUT]])
def test_what_passes_is_tried_again(download: Download, script: Script, answers: list[int]) -> None:
    script.answers = list(answers)
    assert download.resolve(None).sha256 == SHA256
    assert script.asked == len(answers) + 1


@pytest.mark.parametrize(
    ("answers", "error", "asked", "what", "todo"),
    [
        ([404], LockError, 1, f"pin words v1: {URL} answers 404 (Not Found)", "correct its `url`"),
        ([410], LockError, 1, "answers 410 (Gone)", "correct its `url`"),
        ([401], LockError, 1, "answers 401 (Unauthorized)", "into ~/.netrc"),
        ([799], LockError, 1, "answers 799 (no known status)", "correct its `url`"),
        ([503] * 9, NetworkError, 4, "answers 503 (Service Unavailable)", "later"),
        ([CUT] * 9, NetworkError, 4, f"pin words v1: {URL} cannot be reached", "network"),
    ],
)
def test_an_answer_that_is_not_the_file(
    download: Download,
    script: Script,
    answers: list[int],
    error: type[LockError | NetworkError],
    asked: int,
    what: str,
    todo: str,
) -> None:
    script.answers = list(answers)
    with pytest.raises(error) as raised:
        download.resolve(None)
    assert what in raised.value.message
    assert todo in raised.value.hint
    assert script.asked == asked
    assert [*(download.context.home / "files").iterdir()] == []


def test_another_content_is_refused(download: Download, script: Script) -> None:
    with pytest.raises(LockError) as error:
        download.resolve("a" * 64)
    says = f"pin words v1: {URL} has sha256 {SHA256}, and the matrix says {'a' * 64}"
    assert error.value.message == says
    assert UPDATE in error.value.hint
    with pytest.raises(LockError, match="and the lock says bbb"):
        download.fetch("b" * 64)
    assert script.asked == 2


def test_a_server_that_is_not_there(download: Download) -> None:
    with servers.quiet_port() as port:
        nowhere = Mirrors(rules={"https://files.example": f"http://127.0.0.1:{port}"})
        other = replace(download, context=replace(download.context, mirrors=nowhere))
        with pytest.raises(NetworkError, match=f"^pin words v1: {URL} cannot be reached$") as error:
            other.fetch(SHA256)
    assert "Connection refused" in error.value.detail
