"""Where a failure began, whether it is known or not: the first fault of each process."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sparkimage.serve.explain.loglines import QUIET, Line
from sparkimage.serve.explain.messages import Message

BEFORE, AFTER = 2, 3
"""Lines that are kept around a fault."""
MAX_PROCESSES = 256
FRAMES = 6
"""Source files of a traceback that are kept: the deepest ones."""
SHOWN = 400
"""Characters of a neighbouring line that are kept."""

_HEAD = "Traceback (most recent call last):"
_INDENT, _FRAME = "  ", '  File "'
LAST_ERROR = "Last error:"
"""https://github.com/pytorch/pytorch/blob/main/torch/csrc/distributed/c10d/NCCLUtils.cpp"""
REQUESTS = ("APIServer",)
"""Processes in which the failure of one request is none of the server."""
_FRONTEND = re.compile(r" \[?(?:serving_|api_server|chat_utils|\w+_parser)\w*\.py:\d+\] ")
"""Their source files, for releases before 0.10, whose lines name no process."""

HINTS = (
    "rror", "ERRO", "xception", "WARN", "fatal", "Fatal", "FATA", "FAILED", "panic", "CRITICAL",
    "Xid", "NVRM", "not found", "Segmentation", "terminate called", "SIG", "core dumped", "Killed",
    "core proc(s)", "no matching manifest", "cannot find", "refused", "docker: ", "unknown flag",
    "sh: ", ": line ",
)  # fmt: skip
"""A line without one of these is none; looked for first."""
_CLASS = r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*"
EXCEPTION = re.compile(
    rf"{_CLASS}(?:Error|Exception|Failure|Timeout|Interrupt|Exit|OutOfResources|"
    r"ErrorGroup|NotFound|Unavailable)(?:\([\w.]+\))?(?::\s|:?$)"
)
"""The line that ends a traceback, by itself."""
_ENDS_TRACEBACK = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:\([\w.]+\))?(?::\s|:?$)")
_LOST = re.compile(
    r"(?:\w+\.)*(?:EOFError|BrokenPipeError|Connection\w*Error|TimeoutError|Empty|ZMQError|"
    r"\w*Interrupt|SystemExit|CancelledError)\b"
)
"""Exceptions of a process whose other end is gone, or that is told to end."""
_TOOLS = re.compile(r"(?:ERROR|ERRO|Error|FATAL|fatal|FATA)\b\W")
"""How a tool without levels of its own begins."""
_SAYS_NOTHING = re.compile(
    r"\s*(?:$|The above exception was the direct cause of|During handling of the above exception|"
    r"Error \d+: Traceback)"
)
"""Between the exceptions of a chain."""
_NAMED = re.compile(rf"(?:^|[\s:]){_CLASS}(?:Error|Exception): |\bERROR\b")
"""An exception, or the level, after what an unknown tool writes before its lines."""
_STARTS = re.compile(
    r"""
      docker:\ (?!Error\ response)
    | unknown\ (?:shorthand\ )?flag:
    | Handler\ for\ \w+\ \S+\ returned\ error
    | nvidia-container-cli:
    | (?:OCI\ runtime|runc|containerd|dockerd|failed\ to\ ).*(?:failed|error)
    | ptxas\b.*\b(?:error|fatal)\b | nvcc\ (?:fatal|error) | nvrtc: | nvlink\ (?:fatal|error)
    | \S+[:(]\d+[:)]?.*?\b(?:fatal\ )?error\b\s*: | FAILED: | ninja:\ (?:error|fatal)
    | cc1plus: | LLVM\ ERROR
    | [\w./-]+(?:\ [\w-]+){0,3}:\ error:\s
    | terminate\ called | Killed$ | exec\ \S+:
    | (?:/bin/)?(?:ba)?sh:\ .*(?:not\ found|error|denied|No\ such)
    | \S+:\ line\ \d+:\ .*(?:not\ found|error|denied|No\ such|unbound\ variable|not\ set)
    | panic:\  | (?:fatal\ )?error:\  | thread\ '.*'\ panicked
    """,
    re.VERBOSE,
)
"""How other tools begin what failed."""
_HOLDS = {
    "Error response from daemon:": None,
    "ld: ": re.compile(r"\bld: .*(?:cannot find|undefined reference|error)"),
    "NVRM: ": re.compile(r"\bNVRM: (?:Xid|.*(?:fail|rror|NV_ERR))"),
    "Xid (PCI": None,
    "Killed process": re.compile(r"(?:Out of memory|Memory cgroup out of memory): Killed"),
    "Failed core proc(s): ": re.compile(r"Failed core proc\(s\): .*-\d"),
    "Segmentation fault": None,
    "Fatal Python error": None,
    "SIG": re.compile(r"\bSIG(?:SEGV|BUS|ABRT|ILL|FPE)\b"),
    "UCX ": re.compile(r"\bUCX +ERROR\b"),
    "NCCL WARN": None,
    "(core dumped)": None,
    "error while loading shared libraries": None,
}
"""What the others have somewhere in the line; then a regular expression for it."""


