"""An error of each kind, as a terminal of 60 columns shows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.lab import terminal
from tests.unit import reference_home

PROJECT = Path(__file__).resolve().parents[2]
CALLS = (
    "lock --nope",
    "imge",
    "verify",
    "nodes --patience 0",
    "-C none images",
    "image vllm0.33.0-nccl2.30.7-amr64",
    "image vllm",
    "--matrix images",
    "lock --check --outdated",
    "lock --json",
    "verify vllm0.33.0-nccl2.30.7-arm64",
    "verify nothing",
    "verify ds4",
    "save default -o image.tar",
    "report default -o report.html",
    "save default -o none/image.tar",
    "load none.tar",
    "explain none.log",
    "launch default --model models",
    "nodes --nodes wrong.yaml",
    "nodes --nodes none.yaml",
    "nodes --nodes down.yaml",
    "logs --nodes down.yaml",
    "stop --nodes down.yaml",
    "restart --nodes down.yaml",
    "rollback default --nodes down.yaml",
    "doctor --local --nodes down.yaml",
    "model status /models/x --nodes down.yaml",
    "probe",
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
    }  # fmt: skip
    said = []
    for call in CALLS:
        done = terminal.call(call.split(), environment, 60, cwd=folder)
        assert done.returncode not in (0, 1), (call, done.stdout)
        assert "Traceback" not in done.stdout
        text = done.stdout.replace(str(place), "/tmp/" + "x" * (len(str(place)) - 5))
        said.append(f"$ sparkimage {call}\n{text}[exit code {done.returncode}]\n")
    golden("errors.txt", "\n".join(said))
