"""The static checks of an image's config: what it starts, as whom, and what its labels say."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from sparkimage.config.plan import Plan
from sparkimage.image.layerindex import Entry
from sparkimage.image.linking import Root
from sparkimage.image.settings import Settings
from sparkimage.image.store import Image
from sparkimage.verify.static_nccl import Compared

SHELL = re.compile(r"(^|/)(ba|da|z|k|a)?sh$")
EXEC = re.compile(r"(^|[;&|\n])\s*exec\s")
"""A shell's command that replaces the shell, which then takes no signal in its place."""
MOST_SCRIPTS = 4
"""Scripts whose interpreter is a script, as the kernel's: https://man7.org/linux/man-pages/man2/execve.2.html"""
HEAD = 256
"""Bytes of a script that the kernel reads for its first line."""


def checks(
    plan: Plan, image: Image, root: Root, read: Callable[[Entry], bytes]
) -> Iterator[Compared]:
    """The comparisons; ``read`` gives a file's bytes."""
    settings = image.settings
    entrypoint, cmd = settings.entrypoint, settings.cmd
    seen = f"{image.config['os']}/{image.config['architecture']}"
    yield "platform", "the platform in the image's config is the plan's", seen, plan.platform
    yield "entrypoint", "ENTRYPOINT is the plan's", entrypoint, plan.entrypoint
    yield "cmd", "CMD is the plan's", cmd, plan.cmd
    shells = {
        name: argv
        for name, argv in (("ENTRYPOINT", entrypoint), ("CMD", cmd))
        if _is_shell_form(argv)
    }
    yield "exec-form", "no ENTRYPOINT or CMD in shell form (which forwards no signals)", shells, {}
    yield from _program(plan, settings, root, read)
    yield "user", "USER is the plan's", _user(settings.user), _user(plan.user)
    labels = settings.labels
    yield (
        "labels",
        "the labels are the plan's",
        {name: labels.get(name) for name in plan.labels},
        plan.labels,
    )


def _is_shell_form(argv: Sequence[str]) -> bool:
    """Whether a shell runs the command and stays before it."""
    if len(argv) < 2 or not SHELL.search(argv[0]) or not re.fullmatch(r"-[a-z]*c", argv[1]):
        return False
    return not EXEC.search(argv[2] if len(argv) > 2 else "")


def _user(user: str) -> str:
    """A USER in one spelling, where it is root."""
    return "root" if user in ("", "0", "0:0", "root:root") else user


def _program(
    plan: Plan, settings: Settings, root: Root, read: Callable[[Entry], bytes]
) -> Iterator[Compared]:
    """Whether what the image starts is there, and what that is run by."""
    argv = [*settings.entrypoint, *settings.cmd]
    entry = _found(argv[0], settings, root) if argv else None
    expected = bool(plan.entrypoint or plan.cmd)
    title = f"{argv[0]} is in PATH and executable" if argv else "there is no command"
    yield "program", title, entry is not None, expected
    wrong: Mapping[str, str] = {}
    for _ in range(MOST_SCRIPTS):
        if entry is None or entry.elf is not None:
            break
        wrong, entry = _interpreter(entry, settings, root, read)
    yield "interpreter", "what interprets the image's command is there", wrong, {}


def _found(name: str, settings: Settings, root: Root) -> Entry | None:
    """The program that a container of the image starts by ``name``."""
    if "/" in name:
        name = posixpath.join("/", settings.workdir, name)
    return root.program(name, settings.path)


def _interpreter(
    script: Entry, settings: Settings, root: Root, read: Callable[[Entry], bytes]
) -> tuple[Mapping[str, str], Entry | None]:
    """What is wrong with a script's first line, and the program that it names."""
    text = script.seen.get("text")
    head = text.encode() if text is not None else read(script)
    line = head[:HEAD].partition(b"\n")[0].decode(errors="replace")
    if not line.startswith("#!"):
        return {script.path: "neither a program nor a script with a line `#!`"}, None
    if line.endswith("\r"):
        return {script.path: f"its first line ends with a carriage return: {line!r}"}, None
    name, *more = line[2:].split() or [""]
    found = _found(name, settings, root) if "/" in name else None
    if found is None:
        return {script.path: f"{line}: no such program"}, None
    if posixpath.basename(name) == "env":
        words = [word for word in more if not word.startswith("-") and "=" not in word]
        found = _found(words[0], settings, root) if words else found
        if found is None:
            return {script.path: f"{line}: {words[0]} is not in PATH"}, None
    return {}, found