@dataclass(kw_only=True)
class Fault:
    """A line at which something failed."""

    number: int
    line: Line
    before: tuple[str, ...]
    frames: tuple[str, ...] = ()
    """Source files of its traceback, the deepest one last."""
    after: list[str] = field(default_factory=list)
    message: Message | None = None
    """What it says, where that goes on below it."""
    weak: bool = False
    """It may be no more than a word of it: a line of level ERROR that is no exception, or one with
    an exception somewhere in it."""
    while_up: bool = False

    def is_of_request(self, answered: int) -> bool:
        """Whether one request failed, as far as it shows; ``answered``: as of ``first``."""
        if self.weak or _may_be_of_request(self.line):
            return True
        of_none = self.frames and not (self.line.process or self.line.nccl)
        return bool(of_none and self.number < answered)


@dataclass(kw_only=True)
class FirstFaults:
    """The first fault of each process; ``take`` gets every line, quoted texts left out."""

    _strong: dict[str, Fault] = field(default_factory=dict)
    _weak: dict[str, Fault] = field(default_factory=dict)
    _open: list[Fault] = field(default_factory=list)
    """Faults that want lines after them."""
    _last: deque[str] = field(default_factory=lambda: deque(maxlen=BEFORE))
    _tracebacks: dict[str, deque[str]] = field(default_factory=dict)
    """Process whose last line was of a traceback → the last source files that it named."""
    _last_errors: set[str] = field(default_factory=set)
    """Processes of which torch tells NCCL's own last error next."""
    _survived: set[str] = field(default_factory=set)
    """Processes whose next traceback is of what they survived."""

    @property
    def is_idle(self) -> bool:
        """Whether no line is waited for that goes on with an earlier one."""
        return not (self._tracebacks or self._last_errors or self._open)

    def pass_over(self, lines: Sequence[str]) -> None:
        """Read, while idle, lines that tell nothing."""
        self._last.extend(line[:SHOWN] for line in [one for one in lines if one][-BEFORE:])

    def pass_frame(self, line: str) -> bool:
        """Read a line of a traceback, neither with a prefix; False where it is of none."""
        if line == _HEAD and len(self._tracebacks) < MAX_PROCESSES:
            self._tracebacks.setdefault(_BARE, deque(maxlen=FRAMES))
        elif not line.startswith(_INDENT) or _BARE not in self._tracebacks:
            return False
        frames = self._tracebacks[_BARE]
        if line.startswith(_FRAME):
            frames.append(line[len(_FRAME) :].partition('"')[0])
        self._last.append(line[:SHOWN])
        return True

    def is_repeated(self, line: str, *, while_up: bool) -> bool:
        """Whether a line ends a traceback, neither with a prefix, and their process failed before,
        in this phase of the server."""
        earlier = self._strong.get(_BARE)
        return (
            earlier is not None
            and (earlier.while_up or not while_up)
            and _BARE in self._tracebacks
            and _BARE not in self._last_errors
            and _BARE not in self._survived
            and EXCEPTION.match(line) is not None
        )

    def pass_repeated(self, line: str) -> None:
        """Read such a line, of which nothing is known."""
        del self._tracebacks[_BARE]
        self._follow(line)

    def in_traceback(self, line: Line) -> bool:
        """Whether a line is of a traceback: source code, which says nothing of what happened."""
        if line.body.startswith((_FRAME, "Traceback (most")):
            if len(self._tracebacks) < MAX_PROCESSES:
                frames = self._tracebacks.setdefault(_key(line), deque(maxlen=FRAMES))
                if line.body.startswith(_FRAME):
                    frames.append(line.body[len(_FRAME) :].partition('"')[0])
        elif "  raise " not in line.body and not (
            line.body.startswith("  ") and _key(line) in self._tracebacks
        ):
            # What another tool writes before a line may hide where source code begins.
            return False
        self._last.append(line.text[:SHOWN])
        return True

    def survives(self, line: Line) -> None:
        """The process of this line goes on after the exception whose traceback follows."""
        if len(self._survived) < MAX_PROCESSES:
            self._survived.add(_key(line))

    def was_survived(self, line: Line) -> bool:
        """Whether a line ends the traceback of what its process survived, as it announced or as the
        level says."""
        key = _key(line)
        warns = line.level == "WARNING" and not line.nccl
        if not (warns or key in self._survived) or self._tracebacks.pop(key, None) is None:
            return False
        self._survived.discard(key)
        return True

    def take(self, number: int, line: Line, *, while_up: bool) -> Fault | None:
        """Read one line that is of no traceback; the fault, if the line is one.

        A caller says with ``drop`` that it is a wrapper or harmless.
        """
        frames = self._tracebacks.pop(_key(line), None) if self._tracebacks else None
        fault = None
        if frames is not None or self._last_errors or _is_hinted(line.text):
            fault = self._judge(number, line, frames, while_up)
        self._follow(line.text)
        return fault

    def _follow(self, text: str) -> None:
        """Keep a line with the faults before it, and for those after it."""
        if self._open:
            for other in self._open:
                other.after.append(text[:SHOWN])
            self._open = [other for other in self._open if len(other.after) < AFTER]
        self._last.append(text[:SHOWN])

    def has_earlier(self, fault: Fault) -> bool:
        """Whether its process failed before, in this phase of the server."""
        faults = self._weak if fault.weak else self._strong
        earlier = faults.get(_key(fault.line))
        return earlier is not None and (earlier.while_up or not fault.while_up)

    def keep(self, fault: Fault) -> None:
        """It is where its process failed, unless an earlier one is."""
        faults = self._weak if fault.weak else self._strong
        if not self.has_earlier(fault) and len(faults) < MAX_PROCESSES:
            faults[_key(fault.line)] = fault
            self._open.append(fault)

    def forget(self, since: int) -> None:
        """The server is ready: what was said since that line did not stop it."""
        for faults in (self._strong, self._weak):
            for key in [key for key, fault in faults.items() if fault.number > since]:
                del faults[key]

    def joined(self, line: Line) -> None:
        """NCCL of this process has joined its ranks: what it warned of did not stop it."""
        earlier = self._strong.get(_key(line))
        if earlier and earlier.line.nccl:
            del self._strong[_key(line)]

    def first(self, *, dead: bool, answered: int) -> list[Fault]:
        """The first one of each process, by line; weak ones where there is no other.

        ``dead``: the server ended after it was ready, so that what failed then counts.
        ``answered``: the last line that shows an answer or tokens.
        """
        for faults in (self._strong, self._weak):
            counted = [
                fault
                for fault in faults.values()
                if dead or not fault.while_up or not fault.is_of_request(answered)
            ]
            if counted:
                return sorted(counted, key=lambda fault: fault.number)
        return []

    def raised(self, *, dead: bool, answered: int) -> bool:
        """Whether one of the first ones is an exception of which nothing is known, and that is not
        what a process says whose other end is gone."""
        return any(
            fault.frames and not fault.weak and not (fault.message and fault.message.named)
            for fault in self.first(dead=dead, answered=answered)
            if not _LOST.match(fault.line.body)
        )

    def _judge(
        self, number: int, line: Line, frames: Iterable[str] | None, while_up: bool
    ) -> Fault | None:
        if line.level in QUIET or (line.level == "WARNING" and not line.nccl):
            return None
        body = line.body
        if _SAYS_NOTHING.match(body):
            return None
        if body.rstrip() == LAST_ERROR and len(self._last_errors) < MAX_PROCESSES:
            self._last_errors.add(_key(line))
            return None
        of_nccl = _key(line) in self._last_errors
        self._last_errors.discard(_key(line))
        strong = of_nccl or line.nccl or bool(EXCEPTION.match(body)) or _is_of_tool(body)
        strong = strong or (frames is not None and bool(_ENDS_TRACEBACK.match(body)))
        strong = strong or (not line.level and bool(_TOOLS.match(body)))
        if not strong and body.startswith("    "):
            # Source code of a traceback whose beginning is cut off.
            return None
        named = not line.level and not while_up and _NAMED.search(body)
        if not strong and not named and line.level not in ("ERROR", "CRITICAL", "FATAL"):
            return None
        file = "nccl/" if of_nccl else line.file
        return Fault(
            number=number, line=line, before=tuple(self._last), weak=not strong, while_up=while_up,
            frames=(file,) if file else tuple(frames or ()),
        )  # fmt: skip


def _is_of_tool(body: str) -> bool:
    if _STARTS.match(body):
        return True
    for literal, pattern in _HOLDS.items():
        if literal in body and (pattern is None or pattern.search(body)):
            return True
    return False


def _is_hinted(text: str) -> bool:
    # A loop is twice as fast as any() with a generator, and every line comes here.
    for hint in HINTS:  # noqa: SIM110
        if hint in text:
            return True
    return False


def is_of_frontend(line: Line) -> bool:
    """Whether a line, while requests are served, is of one that failed."""
    return line.process.startswith(REQUESTS) or bool(
        line.level == "ERROR" and not line.process and _FRONTEND.search(line.text)
    )


def _may_be_of_request(line: Line) -> bool:
    """Whether a line, while requests are served, may be of one that failed."""
    return line.process.startswith(REQUESTS) or (not line.process and line.level == "ERROR")


def _key(line: Line) -> str:
    return f"{line.node} {line.process}"


_BARE = _key(Line("", ""))
"""That of lines without a prefix."""
