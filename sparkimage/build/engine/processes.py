"""Finds, watches and stops the processes of one private engine, and no others.

A pid file is not enough: after a reboot its number may be any process's. A process belongs to the
engine when its command line has the engine's data root or run folder, or when it is in its cgroup.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkimage.core.debian_tools import engine_script
from sparkimage.core.errors import EngineError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner

STOP_S = 60.0
"""Seconds that dockerd gets to stop its containers; it gives each of them 10 to 15 s."""
KILL_S = 20.0
"""Seconds after which a killed process that still runs counts as stuck in the kernel."""
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told from a later one with the same id by its start (clock ticks after boot)."""

    pid: int
    start: int
    program: str

    def runs(self) -> bool:
        """Whether this very process runs (a zombie does not)."""
        return _start(self.pid) == self.start

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended, at most ``timeout_s`` seconds; returns whether it has."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            # A state of Z will not do: the first thread may be one while others hold the sockets.
            if _stat(self.pid)[1] != self.start:
                return True
            waiter = select.poll()
            waiter.register(handle, select.POLLIN)
            return bool(waiter.poll(timeout_s * 1000))
        finally:
            os.close(handle)


def of_pid(pid: int) -> Process | None:
    """The process that has this number now, None when there is none."""
    start = _start(pid)
    return None if start is None else Process(pid=pid, start=start, program="")


def daemon(place: EnginePlace) -> Process | None:
    """The engine's running dockerd."""
    return next((p for p in processes(place) if p.program == "dockerd"), None)


def processes(place: EnginePlace) -> tuple[Process, ...]:
    """Every running process of the engine."""
    return tuple(_scan(place))


def stop(place: EnginePlace, runner: Runner) -> bool:
    """Stop dockerd, then kill all that it left running; returns whether anything was running.

    Raises ``EngineError`` when a process does not end even when killed.
    """
    running = before = processes(place)
    for program, signal, limit_s in (
        ("dockerd", "TERM", STOP_S),
        ("containerd", "TERM", KILL_S),
        ("", "KILL", KILL_S),
    ):
        chosen = [p for p in running if program in ("", p.program)]
        if chosen:
            engine_script(runner, "signal", signal, *(str(p.pid) for p in chosen if p.runs()))
            deadline = time.monotonic() + limit_s
            for process in chosen:
                process.wait(max(0.0, deadline - time.monotonic()))
            running = processes(place)
    if running:
        raise EngineError(
            "the private engine does not stop; still running: "
            + ", ".join(f"{p.program} (pid {p.pid})" for p in running),
            hint=f"look at {place.log}; a process that waits for a disk or a network mount ends "
            "when that answers",
        )
    return bool(before)


def wait_until(ready: Callable[[], bool], process: Process, timeout_s: float) -> bool:
    """Poll ``ready`` until it is true, for at most ``timeout_s`` s and while ``process`` runs."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if process.wait(0.05) or time.monotonic() > deadline:
            return False
    return True


def is_ours(program: str, argv: Sequence[str], cgroups: str, place: EnginePlace) -> bool:
    """Whether a process with this command line and /proc/PID/cgroup is the engine's. Pure."""
    if any(place.cgroup in line.split(":", 2)[-1].split("/") for line in cgroups.splitlines()):
        return True
    match program:
        case "dockerd":
            return str(place.data) in argv
        case "containerd":
            return str(place.run / "containerd" / "containerd.toml") in argv
        case "containerd-shim-runc-v2":
            return str(place.run / "containerd" / "containerd.sock") in argv
        case _:
            return False


def _scan(place: EnginePlace) -> Iterator[Process]:
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        pid = int(folder.name)
        start = _start(pid)
        try:
            argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            cgroups = (folder / "cgroup").read_text()
        except OSError:  # it ended meanwhile
            continue
        program = os.path.basename(argv[0])
        if start is not None and is_ours(program, argv, cgroups, place):
            yield Process(pid=pid, start=start, program=program)


def _start(pid: int) -> int | None:
    """When the process began, in clock ticks after boot; None when it has ended."""
    state, start = _stat(pid)
    return None if state in ("Z", "X") else start


def _stat(pid: int) -> tuple[str, int | None]:
    """State and start of a process, "X" and None when there is none.

    Fields 3 and 22 of https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, counted from
    behind the name, which may hold anything.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", None
    return fields[0], int(fields[19])
