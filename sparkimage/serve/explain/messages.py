"""Messages of several lines: what an exception says below its own line is the cause, as a rule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from sparkimage.serve.explain.loglines import Line

LINES = 12
"""Lines of a message that are kept."""
LONGEST = 2_000
"""Characters of a message that known failures are looked for in."""
SHOWN = 400
"""Characters of a line that are kept."""
WARNING = re.compile(r":\d+: \w*Warning: ")
"""What Python writes between source file and text of a warning, which tells of no failure; the
source line ends it, where it is known:
https://docs.python.org/3/library/warnings.html#warnings.formatwarning"""
WARNING_LINES = 3
"""Lines of a warning, where no source line ends it."""
_VERBS = r"""
    (?: set | unset | use | pass | increase | decrease | reduce | lower | raise | install | upgrade
      | downgrade | disable | enable | run | rerun | remove | omit | drop | add | specify | provide
      | choose | select | switch | configure | adjust | rebuild | build | restart | start | keep
      | check | ensure | make\ sure | fix | quote | create | correct | split | prefer )
"""
_ADVICE = re.compile(
    rf"""
    (?: (?: ^ | (?<=[.;:,]\ ) | (?<=[a-z)][.]) )
        (?: [Pp]lease | [Tt]ry | [Cc]onsider | [Ee]ither | [Ii]nstead,?
          | [Yy]ou\ (?:can|may|should|need\ to|must) )
      | (?: ^ | (?<=[.;:]\ ) | (?<=[a-z)][.]) ) (?=[A-Z]) (?i:{_VERBS})
      | (?<=;\ ) {_VERBS}
    )
    \ (?!\w+ed\b|only\b)
    (?!.{{0,40}}(?:report|issue|stack\ trace|contact|refer|debug))
    [^.]*(?:\.\w[^.]*)*
    """,
    re.VERBOSE,
)
"""What to do, in a sentence of an exception's message."""
_TYPE = re.compile(r" \[type=\w+, input_value=.*")
"""What pydantic writes after a message."""
_OTHER = re.compile(
    r"""(?:Traceback\ \(most|File\ "|During\ handling\ of|The\ above\ exception|
    For\ further\ information\ visit|(?:Run|See)\ '[^']*--help'|\[?\d+/\d+\]|[\^~]+$)""",
    re.VERBOSE,
)
"""Lines that are of no message, or say nothing in it."""
_WHOLE = re.compile(r"ERROR: ld\.so: ")
"""The loader says all in one line, and what comes next is of the program."""


@dataclass(kw_only=True)
class Message:
    """What a fault's line says, and the lines below that go on with it."""

    first: Line
    number: int
    """Of the first line, from 1."""
    lines: list[str] = field(default_factory=list)
    """Below the first one, without what stands before a message."""
    is_warning: bool = False
    """It is one of Python's warnings."""
    named: bool = False
    """A known failure was found in it."""
    wholes: tuple[str, ...] = ()
    """All of it in one line: with blanks, and where a terminal broke words, without."""

    def __post_init__(self) -> None:
        self.wholes = (self.first.text,)

    def is_like(self, line: Line) -> bool:
        """Whether a line may be of this message.

        A logger writes the same before all lines of one message; a terminal breaks long ones.
        """
        most = WARNING_LINES if self.is_warning else LINES
        first, bare = self.first, not (line.process or line.level or _WHOLE.match(self.first.text))
        alike = (line.process, line.level, line.time) == (first.process, first.level, first.time)
        return (bare or alike) and not line.nccl and len(self.lines) < most

    def add(self, line: Line) -> None:
        """Go on with a line that is like it."""
        text = line.body.strip()
        if text and not _OTHER.match(text):
            self.lines.append(text[:SHOWN])
            joints = (" ",) if line.level else (" ", "")
            joined = [f"{self.wholes[0]}{joints[0]}{text}", f"{self.wholes[-1]}{joints[-1]}{text}"]
            self.wholes = tuple(dict.fromkeys(whole[:LONGEST] for whole in joined))

    @property
    def ends_at_blank(self) -> bool:
        """Whether it is one of a tool without a logger, so that other text may follow a blank."""
        return bool(self.lines) and not self.first.level


def advice(lines: Iterable[str]) -> str:
    """What the lines of a message say that is to be done; empty: nothing."""
    found = _ADVICE.search(" ".join(_TYPE.sub("", line) for line in lines))
    return found[0].strip()[:SHOWN] if found else ""
