"""What the doctor's checks are made of: reports of nodes, findings, severities. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import resources
from typing import Any

import yaml

from sparkimage.config.defaults import API_PORT, GPU_MEMORY_UTILIZATION, MASTER_PORT
from sparkimage.config.inventory import head_of
from sparkimage.nodes.session import NodeReport
from sparkimage.nodes.snapshot import NodeSnapshot


class Severity(StrEnum):
    """How bad it is. ``unknown``: it could not be examined, or there was nothing to examine."""

    UNKNOWN = "unknown"
    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


ORDER = list(Severity)
INFO, WARN, FAIL = Severity.INFO, Severity.WARN, Severity.FAIL


def worst(some: Iterable[Severity]) -> Severity:
    """The worst of them; ``UNKNOWN`` where there is none."""
    return max(some, key=ORDER.index, default=Severity.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """All nodes together, and what is to run on them."""

    nodes: tuple[NodeReport, ...]
    model: str = ""
    """The model's folder on every node; nothing: not asked for."""
    port: int = API_PORT
    master_port: int = MASTER_PORT
    rdma: bool = True
    """They are to talk by RDMA, where they are several."""
    gpus: int = 0
    """GPUs that each node is to give at least."""
    utilization: float = GPU_MEMORY_UTILIZATION

    @property
    def known(self) -> tuple[NodeSnapshot, ...]:
        """Those that answered."""
        return tuple(one.snapshot for one in self.nodes if one.snapshot is not None)

    @property
    def several(self) -> bool:
        return len(self.nodes) > 1

    @property
    def head(self) -> str:
        """The name of the one that answers users: as the fleet file says, else the first one."""
        return head_of([one.node for one in self.nodes]).name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is to be said of these nodes: what was seen, and the command that fixes it."""

    nodes: tuple[str, ...] = ()
    severity: Severity
    what: str
    fix: str = ""
    check: str = ""
    """Filled in by ``Check.examine``, as is ``why``."""
    why: str = ""


TEXTS: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
    resources.files("sparkimage").joinpath("data", "doctor.yaml").read_text("utf-8")
)
"""The checks in their order, and what is to be said of each."""
Findings = Iterator[Finding]
Rule = Callable[[ClusterReport], Findings]
NodeRule = Callable[[ClusterReport, NodeSnapshot], Findings]


def found(severity: Severity, what: str, fix: str = "") -> Finding:
    """A finding of the node that is examined."""
    return Finding(severity=severity, what=what, fix=fix)


def several(cluster: ClusterReport) -> bool:
    """Of checks that compare nodes, or look at what is between them."""
    return cluster.several


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that the doctor looks at."""

    id: str
    title: str
    """What is true when it passes; short."""
    why: str
    """Why it matters."""
    rule: Rule
    seen: Callable[[NodeSnapshot], str]
    """What to show of a node in the table."""
    worst: Severity
    """The worst that it can say."""
    applies: Callable[[ClusterReport], bool]
    """Whether there is anything to examine."""
    knows: Callable[[NodeSnapshot], object]
    """Whether a node said enough to be examined."""
    sources: tuple[str, ...]
    """Where a fact stands that is not obvious."""

    def examine(self, cluster: ClusterReport) -> Result:
        """What it comes to. Pure."""
        if not self.applies(cluster):
            return Result(check=self, nodes={}, seen={}, findings=())
        able = {one.name for one in cluster.known if self.knows(one)}
        nodes = tuple(
            one if one.name in able else replace(one, snapshot=None) for one in cluster.nodes
        )
        asked = replace(cluster, nodes=nodes)
        findings = [replace(one, check=self.id, why=self.why) for one in self.rule(asked)]
        states = {
            one.name: worst(
                (
                    Severity.OK if one.name in able else Severity.UNKNOWN,
                    *(finding.severity for finding in findings if one.name in finding.nodes),
                )
            )
            for one in nodes
        }
        order = list(states)
        return Result(
            check=self,
            nodes=states,
            seen={one.name: self.seen(one) for one in asked.known},
            findings=tuple(
                replace(one, nodes=tuple(sorted(one.nodes, key=order.index)))
                for one in merged(findings)
            ),
        )


