"""A stand-in for `vllm serve`: it takes and refuses what vLLM does at the flags that matter here,
says which NCCL is really mapped into its process, waits for all ranks, and then answers.

It needs nothing but Python's own library. What is to go wrong stands in `standin.json` of the
model's folder, so that each node may have its own fault: `die`, `hang` (a phase), `nccl` (a path to
load in spite of all), `transport`, `silent` (does not say that it is complete), `sick`, `slow_s`,
`compile_s` (what compiling takes); and, from then on when it is written there, `deaf` (the rank
takes no step any more, and runs), `compiles` (a kernel in every step), `fails` (a request is an
error).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import bench
from .api import Behaviour, EngineDeadError, Server

PIP = "/usr/local/lib/python3.13/dist-packages/nvidia/nccl/lib/libnccl.so.2"
"""The copy that torch's wheel brings, which is loaded unless another one is preloaded."""
VERBS = Path("/dev/infiniband")
MEET_S = 300.0
WAITS = (
    "No available shared memory broadcast block found in {} seconds. This typically happens when "
    "some processes are hanging or doing some time-consuming work"
)
CACHES = {"vllm": Path("/root/.cache/vllm"), "triton": Path("/root/.triton/cache")}


class Container:
    """What a rank uses of its container: of a real one here. `standin_nodes` has another kind."""

    env: Mapping[str, str] = os.environ

    def say(self, text: str) -> None:
        """One line of the log."""
        print(text, flush=True)

    def path(self, path: str | Path) -> Path:
        """Where the container's ``path`` is."""
        return Path(path)

    def hostname(self) -> str:
        return socket.gethostname()

    def host(self, host: str) -> str:
        """The address to listen on, for a server that was told ``host``."""
        return host

    def nccl(self, path: str) -> int:
        """Load the NCCL at ``path``, or the one that is preloaded, or torch's; its version."""
        mapped = re.search(r"(/\S*libnccl\.so\S*)", Path("/proc/self/maps").read_text())
        library = ctypes.CDLL(path or (mapped[1] if mapped else PIP))
        number = ctypes.c_int()
        library.ncclGetVersion(ctypes.byref(number))
        return number.value

    def wait(self, seconds: float | None = None) -> None:
        """For so long, or for ever."""
        threading.Event().wait(seconds)

    def gate(self) -> None:
        """Wait while the process is stopped: of a real one the kernel sees to it."""

    def opened(self, thing: socket.socket | Server) -> None:
        """What must end with the container."""

    def info(self, text: str) -> None:
        """One line as vLLM's logger has it."""
        self.say(f"INFO 11-24 12:00:00 [standin.py:1] {text}")


