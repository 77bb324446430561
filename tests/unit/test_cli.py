"""The command line through its own door; and what it shows of a build."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sparkimage import __version__
from sparkimage.progress import Build, View, clock, human

PROJECT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparkimage", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_and_version() -> None:
    assert "--matrix" in run("--help").stdout
    assert run("--version").stdout.strip() == __version__
    assert run().returncode == 0


def test_a_wrong_matrix_is_a_report_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "matrix.yaml").write_text("verion: 1\n")
    done = run("--print", "table", cwd=tmp_path)
    assert done.returncode == 2
    assert "matrix.yaml:1: unknown key 'verion' in the file" in done.stderr
    assert "did you mean 'version'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("--debug", "--print", "table", cwd=tmp_path).stderr


def test_an_unknown_variant_has_its_nearest() -> None:
    done = run("image", "vllm0.32.0-nccl2.30.4-arm", "--print", "json")
    assert done.returncode == 2
    assert "did you mean 'vllm0.32.0-nccl2.30.4-arm64'?" in done.stderr


def test_print_forms_build_nothing() -> None:
    github = json.loads(run("--matrix", "--print", "github").stdout)
    assert [row["platform"] for row in github["include"]] == [
        "linux/arm64", "linux/arm64", "linux/amd64",
    ]  # fmt: skip
    only = json.loads(run("--matrix", "--only", "*2.30.7*", "--print", "json").stdout)
    assert [plan["variant"] for plan in only] == ["vllm0.32.0-nccl2.30.7-arm64"]
    assert "2.30.7" in run("--print", "table").stdout


def test_the_lock_is_checked_offline(tmp_path: Path) -> None:
    assert run("lock", "--check").returncode == 0
    (tmp_path / "images").symlink_to(PROJECT / "images")
    text = (PROJECT / "matrix.yaml").read_text()
    (tmp_path / "matrix.yaml").write_text(text.replace("vllm==0.32.0", "vllm==0.32.1"))
    (tmp_path / "matrix.lock").write_text((PROJECT / "matrix.lock").read_text())
    for words in (("lock", "--check"), ("--print", "table")):
        stale = run(*words, cwd=tmp_path)
        assert stale.returncode == 11
        assert "pin vllm 0.32.0 asks for something else than was locked" in stale.stderr


def test_the_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["title"] == "MatrixFile"


def event(**parts: object) -> str:
    # As buildx writes it: indented, one document after the other.
    return json.dumps(parts, indent=2)


STREAM = [
    event(vertexes=[{"digest": "0", "name": "[a--root 1/1] ADD root.tar /", "started": "t"}]),
    event(vertexes=[{"digest": "0", "name": "[a--root 1/1] ADD root.tar /", "started": "t",
                     "completed": "t"}]),
    event(vertexes=[{"digest": "1", "name": "[a--low low 1/1] RUN x", "started": "t"}]),
    event(statuses=[{"id": "extracting", "vertex": "1", "current": 1500, "total": 3000}]),
    event(logs=[{"vertex": "1", "data": base64.b64encode(b"the reason\n").decode()}]),
    event(vertexes=[{"digest": "1", "name": "[a--low low 1/1] RUN x", "started": "t",
                     "completed": "t"}]),
    event(vertexes=[{"digest": "2", "name": "[a high 1/2] RUN y", "started": "t", "completed": "t",
                     "cached": True}]),
    event(vertexes=[{"digest": "3", "name": "[a high 2/2] RUN z", "started": "t"}]),
    event(logs=[{"vertex": "3", "data": base64.b64encode(b"no such file\n").decode()}]),
    event(vertexes=[{"digest": "3", "name": "[a high 2/2] RUN z", "started": "t",
                     "completed": "t", "error": "exit code: 3"}]),
    event(vertexes=[{"digest": "4", "name": "[a] exporting to oci image format", "started": "t"}]),
    "ERROR: failed to solve: exit code: 3",
]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_a_build_is_shown_by_layers(terminal: bool) -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=80)
    build = Build(["root", "low", "high", "empty"], clock=lambda: 0.0)
    with View(console).build(build, "building it") as feed:
        for document in STREAM:
            for line in document.splitlines():
                feed(line)
    states = {row.name: row.state for row in build.rows.values()}
    assert states == {
        "root": "done", "low": "done", "high": "failed", "empty": "no step", "export": "running",
    }  # fmt: skip
    assert build.rows["low"].current == 1500
    assert build.rows["root"].state == "done"
    assert build.rows["empty"].state == "no step"
    assert "no such file" in build.errors[0]
    assert build.errors[-1].startswith("ERROR")
    text = said.getvalue()
    assert "building it" in text
    if terminal:
        seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", seen))
        assert "1.5 kB" in text or "2 kB" in text
    else:
        assert "layer low: running" in text
        assert "layer high: failed after 0.0 s" in text


def test_units() -> None:
    assert [human(n) for n in (0, 999, 1500, 2_500_000, 3_600_000_000, 5e12)] == [
        "0 B", "999 B", "2 kB", "2.5 MB", "3.6 GB", "5000.0 GB",
    ]  # fmt: skip
    assert [clock(s) for s in (0.04, 59, 61)] == ["0.0 s", "59.0 s", "1m 01s"]
