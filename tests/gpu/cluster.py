"""Docker nodes with real GPUs: containers of the lab's node image, each with the GPUs that it is
given, and the command line as a user calls it. What happens is kept in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sparkimage.build.engine.engine import Engine
from sparkimage.core.arch import ARCHES, native_arch
from tests.gpu import machine, model
from tests.lab import fleet as fleets
from tests.lab.cdi import give_devices
from tests.lab.fleet import Fleet
from tests.lab.node import Node, Spec, put
from tests.lab.node_image import Release

PROJECT = Path(__file__).resolve().parents[2]
NAME = "vllm"
PORT = 8000
BROKEN = 18
LIMIT_S = 400
"""Seconds that a command may take at most."""
CACHES = {
    "vllm": "/root/.cache/vllm",
    "triton": "/root/.triton/cache",
    "flashinfer": "/root/.cache/flashinfer",
}
SMI = f'#!/bin/sh\nLD_LIBRARY_PATH={machine.IN_NODE} exec {machine.IN_NODE}/nvidia-smi "$@"\n'
OTHER_NCCL = "/nccl/libnccl.so.2"
PRELOADS = """\
#!/bin/sh
# Starts containers whose entry point preloads another libnccl than their variables say: what is
# looked at before the start is as it should be.
mkdir -p /nccl
cat >/nccl/entry.sh <<'EOF'
#!/bin/sh
LD_PRELOAD={path} exec vllm serve "$@"
EOF
chmod +x /nccl/entry.sh
count=$#
while [ "$count" -gt 0 ]; do
    word=$1
    shift
    count=$((count - 1))
    set -- "$@" "$word"
    case $word in
    create | --detach) set -- "$@" --volume /nccl:/nccl:ro --entrypoint /nccl/entry.sh ;;
    esac
done
exec /usr/bin/docker "$@"
"""
UNLIMITED = """\
prlimit --memlock=unlimited:unlimited true 2>/dev/null || {
    runc=$(command -v runc)
    mv "$runc" /usr/local/lib/runc
    mv /usr/local/lib/runc.sh "$runc"
}
"""
"""A machine that may not lift its limit of locked memory does without, as the lab's do."""
WORKERS = "pgrep --full '[V]LLM::Worker' || pgrep --full '[m]ultiprocessing.spawn'"


SHALLOW = {"num_hidden_layers": 2}
"""Of a model on GPUs that nodes share: a GPU runs the kernels of one process at a time, so that
every collective operation takes some of its time slices."""
SEQUENCES = (2, 4, 8)
NOT_FUSED = {"pass_config": {"fuse_allreduce_rms": False}}
"""What vLLM compiles on Hopper otherwise reduces by multicast, and with the backend of
``NO_MULTICAST`` it ends where there are several nodes:
https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/distributed/device_communicators/flashinfer_all_reduce.py"""


def profiles(gpus: int, nodes: int) -> dict[str, Any]:
    """The ways in which the tests serve, for this number of GPUs and of nodes."""
    serve: dict[str, Any] = {
        "load_format": "dummy", "max_model_len": model.CONTEXT, "max_num_seqs": 8,
        "gpu_memory_utilization": 0.3, "compilation": NOT_FUSED,
    }  # fmt: skip
    eager = {**serve, "more": ["--enforce-eager"]}
    drafts = {"method": "ngram", "num_speculative_tokens": 4}
    common = {"variants": ["*"], "env": machine.NO_MULTICAST, "caches": CACHES, "rdma": False}
    several = {**serve, "tensor_parallel": gpus}
    everywhere = {**serve, "tensor_parallel": nodes}
    if nodes > gpus:
        everywhere["gpu_memory_utilization"] = round(0.6 * gpus / nodes, 2)
        everywhere["more"] = [*eager["more"], "--hf-overrides", json.dumps(SHALLOW)]
    return {
        "gpu-one": {**common, "serve": serve},
        "gpu-all-memory": {**common, "serve": {**eager, "gpu_memory_utilization": 0.9}},
        "gpu-drafts": {**common, "serve": {**eager, "speculative": drafts}},
        "gpu-several": {**common, "gpus": gpus, "serve": several},
        "gpu-nodes": {**common, "nodes": nodes, "serve": everywhere},
        **{
            f"gpu-{count}-sequences": {**common, "serve": {**eager, "max_num_seqs": count}}
            for count in SEQUENCES
        },
    }


