"""The terminals of the documentation: what the program prints, run here, drawn as SVG: `make
recordings`.

`distribute` and `doctor` run on the lab's four nodes, which look like Sparks to `doctor`; `image`
builds the lab's stand-in for the default image; `explain` reads logs of vLLM on real GPUs.
"""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tests.lab import command
from tests.lab.conftest import Lab, spare_engine
from tests.lab.shipment import PAYLOAD, VARIANT, Shipment
from tests.lab.spark_standin import LINK, dressed
from tests.lab.test_doctor import DoctorProject

PROJECT = Path(__file__).resolve().parents[2]
PICTURES = PROJECT / "docs" / "pictures"
COLUMNS = 92
TERMINAL = {
    "COLUMNS": str(COLUMNS), "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "0",
    "SPARKIMAGE_PROGRAM": "sparkimage",
}  # fmt: skip
"""Colours as on a terminal, and no line that is drawn over another one:
https://rich.readthedocs.io/en/stable/console.html#environment-variables"""
WITHOUT_FONT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""rich's picture, which names a font of a server elsewhere."""


def on_terminal(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """What a command prints on a terminal of ``COLUMNS``."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (50, COLUMNS))
    with subprocess.Popen(
        argv, env={**env, **TERMINAL}, cwd=cwd, stdout=its, stderr=its, stdin=subprocess.DEVNULL
    ):
        os.close(its)
        printed = b""
        # Linux: an error, not the end of the file, when no process has the other side any more.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 1 << 16):
                printed += piece
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def record(name: str, words: list[str], argv: list[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a command, draw what it printed, and return that."""
    printed = on_terminal(argv, env, cwd)
    screen = Console(width=COLUMNS, record=True, file=io.StringIO())
    screen.print(Text.assemble(("$ ", "green"), (shlex.join(["sparkimage", *words]), "bold")))
    screen.print(Text.from_ansi(printed.rstrip()))
    PICTURES.mkdir(exist_ok=True)
    svg = screen.export_svg(title="", code_format=WITHOUT_FONT, unique_id=name)
    (PICTURES / f"terminal-{name}.svg").write_text(svg)
    return printed


def test_build(lab: Lab) -> None:
    words = ["image", "good-amd64"]
    # Another one has the layers in its build cache.
    with spare_engine("terminals") as (home, _):
        env = lab.environment(
            SPARKIMAGE_HOME=str(home),
            SPARKIMAGE_ENGINE="private",
            SPARKIMAGE_STORE=str(home / "store"),
        )
        said = record("build", words, lab.argv(*words), env, lab.folder)
    assert "PASSED" in said or "verified" in said, said


def test_distribute(shipment: Shipment) -> None:
    shipment.image(PAYLOAD)
    words = ["distribute", VARIANT]
    said = record(
        "distribute", words, shipment.argv(*words), shipment.environment(), shipment.folder
    )
    assert "node4" in said, said


def test_doctor(shipment: Shipment, tmp_path: Path) -> None:
    with dressed(shipment.fleet):
        project = DoctorProject(folder=tmp_path, fleet=shipment.fleet)
        project.write()
        shipment.fleet["node3"].exec("sh", "-c", f"echo 1500 >/sys/class/net/{LINK}/mtu")
        words = ["doctor", "--model", "/models/m"]
        said = record("doctor", words, project.argv(*words), project.environment(), tmp_path)
    assert "node3" in said, said


@pytest.mark.parametrize("log", ["vllm-0.25-two-mixed-r0"])
def test_explain(log: str, tmp_path: Path) -> None:
    file = tmp_path / "head.log.gz"
    file.write_bytes((PROJECT / "tests/unit/logs" / f"{log}.log.gz").read_bytes())
    words = ["explain", file.name]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT)}
    said = record("explain", words, [*command.PROGRAM, *words], env, tmp_path)
    assert "The ranks have different releases of NCCL" in said
