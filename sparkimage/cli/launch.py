"""The commands that start what was distributed, and work with what was started."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from sparkimage.cli.base import (
    AllowOption,
    JsonOption,
    console,
    new_table,
    print_json,
    read_fleet,
    read_matrix,
    say,
)
from sparkimage.cli.fleet import NODES, NodesOption, PatienceOption
from sparkimage.cli.verify import Reference, to_ship
from sparkimage.core.errors import LaunchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sparkimage.serve.command import Container
    from sparkimage.serve.readiness import Finding
    from sparkimage.serve.running import DeploymentStatus
    from sparkimage.serve.waiting import Ready

NAME = "vllm"
NEEDED_CACHES = {"/root/.cache/vllm": "vllm", "/root/.triton/cache": "triton"}
"""Where kernels are kept in the container, and by whom."""
NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
NameOption = Annotated[
    str | None, typer.Option("--name", help="Which set, where there are several.")
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", min=1, help="So long it may take until it is ready."
    ),
]
KeepOption = Annotated[
    bool, typer.Option("--keep", help="Leave what was started when it fails, to look at it.")
]


class Form(StrEnum):
    """How what would be started is printed."""

    RUN = "run"
    COMPOSE = "compose"


def launch(
    reference: Reference,
    model: Annotated[
        str, typer.Option(metavar="DIR", help="The model's folder, the same path on every node.")
    ],
    nodes: NodesOption = NODES,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the matrix; default: the one for the variant on so many nodes.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the set: its containers' name.")] = NAME,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the nodes and print each one's command.")
    ] = False,
    print_: Annotated[
        Form | None, typer.Option("--print", help="With --dry-run's effect: print it in this form.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="A set of this name that runs gives way.")
    ] = False,
    share_cache: Annotated[
        bool,
        typer.Option(
            "--share-cache", help="One cache for all images instead of one for each digest."
        ),
    ] = False,
    timeout: TimeoutOption = 1800.0,
    keep: KeepOption = False,
    allow_unverified: AllowOption = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Start a distributed image on the nodes as one server: on all of them, or on none.

    The command of each node follows from the image (entry point, measured NCCL), the profile and
    the node. Done when the server is ready and the ranks' logs have shown the pinned NCCL and RDMA.
    """
    import re

    from sparkimage.config.inventory import Fleet
    from sparkimage.core import paths
    from sparkimage.core.progress import View
    from sparkimage.image import layerindex
    from sparkimage.image.store import Store
    from sparkimage.serve import choices
    from sparkimage.serve.command import Request
    from sparkimage.serve.launch import Launch, Options
    from sparkimage.serve.waiting import ProofError

    if not model.startswith("/") or re.search(r"[\x00-\x1f]", model):
        raise UsageError(
            f"--model {model!r} is no absolute path",
            hint="name the folder as the nodes have it: --model /models/NAME",
        )
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"--name {name!r} cannot be a container's name", hint="letters, digits, -")
    read, store = read_matrix(), Store.open(paths.store())
    fleet = read_fleet(nodes)
    record, held, _decision = to_ship(
        store, reference, allow_unverified=allow_unverified, read=read
    )
    plan = record.plan
    profile_name, chosen = choices.pick(
        dict(read.profiles), plan.variant, profile, len(fleet.nodes)
    )
    ranks = choices.order(fleet, chosen.nodes)
    pin = plan.versions.get("nccl", "")
    preload = ""
    if pin:
        with store.in_use(say):
            found = choices.libraries(layerindex.image_files(store, held))
        preload = choices.choose(found, pin, held.settings.env).path
    lacking = [one for one in NEEDED_CACHES if one not in chosen.caches.values()]
    if lacking:
        names = ", ".join(NEEDED_CACHES[one] for one in lacking)
        typer.echo(
            f"warning: profile {profile_name} has no cache for {names}: every start compiles again",
            err=True,
        )
    request = Request(
        name=name,
        variant=plan.variant,
        digest=held.digest,
        profile_name=profile_name,
        profile=chosen,
        model=model.rstrip("/") or "/",
        entrypoint=held.settings.entrypoint,
        preload=preload,
        nccl=pin,
        share_cache=share_cache,
    )
    one = Launch(
        request=request,
        image=held,
        image_name=plan.image,
        fleet=Fleet(nodes=ranks, file=fleet.file),
        view=View(console(stderr=True), quiet=as_json),
        options=Options(timeout_s=timeout, keep=keep, replace=replace, patience_s=patience),
    )
    if dry_run or print_ is not None:
        _print(one.plan(), print_ or Form.RUN, as_json=as_json)
        return
    try:
        ready = one.run()
    except ProofError as error:
        _show_findings(error.findings, as_json=as_json)
        raise
    _show_ready(ready, as_json=as_json)


def _print(planned: Sequence[Container], form: Form, *, as_json: bool) -> None:
    if as_json:
        print_json([one.to_dict() for one in planned])
        return
    for place, one in enumerate(planned):
        role = "head" if one.rank == 0 else "worker"
        if place:
            typer.echo("")
        typer.echo(f"# {one.node}: rank {one.rank}, {role}")
        typer.echo(one.pasteable() if form is Form.RUN else one.compose().rstrip("\n"))
        if form is Form.COMPOSE and place < len(planned) - 1:
            typer.echo("---")


def _show_ready(ready: Ready, *, as_json: bool) -> None:
    from sparkimage.core.units import clock

    if as_json:
        print_json(ready.to_dict())
        return
    _show_findings(ready.findings, as_json=False)
    spec = ready.spec
    where = ", ".join(one.name for one in ready.ranks)
    typer.echo(
        f"{spec.name} serves {spec.variant} ({spec.digest[7:19]}) on {where}: ready after "
        f"{clock(ready.seconds)}\n{spec.url}"
    )


