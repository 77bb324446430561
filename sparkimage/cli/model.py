"""The commands that bring a model's folder to the nodes of a fleet, and show what is there."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparkimage.cli import base, options
from sparkimage.cli.commands import Group
from sparkimage.cli.options import flag, value
from sparkimage.core import paths
from sparkimage.core.errors import MixedFleetError, UsageError
from sparkimage.core.program import program
from sparkimage.core.progress import waiting
from sparkimage.core.units import clock, human, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparkimage.core.tables import Table
    from sparkimage.nodes.model_fleet import Found
    from sparkimage.nodes.model_push import Outcome
    from sparkimage.nodes.model_store import Model

app = typer.Typer(
    cls=Group,
    help="Copy a model's folder to all nodes or to none; show, verify and clean up what is there.",
    no_args_is_help=True,
)
MARKS = {"copied": base.OK, "verified": base.OK, "unchanged": base.SAME, "failed": base.FAILED}
Folder = Annotated[
    str | None, typer.Argument(metavar="DIR", help="Its path on the nodes; default: all pushed.")
]


@app.command()
def push(
    dir: Annotated[Path, typer.Argument(help="The folder on this machine.")],
    nodes: options.Nodes = options.FLEET_FILE,
    to: Annotated[str, value("PATH", "The path on the nodes; default: that of DIR.")] = "",
    limit: Annotated[float | None, value("MB/s", "Send no more than this.", min=0.1)] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Only show what would be sent.")] = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Copy a model's folder to all nodes or to none; only the files that a node lacks.

    Nodes pass files on to each other by ssh. A folder of Hugging Face's cache
    (models--…, or one of its snapshots) is taken, too.
    """
    from sparkimage.nodes import ssh
    from sparkimage.nodes.connection import begun

    source = dir.absolute()
    target = _target(to, f"--to {to!r}") if to else _target(os.path.abspath(source), repr(str(dir)))
    fleet = base.read_fleet(nodes)
    owner = ssh.lock_owner()
    with begun(fleet.nodes, patience, lock=not dry_run, owner=owner) as remotes:
        from sparkimage.nodes import model_manifest, model_store
        from sparkimage.nodes.model_push import Push

        home, view = paths.home(), base.new_view(quiet=as_json)
        found = model_manifest.scan(source)

        def hash() -> model_manifest.Manifest:
            with view.transfer(f"reading {source}", found.size) as moved:
                return model_manifest.hash_all(found, model_store.cache_of(home, source), moved)

        run = Push(
            folder=target, source=found, remotes=remotes, owner=owner, view=view, hash=hash,
            limit=limit * 1e6 if limit is not None else None, dry_run=dry_run,
        )  # fmt: skip
        try:
            outcome = run.run()
        finally:
            for warning in run.update.warned():
                base.warn(warning)
        if not dry_run:
            model_store.keep(
                home, target, run.manifest, source=str(source), by=owner, nodes=fleet.names
            )
    base.print_result(outcome.to_dict(), _outcome_table(outcome), as_json=as_json)


def _target(path: str, given: str) -> str:
    """The path on the nodes; ``given``: how messages name it. Raises ``UsageError``."""
    if Path(path) == Path("/"):
        raise UsageError(
            f"{given} is the root folder", hint="pass the folder of one model: /models/NAME"
        )
    if not path.startswith("/") or ".." in Path(path).parts:
        raise UsageError(
            f"{given} is not the absolute path of a folder", hint="such as /models/NAME"
        )
    if re.search(r"[\x00-\x1f\\]", path):
        raise UsageError(f"{given} has a control character or backslash", hint="pass another name")
    return path.rstrip("/")


def _outcome_table(outcome: Outcome) -> Table:
    planned = any(node.state == "planned" for node in outcome.nodes)
    what = "lacks" if planned else "got"
    table = base.new_table(
        "", "node", "state", what, "rate", right=[what, "rate"],
        title=f"{plural(outcome.files, 'file')}, {human(outcome.size)}, "
        f"{clock(outcome.seconds)}",
    )  # fmt: skip
    for node in outcome.nodes:
        rate = f"{human(node.sent / node.seconds)}/s" if node.seconds else ""
        table.add_row(
            MARKS.get(node.state, "·"), base.plain(node.node), node.state, human(node.sent), rate
        )
    return table


def _models(folder: str | None) -> list[Model]:
    """The models that were pushed from here, or the one at this path. Raises ``UsageError``."""
    from sparkimage.nodes import model_store

    models = model_store.kept(paths.home())
    if folder is None:
        return models
    folder = folder.rstrip("/")
    models = [model for model in models if model.folder == folder]
    if not models:
        raise UsageError(
            f"no manifest of {folder} is kept here", hint=f"{program()} model push {folder}"
        )
    return models