def parser(here: Container) -> argparse.ArgumentParser:
    """vLLM's command line, as far as it is known here."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            here.say(f"{self.format_usage()}{self.prog}: error: {message}")
            sys.exit(2)

    main = Parser(prog="vllm")
    serve = main.add_subparsers(dest="command", required=True).add_parser("serve")
    serve.add_argument("model", nargs="?")
    flag = argparse.BooleanOptionalAction
    for name in ("tensor-parallel-size", "pipeline-parallel-size", "nnodes"):
        serve.add_argument(f"--{name}", type=int, default=1)
    for name in ("node-rank", "master-port"):
        serve.add_argument(f"--{name}", type=int, default=0)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens", "block-size"):
        serve.add_argument(f"--{name}", type=int)
    for name in ("master-addr", "kv-cache-dtype", "reasoning-parser", "tool-call-parser",
                 "load-format", "tokenizer-mode", "host", "chat-template"):  # fmt: skip
        serve.add_argument(f"--{name}", default="")
    serve.add_argument("--distributed-executor-backend", choices=["mp", "ray", "uni"])
    serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--enforce-eager", action="store_true")
    serve.add_argument("--served-model-name", nargs="+")
    for name in ("compilation-config", "speculative-config"):
        serve.add_argument(f"--{name}", type=json.loads, default={})
    for name in ("headless", "trust-remote-code", "enable-auto-tool-choice"):
        serve.add_argument(f"--{name}", action="store_true")
    for name in ("expert-parallel", "prefix-caching", "flashinfer-autotune"):
        serve.add_argument(f"--enable-{name}", action=flag)
    return main


def refuse(given: argparse.Namespace, here: Container) -> None:
    """What vLLM's own checks refuse. Raises ``ValueError``."""
    world = given.tensor_parallel_size * given.pipeline_parallel_size
    if world % given.nnodes:
        raise ValueError(f"World size ({world}) is not divisible by nnodes ({given.nnodes})")
    if given.nnodes > 1 and not given.headless and given.node_rank > 0:
        raise ValueError("only the first node serves: the others need --headless")
    if not 0 < given.gpu_memory_utilization <= 1:
        raise ValueError("gpu_memory_utilization must be in (0, 1]")
    speculative = given.speculative_config
    if speculative.get("method") == "dspark" and speculative["num_speculative_tokens"] < 5:
        raise ValueError("dspark needs num_speculative_tokens >= 5")
    tokens, seqs = given.max_num_batched_tokens, given.max_num_seqs
    if tokens and seqs and tokens < seqs:
        raise ValueError(
            f"max_num_batched_tokens ({tokens}) must be greater than or equal to "
            f"max_num_seqs ({seqs})."
        )
    template = given.chat_template
    if template and not here.path(template).is_file():
        raise ValueError(f"The supplied chat template ({template}) appears path-like, but doesn't")
    if not (here.path(given.model or "") / "config.json").is_file():
        raise ValueError(f"Invalid repository ID or local directory specified: '{given.model}'.")


