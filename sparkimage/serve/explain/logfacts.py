"""What a log of vLLM tells besides failures: versions, transports, phases, caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BANNER = re.compile(r"\bNCCL version (?P<version>\d+\.\d+\.\d+(?:\+cuda[\d.]*\d)?)")
"""At NCCL_DEBUG=INFO every rank says it, at VERSION the first one only:
https://github.com/NVIDIA/nccl/blob/master/src/init.cc"""
_PYNCCL = re.compile(r"vLLM is using nccl==(?P<version>\d+\.\d+\.\d+)")
_SPEAKER = re.compile(r"(?P<host>[\w.-]+):\d+:\d+ \[\d+\] NCCL ")
_VLLM = re.compile(r"vLLM API server version (?P<version>\S+)|LLM engine \(v(?P<engine>[^)]+)\)")
_CACHE = re.compile(r"Using cache directory: (?P<folder>\S+) for vLLM's torch\.compile")
_VIA = re.compile(r"via (?P<via>NET/[A-Za-z]+|P2P|SHM)")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of vLLM's start."""

    name: str
    begins: str
    """A regular expression of what a rank says as it begins."""
    ends: tuple[str, ...] = ()
    """What a rank says at its end, literally."""
    detail: str = "(?!)"
    """A regular expression of how far it is: so much of so much."""


PHASES = (
    # https://github.com/vllm-project/vllm/blob/main/vllm/distributed/parallel_state.py
    Phase(name="ranks joined", begins=r"rank \d+ in world size \d+ is assigned as"),
    # https://github.com/vllm-project/vllm/blob/main/vllm/v1/worker/gpu_model_runner.py
    Phase(
        name="weights", begins=r"Starting to load model|Loading safetensors checkpoint shards",
        ends=("Loading weights took", "Model loading took"),
        detail=r"checkpoint shards:\s*\d+% Completed \| (\d+)/(\d+)",
    ),
    # https://github.com/vllm-project/vllm/blob/main/vllm/compilation/backends.py
    Phase(
        name="compile", ends=("torch.compile takes",),
        begins=r"for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a gr",
    ),
    Phase(
        name="graph capture", begins=r"Capturing CUDA graph|Graph capturing finished",
        ends=("Graph capturing finished",),
        detail=r"Capturing CUDA graphs?[^:]*:\s*\d+%.*?(\d+)/(\d+)",
    ),
    Phase(
        name="ready", begins="Application startup complete", ends=("Application startup complete",)
    ),
)  # fmt: skip
"""Phases in their order."""
UP = ("graph capture", "ready")
"""A worker without an API never says that it is ready."""


@dataclass(kw_only=True)
class Facts:
    """What was seen up to now in one log; ``take`` is given every line."""

    nccl: dict[str, list[str]] = field(default_factory=dict)
    """Version of a loaded NCCL → who said so: node names; empty ones where none is on the line."""
    nccl_line: tuple[int, str] = (0, "")
    vllm: str = ""
    starts: int = 0
    via: dict[str, int] = field(default_factory=dict)
    """Channels of NCCL by what they go over: NET/IB, NET/Socket, P2P, SHM."""
    ib_off: bool = False
    """NCCL_IB_DISABLE=1 was set: sockets are what was asked for."""
    phases: dict[str, int] = field(default_factory=dict)
    """Phase → the first line that says that it was done."""
    progress: int = 0
    """The last line that says that a phase was done."""
    up: bool = False
    """Whether the start that is under way has come so far that only serving is left."""
    rebuilt: dict[str, list[int]] = field(default_factory=dict)
    """Cache folder of torch.compile → the lines at which kernels were compiled into it anew."""
    _cache: dict[str, tuple[str, int]] = field(default_factory=dict)

    def take(self, number: int, line: str, node: str) -> None:
        """Take in one cleaned line."""
        for literal, taken in _READERS:
            if literal in line:
                taken(self, number, line, node)
        for phase in PHASES:
            if any(words in line for words in phase.ends):
                self.phases.setdefault(phase.name, number)
                self.progress, self.up = number, phase.name in UP

    @property
    def releases(self) -> dict[str, list[str]]:
        """As ``nccl``, by release alone: vLLM's own line does not name the CUDA version."""
        found: dict[str, list[str]] = {}
        for version, nodes in self.nccl.items():
            found.setdefault(version.split("+")[0], []).extend(nodes)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "vllm": self.vllm or None,
            "starts": self.starts,
            "nccl": {version: [n for n in nodes if n] for version, nodes in self.nccl.items()},
            "via": self.via,
            "ib_disabled": self.ib_off,
            "phases": [one.name for one in PHASES if one.name in self.phases],
        }

    def _start(self, _number: int, line: str, node: str) -> None:
        found = _VLLM.search(line)
        if found is None:
            return
        self.vllm = found["version"] or found["engine"]
        if "API server" in line:
            self.starts += 1
            self.up = False
            # What an earlier start loaded is not what this one does.
            self.nccl = {
                version: kept
                for version, nodes in self.nccl.items()
                if (kept := [name for name in nodes if node and name != node])
            }

    def _banner(self, number: int, line: str, node: str) -> None:
        found = BANNER.search(line) or _PYNCCL.search(line)
        if found is None:
            return
        speaker = _SPEAKER.search(line)
        who = node or (speaker["host"] if speaker else "")
        nodes = self.nccl.setdefault(found["version"], [])
        if who not in nodes:
            nodes.append(who)
        self.nccl_line = (number, line)

    def _channel(self, _number: int, line: str, _node: str) -> None:
        found = _VIA.search(line)
        if found is not None and "NCCL" in line:
            self.via[found["via"]] = self.via.get(found["via"], 0) + 1

    def _environment(self, _number: int, line: str, _node: str) -> None:
        self.ib_off = self.ib_off or "NCCL_IB_DISABLE set by environment to 1" in line

    def _cache_folder(self, number: int, line: str, node: str) -> None:
        found = _CACHE.search(line)
        if found is not None:
            self._cache[node] = (found["folder"], number)

    def _loaded(self, _number: int, _line: str, node: str) -> None:
        # Some versions say "Compiling a graph" after that, too.
        self._cache.pop(node, None)

    def _compiled(self, number: int, _line: str, node: str) -> None:
        folder, since = self._cache.get(node, ("", 0))
        if folder and since:
            self.rebuilt.setdefault(folder, []).append(number)
            # Several graphs of one start count once.
            self._cache[node] = (folder, 0)


_READERS: tuple[tuple[str, Callable[[Facts, int, str, str], None]], ...] = (
    ("vLLM API server version", Facts._start),
    ("LLM engine (v", Facts._start),
    ("NCCL version", Facts._banner),
    ("vLLM is using nccl==", Facts._banner),
    (" via ", Facts._channel),
    ("NCCL_IB_DISABLE", Facts._environment),
    ("Using cache directory: ", Facts._cache_folder),
    ("Directly load the compiled graph", Facts._loaded),
    ("Directly lookup the graph", Facts._loaded),
    ("Compiling a graph for ", Facts._compiled),
)
