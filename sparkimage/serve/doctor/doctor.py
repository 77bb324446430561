"""The doctor: examines nodes before anything is started on them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sparkimage.config.inventory import Node
from sparkimage.core import templates
from sparkimage.core.errors import SparkError
from sparkimage.core.process import Local
from sparkimage.nodes import reading, ssh
from sparkimage.nodes.session import NodeReport
from sparkimage.serve.doctor import rules_fabric as fabric
from sparkimage.serve.doctor import rules_kernel as kernel
from sparkimage.serve.doctor import rules_machine as machine
from sparkimage.serve.doctor import rules_model as model
from sparkimage.serve.doctor import rules_network as network
from sparkimage.serve.doctor.checks import TEXTS, Check, ClusterReport, Diagnosis

_BY_ID = {
    check.id: check
    for module in (machine, kernel, network, fabric, model)
    for check in vars(module).values()
    if isinstance(check, Check)
}
CHECKS = {id: _BY_ID[id] for id in TEXTS}
PREFLIGHT = (
    "combinations", "gpu", "gpus-flag", "rdma", "verbs", "hca", "gid", "rails", "ring", "settings",
    "interface", "reachable", "mtu", "cma", "model", "shards", "model-pushed", "ports",
)  # fmt: skip
"""What must not fail before a server is started."""
HERE = Node(name="this machine", control="localhost")
ASK = "timeout 20 docker info --format '{{json .}}' 2>&1 || [ $? != 124 ] || echo "
INFO = ("sh", "-c", ASK + reading.LATE)


def examine(cluster: ClusterReport, checks: Iterable[Check] = CHECKS.values()) -> Diagnosis:
    """The results of these checks. Pure."""
    return Diagnosis(cluster=cluster, results=tuple(check.examine(cluster) for check in checks))


def this_machine(model: str, *, patience_s: float) -> tuple[NodeReport, ...]:
    """The snapshot of this machine, taken without ssh."""
    argv = ssh.script("snapshot", "docker", ssh.MACHINE, "", "", "", model)
    runner = Local()
    try:
        info = runner.run(INFO, check=False, timeout_s=patience_s).stdout
        engine = reading.engine(info.splitlines())
        answer = f"{engine.store}|{engine.root}\n"
        stdout = runner.run(argv, check=False, timeout_s=patience_s, stdin=answer).stdout
        snapshot = reading.read(f"{stdout}\n@@ docker\n{info}", HERE, now=time.time())
    except SparkError as error:
        return (NodeReport(node=HERE, error=error),)
    return (NodeReport(node=HERE, snapshot=snapshot),)


def page() -> str:
    """The page of the checks: what each one examines, and why."""
    return templates.render("checks.md", checks=CHECKS.values(), preflight=PREFLIGHT)
