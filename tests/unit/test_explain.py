"""`explain` through the command line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkimage.serve.explain import failures, knowledge
from tests.lab.command import call
from tests.unit.log_excerpts import HEALTHY, TRUE

PROJECT = Path(__file__).resolve().parents[2]
READY = "INFO:     Application startup complete.\n"


def run(*words: str, given: bytes = b"", columns: int = 80) -> subprocess.CompletedProcess[str]:
    return call(["explain", *words], {**os.environ, "COLUMNS": str(columns)}, given=given)


def test_a_failure_is_named_with_its_line_its_cause_and_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A long path is broken at the width of the terminal.
    monkeypatch.chdir(tmp_path)
    wedge = TRUE["shm-broadcast"][0][1]
    log = Path("head.log")
    log.write_text(f"NCCL version 2.28.9+cuda13.0\n{READY}{wedge}\n{wedge}\n")
    done = run(str(log))
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert f"{log}: 1 known failure in 4 lines" in text
    (match,) = knowledge.read(log.read_text().splitlines())
    assert f"✗ {match.title} (line 3, 2 times)" in text
    assert "No available shared memory broadcast block found in 60 seconds" in text
    assert "seen NCCL that was loaded: 2.28.9+cuda13.0 (2.28.9 is known to wedge" in text
    assert f"cause {match.cause}" in text
    assert f"fix {match.fix}" in text
    assert match.sources[0] in text
    assert "phases ready" in text
    # It reads well in a terminal of 80 columns; links alone may be longer.
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "https://" not in line)


def test_a_healthy_log_is_nothing_known_and_its_facts() -> None:
    done = run("-", given=HEALTHY.encode())
    assert done.returncode == 0
    assert done.stdout.startswith("standard input: no known failure in ")
    assert "NCCL     2.30.4+cuda13.2 on spark-1" in done.stdout
    assert "over     NET/IB 2x" in done.stdout
    assert "phases   weights, compile, graph capture, ready" in done.stdout
    assert run("-", "--check", given=HEALTHY.encode()).returncode == 0
    assert "no known failure in 0 lines" in run("-").stdout


def test_check_is_for_scripts() -> None:
    line = TRUE["no-device-type"][0][1].encode()
    done = run("-", "--check", given=line)
    assert done.returncode == 21
    assert "error: 1 known failure in -" in done.stderr
    assert "vLLM sees no GPU" in done.stdout


def test_what_is_not_known_is_shown_with_its_neighbours() -> None:
    log = 'one\nTraceback (most recent call last):\n  File "a.py", line 1, in b\n    c()\n'
    log += "strange.pkg.OddThing: 42\nafter\n"
    done = run("-", "--check", given=log.encode())
    assert done.returncode == 21
    assert "it failed, and not in a known way" in done.stdout
    assert "✗ Not in the list of known failures; this is where it began (line 5)" in done.stdout
    assert "  near     c()\n  line     strange.pkg.OddThing: 42\n  near     after" in done.stdout


def test_json_says_the_same(tmp_path: Path) -> None:
    head, worker = tmp_path / "head.log", tmp_path / "worker.log"
    head.write_text("NCCL version 2.30.4+cuda13.2\n" + TRUE["port-in-use"][0][1])
    worker.write_text("NCCL version 2.28.9+cuda13.0\n")
    said = json.loads(run(str(head), str(worker), "--json").stdout)
    assert said["found"] == 2
    (match,) = said["logs"][0]["matches"]
    assert (match["id"], match["line_number"], match["count"]) == ("port-in-use", 2, 1)
    assert match["captured"] == {"port": "29500"}
    assert match["cause"] == failures.known().by_id["port-in-use"].cause
    assert said["logs"][0]["facts"]["nccl"] == {"2.30.4+cuda13.2": []}
    assert said["logs"][1]["matches"] == []
    assert [one["id"] for one in said["across"]] == ["mixed-nccl"]
    plain = run(str(head), str(worker)).stdout
    assert "all logs together:" in plain
    assert f"2.28.9 ({worker})" in " ".join(plain.split())


def test_bytes_of_any_kind_are_read() -> None:
    log = (
        b"\xff\xfe\x00 \x1b[31m" + TRUE["torch-without-cuda"][0][1].encode() + b"\n\x80\x81[/bold]"
    )
    assert run("-", given=b"x\n" + log).returncode == 0
    # Brackets in a log are no markup.
    done = run("-", given=b"[red] RuntimeError: Failed to infer device type [/nothing]")
    assert "[red] RuntimeError: Failed to infer device type [/nothing]" in done.stdout


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_logrotate_leaves_is_unpacked_as_far_as_it_is_whole(
    pack: Callable[[bytes], bytes],
) -> None:
    line = TRUE["torch-without-cuda"][0][1].encode() + b"\n"
    packed = pack(line + random.Random(1).randbytes(300_000))
    # A block of bzip2 has 900 KB, and is read as a whole.
    for given in (packed, packed[:-1000]) if pack is not bz2.compress else (packed,):
        assert json.loads(run("-", "--json", given=given).stdout)["found"] == 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_of_which_nothing_can_be_unpacked_is_no_log_without_failures(
    pack: Callable[[bytes], bytes],
) -> None:
    packed = pack(random.Random(1).randbytes(300_000))
    for given in (packed[:40], packed[:9] + b"\xff" * 60):
        done = run("-", given=given)
        assert done.returncode == 2
        assert "standard input is a damaged or incomplete archive" in done.stderr
        assert "→ copy it again" in done.stderr


def test_an_archive_that_python_does_not_unpack_is_named() -> None:
    done = run("-", given=b"\x28\xb5\x2f\xfd1234")
    assert done.returncode == 2
    assert "error: standard input is compressed with zstd" in done.stderr
    assert "`zstd -dc FILE | sparkimage explain -`" in done.stderr


def test_lines_below_a_heading_of_tail_have_its_file() -> None:
    line = "RuntimeError: Failed to infer device type"
    log = f"==> /logs/one/vllm.log <==\nfine\n\n==> /logs/two/vllm.log <==\n{line}\n"
    (match,) = json.loads(run("-", "--json", given=log.encode()).stdout)["logs"][0]["matches"]
    assert match["line"] == f"logs-two-vllm.log | {line}"
    assert match["line_number"] == 5


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    for words in ((str(tmp_path / "none.log"),), (str(tmp_path),), ()):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "→ " in done.stderr
        assert "Traceback" not in done.stderr


def test_the_reference_has_every_known_failure() -> None:
    printed = run("--reference").stdout
    for entry in failures.known().by_id.values():
        assert f"## {entry.title}\n" in printed
        assert entry.fix in printed
