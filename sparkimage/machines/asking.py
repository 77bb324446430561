"""Asks the machines: all at once, one connection each."""

from __future__ import annotations

from sparkimage.errors import SparkError
from sparkimage.fleets import moving
from sparkimage.fleets.distribute import stations
from sparkimage.fleets.fleet import Fleet, Node
from sparkimage.fleets.moving import together
from sparkimage.fleets.remote import END
from sparkimage.fleets.station import Station
from sparkimage.machines import facts
from sparkimage.machines.diagnosis import Patient
from sparkimage.machines.facts import Facts
from sparkimage.run import Local

HERE = "this machine"
"""What this machine is called, where it is asked for itself."""

HOLD = ("sh", "-c", f"echo '{END}'; exec cat >/dev/null")
"""Holds a connection; whoever ends it ends what goes on over it, an interrupt too."""


def fleet(nodes: Fleet, model: str, *, patience_s: float) -> tuple[Patient, ...]:
    """The facts of every node; the errors of those that cannot be asked stand with them."""
    came: dict[str, Facts] = {}

    def one(station: Station) -> None:
        remote = station.remote
        remote.open(HOLD, timeout_s=patience_s)
        came[station.name] = facts.ask(
            remote, remote.docker, model, name=remote.node.data or "", timeout_s=patience_s
        )

    with stations(nodes, patience_s) as all_:
        errors = together(all_, one, stop=moving.abandon)
    return tuple(
        Patient(node=node, facts=came.get(node.name), error=errors.get(node.name))
        for node in nodes.nodes
    )


def here(model: str, *, patience_s: float) -> tuple[Patient, ...]:
    """The facts of this machine."""
    node = Node(name=HERE, control="localhost")
    try:
        found = facts.ask(Local(), "docker", model, timeout_s=patience_s)
    except SparkError as error:
        return (Patient(node=node, error=error),)
    return (Patient(node=node, facts=found),)
