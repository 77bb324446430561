"""Whether a rank is ready: what its log says line by line, what the logs of all must show (NCCL,
RDMA), and what the head's API answers, through the ssh connection that is open anyway."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparkimage.serve.explain.logfacts import BANNER, PHASES
from sparkimage.serve.explain.loglines import plain

KEPT = 400
"""Last lines that are kept of a rank."""
START, READY = "start", "ready"
"""The first phase, before a rank has said anything, and the last one."""
INFINIBAND = re.compile(r"\bvia NET/IB\b")
SOCKET = re.compile(r"\bNET/Socket\b|\bUsing network Socket\b")
"""The second is what NCCL says where it found no other network."""
IGNORED = re.compile(r"ld\.so: object '(.*?)' from LD_PRELOAD cannot be preloaded")


@dataclass
class Log:
    """What is known of a rank from its log so far."""

    phase: str = START
    detail: str = ""
    """How far the phase is: ``3/46``."""
    banners: set[str] = field(default_factory=set)
    """NCCL's versions as its banners say them: ``2.30.4+cuda13.2``."""
    infiniband: int = 0
    """Channels via NET/IB."""
    socket: int = 0
    """Lines that name NET/Socket."""
    ignored: str = ""
    """A library that could not be preloaded."""
    complete: bool = False
    """The server said that its startup is complete."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def feed(self, raw: str) -> bool:
        """Take in one line; whether the phase or its detail has changed."""
        # A progress bar draws one line anew with a return.
        line = plain(raw).rstrip("\r\n")
        before = self.phase, self.detail
        for part in line.split("\r"):
            self._part(part)
        self.tail.append(line.rpartition("\r")[2][:2000])
        return before != (self.phase, self.detail)

    def _part(self, line: str) -> None:
        order = [START, *(one.name for one in PHASES)]
        for phase in PHASES:
            later = order.index(phase.name) > order.index(self.phase)
            if later and re.search(phase.begins, line):
                self.phase, self.detail = phase.name, ""
            if phase.name == self.phase and (found := re.search(phase.detail, line)):
                self.detail = f"{found[1]}/{found[2]}"
        self.complete = self.complete or self.phase == READY
        banner = BANNER.search(line)
        if banner:
            self.banners.add(banner["version"])
        self.infiniband += bool(INFINIBAND.search(line))
        self.socket += bool(SOCKET.search(line))
        ignored = IGNORED.search(line)
        if ignored:
            self.ignored = ignored[1]


# Proof


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was looked for on one rank, and what was seen."""

    what: str
    rank: int
    node: str
    seen: str
    ok: bool
    open: bool = False
    """What it looked for is not there, and may still come."""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        said = asdict(self)
        del said["open"]
        return said


def prove(
    logs: Mapping[int, Log], nodes: Sequence[str], *, nccl: str, rdma: bool, gpus: int
) -> tuple[Finding, ...]:
    """Every finding, by rank. ``nccl``: the pinned version, or nothing where there is no pin;
    ``gpus``: of each node."""
    found: list[Finding] = []
    alone = len(nodes) * gpus == 1
    for rank, log in sorted(logs.items()):

        def add(
            what: str, seen: str, *, ok: bool, rank: int = rank, may_come: bool = False
        ) -> None:
            one = Finding(
                what=what, rank=rank, node=nodes[rank], seen=seen, ok=ok, open=may_come and not ok
            )
            found.append(one)

        if log.ignored:
            add("LD_PRELOAD holds", f"ignored: no {log.ignored}", ok=False)
        # One GPU alone needs no NCCL: vLLM may not load it at all.
        if nccl and (log.banners or not alone):
            versions = {banner.partition("+")[0] for banner in log.banners}
            said = ", ".join(sorted(log.banners)) or "no banner"
            add(f"NCCL {nccl}", said, ok=versions == {nccl}, may_come=not versions)
        if rdma:
            add("via NET/IB", _times(log.infiniband), ok=log.infiniband > 0, may_come=True)
            add("no NET/Socket", _times(log.socket), ok=log.socket == 0)
    return tuple(found)


def _times(count: int) -> str:
    return f"{count} line{'s' if count != 1 else ''}" if count else "nowhere"


# Health

HEALTH = "/health"
HEALTH_S = 5.0
"""Seconds for one answer."""


class _Socket(http.client.HTTPConnection):
    """HTTP over a socket of this machine that ssh leads to the node's loopback."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask_health(path: Path, *, timeout_s: float = HEALTH_S) -> int | None:
    """The status code of ``/health``; None when nobody answers."""
    with contextlib.closing(_Socket(path, timeout_s)) as connection:
        try:
            connection.request("GET", HEALTH)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def health_words(status: int | None) -> str:
    """What the answer means."""
    if status is None:
        return "no answer"
    return "ok" if status == http.client.OK else f"HTTP {status}"
