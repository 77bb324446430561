"""A rank's start as its log shows it, and what all logs must show (NCCL, RDMA). Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.explain.logfacts import BANNER, PHASES
from sparkimage.serve.explain.loglines import plain

TAIL = 400
"""Lines of a rank's log that are kept."""
START, READY = "start", "ready"
"""The phase before a rank has said anything, and the last one."""
INFINIBAND = re.compile(r"\bvia NET/IB\b")
SOCKET = re.compile(r"\bNET/Socket\b|\bUsing network Socket\b")
"""The second is what NCCL says where it found no other network."""
HEALTHY = "ok"
COMPILED = re.compile(
    # Triton, CuTeDSL, TileLang: vllm/utils/jit_monitor.py; each kernel is named once.
    r"JIT compilation during inference: |\bTriton autotuning for function |"
    # flashinfer/jit/core.py; vllm/compilation/backends.py
    r"\bflashinfer\.jit: Loading JIT ops: |\bCompiling a graph for "
)
"""A line about a kernel that was compiled while the server runs:
https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/utils/jit_monitor.py"""
IGNORED = re.compile(r"ld\.so: object '(.*?)' from LD_PRELOAD cannot be preloaded")


@dataclass
class Log:
    """What a rank's log has shown so far."""

    reading: Reading = field(default_factory=Reading)
    """The known failures in it."""
    phase: str = START
    detail: str = ""
    """How far the phase is: ``3/46``."""
    banners: set[str] = field(default_factory=set)
    """The versions of NCCL in its banners: ``2.30.4+cuda13.2``."""
    infiniband: int = 0
    """Channels via NET/IB."""
    socket: int = 0
    """Lines that name NET/Socket."""
    compiled: int = 0
    """Lines about kernels that were compiled."""
    ignored: str = ""
    """A library that could not be preloaded."""
    complete: bool = False
    """The server reported that its startup is complete."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    def feed(self, raw: str) -> bool:
        """Read one line; whether the phase or its detail has changed."""
        self.reading.take(raw)
        # A progress bar redraws its line after a carriage return.
        line = plain(raw).rstrip("\r\n")
        before = self.phase, self.detail
        for part in line.split("\r"):
            self._part(part)
        self.tail.append(line.rpartition("\r")[2][:2000])
        return before != (self.phase, self.detail)

    def _part(self, line: str) -> None:
        order = [START, *(phase.name for phase in PHASES)]
        for phase in PHASES:
            later = order.index(phase.name) > order.index(self.phase)
            if later and re.search(phase.begins, line):
                self.phase, self.detail = phase.name, ""
            if phase.name == self.phase and (match := re.search(phase.detail, line)):
                self.detail = f"{match[1]}/{match[2]}"
        self.complete = self.complete or self.phase == READY
        if banner := BANNER.search(line):
            self.banners.add(banner["version"])
        self.infiniband += bool(INFINIBAND.search(line))
        self.socket += bool(SOCKET.search(line))
        self.compiled += bool(COMPILED.search(line))
        if ignored := IGNORED.search(line):
            self.ignored = ignored[1]


# Proof


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rank's log must show, and what it shows."""

    what: str
    rank: int
    node: str
    seen: str
    ok: bool
    pending: bool = False
    """It is not in the log yet, and may still come."""


def prove(
    logs: Mapping[int, Log], nodes: Sequence[str], *, nccl: str, rdma: bool, gpus: int
) -> tuple[Finding, ...]:
    """Every finding, by rank. ``nccl``: the pinned version, or nothing where there is no pin;
    ``gpus``: of each node."""
    findings: list[Finding] = []
    alone = len(nodes) * gpus == 1
    for rank, log in sorted(logs.items()):
        finding = partial(Finding, rank=rank, node=nodes[rank])
        if log.ignored:
            seen = f"ignored: no {log.ignored}"
            findings.append(finding(what="LD_PRELOAD is loaded", seen=seen, ok=False))
        # A single GPU needs no NCCL: vLLM may not load it at all.
        if nccl and (log.banners or not alone):
            versions = {banner.partition("+")[0] for banner in log.banners}
            seen, ok = ", ".join(sorted(log.banners)) or "no banner", versions == {nccl}
            findings.append(finding(what=f"NCCL {nccl}", seen=seen, ok=ok, pending=not versions))
        if rdma:
            ib, sockets = log.infiniband, log.socket
            pending = ib == 0 and sockets == 0
            findings += [
                finding(what="via NET/IB", seen=_lines(ib), ok=ib > 0, pending=pending),
                finding(what="no NET/Socket", seen=_lines(sockets), ok=sockets == 0),
            ]
    return tuple(findings)


def _lines(count: int) -> str:
    return f"{count} line{'s' if count != 1 else ''}" if count else "none"


def health_text(status: int | None) -> str:
    """A status of ``/health`` for people; None: no answer."""
    if status is None:
        return "no answer"
    return HEALTHY if status == HTTPStatus.OK else f"HTTP {status}"