def _show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    from rich.markup import escape

    if as_json:
        print_json({"proof": [one.to_dict() for one in findings]})
        return
    if not findings:
        return
    table = new_table("", "rank", "node", "looked for", "seen")
    for one in findings:
        mark = "[green]✓[/]" if one.ok else "[red]✗[/]"
        table.add_row(mark, str(one.rank), escape(one.node), one.what, escape(one.seen))
    console().print(table)


def status(
    nodes: NodesOption = NODES,
    name: NameOption = None,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show what runs on the nodes, and whether it is whole (exit code 18 when it is broken)."""
    from sparkimage.serve import running

    found, errors = running.look(read_fleet(nodes), name=name, patience_s=patience)
    if as_json:
        said = {
            "sets": [one.to_dict() for one in found],
            "errors": {node: error.message for node, error in sorted(errors.items())},
        }
        print_json(said)
    elif found:
        for place, one in enumerate(found):
            if place:
                typer.echo("")
            console().print(_status_table(one))
    else:
        typer.echo("nothing runs on the nodes" + (" that were asked" if errors else ""))
    broken = [f"{one.set.name}: {problem}" for one in found for problem in one.problems]
    if errors:
        from sparkimage.nodes.retag import lines
        from sparkimage.serve import sets

        error = sets.failure(errors, len(read_fleet(nodes).nodes), "")
        error.message = f"could not reach {len(errors)} nodes"
        error.detail = "\n".join([*lines(errors), *broken])
        raise error
    if broken:
        zombies = any(one.set.zombies for one in found)
        raise LaunchError(
            f"{len([one for one in found if one.problems])} of {len(found)} sets broken",
            detail="\n".join(broken),
            hint="end it, zombies too: python build.py stop"
            if zombies
            else "see why: python build.py logs; then python build.py restart",
        )


def _status_table(one: DeploymentStatus) -> Table:
    from rich.markup import escape

    first = one.set.members[0]
    health = one.health or "no head to ask"
    table = new_table(
        "", "node", "rank", "state", "since (UTC)", "image", "restarts", right=["rank", "restarts"],
        title=f"{one.set.name}: {first.variant}, {first.profile}; health: {health}",
    )  # fmt: skip
    identity = first.identity
    for member in one.set.members:
        zombie = member in one.set.zombies
        mark = "[green]✓[/]" if member.lives and not zombie else "[red]✗[/]"
        same = member.identity == identity and member.digest == first.digest
        since = (member.started if member.lives else member.ended).replace("T", " ")[:16]
        state = f"{member.words()}, zombie" if zombie else member.words()
        table.add_row(
            mark, escape(member.node), f"{member.rank} {member.role}", escape(state), since,
            f"{'=' if same else '[red]≠[/]'} {escape(member.digest[7:19])}", str(member.restarts),
        )  # fmt: skip
    return table


def logs(
    nodes: NodesOption = NODES,
    name: NameOption = None,
    node: Annotated[str | None, typer.Option("--node", help="Of this node alone.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="Of this rank alone.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", min=0, help="The last N lines of each.")
    ] = None,
    patience: PatienceOption = 60.0,
) -> None:
    """Print the ranks' logs as one, each line with its node's name."""
    from sparkimage.serve import running

    with running.logs(
        read_fleet(nodes), name=name, node=node, rank=rank, tail=tail,
        follow=follow, patience_s=patience,
    ) as (names, lines, errors):  # fmt: skip
        for lost, error in sorted(errors.items()):
            typer.echo(f"warning: {lost}: {error.message}", err=True)
        width = max(map(len, names))
        try:
            for at, line in lines:
                typer.echo(f"{at:<{width}} | {line}")
        except BaseException as error:
            # Not handled, only named.
            error.add_note("no more lines are printed, and the set goes on")
            raise


def stop(
    nodes: NodesOption = NODES,
    name: NameOption = None,
    patience: PatienceOption = 60.0,
) -> None:
    """End a set on all nodes, and what is left of one; nothing to end is no failure."""
    from sparkimage.serve import running, sets

    fleet = read_fleet(nodes)
    was, errors = running.stop(fleet, name=name, patience_s=patience)
    if was is None:
        typer.echo("there is nothing to stop" + (" on the nodes that answer" if errors else ""))
    else:
        done = [one for one in was.members if one.node not in errors]
        typer.echo(f"{was.name} is stopped on {', '.join(one.node for one in done) or 'no node'}")
        for one in was.zombies:
            typer.echo(f"  {one.node} had a zombie worker (rank {one.rank})")
    if errors:
        raise sets.failure(errors, len(fleet.nodes), "could not be told to stop")


def restart(
    nodes: NodesOption = NODES,
    name: NameOption = None,
    timeout: TimeoutOption = 1800.0,
    keep: KeepOption = False,
    patience: PatienceOption = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Start a set again: the same containers, so the same commands and the same image."""
    from sparkimage.core.progress import View
    from sparkimage.serve import running
    from sparkimage.serve.waiting import ProofError

    try:
        ready = running.restart(
            read_fleet(nodes), name=name, timeout_s=timeout, keep=keep,
            patience_s=patience, view=View(console(stderr=True), quiet=as_json),
        )  # fmt: skip
    except ProofError as error:
        _show_findings(error.findings, as_json=as_json)
        raise
    _show_ready(ready, as_json=as_json)
