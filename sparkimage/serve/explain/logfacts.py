"""The facts in a log of vLLM besides failures: versions, transports, phases, caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BANNER = re.compile(r"\bNCCL version (?P<version>\d+\.\d+\.\d+(?:\+cuda[\d.]*\d)?)")
"""At NCCL_DEBUG=INFO every rank prints it, at VERSION only the first one:
https://github.com/NVIDIA/nccl/blob/master/src/init.cc"""
_PYNCCL = re.compile(r"vLLM is using nccl==(?P<version>\d+\.\d+\.\d+)")
_PREFIX = re.compile(r"(?P<host>[\w.-]+):\d+:\d+ \[\d+\] NCCL ")
_NODES = re.compile(r"\bnRanks \d+ nNodes (?P<nodes>\d+)")
_GIT = re.compile(r"NCCL git version (?P<git>.+)")
_HEADLESS = re.compile(r"Launching vLLM \(v(?P<version>[^)]+)\) headless")
_API_SERVER = re.compile(r"vLLM API server version (?P<version>\S+)")
_ENGINE = re.compile(r"LLM engine \(v(?P<version>[^)]+)\)")
_CACHE = re.compile(r"Using cache directory: (?P<folder>\S+) for vLLM's torch\.compile")
_VIA = re.compile(r"via (?P<via>NET/[A-Za-z]+|P2P|SHM)")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of vLLM's start."""

    name: str
    begins: str
    """A regular expression for its first lines."""
    ends: tuple[str, ...] = ()
    """Texts of its last lines."""
    detail: str = "(?!)"
    """A regular expression for its progress: done and total."""


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
        name="compile", ends=("torch.compile takes", "torch.compile took"),
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
"""A headless worker never reports that it is ready."""
_ENDS = tuple((text, phase.name) for phase in PHASES for text in phase.ends)


@dataclass(kw_only=True)
class Facts:
    """The facts in one log so far; ``take`` gets every line."""

    nccl: dict[str, list[str]] = field(default_factory=dict)
    """Version of a loaded NCCL → the nodes that printed it; empty where the line has no name."""
    nccl_line: tuple[int, str] = (0, "")
    vllm: str = ""
    starts: int = 0
    start_line: int = 0
    """Where the last start begins."""
    nodes: int | None = None
    """Of the largest communicator of NCCL; None: the log does not say."""
    builds: dict[str, list[str]] = field(default_factory=dict)
    """What NCCL says of the commit that it was built from → the nodes that printed it."""
    via: dict[str, int] = field(default_factory=dict)
    """NCCL's channels by transport: NET/IB, NET/Socket, P2P, SHM."""
    ib_off: bool = False
    """NCCL_IB_DISABLE=1 is set: sockets are intended."""
    phases: dict[str, int] = field(default_factory=dict)
    """Phase → the first line of its end."""
    progress: int = 0
    """The last line that ends a phase."""
    up: bool = False
    """Whether the current start has reached serving."""
    worked: int = 0
    """The last line that shows tokens: all ranks went on until there."""
    answered: int = 0
    """The last line that shows tokens, or a request that was let in: a stream begins before its
    first token."""
    failed: bool = False
    """Whether something failed, or a line says that it did."""
    finished: bool = False
    """A script has its answers (vLLM without a server): it ends then, or begins again."""
    ready: bool = False
    """Whether the current start has said, or shown, that it serves."""
    rebuilt: dict[str, list[int]] = field(default_factory=dict)
    """Cache folder of torch.compile → the lines at which kernels were compiled into it."""
    lost_links: set[str] = field(default_factory=set)
    """Interfaces of RDMA adapters that went down and did not come up again."""
    _cache: dict[str, tuple[str, int]] = field(default_factory=dict)
    _links_up: set[str] = field(default_factory=set)

    def take(self, number: int, line: str, node: str) -> str:
        """Read one cleaned line; the phase that it ends and from which on the server is up."""
        for word, readers in _READERS.items():
            if word in line:
                for literal, pattern, read in readers:
                    if literal in line and (match := pattern.search(line)):
                        read(self, match, number, node)
        if self.answered == number and not self.ready:
            # uvicorn may say less, or the log begins later.
            return self._ends("ready", number)
        for text, name in _ENDS:
            if text in line:
                return self._ends(name, number)
        return ""

    def _ends(self, phase: str, number: int) -> str:
        self.phases.setdefault(phase, number)
        self.progress, self.up = number, phase in UP
        self.ready = self.ready or phase == "ready"
        return phase if self.up else ""

    @property
    def releases(self) -> dict[str, list[str]]:
        """As ``nccl``, by release alone: vLLM's own line does not name the CUDA version."""
        releases: dict[str, list[str]] = {}
        for version, nodes in self.nccl.items():
            releases.setdefault(version.split("+")[0], []).extend(nodes)
        return releases

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "vllm": self.vllm or None,
            "starts": self.starts,
            "nccl": {version: [n for n in nodes if n] for version, nodes in self.nccl.items()},
            "via": self.via,
            "ib_disabled": self.ib_off,
            "phases": [phase.name for phase in PHASES if phase.name in self.phases],
        }

    def _start(self, match: re.Match[str], number: int, node: str) -> None:
        self.vllm = match["version"]
        if "API server" in match[0]:
            self.starts += 1
            self._begin(number, node)

    def _begin(self, number: int, node: str) -> None:
        self.up, self.ready, self.start_line = False, False, number
        # An earlier start may have loaded another library.
        self.nccl = {
            version: kept
            for version, nodes in self.nccl.items()
            if (kept := [name for name in nodes if node and name != node])
        }

    def _headless(self, match: re.Match[str], number: int, node: str) -> None:
        self.vllm = match["version"]
        self._begin(number, node)

    def _node_count(self, match: re.Match[str], _number: int, _node: str) -> None:
        self.nodes = max(self.nodes or 0, int(match["nodes"]))

    def _build(self, match: re.Match[str], _number: int, node: str) -> None:
        prefix = _PREFIX.search(match.string)
        name = node or (prefix["host"] if prefix else "")
        nodes = self.builds.setdefault(match["git"].strip(), [])
        if name not in nodes:
            nodes.append(name)

    def _banner(self, match: re.Match[str], number: int, node: str) -> None:
        prefix = _PREFIX.search(match.string)
        name = node or (prefix["host"] if prefix else "")
        nodes = self.nccl.setdefault(match["version"], [])
        if name not in nodes:
            nodes.append(name)
        self.nccl_line = (number, match.string)

    def _channel(self, match: re.Match[str], _number: int, _node: str) -> None:
        self.via[match["via"]] = self.via.get(match["via"], 0) + 1

    def _works(self, _match: re.Match[str], number: int, _node: str) -> None:
        self.worked = self.answered = number

    def _answers(self, _match: re.Match[str], number: int, _node: str) -> None:
        self.answered = number

    def _prompts(self, match: re.Match[str], number: int, _node: str) -> None:
        self.finished = match["percent"] == "100"
        if self.finished:
            self.worked = self.answered = number

    def _link(self, match: re.Match[str], _number: int, _node: str) -> None:
        name = match["interface"]
        if match["state"] == "up":
            self._links_up.add(name)
            self.lost_links.discard(name)
        elif name in self._links_up or float(match["uptime"] or BOOT_S) >= BOOT_S:
            self.lost_links.add(name)

    def _ib_disabled(self, _match: re.Match[str], _number: int, _node: str) -> None:
        self.ib_off = True

    def _cache_folder(self, match: re.Match[str], number: int, node: str) -> None:
        self._cache[node] = (match["folder"], number)

    def _loaded(self, _match: re.Match[str], _number: int, node: str) -> None:
        # Some versions print "Compiling a graph" after that, too.
        self._cache.pop(node, None)

    def _compiled(self, _match: re.Match[str], number: int, node: str) -> None:
        folder, since = self._cache.get(node, ("", 0))
        if folder and since:
            self.rebuilt.setdefault(folder, []).append(number)
            # Several graphs of one start count once.
            self._cache[node] = (folder, 0)