def check(
    id: str,
    *,
    seen: Callable[[NodeSnapshot], str] = lambda _node: "",
    applies: Callable[[ClusterReport], bool] = lambda _cluster: True,
    knows: Callable[[NodeSnapshot], object] = lambda _node: True,
) -> Callable[[Rule], Check]:
    """The check of this id, whose rule is the function below; the rest is in ``TEXTS``."""
    text = TEXTS[id]
    return lambda rule: Check(
        id=id,
        title=text["title"],
        why=text["why"],
        worst=Severity(text["worst"]),
        sources=tuple(text.get("sources", ())),
        rule=rule,
        seen=seen,
        applies=applies,
        knows=knows,
    )


def each(rule: NodeRule) -> Rule:
    """The same for every node that answered."""

    def on_all(cluster: ClusterReport) -> Findings:
        for one in cluster.known:
            for finding in rule(cluster, one):
                yield replace(finding, nodes=(one.name,))

    return on_all


def differing(
    cluster: ClusterReport,
    value: Callable[[NodeSnapshot], str],
    severity: Severity,
    what: str,
    fix: str = "",
) -> Findings:
    """A finding where ``value`` is not the same on all nodes."""
    groups = grouped((one.name, value(one)) for one in cluster.known)
    if len(groups) > 1:
        said = f"{what}: {in_words(groups)}"
        yield Finding(nodes=odd(groups), severity=severity, what=said, fix=fix)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check came to."""

    check: Check
    nodes: dict[str, Severity]
    seen: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        return worst(self.nodes.values())

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "check": self.check.id,
            "title": self.check.title,
            "result": self.worst.value,
            "nodes": {name: one.value for name, one in self.nodes.items()},
            "seen": self.seen,
        }


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All of it."""

    cluster: ClusterReport
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The worst first, and then as the checks stand."""
        all_ = [one for result in self.results for one in result.findings]
        return tuple(sorted(all_, key=lambda one: -ORDER.index(one.severity)))

    def count(self, severity: Severity) -> int:
        """How many findings are as bad as this."""
        return sum(one.severity is severity for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "result": worst(one.worst for one in self.results).value,
            "failed": self.count(FAIL),
            "warnings": self.count(WARN),
            "checks": [one.to_dict() for one in self.results],
            "findings": [asdict(one) for one in self.findings],
            "nodes": {
                one.name: one.snapshot.to_dict() if one.snapshot is not None else None
                for one in self.cluster.nodes
            },
        }


def merged(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """What is said of several nodes in the same words, once."""
    groups: dict[Finding, list[str]] = {}
    for one in findings:
        groups.setdefault(replace(one, nodes=()), []).extend(one.nodes)
    return tuple(replace(one, nodes=tuple(dict.fromkeys(names))) for one, names in groups.items())


def grouped(values: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The nodes by what they have, from pairs of node and value; the commonest first."""
    groups: dict[str, list[str]] = {}
    for name, value in values:
        groups.setdefault(value, []).append(name)
    return dict(sorted(groups.items(), key=lambda one: -len(one[1])))


def in_words(groups: dict[str, list[str]]) -> str:
    """``A: node1, node2; B: node3``, or ``A`` alone where it is so everywhere."""
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value or 'none'}: {', '.join(names)}" for value, names in groups.items())


def odd(groups: dict[str, list[str]]) -> tuple[str, ...]:
    """The nodes that differ from most; all, where there is no most."""
    sizes = [len(names) for names in groups.values()]
    rest = list(groups.values())[1:] if sizes[0] > sizes[1] else list(groups.values())
    return tuple(name for names in rest for name in names)
