"""Reads logs and names the known failures in them; ``failures`` has the table.

What is not known is told, too: where it began (``firstfault``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from sparkimage.serve.explain import conditions, failures, loglines, story, turns, unknown
from sparkimage.serve.explain.failures import WORD, Entry, Sign
from sparkimage.serve.explain.firstfault import Fault, FirstFaults, is_of_frontend
from sparkimage.serve.explain.found import Match
from sparkimage.serve.explain.logfacts import Facts
from sparkimage.serve.explain.loglines import QUIET, Line
from sparkimage.serve.explain.messages import WARNING, Message

SHOWN_FAULTS = 3


@dataclass(kw_only=True)
class Reading:
    """One log while it is read; memory does not grow with it."""

    source: str = ""
    facts: Facts = field(default_factory=Facts)
    lines: int = 0
    known: failures.Failures = field(default_factory=failures.known)
    _found: dict[str, Match] = field(default_factory=dict)
    _remarks: dict[str, Match] = field(default_factory=dict)
    _faults: FirstFaults = field(default_factory=FirstFaults)
    _sure: set[str] = field(default_factory=set)
    """What was found in a line at which something failed, not in a remark."""
    _time: str = ""
    _dead: bool = False
    """The server ended after it was ready."""
    _stopping: bool = False
    """The server was ready, and was told to end."""
    _wrapper: Fault | None = None
    """The first line that only says that something else failed."""
    _request: bool = False
    """What is read tells of a request that failed, and the server goes on."""
    _words: list[str] = field(default_factory=list)
    """Of the line that was looked up last."""
    _message: Message | None = None
    """The message of the last fault, as far as it was read."""

    def take(self, line: str | bytes) -> None:
        """Read the next line."""
        self.lines += 1
        parsed = loglines.read(line)
        text = parsed.text
        if not text and self._message and self._message.ends_at_blank:
            self._message = None
        if not text or ("d re" in text and turns.QUOTES.search(text)):
            return
        self._time = parsed.time or self._time
        phase = self.facts.take(self.lines, text, parsed.node)
        if phase:
            self._is_up(phase)
        if parsed.level:
            self._request = parsed.level == "ERROR" and self.facts.up and turns.REQUEST in text
        # A substring is looked for at once, a pattern is not.
        may_stop = "down" in text or "WorkerProc" in text
        if may_stop and parsed.level in turns.SAYS_STOPPING and turns.STOPPING.search(text):
            self._stops()
        if parsed.level in QUIET:
            if self._message and self._message.first.process == parsed.process:
                self._message = None
            if parsed.nccl and "Init COMPLETE" in text:
                self._faults.joined(parsed)
            for entry, sign in self.known.info_signs:
                if sign.literal in text:
                    self._words = WORD.findall(text)
                    self._try(parsed, self.lines, entry, sign)
            return
        if self._faults.in_traceback(parsed) or self._faults.was_survived(parsed):
            self._message = None
            return
        if self.known.is_survived(text):
            self._faults.survives(parsed)
            return
        fault = self._faults.take(self.lines, parsed, while_up=self.facts.up)
        goes_on = self._goes_on(parsed, fault)
        if not goes_on and "Warning: " in text and WARNING.search(text):
            self._message = Message(first=parsed, number=self.lines, is_warning=True)
        if self._message and self._message.is_warning:
            if parsed.body.startswith("  "):
                self._message = None
            return
        hit = self._look_up(parsed, self.lines)
        if goes_on:
            hit += self._look_up_whole()
        if fault or goes_on:
            self._sure.update(entry.id for entry in hit)
        if fault and not goes_on:
            if not self._request and (hit or not self._faults.has_earlier(fault)):
                self._message = Message(first=parsed, number=self.lines)
            for entry in hit if fault.frames and not parsed.nccl else ():
                if entry.id in self._found:
                    self._found[entry.id].captured.setdefault("frame", fault.frames[-1])
            self._judge(fault, hit)
        if hit and self._message:
            self._attach(self._message, hit)

    @property
    def is_idle(self) -> bool:
        """Whether no line is waited for that goes on with an earlier one."""
        return self._message is None and self._faults.is_idle

    def pass_over(self, lines: Sequence[str]) -> None:
        """Read, while idle, lines that tell nothing."""
        self.lines += len(lines)
        self._faults.pass_over(lines)

    def passes_by(self, line: str) -> bool:
        """Read a line that needs no cleaning and tells no facts, if it is of a traceback without
        prefixes: a frame, or the end of one that only repeats what is not known; else False."""
        if not self._faults.pass_frame(line):
            up = self.facts.up
            if not self._faults.is_repeated(line, while_up=up) or (up and not self._dead):
                return False
            if self.known.is_survived(line) or not self.known.has_no_sign(line):
                return False
            self._faults.pass_repeated(line)
        self.lines += 1
        self._message = None
        return True

    def _goes_on(self, line: Line, fault: Fault | None) -> bool:
        """Whether a line is of the message that was read last."""
        message = self._message
        if message and (not fault or fault.weak):
            goes_on = message.is_like(line)
            if goes_on and not self.known.is_wrapper(line.text, WORD.findall(line.text)):
                message.add(line)
                return True
        self._message = None
        return False

    def _look_up_whole(self) -> list[Entry]:
        """Note the known failures of a message of several lines."""
        message = self._message
        if message is None or message.named:
            return []
        hit: list[Entry] = []
        for whole in message.wholes:
            hit += self._look_up(message.first._replace(text=whole), message.number)
        return hit

    def _attach(self, message: Message, hit: Iterable[Entry]) -> None:
        """Keep the lines of a message with the failures that are in it."""
        for entry in hit:
            message.named = message.named or entry.rank not in ("general", "wrapper")
            match = self._found.get(entry.id)
            if match and match.line in message.wholes:
                match.line = message.first.text
            if match and not match.message and match.line_number >= message.number:
                match.message = message.lines

    def _look_up(self, line: Line, number: int) -> list[Entry]:
        """Note the known failures of a line, or of a message that begins there, each once."""
        hit: list[Entry] = []
        signs = self.known.signs
        # Few lines hold any: a hundred thousand lines are to take a second.
        self._words = WORD.findall(line.text)
        if signs.keys().isdisjoint(self._words):
            return hit
        possible = [
            sign
            for word in self._words
            if word in signs
            for sign in signs[word]
            if sign[-1].literal in line.text
        ]
        for _, entry, sign in sorted(possible, key=itemgetter(0)):
            if entry not in hit and self._try(line, number, entry, sign):
                hit.append(entry)
        return hit

    def _try(self, line: Line, number: int, entry: Entry, sign: Sign) -> bool:
        captured = sign.match(line.text)
        if captured is None or self.known.is_handled(line.text, self._words):
            return False
        self._note(entry, line, number, captured)
        return True

    def _judge(self, fault: Fault, hit: Sequence[Entry]) -> None:
        text = fault.line.text
        if self._request or self._is_stopping:
            return
        if self._faults.has_earlier(fault) and (self._dead or not self.facts.up):
            return
        if self.known.is_handled(text, self._words):
            return
        self.facts.failed = True
        if self.known.is_wrapper(text, self._words):
            if turns.INTERRUPTED.search(fault.line.body):
                self._stops()
            self._dead = self._dead or (self.facts.up and not turns.ENDED.search(fault.line.body))
            self._wrapper = self._wrapper or fault
        elif fault.weak and self._wrapper and self._wrapper.line.process == fault.line.process:
            # What a process says after that it ends, without an exception: it follows, too.
            return
        elif not any(entry.rank == "echo" or entry.hint for entry in hit):
            fault.message = self._message
            self._faults.keep(fault)

    def _note(self, entry: Entry, line: Line, number: int, captured: dict[str, str]) -> None:
        if self._is_stopping and entry.rank not in ("root", "transport"):
            return
        # Where requests are served, the failure of one is none of the server.
        of_request = self._request or (self.facts.up and is_of_frontend(line))
        remark = of_request and entry.rank in story.CAUSES
        # What a client's connection broke off with is an echo of the client.
        remark = remark or (self._request and entry.rank == "echo")
        found = self._remarks if remark else self._found
        self.facts.failed = self.facts.failed or not (entry.info or entry.when)
        match = found.get(entry.id)
        if match is None:
            match = found[entry.id] = Match(
                entry=entry, line_number=number, line=line.text, captured={}, count=0,
                source=self.source, nccl=tuple(self.facts.nccl), process=line.process,
                time=self._time,
            )  # fmt: skip
        # The lines of a message are looked up together, too.
        match.count += number > match.last_number
        match.last_number = max(number, match.last_number)
        match.last_time = self._time
        match.while_up = match.while_up or self.facts.up
        match.captured = {**captured, **match.captured}

    def _stops(self) -> None:
        """The server is told to end, unless it ends by itself."""
        self._stopping = self.facts.up and not self._dead

    @property
    def _is_stopping(self) -> bool:
        """What fails then is of no account; a new start ends it."""
        return self.facts.finished or (self._stopping and self.facts.up)

    def _is_up(self, phase: str) -> None:
        """What this start said before it was ready did not stop it."""
        if phase != "ready" and self.facts.starts:
            return
        since = self.facts.start_line
        self._faults.forget(since)
        self._stopping = False
        for id_, match in list(self._found.items()):
            if match.line_number > since and not match.entry.persists:
                self._remarks[id_] = self._found.pop(id_)

    def remarks(self) -> list[Match]:
        """What looked like a failure, and did not stop the server."""
        remarks = [match for id_, match in self._remarks.items() if id_ not in self._found]
        return sorted([*remarks, *self._passed()], key=lambda match: match.line_number)

    def _passed(self) -> list[Match]:
        found = self._found.values()
        return [match for match in found if story.passed(match, found, self.facts)]

    def matches(self) -> list[Match]:
        """The failures, what they began with first; without mere consequences of others.

        Where nothing that was found is a cause, what is not known is told with its line.
        """
        found = [
            self._with_nccl(id) if entry.tells_nccl else self._found[id]
            for id, entry in self.known.by_id.items()
            if id in self._found and conditions.hold(self._found[id], self.facts)
        ]
        builds = story.different(self.facts.releases, self.facts.builds)
        if failures.MIXED_NCCL not in self._found and builds:
            found.append(story.mixed(builds, *self.facts.nccl_line, self.source))
        found += story.cold(self.facts, self.source)[:1]
        over = [match.entry.id for match in self._passed()]
        found = [match for match in found if match.entry.id not in over]
        said = {one.entry.id for one in found if one.entry.signs and one.entry.rank in story.CAUSES}
        sure = {id_ for id_ in said & self._sure if not self.known.by_id[id_].hint}
        if not sure and self._faults.raised(dead=self._dead, answered=self.facts.answered):
            found = [match for match in found if match.entry.id not in said]
        ranks = {match.entry.rank for match in found}
        if not ranks & {*story.CAUSES}:
            found += self._not_after(found) or self._of_last_request()
        elif not ranks & {"root", "transport"}:
            found += self._before(found)
        ranks = {match.entry.rank for match in found}
        left_out = {"wrapper"}
        if "root" in ranks:
            left_out.add("general")
        if ranks & {"root", "general", "transport"}:
            left_out.add("outcome")
        specific = [match for match in found if match.entry.rank not in left_out]
        told_to_end = self.facts.up or (
            self._wrapper and turns.ENDED.search(self._wrapper.line.body)
        )
        if not found and self._wrapper and not told_to_end:
            found = [
                unknown.as_match(self.known, [self._wrapper], self.source, failures.ONLY_FOLLOWING)
            ]
        return story.follow(story.by_rank(story.without_heads(specific or found)))

    def _with_nccl(self, id_: str) -> Match:
        died = self._found.get(failures.WORKER_DIED)
        return story.with_nccl(self._found[id_], self.facts, self.known, died)

    def began(self) -> Match | None:
        """The first fault, known or not."""
        first = next(iter(self._unknown()), None)
        if first is None:
            return None
        named = (one for one in self.matches() if one.known)
        return next((one for one in named if one.line_number == first.line_number), first)

    def _not_after(self, found: Sequence[Match]) -> list[Match]:
        """The first faults, without those that follow from what was noticed before them."""
        return story.not_after(self._unknown(named=False), found)

    def _of_last_request(self) -> list[Match]:
        """What the last request failed of, where the server ended after it."""
        remarks = [match for match in self._remarks.values() if match.while_up]
        return remarks[-1:] if self._dead else []

    def _before(self, found: Sequence[Match]) -> list[Match]:
        """The first fault, if it came before all that is known by its kind alone."""
        first = min(one.line_number for one in found if one.entry.rank in ("general", "outcome"))
        return [match for match in self._unknown()[:1] if 0 < match.line_number < first]

    def _unknown(self, *, named: bool = True) -> list[Match]:
        """The first faults; ``named``: also those whose message has a known failure further on."""
        faults: dict[str, list[Fault]] = {}
        for fault in self._faults.first(dead=self._dead, answered=self.facts.answered):
            if named or not (fault.message and fault.message.named):
                faults.setdefault(fault.line.body.strip(), []).append(fault)
        shown = list(faults.values())[:SHOWN_FAULTS]
        return [unknown.as_match(self.known, same, self.source) for same in shown]


def read(lines: Iterable[str | bytes], *, source: str = "") -> list[Match]:
    """The failures in a log, which may be endless: its lines are not kept.

    Colours, docker's timestamps and JSON, and names before the lines are skipped. Raises nothing.
    """
    reading = Reading(source=source)
    for line in lines:
        reading.take(line)
    return reading.matches()
