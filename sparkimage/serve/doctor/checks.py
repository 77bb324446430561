"""What the doctor's checks are made of: findings with their texts, severities, results. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from importlib import resources
from typing import Any

from sparkimage.config import yamlfile
from sparkimage.config.defaults import API_PORT, GPU_MEMORY_UTILIZATION, MASTER_PORT
from sparkimage.config.inventory import head_of
from sparkimage.core.program import as_called
from sparkimage.nodes.session import NodeReport
from sparkimage.nodes.snapshot import NodeSnapshot
from sparkimage.nodes.topology import Topology, topology


class Severity(StrEnum):
    """``unknown``: it could not be examined, or there was nothing to examine."""

    UNKNOWN = "unknown"
    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


ORDER = list(Severity)
INFO, WARN, FAIL = Severity.INFO, Severity.WARN, Severity.FAIL


def worst(severities: Iterable[Severity]) -> Severity:
    """The worst of them; ``UNKNOWN`` where there is none."""
    return max(severities, key=ORDER.index, default=Severity.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """All nodes together, and what is to run on them."""

    nodes: tuple[NodeReport, ...]
    model: str = ""
    """The model's folder on every node, or nothing."""
    port: int = API_PORT
    master_port: int = MASTER_PORT
    rdma: bool = True
    """Several nodes are to talk by RDMA."""
    gpus: int = 0
    """GPUs that each node must have at least."""
    utilization: float = GPU_MEMORY_UTILIZATION
    nccl: str = ""
    """The release of NCCL of the image, where one is to run."""
    cuda: str = ""
    """The CUDA that torch of the images is built for, where one expects any."""
    image_env: Mapping[str, str] = field(default_factory=dict)
    """What the image sets itself, where one is to run: it counts where nothing else is set."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The profile's variables, where one is to run."""
    pushed: Mapping[str, Sequence[str]] | None = None
    """How the model differs on each node from what was pushed there; None: nothing was."""

    @cached_property
    def topology(self) -> Topology:
        """The RDMA network of all nodes; as of none where one is not known."""
        return topology(self.known if len(self.known) == len(self.nodes) else ())

    def env_of(self, node: NodeSnapshot) -> dict[str, str]:
        """NCCL's variables of a rank, as `launch` and the image set them."""
        derived = self.topology.env(node) if self.several and self.rdma else {}
        return {**self.image_env, **derived, **self.env, **node.node.env}

    @property
    def known(self) -> tuple[NodeSnapshot, ...]:
        """Those that answered."""
        return tuple(node.snapshot for node in self.nodes if node.snapshot is not None)

    @property
    def several(self) -> bool:
        return len(self.nodes) > 1

    @property
    def head(self) -> str:
        """The name of the head: as the fleet file says, else the first node."""
        return head_of([node.node for node in self.nodes]).name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with these nodes, and the command that fixes it."""

    nodes: tuple[str, ...] = ()
    severity: Severity
    what: str
    fix: str = ""
    check: str = ""
    why: str = ""


TEXTS: Mapping[str, Mapping[str, Any]] = yamlfile.own(
    resources.files("sparkimage").joinpath("data", "doctor.yaml").read_text("utf-8")
)
"""The checks in their order, with the texts of their findings."""
Findings = Iterator[Finding]
Rule = Callable[[ClusterReport], Findings]
NodeRule = Callable[[ClusterReport, NodeSnapshot], Findings]


def finding(
    key: str, *nodes: str, severity: Severity | None = None, **values: object
) -> Finding:  # fmt: skip
    """The finding of ``CHECK`` or ``CHECK/CASE`` in ``TEXTS``, with these values in its text."""
    id, _, case = key.partition("/")
    check = TEXTS[id]
    text = check["cases"][case] if case else check
    return Finding(
        nodes=nodes,
        severity=severity or Severity(text.get("severity", check["worst"])),
        what=text["what"].format(**values),
        fix=as_called(text.get("fix", "")).format(**values),
        check=id,
        why=check["why"],
    )


def several(cluster: ClusterReport) -> bool:
    """For checks that compare nodes, or look at the network between them."""
    return cluster.several


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that the doctor looks at."""

    id: str
    title: str
    """What holds when it passes; short."""
    why: str
    """Why it matters."""
    rule: Rule
    seen: Callable[[NodeSnapshot], str]
    """What the table shows of a node."""
    worst: Severity
    """The worst severity of its findings."""
    applies: Callable[[ClusterReport], bool]
    """Whether there is anything to examine."""
    knows: Callable[[NodeSnapshot], object]
    """Whether a node said enough to be examined."""
    sources: tuple[str, ...]
    """Pages about a fact that is not obvious."""

    def examine(self, cluster: ClusterReport) -> Result:
        """Its result for these nodes. Pure."""
        if not self.applies(cluster):
            return Result(check=self, nodes={}, seen={}, findings=())
        known = {node.name for node in cluster.known if self.knows(node)}
        nodes = tuple(
            node if node.name in known else replace(node, snapshot=None) for node in cluster.nodes
        )
        examined = replace(cluster, nodes=nodes)
        findings = merged(self.rule(examined), [node.name for node in nodes])
        severities = {
            node.name: worst(
                [
                    Severity.OK if node.name in known else Severity.UNKNOWN,
                    *(finding.severity for finding in findings if node.name in finding.nodes),
                ]
            )
            for node in nodes
        }
        seen = {node.name: self.seen(node) for node in examined.known}
        return Result(check=self, nodes=severities, seen=seen, findings=findings)


