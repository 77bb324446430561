"""What must hold in a whole log for the signs of a failure to mean it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.logfacts import Facts


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What must hold in the whole log for the signs to mean the failure."""

    holds: Callable[[Match, Facts], bool]
    otherwise: str
    """Why the failure is not reported, when it does not hold."""


CONDITIONS = {
    "rdma-enabled": Condition(
        holds=lambda _, facts: not facts.ib_off, otherwise="NCCL_IB_DISABLE=1 is set"
    ),
    "tcp-used": Condition(
        holds=lambda _, facts: facts.via.get("NET/Socket", 0) > 0 and not facts.ib_off,
        otherwise="no traffic between nodes goes over TCP",
    ),
    "after-start": Condition(
        holds=lambda match, facts: match.while_up or match.last_number > facts.progress,
        otherwise="it occurs only while the server loads and compiles, and the start goes on",
    ),
    "start-failed": Condition(holds=lambda _, facts: facts.failed, otherwise="nothing failed"),
    "link-lost": Condition(
        holds=lambda _, facts: bool(facts.lost_links),
        otherwise="it has no cable since the node started, or came up again",
    ),
}
"""By the name that an entry gives as ``when``."""


def hold(match: Match, facts: Facts) -> bool:
    """Whether the signs that were found mean the failure, given the whole log."""
    when = match.entry.when
    return when is None or CONDITIONS[when].holds(match, facts)
