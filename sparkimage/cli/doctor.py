"""The command that examines the nodes before anything is started."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import JsonOption, console, print_json, read_fleet
from sparkimage.cli.fleet import NODES, NodesOption, PatienceOption
from sparkimage.config.defaults import API_PORT, GPU_MEMORY_UTILIZATION, MASTER_PORT
from sparkimage.core.errors import DoctorError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparkimage.serve.doctor.checks import ClusterReport, Diagnosis, Finding, Result

MARKS = {
    "ok": "[green]✓[/]",
    "info": "[cyan]i[/]",
    "warn": "[yellow]![/]",
    "fail": "[red]✗[/]",
    "unknown": "[dim]·[/]",
}


def doctor(
    nodes: NodesOption = NODES,
    local: Annotated[
        bool, typer.Option("--local", help="Examine this machine alone, without ssh.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="The model's folder, the same path on every node: examine it, too."
        ),
    ] = "",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where the API is to answer, on the head.")
    ] = API_PORT,
    master_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where the ranks are to meet, on the head.")
    ] = MASTER_PORT,
    rdma: Annotated[
        bool, typer.Option("--rdma/--no-rdma", help="Whether the nodes are to talk by RDMA.")
    ] = True,
    utilization: Annotated[
        float,
        typer.Option(
            "--gpu-memory-utilization",
            min=0.05,
            max=1,
            help="The part of the memory that the server is to take.",
        ),
    ] = GPU_MEMORY_UTILIZATION,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Print docs/doctor.md: all checks. Asks nobody.")
    ] = False,
) -> None:
    """Examine the nodes before anything runs on them; changes nothing.

    Exit code 19 when something failed: docs/doctor.md says what is examined and why.
    """
    from sparkimage.nodes import session, ssh
    from sparkimage.serve.doctor import doctor as doctors
    from sparkimage.serve.doctor.checks import FAIL, WARN, ClusterReport

    if reference:
        typer.echo(doctors.page(), nl=False)
        return
    if local and nodes != NODES:
        raise UsageError("--local and --nodes exclude each other", hint="leave one out")
    began = time.monotonic()
    if local:
        reports = doctors.this_machine(model, patience_s=patience)
    else:
        fleet = read_fleet(nodes)
        reports = session.survey(fleet, ssh.MACHINE, patience_s=patience, model=model)
    cluster = ClusterReport(
        nodes=reports, model=model, port=port, master_port=master_port, rdma=rdma,
        utilization=utilization,
    )  # fmt: skip
    found = doctors.examine(cluster)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, time.monotonic() - began)
    failed, warned = found.count(FAIL), found.count(WARN)
    if failed or (strict and warned):
        bad = [FAIL, *([WARN] if strict else [])]
        names = {name for one in found.findings if one.severity in bad for name in one.nodes}
        where = ", ".join(one.name for one in reports if one.name in names)
        what = _many(failed, "failure")
        if strict:
            what += f" and {_many(warned, 'warning')}"
        raise DoctorError(
            f"{what} on {where}", hint="fix what the findings say and run the same command again"
        )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _show(found: Diagnosis, seconds: float) -> None:
    from rich.padding import Padding
    from rich.table import Table

    from sparkimage.core.units import clock
    from sparkimage.serve.doctor.checks import FAIL, INFO, WARN, Severity

    terminal = console()
    several = found.cluster.several
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found.results:
        if one.worst is not Severity.UNKNOWN:
            table.add_row(MARKS[one.worst], one.check.title, _seen(one, several=several))
    terminal.print(table, highlight=False)
    for finding in found.findings:
        terminal.print("")
        terminal.print(_headline(finding, found.cluster), highlight=False)
        fix = finding.fix if several else finding.fix.removeprefix("there: ")
        for word, text in (("why", finding.why), ("fix", fix)):
            if text and not (word == "why" and finding.severity is INFO):
                terminal.print(Padding(_line(word, text), (0, 0, 0, 2)), highlight=False)
    counts = ", ".join(
        _many(found.count(severity), word)
        for severity, word in (
            (FAIL, "failure"), (WARN, "warning"), (INFO, "note"),
        )
    )  # fmt: skip
    asked = sum(one.worst is not Severity.UNKNOWN for one in found.results)
    which = f"{_many(len(found.cluster.nodes), 'machine')}" if several else "one machine"
    terminal.print(f"\n{asked} checks of {which} in {clock(seconds)}: {counts}", highlight=False)


def _seen(one: Result, *, several: bool) -> str:
    """What was seen; where it is not the same everywhere, on which nodes."""
    from rich.markup import escape

    from sparkimage.serve.doctor.checks import INFO, Severity, grouped, in_words

    bad = [name for name, severity in one.nodes.items() if severity is one.worst]
    mine = one.worst not in (Severity.OK, INFO) and several and len(bad) < len(one.nodes)
    groups = grouped((name, text) for name, text in one.seen.items())
    said = ""
    if groups:
        said = in_words(groups) if len(groups) <= SHOWN else f"{len(groups)} different ones"
    if mine:
        said = f"{', '.join(bad)}" if len(groups) < 2 else said
    return escape(said)


SHOWN = 4
"""Different values that a row of the table names."""


def _headline(finding: Finding, cluster: ClusterReport) -> str:
    from rich.markup import escape

    names = ", ".join(finding.nodes)
    if len(finding.nodes) == len(cluster.nodes):
        names = f"all {len(cluster.nodes)} nodes"
    return (
        f"{MARKS[finding.severity]} "
        + (f"[bold]{escape(names)}[/]: " if cluster.several else "")
        + escape(finding.what)
    )


def _line(word: str, text: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=4, style="dim")
    table.add_column(overflow="fold")

    table.add_row(word, Text(text))
    return table