_ANY = re.compile("")
BOOT_S = 120
"""Seconds in which a node starts: a port without a cable says then that it is down."""
_LINK = re.compile(
    r"(?:\[ *(?P<uptime>\d+\.\d+)\] )?mlx5_core \S+ (?P<interface>\S+): Link (?P<state>up|down)"
)
_PROMPTS = re.compile(r"Processed prompts: +(?P<percent>\d+)%(?!.*Processed prompts: )")
"""https://github.com/vllm-project/vllm/blob/main/vllm/entrypoints/llm.py"""
_TOKENS = re.compile(r"generation throughput: (?!0\.0 )\d")
"""https://github.com/vllm-project/vllm/blob/main/vllm/v1/metrics/loggers.py"""
_READERS: dict[
    str, tuple[tuple[str, re.Pattern[str], Callable[[Facts, re.Match[str], int, str], None]], ...]
] = {
    "LLM": (
        ("vLLM API server version", _API_SERVER, Facts._start),
        ("LLM engine (v", _ENGINE, Facts._start),
        ("headless multiproc executor", _HEADLESS, Facts._headless),
        ("vLLM is using nccl==", _PYNCCL, Facts._banner),
        ("Using cache directory: ", _CACHE, Facts._cache_folder),
    ),
    "NCCL": (
        ("nNodes ", _NODES, Facts._node_count),
        ("NCCL git version", _GIT, Facts._build),
        ("NCCL version", BANNER, Facts._banner),
        (" via ", _VIA, Facts._channel),
        ("NCCL_IB_DISABLE set by environment to 1", _ANY, Facts._ib_disabled),
    ),
    "mlx5_core": ((": Link ", _LINK, Facts._link),),
    "throughput": (("generation throughput: ", _TOKENS, Facts._works),),
    "Processed": (("Processed prompts: ", _PROMPTS, Facts._prompts),),
    " 200 OK": (('"POST /v1/', _ANY, Facts._answers),),
    "graph": (
        ("Directly load the compiled graph", _ANY, Facts._loaded),
        ("Directly lookup the graph", _ANY, Facts._loaded),
        ("Compiling a graph for ", _ANY, Facts._compiled),
    ),
}
"""A word of the lines → literals that are looked for next, a pattern, and what reads its match."""
LITERALS = tuple(
    [literal for readers in _READERS.values() for literal, _, _ in readers]
    + [text for text, _ in _ENDS]
)
"""A line without one of them tells no fact."""
