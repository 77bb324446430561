"""Waits until a deployment serves: follows every rank's log, polls the head, stops at a failure.

It is ready when the head's log says that its startup is complete *and* ``/health`` answers 200;
then the logs of all ranks must show what is to be proven, and it must answer requests, which warm
it up.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

from sparkimage.core.errors import LaunchError, NodeError, ProbeError, SparkError
from sparkimage.core.program import program
from sparkimage.core.progress import TransferProgress, View
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.serve import deployments, liveness, readiness, warmup
from sparkimage.serve.deployments import HEAD, Member
from sparkimage.serve.explain import together
from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.knowledge import Reading
from sparkimage.serve.followers import End, Followers, Line, Rank
from sparkimage.serve.openai_api import Server
from sparkimage.serve.readiness import READY, START, Finding, Log
from sparkimage.serve.spec import ServerSpec
from sparkimage.serve.warmup import WarmedUp, WarmUp

PROOF_S = 10.0
"""Seconds that Docker may take to log what a rank has written."""
SETTLE_S = 1.0
"""Seconds of silence after a failure: what the other ranks say of it comes before."""
POLL_S = 0.3
LOOK_S = 20.0
"""Seconds between two looks at the ranks' processes."""
SEE_LOG = f"see the whole log: repeat the command with --keep, then {program()} logs"
LAST, LAST_OF_OTHERS = 12, 3
"""Lines that an error shows of the log of the rank that failed first, and of the others."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A deployment that serves, and what was proven of it."""

    spec: ServerSpec
    ranks: Sequence[Rank]
    findings: tuple[Finding, ...]
    seconds: float
    """Until it was ready, without the warm-up."""
    warm_up: WarmedUp

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
            "warm_up": asdict(self.warm_up),
        }


class ProofError(LaunchError):
    """The ranks' logs do not show the pinned NCCL or RDMA."""

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
            hint=SEE_LOG,
        )
        self.findings = tuple(findings)


