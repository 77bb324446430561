"""Asks machines for their facts: one, or all of a fleet at once, one connection each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from sparkimage.config.inventory import Fleet, Node
from sparkimage.core.errors import CommandError, SparkError
from sparkimage.core.process import Completed, Local
from sparkimage.nodes.concurrent import together
from sparkimage.nodes.session import Station, stations
from sparkimage.nodes.ssh import END, script
from sparkimage.serve.doctor.diagnosis import Patient
from sparkimage.serve.doctor.facts import Facts
from sparkimage.serve.doctor.reading import read

ASK_S = 60.0
"""Seconds that the script may take; each of its commands has less."""

HERE = "this machine"
"""What this machine is called, where it is asked for itself."""

HOLD = ("sh", "-c", f"echo '{END}'; exec cat >/dev/null")
"""Holds a connection; whoever ends it ends what goes on over it, an interrupt too."""


class Asked(Protocol):
    """A machine that runs commands: this one (``Local``), or a node (``Remote``)."""

    def run(
        self, argv: Sequence[str], /, *, timeout_s: float | None = None, check: bool = True
    ) -> Completed:
        """As ``Runner.run``."""


def ask(
    machine: Asked, docker: str, model: str = "", *, name: str = "", timeout_s: float = ASK_S
) -> Facts:
    """Run the script on a machine and make sense of it; one connection, or one that is open.

    ``docker``: the words that call docker there; ``model``: the folder of the model there, or
    nothing; ``name``: its data address, which may be a name that it is to look up, or nothing.
    Raises ``UnreachableError`` and ``NodeError`` of a node, ``CommandError`` where the machine
    has no shell for it.
    """
    words = script("facts", docker, model, name)
    done = machine.run(words, check=False, timeout_s=timeout_s)
    if "@@ clock" not in done.stdout:
        raise CommandError(
            ["sh", "-c", "facts.sh"], done.returncode, (done.stdout + done.stderr)[-2000:],
            hint="its login shell must run `sh -c` quietly",
        )  # fmt: skip
    return read(done.stdout, now=time.time())


def fleet(nodes: Fleet, model: str, *, patience_s: float) -> tuple[Patient, ...]:
    """The facts of every node; the errors of those that cannot be asked stand with them."""
    came: dict[str, Facts] = {}

    def one(station: Station) -> None:
        remote = station.remote
        remote.open(HOLD)
        came[station.name] = ask(
            remote, remote.docker, model, name=remote.node.data or "", timeout_s=patience_s
        )

    with stations(nodes, patience_s) as all_:
        errors = together(all_, one, stop=Station.abandon)
    return tuple(
        Patient(node=node, facts=came.get(node.name), error=errors.get(node.name))
        for node in nodes.nodes
    )


def here(model: str, *, patience_s: float) -> tuple[Patient, ...]:
    """The facts of this machine."""
    node = Node(name=HERE, control="localhost")
    try:
        found = ask(Local(), "docker", model, timeout_s=patience_s)
    except SparkError as error:
        return (Patient(node=node, error=error),)
    return (Patient(node=node, facts=found),)
