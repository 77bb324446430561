"""Waits until a deployment serves: follows every rank's log, polls the head, stops at a failure.

It is ready when the head's log says that its startup is complete *and* ``/health`` answers 200;
then the logs of all ranks must show what is to be proven.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

from sparkimage.core.errors import LaunchError, NodeError, SparkError
from sparkimage.core.progress import TransferProgress, View
from sparkimage.nodes import ssh
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.serve import deployments, readiness
from sparkimage.serve.command import ServerSpec
from sparkimage.serve.deployments import HEAD, Member
from sparkimage.serve.explain import knowledge
from sparkimage.serve.explain.failures import Match
from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.openai_api import Server
from sparkimage.serve.readiness import READY, START, Finding, Log

PROOF_S = 10.0
"""Seconds that Docker may take to log what a rank has written."""
SETTLE_S = 1.0
"""Seconds of silence after a failure: what the other ranks say of it comes before."""
POLL_S = 0.3
LAST, LAST_OF_OTHERS = 12, 3
"""Lines that an error shows of the log of the rank that failed first, and of the others."""


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


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A deployment that serves, and what was proven of it."""

    spec: ServerSpec
    ranks: Sequence[Rank]
    findings: tuple[Finding, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            **self.spec.model_dump(include={"name", "variant", "profile", "digest"}),
            "url": self.spec.url,
            "seconds": round(self.seconds, 3),
            "ranks": [
                {"rank": rank.rank, "node": rank.name, "container": rank.container[:12]}
                for rank in self.ranks
            ],
            "proof": [asdict(finding) for finding in self.findings],
        }


class ProofError(LaunchError):
    """The deployment serves, but its logs do not show the pinned NCCL or RDMA."""

    def __init__(self, findings: Sequence[Finding], known: Sequence[str]) -> None:
        failed = [
            f"✗ {finding.node} (rank {finding.rank}): looked for: {finding.what}; seen: "
            f"{finding.seen}"
            for finding in findings
            if not finding.ok
        ]
        super().__init__(
            f"the proof failed: {len(failed)} of {len(findings)} findings in the ranks' logs",
            detail="\n".join([*failed, *known]),
        )
        self.findings = tuple(findings)


def until_ready(
    spec: ServerSpec, ranks: Sequence[Rank], *, began: float, timeout_s: float, view: View
) -> Ready:
    """Wait until the deployment serves and is proven; ``began``: when, by ``time.monotonic``.

    Raises ``LaunchError``, ``ProofError``.
    """
    title = f"{spec.name}: {spec.variant}, {spec.profile}"
    with view.states([rank.title for rank in ranks], title, START) as board:
        wait = Waiting(ranks=ranks, spec=spec, timeout_s=timeout_s, board=board)
        findings = wait.run()
    if not all(finding.ok for finding in findings):
        raise ProofError(findings, wait.known_failures())
    return Ready(spec=spec, ranks=ranks, findings=findings, seconds=time.monotonic() - began)


def add_note(error: BaseException, note: str) -> None:
    """Add to an error or an interrupt what became of the deployment."""
    if isinstance(error, SparkError):
        error.message = f"{error.message}; {note}"
    else:
        error.add_note(note)


