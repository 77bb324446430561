"""The commands that start a server on the nodes, and manage what runs there."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparkimage.cli import base, complete, options
from sparkimage.cli.options import flag, value
from sparkimage.cli.verify import to_ship
from sparkimage.core.errors import LaunchError, UsageError
from sparkimage.core.program import program
from sparkimage.core.units import clock, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sparkimage.config.inventory import Fleet
    from sparkimage.core.tables import Table
    from sparkimage.serve.command import Container
    from sparkimage.serve.deployments import Deployment
    from sparkimage.serve.readiness import Finding
    from sparkimage.serve.waiting import Ready

NAME = "vllm"
CLEAR = "\x1b[H\x1b[2J"
WATCH_S = 5.0
"""Seconds between two looks of `status --watch`."""
NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}"
Timeout = Annotated[float, value("SECONDS", "Give up if not ready after SECONDS.", min=1)]
WarmUp = Annotated[float, value("SECONDS", "Warm up for SECONDS at most.", min=1)]
NoWarmUp = Annotated[
    bool, flag("--no-warm-up", "Return when ready; the first users wait for kernels.")
]
Keep = Annotated[bool, flag("--keep", "Leave the containers of a failed start running.")]


CommandFormat = Literal["run", "compose"]


def launch(
    reference: options.Reference,
    model: Annotated[str, value("DIR", "The model's absolute path, the same on every node.")],
    nodes: options.Nodes = options.FLEET_FILE,
    profile: Annotated[
        str | None,
        value(
            "NAME",
            "A profile of the matrix. Default: by variant and node count.",
            autocompletion=complete.profiles,
        ),
    ] = None,
    name: Annotated[str, value("NAME", "Name the deployment and its containers.")] = NAME,
    dry_run: Annotated[bool, flag("--dry-run", "Only print the nodes' commands.")] = False,
    print_: Annotated[
        CommandFormat | None, typer.Option("--print", help="Like --dry-run, in this format.")
    ] = None,
    replace: Annotated[bool, flag("--replace", "Stop a deployment of this name first.")] = False,
    share_cache: Annotated[bool, flag("--share-cache", "Share one cache between images.")] = False,
    save_caches: Annotated[
        bool, flag("--save-caches", "Save what was compiled, for nodes that lack it.")
    ] = False,
    replace_caches: Annotated[
        bool, flag("--replace-caches", "Saved caches replace those that nodes compiled.")
    ] = False,
    timeout: Timeout = 1800,
    warm_up: WarmUp = 600,
    no_warm_up: NoWarmUp = False,
    keep: Keep = False,
    allow_unverified: options.AllowUnverified = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Start a distributed image as one server on all nodes, or on none.

    Each node's command follows from the image (entrypoint, libnccl), the profile and the node.
    Returns once the server is ready, the ranks' logs show the pinned NCCL and RDMA, and requests
    of growing length and number compile no kernels any more.
    """
    from sparkimage.nodes.connection import begun
    from sparkimage.nodes.ssh import CONTAINERS, IMAGES, MACHINE

    _check_words(model, name)
    _check_cache_options(save_caches, replace_caches, share_cache, no_warm_up)
    model, fleet = model.rstrip("/") or "/", base.read_fleet(nodes)
    # A profile that is named may be for fewer nodes; else all take part, and answer while the
    # matrix is read.
    matrix, ranks = None, fleet.ranks(len(fleet.nodes))
    if profile is not None:
        from sparkimage.serve import choices

        matrix = base.read_matrix()
        chosen = choices.named(matrix.profiles, profile)
        ranks = fleet.ranks(choices.node_count(chosen, fleet))
    with begun(ranks, patience, IMAGES, CONTAINERS, MACHINE, model=model) as remotes:
        from sparkimage.serve import choices, nccl, secrets
        from sparkimage.serve.command import Request
        from sparkimage.serve.launch import Launch

        matrix, store = matrix or base.read_matrix(), base.open_store()
        view = base.new_view(quiet=as_json)
        record, image, _decision = to_ship(
            store, reference, allow_unverified=allow_unverified, matrix=matrix
        )
        plan, config = record.plan, image.settings
        profile_name, settings = choices.pick(matrix.profiles, plan.variant, profile, fleet)
        if save_caches and not settings.caches:
            raise UsageError(
                f"profile {profile_name} has no `caches` to save", hint="add some: docs/caches.md"
            )
        with store.in_use(base.say):
            libraries, conf = nccl.of_image(store, image)
        _warn_of_conf(conf)
        if missing := choices.uncached(config.entrypoint, settings):
            caches = ", ".join(missing)
            base.warn(f"profile {profile_name} has no cache for {caches}: every start recompiles")
        only_print, saved = dry_run or print_ is not None, None
        if not share_cache and not only_print:
            from sparkimage.serve.cache_store import CacheStore
            from sparkimage.serve.caches import Caches

            saved = Caches(
                store=CacheStore.of(store), image=image, variant=plan.variant,
                profile_name=profile_name, profile=settings, model=model, view=view, warn=base.warn,
                save=save_caches, replace=replace_caches, patience_s=patience,
            )  # fmt: skip
        pin = plan.expect.nccl
        deployment = Launch(
            request=Request(
                name=name,
                variant=plan.variant,
                digest=image.digest,
                profile_name=profile_name,
                profile=settings,
                model=model,
                entrypoint=config.entrypoint,
                libraries=libraries,
                nccl=nccl.choose(libraries, pin, config.env) if pin else None,
                share_cache=share_cache,
                chat_template=_chat_template(profile_name, settings.chat_template),
            ),
            image=image,
            plan=plan,
            nccl_conf=conf,
            pushed=next(iter(base.pushed_models(model)), None),
            caches=saved,
            remotes=remotes,
            view=view,
            timeout_s=timeout,
            warm_up_s=0.0 if no_warm_up else warm_up,
            keep=keep,
            replace=replace,
        )
        if only_print:
            _print_commands(deployment.dry_run(), print_ or "run", as_json=as_json)
            return
        deployment.secrets = secrets.take(profile_name, settings.secrets)
        _print_ready(deployment.run, as_json=as_json)


