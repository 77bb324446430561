"""The doctor: its checks, and its diagnosis of nodes before anything is started on them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sparkimage.config.inventory import Node
from sparkimage.core import templates
from sparkimage.core.errors import SparkError
from sparkimage.core.process import Local
from sparkimage.nodes import reading, ssh
from sparkimage.nodes.session import NodeReport
from sparkimage.serve.doctor import rules_machine as machine
from sparkimage.serve.doctor import rules_model as model
from sparkimage.serve.doctor import rules_network as network
from sparkimage.serve.doctor.checks import TEXTS, Check, ClusterReport, Diagnosis

RULES = {
    one.id: one
    for module in (machine, network, model)
    for one in vars(module).values()
    if isinstance(one, Check)
}
CHECKS = tuple(RULES[id] for id in TEXTS)
HERE = Node(name="this machine", control="localhost")
"""What this machine is called, where it is asked for itself."""


def examine(cluster: ClusterReport, checks: Iterable[Check] = CHECKS) -> Diagnosis:
    """Everything that can be said of these nodes. Pure."""
    return Diagnosis(cluster=cluster, results=tuple(check.examine(cluster) for check in checks))


def this_machine(model: str, *, patience_s: float) -> tuple[NodeReport, ...]:
    """This machine, asked without ssh."""
    words = ssh.script("snapshot", "docker", ssh.MACHINE, "", "", "", model)
    try:
        said = Local().run(words, check=False, timeout_s=patience_s).stdout
        snapshot = reading.read(said, HERE, now=time.time())
    except SparkError as error:
        return (NodeReport(node=HERE, error=error),)
    return (NodeReport(node=HERE, snapshot=snapshot),)


def page() -> str:
    """docs/doctor.md, with the table of the checks."""
    return templates.render("doctor.md", checks=CHECKS)