@dataclass(kw_only=True)
class Waiting:
    """The wait for one deployment."""

    ranks: Sequence[Rank]
    spec: ServerSpec
    timeout_s: float
    board: TransferProgress
    _logs: dict[int, Log] = field(default_factory=dict)
    _events: queue.Queue[tuple[int, Line | int | End]] = field(default_factory=queue.Queue)
    """By rank: lines, the statuses of ``/health`` (0: no answer), and ends of logs."""
    _over: threading.Event = field(default_factory=threading.Event)
    _followers: list[RemoteScript] = field(default_factory=list)
    _poller: threading.Thread | None = None
    _health: int | None = None

    def run(self) -> tuple[Finding, ...]:
        """Wait until the deployment is ready; what the logs show then, good or bad.

        Raises ``LaunchError`` when a rank ends, when its node is lost, or at the time limit.
        """
        until = time.monotonic() + self.timeout_s
        self._logs = {rank.rank: Log(reading=Reading(source=rank.name)) for rank in self.ranks}
        threads = [
            threading.Thread(target=self._follow, args=(rank,), daemon=True) for rank in self.ranks
        ]
        try:
            for thread in threads:
                thread.start()
            while not (self._health == HTTPStatus.OK and self._logs[HEAD].complete):
                self._step(until)
            self._catch_up()
            # Docker may have logged less than the ranks wrote.
            latest = min(until, time.monotonic() + PROOF_S)
            while time.monotonic() < latest and self._is_pending():
                self._step(until, wait_s=latest - time.monotonic())
            for rank in self.ranks:
                self.board.state(rank.title, READY)
            return self._findings()
        finally:
            self._over.set()
            for script in self._followers:
                script.process.kill()
            for thread in threads:
                thread.join(ssh.CONNECT_S)
            for script in self._followers:
                script.kill()

    def _findings(self) -> tuple[Finding, ...]:
        spec, nodes = self.spec, [rank.name for rank in self.ranks]
        return readiness.prove(self._logs, nodes, nccl=spec.nccl, rdma=spec.rdma, gpus=spec.gpus)

    def _is_pending(self) -> bool:
        """Something is not in the logs yet, and nothing in them is wrong for good."""
        findings = self._findings()
        return any(finding.pending for finding in findings) and all(
            finding.ok or finding.pending for finding in findings
        )

    def _step(self, until: float, *, wait_s: float = 1.0) -> None:
        """Handle the next event, if one comes soon."""
        left = until - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            rank, event = self._events.get(timeout=max(0.01, min(left, wait_s)))
        except queue.Empty:
            return
        if not self._take(rank, event):
            self._settle()
            raise self._failed(self.ranks[rank], event)

    def _catch_up(self) -> None:
        """Read every log to its present end: a follower may be behind, and the head is ready only
        after all that its workers have written."""
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

        errors = run_on_all(self.ranks, read)
        for rank in self.ranks:
            if rank.name in errors:
                raise self._failed(rank, errors[rank.name])
            for line in enumerate(logs[rank.rank]):
                self._take(rank.rank, line)

    def _take(self, rank: int, event: Line | int | End) -> bool:
        """Handle a line, or a status; False for the end of a log."""
        if isinstance(event, int):
            self._health = event
        elif isinstance(event, tuple):
            number, line = event
            if number >= self._logs[rank].reading.lines:
                self._read(rank, line)
        else:
            return False
        return True

    def _read(self, rank: int, line: str) -> None:
        log = self._logs[rank]
        if log.feed(line):
            state = "health" if log.complete else log.phase
            self.board.state(self.ranks[rank].title, state, log.detail)
        if rank == HEAD and log.complete and self._poller is None:
            self._poller = threading.Thread(target=self._poll, daemon=True)
            self._poller.start()

    def _settle(self) -> None:
        """Read what the other ranks say of a failure."""
        until = time.monotonic() + 5 * SETTLE_S
        while time.monotonic() < until:
            try:
                self._take(*self._events.get(timeout=SETTLE_S))
            except queue.Empty:
                return

    # Each in a thread

    def _follow(self, rank: Rank) -> None:
        try:
            script = deployments.log(
                rank.session, rank.container, "--follow", *rank.log_options
            )  # fmt: skip
            self._followers.append(script)
            if self._over.is_set():
                # Whoever ends the followers may have missed this one.
                script.process.kill()
            for line in enumerate(script.lines()):
                self._events.put((rank.rank, line))
            if self._over.is_set():
                return
            script.rest()
            if (lost := script.lost()) is not None:
                raise lost
            self._events.put((rank.rank, deployments.member(rank.session, rank.container)))
        except SparkError as error:
            if not self._over.is_set():
                self._events.put((rank.rank, error))
        except (OSError, ValueError):
            # Its pipe was closed: the wait is over.
            return

    def _poll(self) -> None:
        try:
            path = self.ranks[HEAD].session.remote.forward_port(self.spec.port)
            server = Server(url="http://localhost", socket=path)
            while not self._over.is_set():
                status = server.health()
                self._events.put((HEAD, status or 0))
                if status == HTTPStatus.OK or self._over.wait(POLL_S):
                    return
        except SparkError as error:
            self._events.put((HEAD, error))

    # Errors

    def _late(self) -> LaunchError:
        head = self._logs[HEAD]
        phase = head.phase
        if head.complete:
            phase = f"health: {readiness.health_text(self._health or None)}"
        phases = [
            f"{rank.title}: {self._logs[rank.rank].phase} {self._logs[rank.rank].detail}".rstrip()
            for rank in self.ranks
        ]
        return LaunchError(
            f"not ready after {self.timeout_s:g} s: the head is at {phase}",
            detail="\n".join([*phases, *self.known_failures()]),
            hint="allow more time: --timeout SECONDS; or leave it running with --keep, and see "
            "python build.py logs",
        )

    def _failed(self, rank: Rank, event: Line | int | End) -> SparkError:
        if isinstance(event, NodeError):
            return LaunchError(
                f"{rank.title} was lost in phase {self._logs[rank.rank].phase}: {event.message}",
                detail=event.detail,
                hint=event.hint,
            )
        if isinstance(event, SparkError):
            return event
        assert event is None or isinstance(event, Member)
        ended = self._ended(rank, event)
        first, _ = ended[0]
        last = []
        for other, _ in ended:
            lines = [line for line in self._logs[other.rank].tail if line.strip()]
            count = LAST if other is first else LAST_OF_OTHERS
            last += [f"{other.name} | {line}" for line in lines[-count:]]
        known = self.known_failures(first.rank)
        return LaunchError(
            "; ".join(self._how_it_ended(*pair) for pair in ended),
            detail="\n".join([*last, *known]),
            hint=""
            if known
            else "see the whole log: repeat the command with --keep, then python build.py logs",
        )

    def _ended(self, rank: Rank, container: Member | None) -> list[tuple[Rank, Member | None]]:
        """The ranks that have ended, by time: the first one may have taken the others with it."""
        found = {rank.rank: container}

        def look(other: Rank) -> None:
            if other is not rank:
                found[other.rank] = deployments.member(other.session, other.container)

        # A node that does not answer is left out.
        run_on_all(self.ranks, look)
        ended = [
            (other, now)
            for other in self.ranks
            if other.rank in found
            and ((now := found[other.rank]) is None or not now.lives or other is rank)
        ]
        return sorted(ended, key=lambda pair: pair[1].ended if pair[1] and pair[1].ended else "~")

    def _how_it_ended(self, rank: Rank, container: Member | None) -> str:
        how = "was removed"
        if container is not None:
            killed = " (out of memory)" if container.oom else ""
            how = f"exited with code {container.exit_code}{killed}"
            if container.lives:
                how = "ended, and Docker restarted it"
        return f"{rank.title} {how} in phase {self._logs[rank.rank].phase}"

    def known_failures(self, first: int | None = None) -> list[str]:
        """The known failures in the logs as lines, each failure once, those of ``first`` first."""
        order = sorted(self._logs, key=lambda rank: (rank != first, rank))
        readings = [self._logs[rank].reading for rank in order]
        by_id: dict[str, Match] = {}
        for match in knowledge.together(readings):
            by_id.setdefault(match.entry.id, match)
        return [line for match in by_id.values() for line in match.as_lines()]
