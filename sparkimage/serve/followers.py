"""Follows the logs of a deployment's ranks: their lines and ends, as events of one queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from sparkimage.core.errors import SparkError
from sparkimage.nodes import ssh
from sparkimage.nodes.concurrent import Errors, run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.serve import deployments
from sparkimage.serve.deployments import Member


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A container whose log is read. ``log_options``: of `docker logs`."""

    rank: int
    session: NodeSession
    container: str
    log_options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"{self.name} (rank {self.rank})"


Line = tuple[int, str]
"""A line of a rank's log, with its number from 0."""
End = Member | SparkError | None
"""How a rank's log ended: with its container (None: it was removed), or with the connection."""
Event = tuple[int, Line | int | End]
"""By rank: lines, the statuses of ``/health`` (0: no answer), and ends of logs."""


@dataclass(kw_only=True)
class Followers:
    """One thread for each rank's log."""

    ranks: Sequence[Rank]
    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    over: threading.Event = field(default_factory=threading.Event)
    """Nobody reads the events any more."""
    _scripts: list[RemoteScript] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Follow every log from now on."""
        self._threads = [
            threading.Thread(target=self._follow, args=(rank,), daemon=True) for rank in self.ranks
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End them all."""
        self.over.set()
        for script in self._scripts:
            script.process.kill()
        for thread in self._threads:
            thread.join(ssh.CONNECT_S)
        for script in self._scripts:
            script.kill()

    def read_all(self) -> tuple[dict[int, list[str]], Errors]:
        """Every log to its present end, by rank, and errors by node: a follower may be behind."""
        logs: dict[int, list[str]] = {}

        def read(rank: Rank) -> None:
            script = deployments.log(rank.session, rank.container, *rank.log_options)
            try:
                with script.limit():
                    logs[rank.rank] = list(script.lines())
                script.rest()
                if (lost := script.lost()) is not None:
                    raise lost
            finally:
                script.kill()

        return logs, run_on_all(self.ranks, read)

    def _follow(self, rank: Rank) -> None:
        try:
            script = deployments.log(
                rank.session, rank.container, "--follow", *rank.log_options
            )  # fmt: skip
            self._scripts.append(script)
            if self.over.is_set():
                # Whoever ends the followers may have missed this one.
                script.process.kill()
            for line in enumerate(script.lines()):
                self.events.put((rank.rank, line))
            if self.over.is_set():
                return
            script.rest()
            if (lost := script.lost()) is not None:
                raise lost
            self.events.put((rank.rank, deployments.member(rank.session, rank.container)))
        except SparkError as error:
            if not self.over.is_set():
                self.events.put((rank.rank, error))
        except (OSError, ValueError):
            # Its pipe was closed: the wait is over.
            return
