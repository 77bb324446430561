"""The command that examines the nodes before anything is started."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag, value
from sparkimage.config.defaults import API_PORT, GPU_MEMORY_UTILIZATION, MASTER_PORT
from sparkimage.core.errors import DoctorError, UsageError
from sparkimage.core.markup import fill
from sparkimage.core.progress import waiting
from sparkimage.core.units import clock, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparkimage.serve.doctor.checks import Diagnosis, Result

MARKS = {
    "ok": base.OK,
    "info": "[cyan]i[/]",
    "warn": base.WARNING,
    "fail": base.FAILED,
    "unknown": "[dim]·[/]",
}
MAX_VALUES = 4
"""Different values that a row of the table shows."""


def doctor(
    nodes: options.Nodes = options.FLEET_FILE,
    local: Annotated[bool, flag("--local", "Examine this machine only, without ssh.")] = False,
    model: Annotated[str, value("DIR", "Examine the model in DIR on every node, too.")] = "",
    port: Annotated[int, value("PORT", "The API port of the head.", min=1, max=65535)] = API_PORT,
    master_port: Annotated[
        int, value("PORT", "The head's port for the ranks.", min=1, max=65535)
    ] = MASTER_PORT,
    rdma: Annotated[bool, typer.Option("--rdma/--no-rdma", help="Require RDMA, or not.")] = True,
    utilization: Annotated[
        float,
        value(
            "PART",
            "The part of the memory that vLLM may use.",
            "--gpu-memory-utilization",
            min=0.05,
            max=1,
        ),
    ] = GPU_MEMORY_UTILIZATION,
    strict: Annotated[bool, flag("--strict", "Treat warnings as failures.")] = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
    reference: Annotated[bool, flag("--reference", "Print all checks; examine nothing.")] = False,
) -> None:
    """Examine the nodes before a launch; changes nothing (exit code 19 on a failure).

    docs/doctor.md lists the checks and why each one matters.
    """
    if reference:
        from sparkimage.serve.doctor.doctor import page

        typer.echo(page(), nl=False)
        return
    if local and nodes != options.FLEET_FILE:
        raise UsageError("--local cannot be combined with --nodes", hint="drop one of them")
    began = time.monotonic()
    with ExitStack() as stack:
        if not local:
            from sparkimage.nodes import connection, ssh

            fleet = base.read_fleet(nodes)
            remotes = stack.enter_context(
                connection.begun(fleet.nodes, patience, ssh.MACHINE, model=model)
            )
        from sparkimage.serve.doctor import doctor as doctors
        from sparkimage.serve.doctor.checks import FAIL, WARN, ClusterReport

        matrix = base.read_matrix_if_any()
        pushed = next(iter(base.pushed_models(model.rstrip("/"))), None)
        if local:
            reports = doctors.this_machine(model, patience_s=patience)
        else:
            from sparkimage.config import inventory
            from sparkimage.nodes import reachability, session

            head = inventory.head_of(fleet.nodes).name

            def reach(nodes: Sequence[session.NodeSession]) -> None:
                reachability.probe(nodes, head, (port, master_port))

            with waiting("examining the nodes"):
                reports = session.reports(
                    remotes, ssh.MACHINE, model=model, then=reach,
                    also=pushed.look if pushed is not None else lambda _session: None,
                )  # fmt: skip
    cluster = ClusterReport(
        nodes=reports, model=model, port=port, master_port=master_port, rdma=rdma,
        utilization=utilization, cuda=matrix.cuda if matrix is not None else "",
        pushed=pushed.differences if pushed is not None else None,
    )  # fmt: skip
    diagnosis = doctors.examine(cluster)
    if as_json:
        base.print_json(diagnosis.to_dict())
    else:
        _print(diagnosis, time.monotonic() - began)
    counts = {FAIL: "failure", WARN: "warning"} if strict else {FAIL: "failure"}
    bad = [finding for finding in diagnosis.findings if finding.severity in counts]
    if bad:
        names = {name for finding in bad for name in finding.nodes}
        raise DoctorError(
            " and ".join(plural(diagnosis.count(kind), noun) for kind, noun in counts.items())
            + f" on {', '.join(report.name for report in reports if report.name in names)}",
            hint="apply the fixes above and run the same command again",
        )


def _print(diagnosis: Diagnosis, seconds: float) -> None:
    from sparkimage.serve.doctor.checks import FAIL, INFO, WARN, Severity

    cluster = diagnosis.cluster
    table = base.new_table("", "check", "seen", wrap=["seen"], header=False)
    known = [result for result in diagnosis.results if result.worst is not Severity.UNKNOWN]
    for result in known:
        seen = _seen(result, several=cluster.several)
        table.add_row(MARKS[result.worst], result.check.title, base.plain(seen))
    base.print_table(table)
    for finding in diagnosis.findings:
        names, fix = ", ".join(finding.nodes), finding.fix
        if len(finding.nodes) == len(cluster.nodes):
            names = f"all {len(cluster.nodes)} nodes"
        where = f"[bold]{base.plain(names)}[/]: "
        if not cluster.several:
            where, fix = "", fix.removeprefix("there: ")
        text = f"{MARKS[finding.severity]} {where}{base.plain(finding.what)}"
        base.show("\n" + fill(text, base.text_width(), rest="  "))
        for name, text in (
            ("why", finding.why if finding.severity is not INFO else ""),
            ("fix", fix),
        ):
            if text:
                base.print_field(name, text, width=6)
    counts = ", ".join(
        plural(diagnosis.count(severity), noun)
        for severity, noun in ((FAIL, "failure"), (WARN, "warning"), (INFO, "note"))
    )
    machines = plural(len(cluster.nodes), "machine")
    checks = plural(len(known), "check")
    base.show(f"\n{checks} of {machines} in {clock(seconds)}: {counts}")


def _seen(result: Result, *, several: bool) -> str:
    """What was seen; where it is not the same everywhere, on which nodes."""
    from sparkimage.serve.doctor.checks import INFO, Severity, grouped, in_words

    bad = [name for name, severity in result.nodes.items() if severity is result.worst]
    groups = grouped(result.seen.items())
    some = several and len(bad) < len(result.nodes)
    if some and len(groups) < 2 and result.worst not in (Severity.OK, INFO):
        return ", ".join(bad)
    if len(groups) > MAX_VALUES:
        return f"{len(groups)} different values"
    return in_words(groups) if groups else ""
