"""The commands by name. The module of a command is imported when it is called, or when the help of
all is asked for: that is a third of the time that a command takes to start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from sparkimage.core.program import as_called

if TYPE_CHECKING:
    # What typer vendors of click.
    from typer._click.core import Command, Context

PANELS: Mapping[str, tuple[str, ...]] = {
    "Build": (
        "image.image", "lock.lock", "verify.verify", "verify.report", "image.schema", "init.app",
        "patches.app", "engine.app",
    ),
    "Image store": ("store.images", "store.save", "store.load", "store.app"),
    "Registry": ("publish.publish", "publish.verify_published", "inspect.inspect"),
    "Nodes": (
        "fleet.distribute", "fleet.nodes", "fleet.rollback", "fleet.gc", "fleet.receipts",
        "model.app", "caches.caches",
    ),
    "Servers": (
        "doctor.doctor", "launch.launch", "launch.status", "launch.logs", "launch.stop",
        "launch.restart", "explain.explain", "probe.probe",
    ),
}  # fmt: skip
"""What there is, by the heading of --help that it stands under: MODULE.FUNCTION is a command,
MODULE.app one with commands of its own."""


class Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _OnCall()})

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """As of every group. Reading an option imports pydantic, given or not; where a command
        comes first there is none to read, and the defaults hold."""
        if args and args[0] in self.commands:
            self.params, self.add_help_option = [], False
        return super().parse_args(ctx, args)


class _OnCall(Mapping[str, "Command"]):
    """The commands of ``PANELS``, each made when it is looked up."""

    def __init__(self) -> None:
        self._paths = {_name(path): (path, panel) for panel in PANELS for path in PANELS[panel]}
        self._made: dict[str, Command] = {}

    def __getitem__(self, name: str) -> Command:
        if name not in self._made:
            self._made[name] = _command(name, *self._paths[name])
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _name(path: str) -> str:
    module, _, function = path.partition(".")
    return (module if function == "app" else function).replace("_", "-")


def _command(name: str, path: str, panel: str) -> Command:
    module, _, function = path.partition(".")
    called = getattr(import_module(f"sparkimage.cli.{module}"), function)
    alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    # With it, what is made of `alone` is a group.
    alone.callback()(lambda: None)
    if isinstance(called, typer.Typer):
        alone.add_typer(called, name=name, rich_help_panel=panel)
    else:
        alone.command(name, rich_help_panel=panel)(called)
    group = typer.main.get_command(alone)
    assert isinstance(group, TyperGroup)
    return _as_called(group.commands[name])


def _as_called(command: Command) -> Command:
    """With examples that can be pasted in its help, and in that of its own commands."""
    command.help = as_called(command.help or "")
    for below in getattr(command, "commands", {}).values():
        _as_called(below)
    return command