@app.command()
def status(
    folder: Folder = None,
    nodes: options.Nodes = options.FLEET_FILE,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Show which nodes have the pushed models (exit code 15 if they differ)."""
    from sparkimage.nodes import model_fleet

    models = _models(folder)
    if not models:
        typer.echo("no model was pushed from here" if not as_json else "[]")
        return
    fleet = base.read_fleet(nodes)
    with waiting("looking at the nodes"):
        found = model_fleet.status(fleet, models, patience_s=patience)
    _show(models, found, as_json)


@app.command()
def verify(
    folder: Folder = None,
    nodes: options.Nodes = options.FLEET_FILE,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Read all files of the pushed models on every node, and compare their hashes."""
    from sparkimage.nodes import model_fleet
    from sparkimage.nodes.ssh import lock_owner

    models = _models(folder)
    found = model_fleet.verify(
        base.read_fleet(nodes), models, base.new_view(quiet=as_json), owner=lock_owner(),
        patience_s=patience,
    )  # fmt: skip
    _show(models, found, as_json)


def _show(models: Sequence[Model], found: Found, as_json: bool) -> None:
    data = [
        {
            "folder": model.folder, "digest": model.manifest.digest, "when": model.when,
            "files": len(model.manifest.entries), "size": model.manifest.size,
            "nodes": [
                {
                    "node": one.node,
                    "differences": list(one.differences),
                    "previous": one.state.previous if one.state is not None else None,
                    "error": one.error.message if one.error is not None else None,
                }
                for one in found[model.folder]
            ],
        }
        for model in models
    ]  # fmt: skip
    base.print_result(data, models_table(models, found), as_json=as_json)
    views = [one for model in models for one in found[model.folder]]
    errors = {one.node: one.error for one in views if one.error is not None}
    wrong = [
        f"{one.node}: {model.folder}: {text}"
        for model in models
        for one in found[model.folder]
        for text in one.differences[:SHOWN]
    ]
    if errors:
        raise base.unreachable(errors, len({one.node for one in views}))
    if wrong:
        raise MixedFleetError(
            f"{plural(sum(1 for one in views if one.differences), 'folder')} not as pushed",
            detail="\n".join(wrong), hint=f"{program()} model push DIR",
        )  # fmt: skip


SHOWN = 5
"""Differences of one folder that are shown."""


def models_table(models: Sequence[Model], found: Found) -> Table:
    """Each model with its digest, and the nodes that have it."""
    table = base.new_table(
        "", "model", "digest", "size", "pushed (UTC)", "nodes",
        right=["size"], wrap=["nodes"], drop=["pushed (UTC)", "size"],
    )  # fmt: skip
    for model in models:
        groups: dict[str, list[str]] = {}
        for one in found[model.folder]:
            groups.setdefault(_word(one), []).append(one.node)
        everywhere = list(groups) == [""]
        table.add_row(
            base.SAME if everywhere else "[red]≠[/]", base.plain(model.folder),
            model.manifest.digest[:12], human(model.manifest.size), base.date(model.when),
            f"all {len(found[model.folder])} nodes" if everywhere
            else "; ".join(f"{word}: {', '.join(names)}" if word else ", ".join(names)
                           for word, names in groups.items()),
        )  # fmt: skip
    return table


def _word(one: Any) -> str:
    if one.error is not None:
        return "unreachable"
    if not one.differences:
        return ""
    return "missing" if one.state.state == "missing" else "differs"


@app.command()
def gc(
    folder: Folder = None,
    nodes: options.Nodes = options.FLEET_FILE,
    dry_run: Annotated[bool, flag("--dry-run", "Only show what would be freed.")] = False,
    patience: options.Patience = 60,
    as_json: options.Json = False,
) -> None:
    """Remove what failed pushes left on the nodes, and the folder that each push replaced."""
    from sparkimage.nodes import model_fleet
    from sparkimage.nodes.ssh import lock_owner

    folders = (
        [_target(folder, repr(folder))] if folder else [model.folder for model in _models(None)]
    )
    fleet = base.read_fleet(nodes)
    with waiting("looking for what can be removed" if dry_run else "removing"):
        freed, errors = model_fleet.collect(
            fleet, folders, owner=lock_owner(), patience_s=patience, dry_run=dry_run
        )
    if as_json:
        base.print_json([asdict(one) for one in freed])
    else:
        verb = "would free" if dry_run else "freed"
        for one in freed:
            typer.echo(f"{one.node}: {verb} {human(one.freed)} beside {one.folder}")
        if not folders:
            typer.echo("no model was pushed from here; name a folder: model gc DIR")
    if errors:
        total = len({one.node for one in freed} | set(errors))
        raise base.node_error(f"{len(errors)} of {plural(total, 'node')} failed", errors)
