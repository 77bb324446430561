"""What the log of one rank says, line by line: how far it is, and what NCCL it really has. Pure."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from sparkimage.serve.explain.logfacts import BANNER
from sparkimage.serve.explain.loglines import plain

KEPT = 400
"""Last lines that are kept of a rank."""
PHASES = ("start", "ranks joined", "weights", "compile", "graph capture", "ready")
SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # https://github.com/vllm-project/vllm/blob/main/vllm/distributed/parallel_state.py
    ("ranks joined", re.compile(r"rank \d+ in world size \d+ is assigned as")),
    # https://github.com/vllm-project/vllm/blob/main/vllm/v1/worker/gpu_model_runner.py
    ("weights", re.compile(r"Starting to load model|Loading safetensors checkpoint shards")),
    # https://github.com/vllm-project/vllm/blob/main/vllm/compilation/backends.py
    ("compile", re.compile(r"for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a gr")),
    ("graph capture", re.compile(r"Capturing CUDA graph|Graph capturing finished")),
    ("ready", re.compile(r"Application startup complete")),
)
SHARDS = re.compile(r"checkpoint shards:\s*\d+% Completed \| (\d+)/(\d+)")
GRAPHS = re.compile(r"Capturing CUDA graphs?[^:]*:\s*\d+%.*?(\d+)/(\d+)")
INFINIBAND = re.compile(r"\bvia NET/IB\b")
SOCKET = re.compile(r"\bNET/Socket\b|\bUsing network Socket\b")
"""The second is what NCCL says where it found no other network."""
IGNORED = re.compile(r"ld\.so: object '(.*?)' from LD_PRELOAD cannot be preloaded")


@dataclass
class Log:
    """What is known of a rank from its log so far."""

    phase: str = PHASES[0]
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
        for phase, sign in SIGNS:
            if PHASES.index(phase) > PHASES.index(self.phase) and sign.search(line):
                self.phase, self.detail = phase, ""
        self.complete = self.complete or self.phase == "ready"
        for phase, count in (("weights", SHARDS), ("graph capture", GRAPHS)):
            found = count.search(line) if self.phase == phase else None
            if found:
                self.detail = f"{found[1]}/{found[2]}"
        banner = BANNER.search(line)
        if banner:
            self.banners.add(banner["version"])
        self.infiniband += bool(INFINIBAND.search(line))
        self.socket += bool(SOCKET.search(line))
        ignored = IGNORED.search(line)
        if ignored:
            self.ignored = ignored[1]
