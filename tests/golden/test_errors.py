"""An error of each kind, as a terminal of 60 columns shows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sparkimage.cli import base
from sparkimage.core import markup
from sparkimage.core.errors import CommandError, DamagedError
from tests.golden import error_texts
from tests.lab import terminal
from tests.unit import reference_home

PROJECT = Path(__file__).resolve().parents[2]
CALLS = (
    "lock --nope",
    "imge",
    "image default --print nope",
    "--mirror nowhere images",
    "--matrix --only nothing*",
    "verify",
    "nodes --patience 0",
    "-C none images",
    "-C matrix.yaml images",
    "image --matrix",
    "images -C none",
    "image vllm0.33.0-nccl2.30.7-amr64",
    "image vllm",
    "image ds4-flash",
    "image --secret x default",
    "image --secret id=none,src=matrix.yaml default",
    "--matrix images",
    "lock --check --outdated",
    "lock --json",
    "lock --update nothing",
    "lock --update nccl==9",
    "verify vllm0.33.0-nccl2.30.7-arm64",
    "verify nothing",
    "verify ds4",
    "verify --tier moon default",
    "save default -o image.tar",
    "report default -o report.html",
    "save default -o none/image.tar",
    "save default -o images",
    "load none.tar",
    "inspect nothing",
    "publish default --to registry.example/images",
    "verify-published registry.example/images",
    "explain none.log",
    "explain",
    "distribute default --nodes down.yaml",
    "distribute default --nodes down.yaml --key key.pub",
    "launch default --model models",
    "launch default --model /models/x",
    "launch default --model /models/x --name a/b",
    "model push none --nodes down.yaml",
    "model push / --nodes down.yaml",
    "model push none --to a --nodes down.yaml",
    "model push none --to / --nodes down.yaml",
    "nodes --nodes wrong.yaml",
    "nodes --nodes none.yaml",
    "nodes --nodes one,one",
    "nodes --nodes a;b",
    "nodes --nodes down.yaml",
    "status --nodes down.yaml",
    "logs --nodes down.yaml",
    "stop --nodes down.yaml",
    "restart --nodes down.yaml",
    "rollback default --nodes down.yaml",
    "doctor --local --nodes down.yaml",
    "model status /models/x --nodes down.yaml",
    "probe",
    "probe --url x",
    "probe --url http://127.0.0.1:1",
    "probe --url http://127.0.0.1:1 --image default",
    "init a/b --nodes new.yaml",
    "init project .",
    "--matrix-file wrong-matrix.yaml --print table",
    "--matrix-file none.yaml --print table",
)
DOWN = """version: 1
nodes:
  one: {control: 127.0.0.1, port: 1}
  two: {control: localhost, port: 1}
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose path is always equally long, since messages with it break into lines."""
    with TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_errors_at_60_columns(place: Path, golden: Callable[[str, str], None]) -> None:
    folder = place / "project"
    folder.mkdir()
    for name in ("images", "patches", "matrix.yaml", "matrix.lock"):
        (folder / name).symlink_to(PROJECT / name)
    (folder / "down.yaml").write_text(DOWN)
    (folder / "wrong.yaml").write_text("version: 1\nnodes: {a: {rol: head}, a b: {}}\n")
    (folder / "wrong-matrix.yaml").write_text("verion: 1\n")
    reference_home.make(place / "home", "vllm0.32.0-nccl2.30.4-arm64")
    environment = {
        **os.environ, "SPARKIMAGE_HOME": str(place / "home"), "NO_COLOR": "1",
        "SPARKIMAGE_MIRRORS": os.devnull, "SPARKIMAGE_PROGRAM": "sparkimage",
        # Nothing is shown of how long it takes.
        "TERM": "dumb",
    }  # fmt: skip
    said = []
    for call in CALLS:
        done = terminal.call(call.split(), environment, 60, cwd=folder)
        assert done.returncode not in (0, 1), (call, done.stdout)
        assert "Traceback" not in done.stdout
        text = done.stdout.replace(str(place), "/tmp/" + "x" * (len(str(place)) - 5))
        said.append(f"$ sparkimage {call}\n{text}[exit code {done.returncode}]\n")
    golden("errors.txt", "\n".join(said))


def test_every_error_that_the_sources_raise_at_60_columns(
    golden: Callable[[str, str], None],
) -> None:
    printed = []
    for module, error in error_texts.all_errors():
        text = markup.render(base.error_text(error, 60), colour=False)
        printed.append(f"{module}, exit code {error.exit_code}\n{text}\n")
    command = CommandError(["docker", "info", "--format", "{{json .}}"], 1, "its output")
    printed.append(markup.render(base.error_text(command, 60), colour=False) + "\n")
    golden("error-texts.txt", "\n".join(printed))


def test_every_kind_of_error_is_among_them() -> None:
    raised = {type(error) for _, error in error_texts.all_errors()}
    # Made by a table of what engines say, in nodes/refusals.py.
    assert raised | {DamagedError} == set(error_texts.KINDS.values())
