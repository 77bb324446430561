"""Whether each node reaches all others over the data network: a real connection for each pair.

Ranks listen on ports of their own choice, so a firewall that lets only the head's ports through
stops them (https://docs.vllm.ai/en/latest/serving/parallelism_scaling/).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace

from sparkimage.core.errors import NodeError
from sparkimage.nodes import fabric
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.nodes.snapshot import Unreached

CONNECT_S = 5
"""Seconds for all connections of a node: those of one network take milliseconds."""
LIMIT_S = 20.0
"""Seconds for each of the two steps on a node."""
ANY = 0
"""Any free port."""


def probe(sessions: Sequence[NodeSession], head: str, ports: Sequence[int]) -> None:
    """Sets ``unreached`` in the snapshot of each node that could try: what it did not reach of the
    others, on a port of each one's own choice and on these ports of the head. A node that has no
    data address, or no perl, takes no part."""
    probes = [
        _Probe(session, address, (ANY, *ports) if session.name == head else (ANY,))
        for session in sessions
        if session.seen is not None and (address := fabric.data_link(session.now).address)
    ]
    if len(probes) < 2:
        return
    with ExitStack() as stack:
        for each in probes:
            stack.callback(each.close)
        failed = run_on_all(probes, _Probe.listen, stop=_Probe.close)
        probes = [each for each in probes if each.name not in failed]
        run_on_all(probes, lambda each: each.connect(probes), stop=_Probe.close)


class _Probe:
    """One node, and the script that listens and connects there."""

    def __init__(self, session: NodeSession, address: str, ports: Sequence[int]) -> None:
        self.session, self.address, self.ports = session, address, ports
        self.name = session.name
        self.listening: list[str] = []
        self._script: RemoteScript | None = None

    def listen(self) -> None:
        """Listen there. Raises ``NodeError``."""
        words = (self.address, str(CONNECT_S), *map(str, self.ports))
        remote = self.session.remote
        self._script = RemoteScript(remote, remote.script("reach", *words))
        lines = self._until("ready")
        self.listening = [line.removeprefix("port ") for line in lines if line.startswith("port ")]

    def connect(self, probes: Sequence[_Probe]) -> None:
        """Connect from there to the others. Raises ``NodeError``."""
        assert self._script is not None
        others = {each.address: each for each in probes if each is not self}
        targets = [f"{to} {port}" for to, each in others.items() for port in each.listening]
        with suppress(BrokenPipeError):
            self._script.write(f"{' '.join(targets)}\n".encode())
        failed = [line.split(" ", 3) for line in self._until("tried") if line.startswith("failed ")]
        unreached = tuple(
            Unreached(node=others[to].name, address=to, port=int(port), why=why)
            for _, to, port, why in failed
        )
        self.session.seen = replace(self.session.now, unreached=unreached)

    def _until(self, end: str) -> list[str]:
        assert self._script is not None
        lines: list[str] = []
        with self._script.limit(LIMIT_S):
            for line in self._script.lines():
                if line == end:
                    return lines
                lines.append(line)
        raise NodeError(
            f"{self.name}: it cannot try whether it reaches the others",
            hint=f"look there: {self.session.remote.ssh} perl -v",
        )

    def close(self) -> None:
        if self._script is not None:
            self._script.kill()