def _check_words(model: str, name: str) -> None:
    """Raises ``UsageError``."""
    if not model.startswith("/") or re.search(r"[\x00-\x1f]", model):
        raise UsageError(
            f"--model {model!r} is not an absolute path",
            hint="pass the folder on the nodes: --model /models/NAME",
        )
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"--name {name!r} is not a valid container name", hint="use letters, digits and -"
        )


def _check_cache_options(save: bool, replace: bool, share: bool, no_warm_up: bool) -> None:
    """Raises ``UsageError``."""
    if (save or replace) and share:
        raise UsageError(
            "a cache that images share is not saved or copied",
            hint="drop --share-cache, or --save-caches and --replace-caches",
        )
    if save and no_warm_up:
        raise UsageError(
            "only a warmed-up server has compiled all that it needs", hint="drop --no-warm-up"
        )


def _warn_of_conf(conf: Mapping[str, Mapping[str, str]]) -> None:
    for file, values in conf.items():
        words = " ".join(f"{name}={value}" for name, value in values.items())
        base.warn(f"NCCL reads {file} of the image, where launch sets nothing else: {words}")


def _chat_template(profile: str, name: str | None) -> str:
    """The text of a profile's chat template. Raises ``UsageError``."""
    if name is None:
        return ""
    file = base.project_folder() / name
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the chat template of profile {profile} cannot be read: {file}: {error}",
            hint="`chat_template` of a profile is a text file, relative to matrix.yaml",
        ) from None
    if not text.strip():
        raise UsageError(
            f"the chat template of profile {profile} is empty: {file}",
            hint="write it there, or leave `chat_template` out of the profile",
        )
    return text


