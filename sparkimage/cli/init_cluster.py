"""`init`: finds the nodes of a cluster, and writes its fleet file."""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli import base, options
from sparkimage.cli.options import flag, value
from sparkimage.core.errors import NodeError, UsageError
from sparkimage.core.files import write
from sparkimage.core.program import program
from sparkimage.core.progress import waiting
from sparkimage.core.units import plural

if TYPE_CHECKING:
    from sparkimage.nodes.survey import Survey


def cluster(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[USER@]HOST[:PORT]",
            help="The nodes; default: GPU machines of ~/.ssh/config and of the network (mDNS).",
        ),
    ] = None,
    user: Annotated[str | None, value("NAME", "Log in as NAME; default: as ssh does.")] = None,
    nodes: Annotated[Path, value("FILE", "Write this file.")] = Path(options.FLEET_FILE),
    dry_run: Annotated[bool, flag("--dry-run", "Print the file; write nothing.")] = False,
    yes: Annotated[bool, flag("--yes", "Add to a file that is there without asking.")] = False,
    partial: Annotated[bool, flag("--partial", "Leave out nodes that do not answer.")] = False,
    patience: options.Patience = 20,
    as_json: options.Json = False,
) -> None:
    """Find the nodes of your cluster and write fleet.yaml: how each is reached, the fast network
    between them, its RDMA devices, the head.

    It changes nothing on the nodes. What they lack (your key, the right to use Docker) is reported
    with the command for it. A file that is there keeps all that it has, and gets the nodes that it
    lacks.

    Example: `sparkimage init nv@spark1.local nv@spark2.local`
    """
    from sparkimage.config import fleetfile, inventory
    from sparkimage.core.process import Local
    from sparkimage.nodes import discovery, survey

    path = nodes if nodes.is_absolute() or nodes.exists() else base.project_folder() / nodes
    known = inventory.load(path).nodes if path.is_file() else ()
    runner = Local()
    candidates = discovery.given(hosts, user) if hosts else discovery.find(runner, user)
    if not candidates and not known:
        raise UsageError(
            "no node was named, none is in ~/.ssh/config, and none is announced on this network",
            hint=f"name them: {program()} init nv@192.168.1.20 nv@192.168.1.21",
        )
    asked = {(one.control, one.port) for one in (*known, *(each.node for each in candidates))}
    base.say(f"asking {plural(len(asked), 'host')}")
    with waiting("waiting for their answers"):
        found = survey.examine(known, candidates, runner, patience_s=patience)
    if as_json:
        base.print_json(found.to_dict())
    else:
        _print(found)
    if (found.failed and not partial) or not found.nodes:
        left = "; or leave them out: --partial" if found.nodes else ""
        raise NodeError(
            f"{', '.join(found.failed) or 'no host'} cannot be used yet: {path} was not written",
            hint=f"follow the steps above, then run the same command again{left}",
        )
    text = fleetfile.extended(path.read_text(), found.new) if known else fleetfile.new(found.new)
    if text is None:
        raise UsageError(
            f"{path} has its nodes in braces: no place for more",
            detail=fleetfile.new(found.new), hint="write each of its nodes on lines of its own",
        )  # fmt: skip
    if dry_run:
        if not as_json:
            typer.echo(text, nl=False)
        base.say(f"{path} was not written (--dry-run)")
        return
    if found.new and _may_write(path, found, yes=yes):
        _write(path, text)
        base.say(f"{path}: {', '.join(node.name for node in found.new)} added")
    else:
        base.say(f"{path} is as it was")
    first = "the commands above, then " if found.to_do else ""
    option = "" if nodes == Path(options.FLEET_FILE) else f" --nodes {shlex.quote(str(nodes))}"
    base.say(f"\nNext: {first}{program()} doctor{option}")


def _may_write(path: Path, found: Survey, *, yes: bool) -> bool:
    """Whether it is a new file, or the user agrees."""
    if yes or not path.exists():
        return True
    names = ", ".join(node.name for node in found.new)
    if not sys.stdin.isatty():
        raise UsageError(f"{path} is there already", hint=f"add {names} to it: --yes")
    return typer.confirm(f"add {names} to {path}?", err=True)


def _write(path: Path, text: str) -> None:
    from sparkimage.config import inventory

    with tempfile.TemporaryDirectory() as folder:
        proof = Path(folder, path.name)
        proof.write_text(text)
        inventory.load(proof)
    try:
        write(path, text.encode())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}",
            hint="write it elsewhere: --nodes FILE, here and with the commands that follow",
        ) from None


def _print(found: Survey) -> None:
    from sparkimage.nodes import ssh

    columns = ("node", "role", "log in", "data", "interface", "RDMA", "GPUs", "")
    table = base.new_table(*columns, wrap=["RDMA"], drop=["role", "GPUs", "interface"])
    for node in found.nodes:
        seen = found.snapshots.get(node.name)
        table.add_row(
            node.name, node.role or "", ssh.destination(node)[-1], node.data or "",
            node.interface or "", ", ".join(node.hca),
            str(len(seen.gpus)) if seen is not None else "?",
            "new" if node in found.new else "",
        )  # fmt: skip
    if found.nodes:
        base.print_table(table)
    if found.apart:
        base.paragraph(
            "This machine is not in the nodes' fast network: images go to them over their control "
            "addresses, and ranks use the interface."
        )
    for one in found.left_out:
        base.paragraph(f"left out: {base.plain(one.host)} ({one.source}): {base.plain(one.why)}")
    for todo in found.to_do:
        base.paragraph(f"\n{base.WARNING} {todo.node}: {base.plain(todo.why)}")
        if todo.command:
            base.show(f"    {base.plain(todo.command)}")