def check(
    id: str,
    *,
    seen: Callable[[NodeSnapshot], str] = lambda _node: "",
    applies: Callable[[ClusterReport], bool] = lambda _cluster: True,
    knows: Callable[[NodeSnapshot], object] = lambda _node: True,
) -> Callable[[Rule], Check]:
    """The check of this id, with the decorated rule; the rest is in ``TEXTS``."""
    text = TEXTS[id]
    return lambda rule: Check(
        id=id, title=text["title"], why=text["why"], worst=Severity(text["worst"]),
        sources=tuple(text.get("sources", ())), rule=rule, seen=seen, applies=applies, knows=knows,
    )  # fmt: skip


def node_check(id: str, **options: Any) -> Callable[[NodeRule], Check]:
    """As ``check``, with a rule for each node that answered."""

    def decorate(rule: NodeRule) -> Check:
        def on_all(cluster: ClusterReport) -> Findings:
            for node in cluster.known:
                for finding in rule(cluster, node):
                    yield replace(finding, nodes=(node.name,))

        return check(id, **options)(on_all)

    return decorate


def differing(
    key: str,
    cluster: ClusterReport,
    value: Callable[[NodeSnapshot], str],
    severity: Severity | None = None,
    **values: object,
) -> Findings:
    """The finding ``key`` where ``value`` is not the same on all nodes."""
    groups = grouped((node.name, value(node)) for node in cluster.known)
    if len(groups) > 1:
        texts = {"values": in_words(groups), **values}
        yield finding(key, *odd(groups), severity=severity, **texts)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a check: ``nodes`` have the worst severity, ``seen`` what was seen, by name."""

    check: Check
    nodes: dict[str, Severity]
    seen: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        return worst(self.nodes.values())


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The results of all checks."""

    cluster: ClusterReport
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The worst first, then in the order of the checks."""
        findings = [finding for result in self.results for finding in result.findings]
        return tuple(sorted(findings, key=lambda one: -ORDER.index(one.severity)))

    def count(self, severity: Severity) -> int:
        """The number of findings of this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "result": worst(result.worst for result in self.results),
            "failed": self.count(FAIL),
            "warnings": self.count(WARN),
            "checks": [
                {
                    "check": result.check.id, "title": result.check.title, "result": result.worst,
                    "nodes": result.nodes, "seen": result.seen,
                }
                for result in self.results
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "nodes": {
                node.name: node.snapshot.to_dict() if node.snapshot is not None else None
                for node in self.cluster.nodes
            },
        }  # fmt: skip


def merged(findings: Iterable[Finding], order: Sequence[str]) -> tuple[Finding, ...]:
    """Equal findings of several nodes as one; its nodes in this order."""
    groups: dict[Finding, set[str]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, nodes=()), set()).update(finding.nodes)
    return tuple(
        replace(finding, nodes=tuple(sorted(names, key=order.index)))
        for finding, names in groups.items()
    )


def grouped(values: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The nodes by value, from pairs of node and value; the most frequent value first."""
    groups: dict[str, list[str]] = {}
    for name, value in values:
        groups.setdefault(value, []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def in_words(groups: dict[str, list[str]]) -> str:
    """``A: node1, node2; B: node3``, or only ``A`` where all nodes have it."""
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{value or 'none'}: {', '.join(names)}" for value, names in groups.items())


def odd(groups: dict[str, list[str]]) -> tuple[str, ...]:
    """The nodes that differ from the majority; all, where there is no majority."""
    sizes = [len(names) for names in groups.values()]
    rest = list(groups.values())[1:] if sizes[0] > sizes[1] else list(groups.values())
    return tuple(name for names in rest for name in names)
