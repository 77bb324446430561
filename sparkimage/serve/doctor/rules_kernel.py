"""The doctor's checks of what a node's kernel says: memory for RDMA, faults of the GPU. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sparkimage.core.program import as_called
from sparkimage.core.units import human
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.serve.doctor.checks import (
    FAIL,
    WARN,
    ClusterReport,
    Findings,
    finding,
    node_check,
)  # fmt: skip

XID = re.compile(r"Xid \([^)]*\): (?P<xid>[0-9]+)")
FALLEN = re.compile(r"fallen off")
ECHO = ("43", "45")
"""Xids that follow from another fault, or from the end of a process."""
GONE = ("48", "62", "63", "64", "74", "79", "92", "94", "95", "109", "119", "120", "154")
"""Xids after which the GPU needs a reset or a repair; the others are mostly software's.
https://docs.nvidia.com/deploy/xid-errors/index.html"""


@node_check(
    "cma",
    seen=lambda node: f"{human(node.cma_free or 0)} free of {human(node.cma_total or 0)}",
    applies=lambda cluster: cluster.several and cluster.rdma,
    knows=lambda node: node.cma_free is not None,
)
def cma(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Memory that the kernel keeps for kexec, in which RDMA can pin nothing.

    Its pages are counted as free ones of CMA, and in no area of CMA:
    https://github.com/NVIDIA/NV-Kernels/pull/590
    """
    free, total = node.cma_free or 0, node.cma_total or 0
    if free > total:
        yield finding("cma", free=human(free), total=human(total), kernel=node.kernel)


@node_check(
    "gpu-log",
    seen=lambda node: f"{len(node.kernel_log or ())} lines",
    knows=lambda node: node.kernel_log is not None,
)
def gpu_log(_cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """Faults that the driver has logged since the boot."""
    lines = node.kernel_log or ()
    counts: dict[str, int] = {}
    for line in lines:
        if match := XID.search(line):
            counts[match["xid"]] = counts.get(match["xid"], 0) + 1
    if counts:
        yield from _xids(counts)
    if "79" not in counts and any(map(FALLEN.search, lines)):
        yield finding("gpu-log/fallen")
    if any("NV_ERR_NO_MEMORY" in line for line in lines):
        yield finding("gpu-log/memory")


def _xids(counts: Mapping[str, int]) -> Findings:
    """What each fault means, which the known failures say."""
    from sparkimage.serve.explain import failures

    known = failures.known().by_id["gpu-fault"]
    for xid, count in counts.items():
        if xid in ECHO and set(counts) - set(ECHO):
            continue
        value = next((value for value in known.values if value.fits({"xid": xid})), None)
        yield finding(
            "gpu-log/xid", severity=FAIL if xid in GONE else WARN, xid=xid,
            times="once" if count == 1 else f"{count} times",
            what=value.title if value is not None else f"Xid {xid}",
            fix=as_called(value.fix if value is not None else known.fix),
        )  # fmt: skip