def _print_commands(
    containers: Sequence[Container], command_format: CommandFormat, *, as_json: bool
) -> None:
    if as_json:
        base.print_json([container.to_dict() for container in containers])
        return
    run = command_format == "run"
    texts = []
    for container in containers:
        role = "head" if container.rank == 0 else "worker"
        command = container.pasteable() if run else container.compose().rstrip("\n")
        texts.append(f"# {container.node}: rank {container.rank}, {role}\n{command}\n")
    typer.echo(("\n" if run else "---\n\n").join(texts), nl=False)


def _print_ready(start: Callable[[], Ready], *, as_json: bool) -> None:
    """Start, and print what the logs of the ranks show, whether they prove it or not."""
    from sparkimage.serve.waiting import ProofError

    try:
        ready = start()
    except ProofError as error:
        if as_json:
            base.print_json({"proof": [asdict(finding) for finding in error.findings]})
        else:
            _print_findings(error.findings)
        raise
    if as_json:
        base.print_json(ready.to_dict())
        return
    _print_findings(ready.findings)
    spec, warm_up = ready.spec, ready.warm_up
    warmed = f"; {warm_up} in {clock(warm_up.seconds)}" if warm_up.rounds > 1 else ""
    if warm_up.unfinished:
        base.warn(str(warm_up))
    nodes = ", ".join(rank.name for rank in ready.ranks)
    typer.echo(
        f"{spec.name} serves {spec.variant} ({base.short(spec.digest)}) on {nodes}\n"
        f"ready after {clock(ready.seconds)}{'' if warm_up.unfinished else warmed}\n{spec.url}"
    )


def _print_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        return
    table = base.new_table("", "rank", "node", "expected", "seen", wrap=["expected", "seen"])
    for finding in findings:
        mark = base.OK if finding.ok else base.FAILED
        cells = (finding.rank, finding.node, finding.what, finding.seen)
        table.add_row(mark, *map(base.plain, cells))
    base.print_table(table)