class Rank:
    """One process of the server."""

    def __init__(self, given: argparse.Namespace, here: Container) -> None:
        self.given, self.here = given, here
        self.say, self.info = here.say, here.info
        self.rank: int = given.node_rank
        self.world: int = given.nnodes
        self.faults = self.read_faults()
        self.others: list[socket.socket] = []
        self.behaviour = Behaviour(
            model=(given.served_model_name or [given.model])[0],
            api_key=here.env.get("VLLM_API_KEY", ""),
        )
        self.stepping = threading.Lock()
        self.answers: list[queue.Queue[bool]] = []
        """Of each worker, to the step of the head; False when it has ended."""
        self.kernels: set[str] = set()
        """That were compiled while it serves."""

    def read_faults(self) -> dict[str, Any]:
        """What is to go wrong."""
        file = self.here.path(self.given.model or "") / "standin.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return found

    def run(self) -> None:
        """Until it is ended."""
        self.phase("start")
        self.nccl()
        self.meet()
        self.transport()
        self.phase("weights")
        self.info(f"Starting to load model {self.given.model}...")
        self.say(
            "Loading safetensors checkpoint shards: 100% Completed | 2/2 [00:00<00:00, 9.1it/s]"
        )
        self.phase("compile")
        self.compile()
        self.phase("capture")
        self.say(
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 100%|####| 2/2 [00:00<00:00]"
        )
        self.info("Graph capturing finished in 0 secs, took 0.10 GiB")
        if self.rank == 0:
            self.serve()
        else:
            self.work()

    def phase(self, name: str) -> None:
        """A phase begins, or goes wrong."""
        if "slow_s" in self.faults:
            self.here.wait(float(self.faults["slow_s"]))
        if self.faults.get("hang") == name:
            self.here.wait()
        if self.faults.get("die") == name:
            self.say(self.faults.get("words", f"RuntimeError: this rank dies in phase {name}"))
            sys.exit(1)

    def nccl(self) -> None:
        """Load NCCL as torch does, and let it say its version."""
        number = self.here.nccl(self.faults.get("nccl", ""))
        # 23004 is 2.30.4: https://github.com/NVIDIA/nccl/blob/master/src/nccl.h.in
        major, minor = divmod(number, 10_000)
        version = f"{major}.{minor // 100}.{minor % 100}"
        self.nccl_info(f"NCCL version {version}+cuda13.2")

    def nccl_info(self, text: str) -> None:
        """As NCCL does: by C's stdout, which keeps less than 4 KB to itself where it is a pipe."""
        asked = self.here.env.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE")
        if asked and self.here.env.get("PYTHONUNBUFFERED"):
            pid = os.getpid()
            self.say(f"{self.here.hostname()}:{pid}:{pid} [0] NCCL INFO {text}")

    def meet(self) -> None:
        """All ranks find each other at the head."""
        if self.world > 1 and self.rank == 0:
            listener = socket.socket()
            self.here.opened(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self.given.master_addr, self.given.master_port))
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "")
                self.say(
                    "torch.distributed.DistNetworkError: The server socket has failed to listen "
                    f"on any local network address. port: {self.given.master_port}, useIpv6: "
                    f"false, code: -{error.errno}, name: {name}, message: {error.strerror}"
                )
                sys.exit(1)
            listener.listen()
            while len(self.others) < self.world - 1:
                self.others.append(listener.accept()[0])
                self.here.opened(self.others[-1])
            for other in self.others:
                other.sendall(b"go\n")
        elif self.world > 1:
            until = time.monotonic() + MEET_S
            while True:
                try:
                    made = socket.create_connection(
                        (self.given.master_addr, self.given.master_port), 5.0
                    )
                    break
                except OSError:
                    if time.monotonic() > until:
                        self.say("torch.distributed.DistStoreError: Timed out waiting for clients")
                        sys.exit(1)
                    self.here.wait(0.1)
            made.settimeout(None)
            self.here.opened(made)
            self.others.append(made)
            if made.recv(3) != b"go\n":
                self.say("torch.distributed.DistNetworkError: the head closed the connection")
                sys.exit(1)
        self.info(
            f"rank {self.rank} in world size {self.world} is assigned as DP rank 0, PP rank 0, "
            f"TP rank {self.rank}, EP rank 0"
        )

    def transport(self) -> None:
        """What NCCL's channels go over."""
        if self.world == 1:
            return
        name = self.here.env.get("NCCL_SOCKET_IFNAME", "")
        if not self.here.path(f"/sys/class/net/{name}").exists():
            self.say(f"NCCL WARN Bootstrap : no socket interface found for {name}")
            sys.exit(1)
        able = (
            self.here.env.get("NCCL_IB_DISABLE") == "0"
            and bool(self.here.env.get("NCCL_IB_HCA"))
            and any(self.here.path(VERBS).glob("uverbs*"))
        )
        used = self.faults.get("transport") or ("IB" if able else "Socket")
        self.nccl_info(f"Using network {used}")
        for channel in range(2):
            to = (self.rank + 1) % self.world
            self.nccl_info(
                f"Channel {channel:02}/0 : {self.rank}[0] -> {to}[0] [send] via NET/{used}/0"
            )

    def compile(self) -> None:
        """Kernels come from the cache's folder where they are there."""
        folder = CACHES["vllm"] / "torch_compile_cache" / "0123456789" / f"rank_{self.rank}_0"
        self.info(f"Using cache directory: {folder} for vLLM's torch.compile")
        kernel = self.here.path(folder) / "kernel"
        if kernel.is_file():
            self.info(
                "Directly load the compiled graph(s) for dynamic shape from the cache, took 0.0 s"
            )
        else:
            self.here.wait(float(self.faults.get("compile_s", 0)))
            self.info("Compiling a graph for dynamic shape takes 0.10 s")
            kernel.parent.mkdir(parents=True, exist_ok=True)
            kernel.write_text("compiled\n")

    def serve(self) -> None:
        """The head: wait for all, then answer."""
        for other in self.others:
            if other.recv(6) != b"ready\n":
                self.say("(EngineCore pid=1) ERROR: a worker ended while the engine started")
                sys.exit(1)
        self.say("INFO:     Started server process [1]")
        self.say("INFO:     Waiting for application startup.")
        try:
            host = self.here.host(self.given.host)
            server = Server(self.behaviour, host=host, port=self.given.port)
        except OSError as error:
            self.say(
                f"ERROR:    [Errno {error.errno}] error while attempting to bind on address "
                f"('{self.given.host}', {self.given.port}): address already in use"
            )
            sys.exit(1)
        self.here.opened(server)
        self.behaviour.healthy = not self.faults.get("sick", False)
        if not self.faults.get("silent"):
            self.say("INFO:     Application startup complete.")
        watching = []
        for other in self.others:
            self.answers.append(queue.Queue())
            words = other, self.answers[-1]
            watching.append(threading.Thread(target=self.watch, args=words, daemon=True))
            watching[-1].start()
        server.engine, server.gate = self.step, self.here.gate
        server.serve_forever(0.05)
        # It was ended: nothing of it goes on.
        for thread in watching:
            thread.join()
        with self.stepping:
            self.behaviour.healthy = False

    def watch(self, other: socket.socket, answers: queue.Queue[bool]) -> None:
        """A worker that ends makes the engine dead, and the server stays."""
        with contextlib.suppress(OSError), other.makefile("rb") as lines:
            for _ in lines:
                answers.put(True)
        self.behaviour.healthy = False
        self.say("(EngineCore pid=1) ERROR: Worker proc died unexpectedly, shutting down executor.")
        answers.put(False)

    def step(self, running: int, words: int) -> None:
        """All ranks take a step; it ends with the last of them, however long that takes."""
        interval = float(self.here.env.get("VLLM_RINGBUFFER_WARNING_INTERVAL", "60"))
        with self.stepping:
            if not self.behaviour.healthy or self.read_faults().get("fails"):
                raise EngineDeadError
            for other in self.others:
                with contextlib.suppress(OSError):
                    other.sendall(f"step {running} {words}\n".encode())
            try:
                self.use_kernel(running, words)
            except SystemExit:
                # It was ended while it compiled; this is a thread of a request.
                raise EngineDeadError from None
            for answers in self.answers:
                while True:
                    try:
                        alive = answers.get(timeout=interval)
                        break
                    except queue.Empty:
                        self.info(WAITS.format(f"{interval:.0f}"))
                if not alive:
                    answers.put(False)
                    raise EngineDeadError

    def use_kernel(self, running: int, words: int) -> None:
        """Compile the kernel for such a step, where it is not compiled yet; as vLLM's monitor says
        it (vllm/utils/jit_monitor.py)."""
        name = f"_standin_kernel_{running.bit_length()}_{words.bit_length() // 3}"
        if self.read_faults().get("compiles"):
            name = f"_standin_kernel_{len(self.kernels)}"
        cached = self.here.path(CACHES["triton"] / name / "kernel.cubin")
        if name not in self.kernels:
            self.kernels.add(name)
            # Triton calls its hook for a kernel that it finds on the disk, too.
            if not cached.is_file():
                self.here.wait(float(self.faults.get("compile_s", 0)) / 10)
                cached.parent.mkdir(parents=True, exist_ok=True)
                cached.write_text(f"{name}\n")
            self.say(
                f"(Worker_TP{self.rank} pid=1) WARNING 11-24 12:00:00 [jit_monitor.py:141] Triton "
                f"kernel JIT compilation during inference: {name}. This causes a latency spike; "
                "consider extending warmup to cover this shape/config."
            )

    def work(self) -> None:
        """A worker; without its head it waits for ever."""
        (head,) = self.others
        head.sendall(b"ready\n")
        with contextlib.suppress(OSError), head.makefile("rb") as steps:
            for step in steps:
                self.here.gate()
                if self.read_faults().get("deaf"):
                    self.here.wait()
                self.use_kernel(*map(int, step.split()[1:]))
                head.sendall(b"done\n")
        self.here.wait(60)
        self.info(WAITS.format(60))
        self.here.wait()


def serve(argv: Sequence[str], here: Container) -> None:
    """As `vllm` with these arguments. Raises ``SystemExit``."""
    given = parser(here).parse_args(argv)
    try:
        refuse(given, here)
    except ValueError as error:
        here.say(f"ValueError: {error}")
        sys.exit(1)
    Rank(given, here).run()


def main(argv: Sequence[str]) -> None:
    """As `vllm`."""
    # The first process of a container has no default answer to signals.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if list(argv[:2]) == ["bench", "serve"]:
        bench.main(argv[2:])
    else:
        serve(argv, Container())
