"""The command line as a user calls it, without the start of an interpreter each time.

A start of Python that imports the project's modules costs more than most commands do. A process
that has imported them all forks itself for each call; the child takes the call's arguments,
environment, folder and pipes, and runs ``python -m sparkimage`` with them.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = (sys.executable, "-P", "-m", "sparkimage")
"""A real start, for what a test must interrupt or read while it runs."""
REQUEST = 1 << 17
"""Bytes that a call's arguments and environment take at most."""

LAZY = ("docker", "pydantic.type_adapter", "rich.progress", "rich.table", "typer.rich_utils")
"""What commands import of others' packages when they need it."""

_starting = threading.Lock()
_server: socket.socket | None = None


class Started:
    """A call that runs, as ``subprocess.Popen`` has it."""

    def __init__(self, code: int) -> None:
        self._code: int | None = code
        self._returncode = 0
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        if self._code is not None and not select.select([self._code], [], [], 0)[0]:
            return None
        return self.wait()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self._code is not None:
            self._returncode = int(self._line())
            os.close(self._code)
            self._code = None
        return self._returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _line(self) -> bytes:
        assert self._code is not None
        line = b""
        while not line.endswith(b"\n"):
            read = os.read(self._code, 1)
            assert read, "the process that forks has ended"
            line += read
        return line


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    fds: tuple[int, int, int],
    *,
    cwd: Path | None = None,
) -> Started:
    """Start ``sparkimage argv`` with this environment and input, output and error output."""
    request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd or Path.cwd())}
    read, write = os.pipe()
    socket.send_fds(_connected(), [json.dumps(request).encode()], [*fds, write])
    os.close(write)
    return Started(read)


def call(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: Path | None = None,
    given: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``sparkimage argv`` with this environment to its end; ``given`` is its input."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given or b"")
        stdin.seek(0)
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        process = start(argv, env, (stdin.fileno(), to_out, to_err), cwd=cwd)
        for fd in (to_out, to_err):
            os.close(fd)
    said, erred = (part.decode() for part in _read_all([out, err]))
    return subprocess.CompletedProcess(["sparkimage", *argv], process.wait(), said, erred)


def _read_all(fds: Sequence[int]) -> list[bytes]:
    """What comes through these pipes until all are closed."""
    parts: dict[int, list[bytes]] = {fd: [] for fd in fds}
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                part = os.read(key.fd, 1 << 16)
                parts[key.fd].append(part)
                if not part:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    return [b"".join(parts[fd]) for fd in fds]


def _connected() -> socket.socket:
    """The process that forks, started by the first call."""
    global _server
    with _starting:
        if _server is None:
            _server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            argv = [sys.executable, "-P", "-m", "tests.lab.command", str(theirs.fileno())]
            process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
            theirs.close()
            atexit.register(process.wait)
            atexit.register(_server.close)
        return _server


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; returns in the child of one, with that request."""
    import sparkimage

    for module in pkgutil.walk_packages(sparkimage.__path__, "sparkimage."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for lazy in LAZY:
        importlib.import_module(lazy)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _flags, _address = socket.recv_fds(requests, REQUEST, 4)
        if not message:
            os._exit(0)
        # The first child waits for the second one, for its exit code.
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child != 0:
                for fd in fds[:3]:
                    os.close(fd)
                os.write(fds[3], f"{child}\n".encode())
                _pid, status = os.waitpid(child, 0)
                os.write(fds[3], f"{os.waitstatus_to_exitcode(status)}\n".encode())
                os._exit(0)
            for fd, to in zip(fds[:3], (0, 1, 2), strict=True):
                os.dup2(fd, to)
            for fd in fds:
                os.close(fd)
            request: dict[str, Any] = json.loads(message)
            return request
        for fd in fds:
            os.close(fd)


def _end(code: int) -> NoReturn:
    """End as Python does, but for taking all modules apart, which costs as much as a command."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    # Looking for plugins would read the metadata of every package that is installed.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    called = _serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(called["env"])
    os.chdir(called["cwd"])
    sys.argv[1:] = called["argv"]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    try:
        runpy.run_module("sparkimage", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        _end(end.code if isinstance(end.code, int) else 0)