def until_ready(
    spec: ServerSpec, ranks: Sequence[Rank], *, began: float, timeout_s: float, warm_up_s: float,
    view: View, key: str = "",
) -> Ready:  # fmt: skip
    """Wait until the deployment serves, is proven and warm; ``began``: when, by ``time.monotonic``;
    ``warm_up_s``: what the warm-up may take, 0 for none; ``key``: of the server's API, where the
    environment has none.

    Raises ``LaunchError``, ``ProofError``, ``ProbeError``.
    """
    title = f"{spec.name}: {spec.variant}, {spec.profile}"
    with view.states([rank.title for rank in ranks], title, START) as board:
        wait = Waiting(
            ranks=ranks, spec=spec, timeout_s=timeout_s, warm_up_s=warm_up_s, board=board, key=key
        )  # fmt: skip
        findings, warmed_up = wait.run()
    return Ready(
        spec=spec, ranks=ranks, findings=findings, warm_up=warmed_up,
        seconds=time.monotonic() - began - warmed_up.seconds,
    )  # fmt: skip


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
    warm_up_s: float
    """Seconds that the warm-up may take; 0: none, only a proof that tokens come."""
    board: TransferProgress
    key: str = field(default="", repr=False)
    _logs: dict[int, Log] = field(default_factory=dict)
    _followers: Followers = field(init=False)
    _poller: threading.Thread | None = None
    _health: int | None = None
    _looked: float = 0.0
    """When the ranks' processes were last looked at."""

    def __post_init__(self) -> None:
        self._followers = Followers(ranks=self.ranks)

    def run(self) -> tuple[tuple[Finding, ...], WarmedUp]:
        """Wait until the deployment is ready, proven and warm; what was proven, and the warm-up.

        Raises ``LaunchError`` when a rank ends or is stopped, when its node is lost, or at the time
        limit; ``ProofError``; ``ProbeError`` for a request that failed.
        """
        until = time.monotonic() + self.timeout_s
        self._logs = {rank.rank: Log(reading=Reading(source=rank.name)) for rank in self.ranks}
        try:
            self._followers.start()
            self._looked = time.monotonic()
            while not (self._health == HTTPStatus.OK and self._logs[HEAD].complete):
                self._watch(until)
                if self._is_refused():
                    break
            self._catch_up()
            # Docker may have logged less than the ranks wrote.
            latest = min(until, time.monotonic() + PROOF_S)
            while time.monotonic() < latest and self._is_pending():
                self._step(until, wait_s=latest - time.monotonic())
            findings = self._findings()
            if not all(finding.ok for finding in findings):
                raise ProofError(findings, self.known_failures())
            for rank in self.ranks[HEAD + 1 :]:
                self.board.state(rank.title, READY)
            warmed_up = self._warm_up()
            self.board.state(self.ranks[HEAD].title, READY)
            return findings, warmed_up
        finally:
            self._followers.stop()

    # Warm-up

    def _warm_up(self) -> WarmedUp:
        head = self.ranks[HEAD]
        path = head.session.remote.forward_port(self.spec.port)
        limit_s = self.warm_up_s or warmup.LIMIT_S

        def compiled() -> int:
            self._catch_up()
            return sum(log.compiled for log in self._logs.values())

        try:
            return WarmUp(
                # Its own limit ends it first.
                connect=lambda: Server(
                    url="http://localhost", socket=path, answer_s=2 * limit_s, key=self.key
                ),
                plan=warmup.PLAN if self.warm_up_s else warmup.PROOF,
                limit_s=limit_s,
                wait=self._watch,
                wake=lambda: self._followers.events.put((HEAD, HTTPStatus.OK)),
                compiled=compiled,
                show=lambda text, detail: self.board.state(head.title, text, detail),
            ).run()
        except ProbeError as error:
            # What a rank said of it comes late, and its end says more.
            self._settle()
            self._watch()
            raise LaunchError(
                f"ready, but a request failed: {error.message}",
                detail="\n".join([error.detail, *self.known_failures()]).strip(),
                hint=SEE_LOG,
            ) from error

    def _watch(self, until: float = math.inf) -> None:
        """Handle the next event, and look at the ranks' processes from time to time."""
        self._step(until, wait_s=POLL_S)
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        stopped: dict[int, str] = {}

        def look(rank: Rank) -> None:
            member = deployments.member(rank.session, rank.container)
            if member is not None:
                (found,) = liveness.with_processes(rank.session, [member])
                stopped[rank.rank] = found.stopped

        run_on_all(self.ranks, look)
        held = [f"{rank.title} {text}" for rank in self.ranks if (text := stopped.get(rank.rank))]
        if held:
            raise LaunchError("; ".join(held), hint="find out who stopped it: ps, dmesg -T there")

    def _findings(self) -> tuple[Finding, ...]:
        spec, nodes = self.spec, [rank.name for rank in self.ranks]
        return readiness.prove(self._logs, nodes, nccl=spec.nccl, rdma=spec.rdma, gpus=spec.gpus)

    def _is_refused(self) -> bool:
        """Every rank has said its NCCL, and something is wrong for good: it will be so when they
        serve, if they ever do."""
        return all(log.banners for log in self._logs.values()) and any(
            not finding.ok and not finding.pending for finding in self._findings()
        )

    def _is_pending(self) -> bool:
        """Something is not in the logs yet."""
        return any(finding.pending for finding in self._findings())

    def _step(self, until: float, *, wait_s: float = 1.0) -> None:
        """Handle the next event, if one comes soon."""
        left = until - time.monotonic()
        if left <= 0:
            raise self._late()
        try:
            rank, event = self._followers.events.get(timeout=max(0.01, min(left, wait_s)))
        except queue.Empty:
            return
        if not self._take(rank, event):
            self._settle()
            raise self._failed(self.ranks[rank], event)

    def _catch_up(self) -> None:
        """Read every log to its present end: a follower may be behind, and the head is ready only
        after all that its workers have written."""
        logs, errors = self._followers.read_all()
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
                self._take(*self._followers.events.get(timeout=SETTLE_S))
            except queue.Empty:
                return

    # In a thread

    def _poll(self) -> None:
        try:
            path = self.ranks[HEAD].session.remote.forward_port(self.spec.port)
            server = Server(url="http://localhost", socket=path)
            while not self._followers.over.is_set():
                status = server.health()
                self._followers.events.put((HEAD, status or 0))
                if status == HTTPStatus.OK or self._followers.over.wait(POLL_S):
                    return
        except SparkError as error:
            self._followers.events.put((HEAD, error))

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
            f"{program()} logs",
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
            hint="" if known else SEE_LOG,
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
        for match in together.in_order(readings):
            by_id.setdefault(match.entry.id, match)
        return [line for match in by_id.values() for line in match.as_lines()]
