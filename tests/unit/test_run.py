"""Real processes: their output, their failures, and that none outlives what started it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sparkimage.core.errors import CommandError, PreflightError
from sparkimage.core.process import Local

HERE = Local()
WAITS = "import signal, sys; print('ready', flush=True); signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_output_and_exit_code() -> None:
    done = HERE.run(python("import sys; print('out'); sys.stderr.write('err')"))
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err", 0)
    assert HERE.run(python("raise SystemExit(3)"), check=False).returncode == 3


def test_a_failure_can_be_pasted_and_has_its_output() -> None:
    with pytest.raises(CommandError) as error:
        HERE.run(["sh", "-c", "echo said; echo wrong >&2; exit 4"])
    assert error.value.message == (
        "command failed with exit code 4: sh -c 'echo said; echo wrong >&2; exit 4'"
    )
    assert error.value.detail == "said\nwrong"
    assert error.value.returncode == 4


def test_no_shell_reads_the_arguments() -> None:
    assert HERE.run(["printf", "%s", "$(id) `id` ; *"]).stdout == "$(id) `id` ; *"


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(PreflightError, match="'no-such-program' is not installed"):
        HERE.run(["no-such-program"])


def test_stdin_environment_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    code = (
        "import os, sys\n"
        "print(sys.stdin.read(), os.environ['KEPT'], os.environ['NEW'], os.getcwd())"
    )
    done = HERE.run(python(code), stdin="in", env={"NEW": "new"}, cwd=tmp_path)
    assert done.stdout == f"in kept new {tmp_path}\n"
    assert HERE.run(python("import sys; print(repr(sys.stdin.read()))")).stdout == "''\n"


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    code = r"import sys; sys.stdout.buffer.write(b'a\xffb')"
    assert HERE.run(python(code)).stdout == "a\ufffdb"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_lines_come_one_by_one_while_the_other_stream_is_full(stream: str) -> None:
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    # More than a pipe holds on the quiet stream: it must be read at the same time.
    code = (
        f"import sys; sys.{other}.write('x' * 300000); sys.{other}.flush()\n"
        f"for i in range(3): print(i, file=sys.{stream}, flush=True)"
    )
    lines: list[str] = []
    if stream == "stdout":
        done = HERE.run(python(code), on_stdout=lines.append)
        quiet = done.stderr
    else:
        done = HERE.run(python(code), on_stderr=lines.append)
        quiet = done.stdout
    assert lines == ["0", "1", "2"]
    assert quiet == "x" * 300000


def test_a_timeout_ends_the_process() -> None:
    code = f"import os; open({str(os.devnull)!r}).close(); {WAITS}"
    with pytest.raises(CommandError, match="exit code 124") as error:
        HERE.run(python(code), timeout_s=0.5)
    assert error.value.detail == "timed out after 0.5 s"


def test_an_interrupt_ends_the_child_first(tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(_line: str) -> None:
        raise Interrupted

    mark = tmp_path / "pid"
    code = f"import os; open({str(mark)!r}, 'w').write(str(os.getpid())); {WAITS}"
    with pytest.raises(Interrupted):
        HERE.run(python(code), on_stdout=interrupt)
    assert not alive(int(mark.read_text()))