@dataclass(kw_only=True)
class Results:
    """The folder with the figures, logs and outputs of a run."""

    folder: Path
    figures: dict[str, Any] = field(default_factory=dict)

    def note(self, **figures: Any) -> None:
        """Keep these figures, with those before."""
        self.figures |= figures
        machine.write(self.folder / "results.json", self.figures)

    def keep(self, name: str, text: str) -> Path:
        """Keep a text."""
        file = self.folder / name
        file.write_text(text)
        return file


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes, each with one GPU, and the project in ``folder`` for them."""

    folder: Path
    fleet: Fleet
    numbers: tuple[int, ...]
    """Of the GPUs."""
    shares: tuple[int, ...]
    """The number of each node's GPU."""
    libraries: tuple[str, ...]
    image: str
    """Its name, in the store and on the nodes."""
    results: Results

    @property
    def nodes(self) -> list[Node]:
        return list(self.fleet)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def shared(self) -> bool:
        """Whether several nodes have the same GPU."""
        return len(self.shares) > len(self.numbers)

    # GPUs

    def give(self, node: Node, numbers: Sequence[int]) -> None:
        """The GPUs that a node's engine gives to containers from now on."""
        target = f"/usr/lib/{ARCHES[native_arch()].triplet}"
        spec = machine.specification(numbers, self.libraries, target)
        give_devices(node, json.dumps(spec).encode())

    def preload(self, node: Node, path: str) -> None:
        """Containers of this node preload ``path``; until ``restore``."""
        put(node, {"/usr/local/bin/docker": (0o755, PRELOADS.format(path=path).encode())})

    def preload_nccl(self, node: Node, file: Path) -> None:
        """Containers of this node preload this libnccl; until ``restore``."""
        put(node, {OTHER_NCCL: (0o644, file.read_bytes())})
        self.preload(node, OTHER_NCCL)

    def forget_caches(self, node: Node) -> None:
        """Nothing was compiled on a node."""
        node.exec("rm", "-rf", "/root/.cache/sparkimage")

    def restore(self) -> None:
        """No deployment, no fault."""
        script = (
            "rm -f /usr/local/bin/docker; "
            "docker ps --all --quiet | xargs -r docker rm --force >/dev/null"
        )
        self.fleet.each(lambda node: node.exec("sh", "-c", script))

    def engine(self, node: Node) -> Engine:
        """A node's engine, over SSH."""
        local = self.head.engine.docker
        at = local.index("--config") if "--config" in local else None
        config = local[at : at + 2] if at is not None else ()
        host = f"ssh://root@{node.name}"
        return replace(node.engine, host=host, docker=(local[0], *config, "--host", host))

    # Commands

    def file(self, nodes: Sequence[Node]) -> Path:
        """A fleet.yaml of these nodes."""
        data = self.fleet.data("root", *(node.name for node in nodes))
        for entry in data["nodes"].values():
            entry["interface"] = "eth0"
        next(iter(data["nodes"].values()))["role"] = "head"
        file = self.folder / f"fleet-{len(nodes)}-{nodes[0].name}.yaml"
        file.write_text(json.dumps(data, indent=1))
        return file

    def run(
        self, name: str, *words: str, limit_s: float = LIMIT_S, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """The command line, to its end; its output and seconds are kept by ``name``."""
        argv = [sys.executable, "-P", "-m", "sparkimage",
                "--matrix-file", str(self.folder / "matrix.yaml"), *words]  # fmt: skip
        env = {**os.environ, **self.fleet.environment, **more}
        begun = time.monotonic()
        try:
            done = subprocess.run(
                argv, check=False, capture_output=True, text=True, env=env, timeout=limit_s,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            # Bytes, though text was asked for: https://github.com/python/cpython/issues/87597.
            said = [str(out or b"", "utf-8", "replace") for out in (late.stdout, late.stderr)]
            done = subprocess.CompletedProcess(argv, 124, *said)
        seconds = round(time.monotonic() - begun, 1)
        self.results.keep(
            f"{name}.txt", f"$ sparkimage {' '.join(words)}\n{done.stdout}\n{done.stderr}\n"
            f"exit code {done.returncode} after {seconds} s\n",
        )  # fmt: skip
        self.results.note(**{f"{name} seconds": seconds})
        return done

    def distribute(self) -> subprocess.CompletedProcess[str]:
        """The image, to all nodes."""
        return self.run("distribute", "distribute", self.image, "--nodes",
                        str(self.file(self.nodes)), *gate())  # fmt: skip

    def launch(
        self, name: str, profile: str, nodes: Sequence[Node], *words: str, limit_s: float = LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """``launch``; all logs of its containers are kept, and the containers run on."""
        done = self.run(
            f"{name}-launch", "launch", self.image, "--model", model.FOLDER,
            "--profile", profile, "--nodes", str(self.file(nodes)), "--keep", "--json",
            "--timeout", f"{limit_s - 30:.0f}", *gate(), *words, limit_s=limit_s,
        )  # fmt: skip
        self.logs(name, nodes)
        if done.returncode == 0:
            self.results.note(**{f"{name} ready": json.loads(done.stdout)["seconds"]})
        return done

    def start(self, name: str, profile: str, node: Node) -> None:
        """Start what `launch` would, and no more."""
        done = self.run(
            f"{name}-plan", "launch", self.image, "--model", model.FOLDER, "--profile", profile,
            "--nodes", str(self.file([node])), "--dry-run", "--json", *gate(),
        )  # fmt: skip
        (rank,) = json.loads(done.stdout)
        node.exec("mkdir", "-p", *rank["caches"])
        node.exec(*rank["argv"])

    def logs(self, name: str, nodes: Sequence[Node]) -> list[Path]:
        """The whole log of each rank."""
        return [
            self.results.keep(
                f"{name}-rank{rank}.log", node.exec("sh", "-c", f"docker logs {NAME} 2>&1 || :")
            )
            for rank, node in enumerate(nodes)
        ]

    def explain(self, name: str, nodes: Sequence[Node]) -> dict[str, Any]:
        """What `explain` finds in the logs as they are now."""
        logs = self.logs(name, nodes)
        done = self.run(f"{name}-explain", "explain", "--json", *map(str, logs))
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def status(self, name: str, nodes: Sequence[Node]) -> subprocess.CompletedProcess[str]:
        return self.run(f"{name}-status", "status", "--nodes", str(self.file(nodes)))

    def probe(self, name: str, nodes: Sequence[Node], *words: str) -> dict[str, Any]:
        """What `probe` measures of the deployment."""
        done = self.run(
            f"{name}-probe", "probe", "--nodes", str(self.file(nodes)), "--json", *words,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        self.results.note(**{f"{name} probe": found})
        return found

    def until_broken(self, name: str, nodes: Sequence[Node], limit_s: float) -> float | None:
        """Seconds until `status` says that a deployment is broken; None: not within ``limit_s``."""
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < limit_s:
            if self.status(name, nodes).returncode == BROKEN:
                self.results.note(**{f"{name} seen after": round(waited, 1)})
                return waited
        self.results.note(**{f"{name} seen after": None})
        return None

    # Servers

    def complete(self, tokens: int, limit_s: float = 120) -> dict[str, Any]:
        """A completion of the head's server."""
        body = {
            "model": model.FOLDER, "prompt": "Once upon a time", "max_tokens": tokens,
            "ignore_eos": True, "temperature": 0,
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://{self.head.inside}:{PORT}/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=limit_s) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @contextmanager
    def busy(self, limit_s: float = 120) -> Iterator[None]:
        """Requests run meanwhile; what becomes of them does not matter."""

        def ask() -> None:
            with suppress(OSError):
                self.complete(8000, limit_s)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        yield

    def signal_worker(self, name: str, node: Node, signal: str) -> None:
        """Send a signal to the last worker process of a node."""
        self.results.keep(f"{name}-processes.txt", node.exec("ps", "-eo", "pid,ppid,stat,args"))
        node.exec("sh", "-c", f"kill -{signal} $( ({WORKERS}) | tail -n 1)")


def gate() -> tuple[str, ...]:
    """GPU_UNVERIFIED: an image whose seal is of another version of the checks."""
    return ("--allow-unverified",) if os.environ.get("GPU_UNVERIFIED") else ()


@contextmanager
def cluster(
    engine: Engine, folder: Path, image: str, results: Results, say: Callable[[str], None]
) -> Iterator[Cluster]:
    """Nodes for the machine's GPUs."""
    numbers = machine.used(machine.gpus())
    driver = folder / "driver"
    libraries = machine.copy_driver(driver)
    say(f"GPUs {numbers}, driver's files: {', '.join(libraries)}")
    shares = machine.shares(numbers)
    spec = Spec(
        release=Release.TRIXIE, disk_bytes=None,
        options=(f"--volume={driver}:{machine.IN_NODE}:ro", "--shm-size=16g"),
    )  # fmt: skip
    # Both stores; containerd's keeps the compressed layers, too: 4 GB more.
    specs = {f"node{n + 1}": replace(spec, containerd_store=n == 0) for n in range(len(shares))}
    (folder / "nodes").mkdir()
    with fleets.fleet(engine, folder / "nodes", specs) as fleet:
        made = Cluster(
            folder=project(folder / "project", len(numbers), len(shares)), fleet=fleet,
            numbers=numbers, shares=shares, libraries=tuple(libraries), image=image,
            results=results,
        )  # fmt: skip

        def prepare(node: Node) -> None:
            node.exec("sh", "-euc", UNLIMITED)
            put(node, {"/usr/local/bin/nvidia-smi": (0o755, SMI.encode()), **model.files()})
            made.give(node, [shares[made.nodes.index(node)]])

        fleet.each(prepare)
        yield made


def project(folder: Path, gpus: int, nodes: int) -> Path:
    """The product's project, with the tests' profiles."""
    folder.mkdir()
    for name in ("images", "patches", "matrix.lock"):
        (folder / name).symlink_to(PROJECT / name)
    data: Mapping[str, Any] = yaml.safe_load((PROJECT / "matrix.yaml").read_text())
    # JSON is YAML.
    (folder / "matrix.yaml").write_text(
        json.dumps({**data, "profiles": profiles(gpus, nodes)}, default=str)
    )
    return folder
