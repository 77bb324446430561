"""Waits until a set serves: reads every rank's log, asks the head, and ends with the first failure.

Ready is when the head's log says that its startup is complete *and* ``/health`` answers well, and
the logs have shown what must be proven.
"""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkimage.core.errors import LaunchError, NodeError, SparkError
from sparkimage.core.progress import TransferProgress, View
from sparkimage.nodes import ssh
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.serve import readiness, sets
from sparkimage.serve.explain import knowledge
from sparkimage.serve.explain.knowledge import Match
from sparkimage.serve.readiness import READY, START, Finding, Log
from sparkimage.serve.sets import HEAD, State

PROOF_S = 10.0
"""Seconds that the workers' logs may be behind the head's."""
SETTLE_S = 1.0
"""Seconds without a word after a failure: what else the ranks say of it comes before."""
POLL_S = 0.3
LAST = 12
"""Lines of a rank that failed which its error shows."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A container whose log is followed; ``since``: from when on, or nothing for all."""

    rank: int
    session: NodeSession
    container: str
    since: str = ""

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def since_option(self) -> list[str]:
        """For `docker logs`."""
        return ["--since", self.since] if self.since else []

    @property
    def title(self) -> str:
        """As people are told of it."""
        return f"{self.name} (rank {self.rank})"