def status(
    nodes: options.Nodes = options.FLEET_FILE,
    name: options.Name = None,
    watch: Annotated[bool, flag("--watch", "Show it again and again, until Ctrl-C.")] = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Show the deployments on the nodes (exit code 18 if one is broken).

    A rank whose process is stopped, and a server without tokens whose /health is ok, are broken.
    An idle server is asked for one token; its API key is read from $SPARKIMAGE_API_KEY.
    """
    fleet = base.read_fleet(nodes)
    while watch:
        with base.shown_errors():
            _show_status(fleet, name, patience, as_json=as_json, clear=True)
        time.sleep(WATCH_S)
    _show_status(fleet, name, patience, as_json=as_json)


def _show_status(
    fleet: Fleet, name: str | None, patience: float, *, as_json: bool, clear: bool = False
) -> None:
    from sparkimage.serve import running

    deployments, errors = running.look(fleet, name=name, patience_s=patience)
    if clear and not as_json:
        base.show((CLEAR if sys.stdout.isatty() else "") + watched())
    result = {
        "sets": [deployment.to_dict() for deployment in deployments],
        "errors": {node: error.message for node, error in sorted(errors.items())},
    }
    base.print_result(result, *map(_status_table, deployments), as_json=as_json)
    if not deployments and not as_json and len(errors) < len(fleet.nodes):
        typer.echo(f"nothing runs on the nodes{' that answered' * bool(errors)}")
    broken = [deployment for deployment in deployments if deployment.problems]
    problems = [f"{one.name}: {problem}" for one in broken for problem in one.problems]
    if errors:
        error = base.unreachable(errors, len(fleet.nodes))
        error.detail = "\n".join([error.detail, *problems])
        raise error
    if broken:
        zombies = any(deployment.zombies for deployment in deployments)
        raise LaunchError(
            f"{len(broken)} of {plural(len(deployments), 'deployment')} broken",
            detail="\n".join(problems),
            hint=f"stop it, zombie workers included: {program()} stop"
            if zombies
            else f"read {program()} logs, then run {program()} restart",
        )


def watched() -> str:
    """The head of each look of ``--watch``."""
    return f"[dim]{time.strftime('%H:%M:%S')}, every {WATCH_S:g} s until Ctrl-C[/]"


def _status_table(deployment: Deployment) -> Table:
    members, zombies = deployment.members, deployment.zombies
    first = members[0]
    table = base.new_table(
        "", "node", "rank", "state", "since (UTC)", "image", "restarts",
        right=["rank", "restarts"], wrap=["state"], drop=["restarts", "since (UTC)", "image"],
        title=f"{deployment.name}: {first.variant}, {first.profile}; "
        f"health: {deployment.health or 'no head'}",
    )  # fmt: skip
    for member in members:
        zombie = member in zombies
        same = (member.identity, member.digest) == (first.identity, first.digest)
        table.add_row(
            base.OK if member.lives and not (zombie or member.stopped) else base.FAILED,
            base.plain(member.node),
            f"{member.rank} {member.role}",
            base.plain(member.state_text + ", zombie" * zombie),
            base.date(member.started if member.lives else member.ended),
            f"{'=' if same else '[red]≠[/]'} {base.plain(base.short(member.digest))}",
            str(member.restarts),
        )
    return table


def logs(
    nodes: options.Nodes = options.FLEET_FILE,
    name: options.Name = None,
    node: Annotated[
        str | None, value("NAME", "Only this node.", autocompletion=complete.nodes)
    ] = None,
    rank: Annotated[int | None, value("N", "Only this rank.", min=0)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the logs.")] = False,
    tail: Annotated[int | None, value("N", "The last N lines of each rank.", min=0)] = None,
    patience: options.Patience = 60,
) -> None:
    """Print the logs of all ranks together, each line with its node's name."""
    from sparkimage.serve import running

    with running.logs(
        base.read_fleet(nodes), name=name, node=node, rank=rank, tail=tail,
        follow=follow, patience_s=patience,
    ) as (names, lines, errors):  # fmt: skip
        for _, error in sorted(errors.items()):
            base.warn(error.message)
        width = max(map(len, names))
        try:
            for source, line in lines:
                typer.echo(f"{source:<{width}} | {line}")
        except BaseException as error:
            # Not handled, only named.
            error.add_note("the deployment keeps running")
            raise


def stop(
    nodes: options.Nodes = options.FLEET_FILE,
    name: options.Name = None,
    patience: options.Patience = 60,
) -> None:
    """Stop a deployment on all nodes and remove what is left of it; nothing to stop is OK."""
    from sparkimage.serve import running

    fleet = base.read_fleet(nodes)
    stopped, errors = running.stop(
        fleet, name=name, patience_s=patience, view=base.new_view()
    )  # fmt: skip
    if stopped is None and errors:
        what = ", where it may still run; nothing to stop on the others"
        raise base.unreachable(errors, len(fleet.nodes), what)
    if stopped is None:
        typer.echo("nothing to stop")
    else:
        done = [member.node for member in stopped.members if member.node not in errors]
        typer.echo(f"{stopped.name} stopped on {', '.join(done) or 'no node'}")
        for zombie in stopped.zombies:
            typer.echo(f"  {zombie.node} had a zombie worker (rank {zombie.rank})")
    if errors:
        raise base.unreachable(errors, len(fleet.nodes), ", where it may still run")


def restart(
    nodes: options.Nodes = options.FLEET_FILE,
    name: options.Name = None,
    timeout: Timeout = 1800,
    warm_up: WarmUp = 600,
    no_warm_up: NoWarmUp = False,
    keep: Keep = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Restart a deployment's containers, with the same image and commands."""
    from sparkimage.serve import running

    warm_up_s = 0.0 if no_warm_up else warm_up
    _print_ready(
        lambda: running.restart(
            base.read_fleet(nodes), name=name, timeout_s=timeout, warm_up_s=warm_up_s, keep=keep,
            patience_s=patience, view=base.new_view(quiet=as_json),
        ),
        as_json=as_json,
    )  # fmt: skip
