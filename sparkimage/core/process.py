"""The only module that starts processes.

A ``Runner`` runs argument lists, never shell strings. Children end with their parent: an interrupt
of this process interrupts the child, waits for it, and only then goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparkimage.core import interrupts
from sparkimage.core.errors import CommandError, PreflightError

PIPE = 1 << 20
"""Bytes in a pipe, where the system allows it: fewer context switches for gigabytes."""
GRACE_S = 20.0
"""Seconds that an interrupted child gets to clean up before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A finished command: its exit code and what it wrote, decoded as UTF-8."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Runner(Protocol):
    """Runs commands: on this machine, or on a node over SSH."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float | None = None,
        check: bool = True,
        on_stderr: Callable[[str], None] | None = None,
        on_stdout: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run ``argv`` to its end.

        ``env`` is added to the environment. ``on_stdout`` and ``on_stderr`` get each line when it
        is written (without its newline); at most one of the two.
        Raises ``CommandError`` when ``check`` and the exit code is not 0, ``PreflightError``
        when the program is not installed.
        """


class Local:
    """Runs commands on this machine."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout_s: float | None = None,
        check: bool = True,
        on_stderr: Callable[[str], None] | None = None,
        on_stdout: Callable[[str], None] | None = None,
    ) -> Completed:
        """See ``Runner.run``."""
        process: subprocess.Popen[str] = _start(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            env={**os.environ, **env} if env is not None else None,
            cwd=cwd,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            if on_stderr is not None or on_stdout is not None:
                stdout, stderr = _stream(process, on_stdout, on_stderr)
            else:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end(process)
            raise CommandError(argv, 124, f"timed out after {timeout_s:g} s") from None
        except BaseException:
            # Not handled, only cleaned up after: whatever interrupts us ends the child first.
            end(process)
            raise
        done = Completed(
            argv=tuple(argv), returncode=process.returncode, stdout=stdout, stderr=stderr
        )
        if check and done.returncode != 0:
            raise CommandError(argv, done.returncode, f"{stdout}{stderr}")
        return done


def start_bytes(
    argv: Sequence[str], *, keep: Sequence[int] = (), stream: socket.socket | None = None
) -> subprocess.Popen[bytes]:
    """Start ``argv`` with all three streams as pipes of bytes, or with its input and output at
    ``stream``, and our file descriptors ``keep``.

    A Ctrl-C on the terminal does not reach it: its caller decides when it ends.
    Raises ``PreflightError`` when the program is not installed.
    """
    ends = stream or subprocess.PIPE
    process = _start(argv, stdin=ends, stdout=ends, start_new_session=True, pass_fds=keep)
    # Linux only, and not more than the system lets a user have.
    with contextlib.suppress(AttributeError, OSError):
        if process.stdin is not None:
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE)
    return process


def _start(argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process; an interrupt meanwhile ends it, so that none is left unknown."""
    if shutil.which(argv[0]) is None:
        raise PreflightError(f"{argv[0]!r} is not installed", hint=f"install {argv[0]}")
    started: list[subprocess.Popen[Any]] = []
    try:
        with interrupts.deferred():
            options = {"stdout": subprocess.PIPE, **options}
            started.append(subprocess.Popen(list(argv), stderr=subprocess.PIPE, **options))
    except interrupts.Interrupted:
        for process in started:
            end(process)
        raise
    return started[0]


def end(process: subprocess.Popen[Any]) -> None:
    """Interrupt ``process``, give it ``GRACE_S`` to clean up, then kill it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _stream(
    process: subprocess.Popen[str],
    on_stdout: Callable[[str], None] | None,
    on_stderr: Callable[[str], None] | None,
) -> tuple[str, str]:
    """Pass on one stream line by line while the other is collected."""
    assert process.stdout is not None
    assert process.stderr is not None
    live, quiet, callback = process.stderr, process.stdout, on_stderr
    if on_stdout is not None:
        live, quiet, callback = process.stdout, process.stderr, on_stdout
    assert callback is not None
    collected: list[str] = []
    reader = threading.Thread(target=lambda: collected.append(quiet.read()), daemon=True)
    reader.start()
    for line in live:
        callback(line.rstrip("\n"))
    reader.join()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    rest = "".join(collected)
    return ("", rest) if on_stdout is not None else (rest, "")
