"""Finds, watches and ends the processes of one private engine, and no other.

There is no trust in a pid file: after a reboot its number may be anybody's. A process is ours
when its own command line names our data root or run folder, or when it is in our cgroup.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkimage.core.errors import EngineError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner
from sparkimage.core.rights import run_as_root

SCRIPT = Path(__file__).parents[2] / "data" / "engine.sh"
STOP_S = 60.0
"""Seconds that dockerd gets to end its containers; it gives each of them 10 to 15 s."""
KILL_S = 20.0
"""Seconds after which a killed process that still is there counts as stuck in the kernel."""
PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """A running process, told from a later one of the same number by its start (clock ticks)."""

    pid: int
    start: int
    program: str

    def runs(self) -> bool:
        """Whether this very process is there and has not ended (a zombie has)."""
        return _start(self.pid) == self.start

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended, at most ``timeout_s`` seconds; says whether it has."""
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
    """Every running process of the engine, dockerd first, then containerd, then the rest."""
    order = ("dockerd", "containerd")
    return tuple(
        sorted(_scan(place), key=lambda p: (*(p.program != name for name in order), p.pid))
    )


def stop(place: EnginePlace, runner: Runner) -> bool:
    """End dockerd in good order, then all that it left behind; says whether there was anything.

    Raises ``EngineError`` when something does not end even when killed.
    """
    there = processes(place)
    for program, signal, limit_s in (
        ("dockerd", "TERM", STOP_S),
        ("containerd", "TERM", KILL_S),
        ("", "KILL", KILL_S),
    ):
        chosen = [p for p in processes(place) if program in ("", p.program)]
        if chosen:
            _signal(signal, chosen, runner)
            deadline = time.monotonic() + limit_s
            for process in chosen:
                process.wait(max(0.0, deadline - time.monotonic()))
    if left := processes(place):
        raise EngineError(
            "the private engine does not end: still there are "
            + ", ".join(f"{p.program} (pid {p.pid})" for p in left),
            hint=f"look at {place.log}; a process that waits for a disk or a network mount ends "
            "when that answers",
        )
    return bool(there)


def wait_until(ready: Callable[[], bool], process: Process, timeout_s: float) -> bool:
    """Ask ``ready`` until it says yes, for at most ``timeout_s`` s and while ``process`` runs."""
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


def _signal(name: str, chosen: Sequence[Process], runner: Runner) -> None:
    pids = [str(process.pid) for process in chosen if process.runs()]
    if pids:
        run_as_root(runner, ("sh", str(SCRIPT), "signal", name, *pids))


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
