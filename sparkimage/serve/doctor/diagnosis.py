"""What the doctor's rules speak of: nodes, findings, checks, and what came of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparkimage.config.inventory import Node, head_of
from sparkimage.core.errors import SparkError
from sparkimage.serve.doctor.defaults import MASTER_PORT, PORT, UTILIZATION
from sparkimage.serve.doctor.facts import Facts, Interface
from sparkimage.serve.doctor.severity import ORDER, Severity, worst


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A machine that was asked: its facts, or why there are none."""

    node: Node
    facts: Facts | None = None
    error: SparkError | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def link(self) -> Interface | None:
        """The interface that its ranks talk over, as far as it can be told."""
        facts = self.facts
        if facts is None:
            return None
        if self.node.interface is not None:
            return facts.interface(self.node.interface)
        own = (self.node.data, *facts.resolved) if self.node.data else (facts.used_address,)
        found = (facts.interface_of(address) for address in own)
        return next((one for one in found if one is not None), None)

    @property
    def network(self) -> str:
        """The network that it lies in with that interface; nothing where it is in none."""
        link = self.link
        if link is None:
            return ""
        pairs = dict(zip(link.addresses, link.networks, strict=True))
        named = self.facts.resolved if self.facts is not None else ()
        own = [pairs[one] for one in (self.node.data or "", *named) if one in pairs]
        return next((one for one in (*own, *pairs.values()) if one), "")

    @property
    def hcas(self) -> tuple[str, ...]:
        """The RDMA devices that its ranks use: those of the fleet file, else of the interface."""
        if self.node.hca or self.facts is None:
            return self.node.hca
        return self.facts.hcas_of(self.link.name) if self.link is not None else ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """All machines together, and what is to run on them."""

    patients: tuple[Patient, ...]
    model: str = ""
    """The model's folder on every machine; nothing: not asked for."""
    port: int = PORT
    master_port: int = MASTER_PORT
    rdma: bool = True
    """They are to talk by RDMA, where they are several."""
    utilization: float = UTILIZATION

    @property
    def known(self) -> tuple[tuple[Patient, Facts], ...]:
        """Those that answered."""
        return tuple((one, one.facts) for one in self.patients if one.facts is not None)

    @property
    def cluster(self) -> bool:
        """There are several."""
        return len(self.patients) > 1

    @property
    def head(self) -> Patient:
        """The one that answers users: as the fleet file says, else the first one."""
        head = head_of([one.node for one in self.patients])
        return next(one for one in self.patients if one.node == head)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is to be said of these nodes: what was seen, and the command that mends it."""

    nodes: tuple[str, ...]
    severity: Severity
    what: str
    mend: str = ""
    check: str = ""
    """Filled in by ``Check.examine``."""
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that the doctor looks at."""

    id: str
    title: str
    """What is true when it passes; short."""
    why: str
    """Why it matters."""
    rule: Callable[[Case], Iterable[Finding]]
    seen: Callable[[Patient, Facts], str]
    """What to show of a machine in the table."""
    worst: Severity = Severity.FAIL
    """The worst that it can say."""
    applies: Callable[[Case], bool] = lambda _case: True
    """Whether there is anything to examine."""
    knows: Callable[[Patient, Facts], bool] = lambda _patient, _facts: True
    """Whether a machine said enough to be examined."""
    sources: tuple[str, ...] = ()
    """Where a fact stands that is not obvious."""

    def examine(self, case: Case) -> Result:
        """What it comes to. Pure."""
        if not self.applies(case):
            return Result(check=self, nodes={}, seen={}, findings=())
        able = {one.name for one, facts in case.known if self.knows(one, facts)}
        patients = [one if one.name in able else replace(one, facts=None) for one in case.patients]
        asked = replace(case, patients=tuple(patients))
        found = tuple(replace(one, check=self.id, why=self.why) for one in self.rule(asked))
        nodes = {
            one.name: Severity.OK if one.name in able else Severity.UNKNOWN for one in patients
        }
        for finding in found:
            for name in finding.nodes:
                nodes[name] = worst((nodes[name], finding.severity))
        order = list(nodes)
        found = tuple(
            replace(one, nodes=tuple(sorted(one.nodes, key=order.index))) for one in merged(found)
        )
        seen = {one.name: self.seen(one, facts) for one, facts in asked.known}
        return Result(check=self, nodes=nodes, seen=seen, findings=found)


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

    case: Case
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The worst first, and then as the checks stand."""
        found = [one for result in self.results for one in result.findings]
        return tuple(sorted(found, key=lambda one: -ORDER.index(one.severity)))

    def count(self, severity: Severity) -> int:
        """How many findings are as bad as this."""
        return sum(one.severity is severity for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "result": worst(one.worst for one in self.results).value,
            "failed": self.count(Severity.FAIL),
            "warnings": self.count(Severity.WARN),
            "checks": [one.to_dict() for one in self.results],
            "findings": [
                {
                    "check": one.check,
                    "severity": one.severity.value,
                    "nodes": one.nodes,
                    "what": one.what,
                    "why": one.why,
                    "mend": one.mend,
                }
                for one in self.findings
            ],
            "nodes": {
                one.name: one.facts.to_dict() if one.facts is not None else None
                for one in self.case.patients
            },
        }


def merged(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """What is said of several nodes in the same words, once."""
    groups: dict[Finding, list[str]] = {}
    for one in findings:
        groups.setdefault(replace(one, nodes=()), []).extend(one.nodes)
    return tuple(replace(one, nodes=tuple(dict.fromkeys(names))) for one, names in groups.items())


# What rules are made of


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


def version(words: str) -> tuple[int, ...]:
    """The numbers of a version, to compare."""
    return tuple(int(one) for one in re.findall(r"[0-9]{1,9}", words)[:4])
