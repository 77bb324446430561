"""What the ranks' logs must show before a set counts as started: its NCCL, and RDMA. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparkimage.serve.reading import Log


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


def examine(
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
