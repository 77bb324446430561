"""Failures of NCCL and RDMA."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, Tally, sign
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.table.links import DOCTOR, LAUNCH, NCCL, VLLM


def _sockets_used(_tally: Tally, facts: Facts) -> bool:
    return facts.via.get("NET/Socket", 0) > 0 and not facts.ib_off


ENTRIES = (
    Entry(
        id="socket-fallback",
        area=Area.NCCL,
        title="NCCL goes over TCP instead of RDMA",
        says="NCCL INFO Channel 00/0 : 0[0] -> 8[0] [receive] via NET/Socket/0",
        signs=(sign("via NET/Socket"),),
        holds=lambda _tally, facts: not facts.ib_off,
        why_not="NCCL_IB_DISABLE=1 asks for it",
        cause="NCCL found no usable RDMA device: none in the container, none of that name "
        "(`NCCL_IB_HCA`), or its link is down. It works, at a fraction of the speed.",
        cure=f"{LAUNCH} hands in /dev/infiniband and names the HCA of the data interface, and "
        f"its proof refuses NET/Socket; {DOCTOR} says what the node lacks.",
        sources=(f"{NCCL}952",),
    ),
    Entry(
        id="no-verbs-device",
        area=Area.NCCL,
        title="NCCL sees no RDMA device",
        says="NCCL INFO NET/IB : No device found.",
        signs=(sign("NET/IB : No device found"),),
        holds=_sockets_used,
        why_not="no traffic between nodes goes over TCP",
        cause="/dev/infiniband is not in the container, or `NCCL_IB_HCA` matches none of the "
        "devices.",
        cure="`--device=/dev/infiniband` and the right HCA (`ibdev2netdev`, `rdma link`); "
        f"{LAUNCH} does both.",
        sources=(f"{NCCL}952", f"{NCCL}226"),
    ),
    Entry(
        id="no-libibverbs",
        area=Area.NCCL,
        title="The image has no libibverbs",
        says="NCCL INFO Failed to open libibverbs.so[.1]",
        signs=(sign("Failed to open libibverbs.so"),),
        holds=_sockets_used,
        why_not="no traffic between nodes goes over TCP",
        cause="NCCL loads it at run time; without it there is no RDMA.",
        cure="Put rdma-core's libibverbs1 and its providers (ibverbs-providers) into the image.",
        sources=(f"{VLLM}6732",),
    ),
    Entry(
        id="memlock",
        area=Area.NCCL,
        title="RDMA may not lock memory",
        says="NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory",
        signs=(
            sign(
                "Cannot allocate memory",
                r"(?P<call>ibv_(?:reg_mr\w*|create_cq|create_qp))\b.{0,40}Cannot allocate memory",
            ),
        ),
        cause="The container's limit of locked memory is low (8 MB by default).",
        cure=f"`--ulimit memlock=-1:-1` and `--cap-add=IPC_LOCK`: {LAUNCH} gives both; {DOCTOR} "
        "shows the node's limit.",
        sources=(
            "https://github.com/NVIDIA/nccl-tests/issues/206",
            "https://github.com/NVIDIA/cudf-spark/pull/7632",
            "https://github.com/openucx/ucx/issues/6264",
        ),
    ),
    Entry(
        id="rdma-broke",
        area=Area.NCCL,
        title="An RDMA connection broke or never worked",
        says="NCCL WARN NET/IB : Got completion from peer … with status=12 …",
        signs=(
            sign(
                "Got completion from peer",
                r"from peer (?P<peer>[^\s<]+)<\d+> with (?:status=|error )(?P<status>\d+)",
            ),
        ),
        cause="Packets do not arrive: the wrong GID, MTUs that differ, a cable, or a peer that "
        "died. Status 12 is a retry that was exceeded, 5 follows from another one.",
        cure=f"{DOCTOR} compares links and MTUs; `NCCL_IB_GID_INDEX` for RoCE v2 in the "
        "profile's `env`; look into the peer's log first.",
        sources=(f"{NCCL}1664", f"{NCCL}1814"),
    ),
    Entry(
        id="mixed-nccl",
        area=Area.NCCL,
        title="The ranks have different releases of NCCL",
        says="NCCL version 2.28.9+cuda13.0 … NCCL version 2.30.4+cuda13.2",
        signs=(),
        cause="Nodes run different images, a preload was ignored on some, or one process maps "
        "two libraries.",
        cure="`python build.py nodes` shows who has which image, `distribute` makes them "
        f"equal; {LAUNCH} proves the banner of every rank.",
        sources=(f"{NCCL}286", f"{VLLM}12292"),
    ),
)
