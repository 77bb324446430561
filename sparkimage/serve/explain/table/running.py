"""Failures of a server that runs, and those that only say that something failed."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, Tally, sign
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.table.links import LAUNCH, NCCL, VLLM


def _not_while_starting(tally: Tally, facts: Facts) -> bool:
    return tally.while_up or tally.last_number > facts.progress


ENTRIES = (
    Entry(
        id="shm-broadcast",
        area=Area.RUNNING,
        title="The workers do not answer any more (shm_broadcast)",
        says="No available shared memory broadcast block found in 60 seconds.",
        signs=(
            sign(
                "No available shared memory broadcast block found",
                r"found in (?P<seconds>\d+) seconds",
            ),
            sign("No available block found in", r"found in (?P<seconds>\d+) second"),
        ),
        holds=_not_while_starting,
        why_not="it was there only while the server loaded and compiled, and then went on",
        cause="A rank hangs. With NCCL 2.28.9 over four nodes that comes with every long "
        "generation; else a worker died, or work takes long (compilation, a first long "
        "prompt).",
        cure="See which NCCL every rank loaded: it must be the pinned one, 2.30.4 or later for "
        f"TP=4. {LAUNCH} preloads it and proves it; then `python build.py restart`.",
        sources=(
            f"{VLLM}27313",
            f"{VLLM}10661",
            "https://github.com/local-inference-lab/rtx6kpro/issues/24",
        ),
        tells_nccl=True,
    ),
    Entry(
        id="rpc-timeout",
        area=Area.RUNNING,
        title="A worker did not answer in time; the engine ends",
        says="TimeoutError: RPC call to … timed out",
        signs=(sign("RPC call to ", r"RPC call to (?P<call>\w+) timed out"),),
        cause="A rank hangs: in NCCL, in a kernel that is compiled for the first time, or "
        "because the "
        "node runs out of memory.",
        cure="Look for the rank that fell silent (`python build.py logs`), at its memory "
        "(`dmesg`), "
        "and at which NCCL it loaded.",
        sources=(
            "https://github.com/eugr/spark-vllm-docker/issues/321",
            "https://github.com/kvcache-ai/Mooncake/issues/1458",
            f"{VLLM}17965",
        ),
        tells_nccl=True,
    ),
    Entry(
        id="nccl-timeout",
        area=Area.RUNNING,
        title="A collective operation of NCCL never ended",
        says="Watchdog caught collective operation timeout: WorkNCCL(…)",
        signs=(
            sign(
                "Watchdog caught collective operation timeout",
                r"OpType=(?P<operation>\w+).*ran for (?P<ms>\d+) milliseconds",
            ),
        ),
        cause="One rank hangs, died or is not where the others are; the others wait until the "
        "watchdog ends them.",
        cure="The first rank that fell silent has the reason: `python build.py logs` shows all "
        "nodes as one. Look at the NCCL release and the transport above.",
        sources=(f"{VLLM}6042", "https://github.com/pytorch/pytorch/issues/118369"),
        tells_nccl=True,
    ),
    Entry(
        id="peer-left",
        area=Area.RUNNING,
        title="Another rank closed the connection",
        says="NCCL WARN socketProgress: Connection closed by remote peer …",
        signs=(
            sign(
                "Connection closed by remote peer",
                r"remote peer (?P<peer>[^\s<]+)",
            ),
            sign(
                "A call failed possibly due to a network error or a remote process exiting "
                "prematurely"
            ),
        ),
        cause="That rank ended, or its node is gone. This log is of one that noticed.",
        cure="`python build.py status`; explain the log of that node.",
        sources=(f"{NCCL}1232", f"{VLLM}3722"),
    ),
    Entry(
        id="cold-cache",
        area=Area.RUNNING,
        title="Each start compiles anew: the cache is not kept",
        says="Using cache directory: …/torch_compile_cache/… then Compiling a graph for …, again",
        signs=(),
        cause="The same compiled graph was made more than once: the cache folders are not "
        "mounted, or are of the container and went with it.",
        cure=f"Mount `/root/.cache/vllm` and `/root/.triton/cache` (and flashinfer's): {LAUNCH} "
        "makes and mounts them, keyed by the image's digest.",
        sources=(f"{VLLM}20264", f"{VLLM}13144"),
    ),
    Entry(
        id="nccl-unexplained",
        area=Area.RUNNING,
        title="NCCL failed, and does not say why",
        says="NCCL error … (run with NCCL_DEBUG=INFO for details)",
        signs=(sign("run with NCCL_DEBUG=INFO for details"),),
        cause="NCCL's own lines are missing from this log.",
        cure=f"Set `NCCL_DEBUG=INFO` ({LAUNCH} does), start again, and explain that log.",
        sources=(f"{VLLM}6732",),
        generic=True,
        tells_nccl=True,
    ),
    Entry(
        id="worker-died",
        area=Area.RUNNING,
        title="A worker process died",
        says="Worker proc … died unexpectedly",
        signs=(
            sign("died unexpectedly", r"Worker proc (?P<worker>\S+) died unexpectedly"),
            sign("WorkerProc initialization failed due to an exception in a background process"),
        ),
        cause="The reason stands before this line, or in another node's log; where nothing is, "
        "the kernel may have ended it (`dmesg`).",
        cure="Explain the logs of all nodes together: `python build.py explain FILE FILE …`.",
        sources=(f"{VLLM}18446", f"{VLLM}44411"),
        generic=True,
    ),
    Entry(
        id="engine-core-failed",
        area=Area.RUNNING,
        title="The engine did not start",
        says="RuntimeError: Engine core initialization failed. See root cause above.",
        signs=(sign("Engine core initialization failed. See root cause above"),),
        cause="The root cause stands above in the log, and is none that is known here.",
        cure="Read the first ERROR line above it.",
        sources=(f"{VLLM}19002", f"{VLLM}18416"),
        generic=True,
    ),
)
