"""The commands by name. The module of a command is imported when it is called, or when the help of
all is asked for: that is a third of the time that a command takes to start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from sparkimage.cli import lazy_values
from sparkimage.cli.base import Settings
from sparkimage.cli.examples import epilog
from sparkimage.core.program import as_called

if TYPE_CHECKING:
    # What typer vendors of click.
    from typer._click.core import Command, Context
    from typer._click.formatting import HelpFormatter

PANELS: Mapping[str, tuple[str, ...]] = {
    "Begin": ("init.app", "engine.app", "manual.man"),
    "Build": (
        "image.image", "lock.lock", "verify.verify", "verify.report", "patches.app",
        "image.schema",
    ),
    "Image store": ("store.images", "inspect.inspect", "store.save", "store.load", "store.app"),
    "Registry": ("publish.publish", "publish.verify_published"),
    "Nodes": (
        "doctor.doctor", "fleet.distribute", "fleet.nodes", "fleet.rollback", "fleet.gc",
        "fleet.receipts", "model.app", "caches.caches",
    ),
    "Servers": (
        "launch.launch", "launch.status", "launch.logs", "launch.stop", "launch.restart",
        "explain.explain", "probe.probe",
    ),
}  # fmt: skip
"""What there is, in the order of its use, by the heading of --help: MODULE.FUNCTION is a command,
MODULE.app one with commands of its own."""


lazy_values.install()


class Group(TyperGroup):
    """A command with commands of its own, each with its whole sentence."""

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """As of every group, which would cut the sentences off."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_sentence(one)) for name, one in self.commands.items()])


class Commands(Group):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": _OnCall()})

    def resolve_command(
        self, ctx: Context, args: list[str]
    ) -> tuple[str | None, Command | None, list[str]]:
        """As of every group; and the settings say which command it is."""
        name, command, rest = super().resolve_command(ctx, args)
        words = [name or "", *rest[:1]] if isinstance(command, TyperGroup) else [name or ""]
        Settings.command = " ".join(words)
        return name, command, rest

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """The commands under their headings, in the order of the way."""
        for panel, paths in PANELS.items():
            made = [(name, self.commands[name]) for name in map(name_of, paths)]
            with formatter.section(panel):
                formatter.write_dl([(name, first_sentence(one)) for name, one in made])


def first_sentence(command: Command) -> str:
    """What a command does, in a line or two."""
    paragraph = (command.help or "").split("\n\n")[0]
    return " ".join(paragraph.split()).partition(". ")[0].rstrip(".")


class _OnCall(Mapping[str, "Command"]):
    """The commands of ``PANELS``, each made when it is looked up."""

    def __init__(self) -> None:
        self._paths = {name_of(path): (path, panel) for panel in PANELS for path in PANELS[panel]}
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


def name_of(path: str) -> str:
    """The name of the command at a path of ``PANELS``."""
    module, _, function = path.partition(".")
    return (module if function == "app" else function).replace("_", "-")


def _command(name: str, path: str, panel: str) -> Command:
    module, _, function = path.partition(".")
    called = getattr(import_module(f"sparkimage.cli.{module}"), function)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    # With it, what is made of `alone` is a group.
    alone.callback()(lambda: None)
    if isinstance(called, typer.Typer):
        alone.add_typer(called, name=name, rich_help_panel=panel)
    else:
        alone.command(name, rich_help_panel=panel)(called)
    group = typer.main.get_command(alone)
    assert isinstance(group, TyperGroup)
    return _with_help(group.commands[name], name)


def _usage(argument: Any, **_context: Any) -> str:
    """An argument in the line of usage."""
    name = f"{argument.metavar}…" if argument.nargs == -1 else str(argument.metavar)
    return name if argument.required else f"[{name}]"


def _with_help(command: Command, words: str) -> Command:
    """With examples that can be pasted in its help, and in that of its own commands."""
    command.help = as_called(command.help or "")
    command.epilog = as_called(epilog(words))
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.metavar = parameter.metavar or str(parameter.name).upper()
            # Its name says what it is; typer would add `<str>`.
            vars(parameter)["display_type_rich"] = lambda **_context: ""
            vars(parameter)["make_metavar"] = partial(_usage, parameter)
    for name, below in getattr(command, "commands", {}).items():
        _with_help(below, f"{words} {name}")
    return command