Line = tuple[int, str]
"""A line of a rank's log, with its number from 0."""


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """A set that was started, and what the logs of its ranks must show."""

    name: str
    variant: str
    profile: str
    digest: str
    head: str
    """The head's address."""
    port: int
    """Of the API."""
    nccl: str
    """The version that every rank must show, or nothing."""
    rdma: bool
    gpus: int
    """Of each node."""

    @property
    def url(self) -> str:
        """Where the API is."""
        host = f"[{self.head}]" if ":" in self.head else self.head
        return f"http://{host}:{self.port}/v1"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A set that serves, and what was proven of it."""

    spec: ServerSpec
    ranks: Sequence[Rank]
    findings: tuple[Finding, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.spec.name,
            "variant": self.spec.variant,
            "profile": self.spec.profile,
            "digest": self.spec.digest,
            "url": self.spec.url,
            "seconds": round(self.seconds, 3),
            "ranks": [
                {"rank": one.rank, "node": one.name, "container": one.container[:12]}
                for one in self.ranks
            ],
            "proof": [one.to_dict() for one in self.findings],
        }


class ProofError(LaunchError):
    """The set serves, but its logs do not show what they must: it is not what was asked for."""

    def __init__(self, findings: Sequence[Finding], *, known: Sequence[str] = ()) -> None:
        failed = [one for one in findings if not one.ok]
        lines = (
            f"✗ {one.node} (rank {one.rank}): looked for: {one.what}; seen: {one.seen}"
            for one in failed
        )
        super().__init__(
            f"the proof failed: {len(failed)} of {len(findings)} findings in the ranks' logs",
            detail="\n".join([*lines, *known]),
        )
        self.findings = tuple(findings)


def until_ready(
    spec: ServerSpec, ranks: Sequence[Rank], *, began: float, timeout_s: float, view: View
) -> Ready:
    """Wait until the set serves and is proven; ``began``: when, by ``time.monotonic``.

    Raises ``LaunchError``, ``ProofError``.
    """
    title = f"{spec.name}: {spec.variant}, {spec.profile}"
    with view.states([one.title for one in ranks], title, START) as board:
        one = Waiting(ranks=ranks, spec=spec, timeout_s=timeout_s, board=board)
        findings = one.run()
    if not all(finding.ok for finding in findings):
        raise ProofError(findings, known=one.known())
    return Ready(spec=spec, ranks=ranks, findings=findings, seconds=time.monotonic() - began)


def note(error: BaseException, what: str) -> None:
    """Let an error, or an interrupt, say what became of the set."""
    if isinstance(error, SparkError):
        error.message = f"{error.message}; {what}"
    else:
        error.add_note(what)


@dataclass(kw_only=True)
class Waiting:
    """One wait for one set."""

    ranks: Sequence[Rank]
    spec: ServerSpec
    timeout_s: float
    board: TransferProgress
    logs: dict[int, Log] = field(default_factory=dict)
    readings: dict[int, knowledge.Reading] = field(default_factory=dict)
    _events: queue.Queue[tuple[int, Line | State | SparkError | int]] = field(
        default_factory=queue.Queue
    )
    _over: threading.Event = field(default_factory=threading.Event)
    _following: list[RemoteScript] = field(default_factory=list)
    _asking: threading.Thread | None = None
    _healthy: bool = False
    _answer: int | None = None

    def run(self) -> tuple[Finding, ...]:
        """Until the set is ready; what was found in the logs, good or bad.

        Raises ``LaunchError`` when a rank ends, when its node is lost, or at the time limit.
        """
        until = time.monotonic() + self.timeout_s
        self.logs = {one.rank: Log() for one in self.ranks}
        self.readings = {one.rank: knowledge.Reading(source=one.name) for one in self.ranks}
        threads = [
            threading.Thread(target=self._follow, args=(one,), daemon=True) for one in self.ranks
        ]
        try:
            for thread in threads:
                thread.start()
            while not (self._healthy and self.logs[HEAD].complete):
                self._step(until)
            self._catch_up()
            # Docker may have read less of a log than its rank wrote.
            latest = min(until, time.monotonic() + PROOF_S)
            while time.monotonic() < latest and self._may_come():
                self._step(until, wait_s=latest - time.monotonic())
            for one in self.ranks:
                self.board.state(one.title, READY)
            return self.found()
        finally:
            self._over.set()
            for script in self._following:
                script.process.kill()
            for thread in threads:
                thread.join(ssh.CONNECT_S)
            for script in self._following:
                script.kill()

    def _may_come(self) -> bool:
        """Something is not there yet, and nothing is wrong for good."""
        found = self.found()
        return any(one.open for one in found) and all(one.ok or one.open for one in found)

    def found(self) -> tuple[Finding, ...]:
        """What the logs have shown so far."""
        return readiness.prove(
            self.logs,
            [one.name for one in self.ranks],
            nccl=self.spec.nccl,
            rdma=self.spec.rdma,
            gpus=self.spec.gpus,
        )

    def _step(self, until: float, *, wait_s: float = 1.0) -> None:
        """Take in what comes next, if anything does soon."""
        left = until - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            rank, event = self._events.get(timeout=max(0.01, min(left, wait_s)))
        except queue.Empty:
            return
        if isinstance(event, State | SparkError):
            self._settle()
            raise self._failed(self.ranks[rank], event)
        self._take(rank, event)

    def _catch_up(self) -> None:
        """Read every log to where it is now: what follows them may be behind, and the head is
        ready only after all that its workers wrote before."""
        logs: dict[int, list[str]] = {}

        def read(one: Rank) -> None:
            script = sets.log(one.session, one.container, *one.since_option)
            try:
                with script.limit():
                    logs[one.rank] = list(script.lines())
                script.rest()
                if (lost := script.lost()) is not None:
                    raise lost
            finally:
                script.kill()

        errors = run_on_all(self.ranks, read)
        for one in self.ranks:
            if one.name in errors:
                raise self._failed(one, errors[one.name])
            for line in enumerate(logs[one.rank]):
                self._take(one.rank, line)

    def _take(self, rank: int, event: Line | int) -> None:
        if isinstance(event, int):
            self._answer = event
            self._healthy = event == http.client.OK
            return
        number, line = event
        if number < self.readings[rank].lines:
            return
        log = self.logs[rank]
        self.readings[rank].take(line)
        if log.feed(line):
            title = next(one.title for one in self.ranks if one.rank == rank)
            self.board.state(title, "health" if log.complete else log.phase, log.detail)
        if rank == HEAD and log.complete and self._asking is None:
            self._asking = threading.Thread(target=self._ask, daemon=True)
            self._asking.start()

    def _settle(self) -> None:
        """Take in what the ranks say of a failure."""
        until = time.monotonic() + 5 * SETTLE_S
        while time.monotonic() < until:
            try:
                rank, event = self._events.get(timeout=SETTLE_S)
            except queue.Empty:
                return
            if not isinstance(event, State | SparkError):
                self._take(rank, event)

    # In threads of their own

    def _follow(self, one: Rank) -> None:
        try:
            script = sets.log(one.session, one.container, "--follow", *one.since_option)
            self._following.append(script)
            if self._over.is_set():
                # Whoever ends those that follow may not have seen this one.
                script.process.kill()
            for line in enumerate(script.lines()):
                self._events.put((one.rank, line))
            if self._over.is_set():
                return
            script.rest()
            if (lost := script.lost()) is not None:
                raise lost
            self._events.put((one.rank, sets.state_of(one.session, one.container)))
        except SparkError as error:
            if not self._over.is_set():
                self._events.put((one.rank, error))
        except (OSError, ValueError):
            # Its pipe was closed: the wait is over.
            return

    def _ask(self) -> None:
        head = self.ranks[HEAD].session.remote
        try:
            path = head.forward_port(self.spec.port)
            while not self._over.is_set():
                status = readiness.ask_health(path)
                self._events.put((HEAD, status or 0))
                if status == http.client.OK or self._over.wait(POLL_S):
                    return
        except SparkError as error:
            self._events.put((HEAD, error))

    # Errors

    def _late(self) -> LaunchError:
        said = [
            f"{one.title}: {self.logs[one.rank].phase} {self.logs[one.rank].detail}".rstrip()
            for one in self.ranks
        ]
        head = self.logs[HEAD]
        phase = head.phase
        if head.complete:
            phase = f"health: {readiness.health_words(self._answer or None)}"
        return LaunchError(
            f"not ready after {self.timeout_s:g} s: the head is at {phase}",
            detail="\n".join([*said, *self.known()]),
            hint="more time: --timeout SECONDS; leave it running and look: --keep, then "
            "python build.py logs",
        )

    def _failed(self, one: Rank, event: State | SparkError) -> SparkError:
        if isinstance(event, NodeError):
            return LaunchError(
                f"{one.title} was lost in phase {self.logs[one.rank].phase}: {event.message}",
                detail=event.detail,
                hint=event.hint,
            )
        if isinstance(event, SparkError):
            return event
        ended = self._ended(one, event)
        first, _ = ended[0]
        detail = []
        for rank, _ in ended:
            count = LAST if rank is first else 3
            last = [line for line in self.logs[rank.rank].tail if line.strip()][-count:]
            detail += [f"{rank.name} | {line}" for line in last]
        known = self.known(first.rank)
        return LaunchError(
            "; ".join(self._told(rank, state) for rank, state in ended),
            detail="\n".join([*detail, *known]),
            hint=""
            if known
            else "all of it: the same command with --keep, then python build.py logs",
        )

    def _ended(self, one: Rank, state: State) -> list[tuple[Rank, State]]:
        """The ranks that have ended, the first one first: the others may only have followed it."""
        states = {one.rank: state}

        def ask(other: Rank) -> None:
            if other is not one:
                states[other.rank] = sets.state_of(other.session, other.container)

        # Of one that cannot be asked nothing is known.
        run_on_all(self.ranks, ask)
        ended = [
            (rank, states[rank.rank])
            for rank in self.ranks
            if rank is one or states.get(rank.rank, _RUNS).status not in sets.RUNNING
        ]
        return sorted(ended, key=lambda pair: (pair[1].ended == "", pair[1].ended))

    def _told(self, one: Rank, state: State) -> str:
        what = f"exited with code {state.code}"
        if state.status in sets.RUNNING:
            what = "ended, and Docker started it again"
        elif state.status == "gone":
            what = "was removed"
        elif state.oom:
            what = f"was killed: out of memory (code {state.code})"
        return f"{one.title} {what} in phase {self.logs[one.rank].phase}"

    def known(self, first: int | None = None) -> list[str]:
        """The known failures in the logs: those of ``first`` before all others, each once."""
        order = sorted(self.readings, key=lambda rank: (rank != first, rank))
        found: dict[str, Match] = {}
        for rank in order:
            for match in self.readings[rank].matches():
                found.setdefault(match.entry.id, match)
        for match in knowledge.across(list(self.readings.values())):
            found.setdefault(match.entry.id, match)
        return tell(list(found.values()))


_RUNS = State(status="running")


def tell(matches: Sequence[Match]) -> list[str]:
    """Known failures as lines to read."""
    said = []
    for match in matches:
        where = f" ({match.source})" if match.source else ""
        said.append(f"known: {match.entry.title}{where}")
        if match.note:
            said.append(f"    {match.note}")
        said += [f"    {match.entry.cause}", f"    → {match.entry.fix}"]
    return said
