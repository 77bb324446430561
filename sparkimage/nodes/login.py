"""What a user must do before a node can be used: keys, host keys, the right to use Docker. Each as
a command to paste; nothing of it is done here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparkimage.config.inventory import Node
from sparkimage.core.errors import EnginePermissionError, SparkError, UnreachableError
from sparkimage.core.process import Runner
from sparkimage.nodes import ssh
from sparkimage.nodes.snapshot import NodeSnapshot

SCAN_S = "5"
"""Seconds that a node gets to show its host key."""
HOST_KEYS = "/etc/ssh/ssh_host_ed25519_key.pub"


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """One thing to do before a node can be used."""

    node: str
    why: str
    command: str = ""
    """To paste here; empty where it is done otherwise, as ``why`` says."""


def for_connection(node: Node, error: SparkError, runner: Runner) -> Iterator[ToDo]:
    """What to do for a node that could not be examined."""
    reason = error.reason if isinstance(error, UnreachableError) else ""
    why = error.message.removeprefix(node.name).lstrip(": ")
    copy = shlex.join(["ssh-copy-id", *ssh.destination(node)])
    if reason == ssh.UNKNOWN_KEY:
        offered = _fingerprints(node, runner)
        shown = f"; it shows {', '.join(offered)}" if offered else ""
        why += (
            f"{shown}. Compare that with what the node prints on its own screen, `ssh-keygen -lf "
            f"{HOST_KEYS}`, and paste that fingerprint when ssh asks"
        )
        yield ToDo(node=node.name, why=why, command=copy)
    elif reason == ssh.LOGIN:
        if not _has_key(node, runner):
            yield ToDo(node=node.name, why="you have no ssh key", command="ssh-keygen -t ed25519")
        yield ToDo(node=node.name, why=f"{why}: it does not have your key", command=copy)
    else:
        yield ToDo(node=node.name, why=f"{why}; {error.hint}" if error.hint else why)


def for_docker(node: Node, snapshot: NodeSnapshot) -> Iterator[ToDo]:
    """What to do for a node that was examined, so that its Docker can be used."""
    error = snapshot.docker_error()
    if error is None:
        return
    why = error.message.removeprefix(f"{snapshot.name}: ")
    if isinstance(error, EnginePermissionError) and not node.sudo:
        add = ["sudo", "usermod", "-aG", "docker", snapshot.user]
        command = shlex.join(["ssh", "-t", *ssh.destination(node), *add])
        yield ToDo(node=node.name, why=why, command=command)
    else:
        yield ToDo(node=node.name, why=f"{why}; {error.hint}")


def _has_key(node: Node, runner: Runner) -> bool:
    """An identity of ssh is there, or its agent has one."""
    settings = ssh.settings(runner, *ssh.destination(node))
    files = [Path(value).expanduser() for key, value in settings if key == "identityfile"]
    return any(map(Path.exists, files)) or not runner.run(["ssh-add", "-l"], check=False).returncode


def _fingerprints(node: Node, runner: Runner) -> list[str]:
    """Those of the host keys that a machine at the node's address shows, whoever it is."""
    config = dict(ssh.settings(runner, *ssh.destination(node)))
    scan = ["ssh-keyscan", "-T", SCAN_S, "-t", "ed25519", "-p", config["port"], "--"]
    keys = runner.run([*scan, config["hostname"]], check=False).stdout
    # 256 SHA256:… host (ED25519)
    listed = runner.run(["ssh-keygen", "-lf", "-"], stdin=keys, check=False).stdout.splitlines()
    words = (line.split() for line in listed)
    return [f"{line[-1].strip('()')} {line[1]}" for line in words if len(line) > 2]
