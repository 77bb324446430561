"""The known failures, read from ``data/failures.yaml``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.validation import Name, Strict
from sparkimage.core import templates

if TYPE_CHECKING:
    from sparkimage.serve.explain.logfacts import Facts

FILE = "failures.yaml"
MIXED_NCCL = "mixed-nccl"
COLD_CACHE = "cold-cache"
Text = Annotated[str, Field(min_length=1)]


@dataclass(kw_only=True)
class Match:
    """A known failure in a log."""

    entry: Entry
    line_number: int
    """Of the first line that shows it, from 1; 0: no single line shows it."""
    line: str
    captured: dict[str, str]
    """What the lines name: a version, a port, a file."""
    count: int = 1
    """How often it occurs."""
    source: str = ""
    """The log's name, where it has one."""
    note: str = ""
    """What else the log says of it."""
    last_number: int = 0
    """The last line that shows it."""
    while_up: bool = False
    """Whether the server was serving at one of them."""
    nccl: tuple[str, ...] = ()
    """The versions of NCCL that were loaded at the first one."""

    def as_lines(self) -> list[str]:
        """For an error's detail."""
        source = f" ({self.source})" if self.source else ""
        note = [f"    {self.note}"] if self.note else []
        cause, fix = f"    {self.entry.cause}", f"    → {self.entry.fix}"
        return [f"known: {self.entry.title}{source}", *note, cause, fix]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            **self.entry.model_dump(include={"id", "title", "cause", "fix", "sources"}),
            "source": self.source or None,
            "line_number": self.line_number or None,
            "line": self.line,
            "captured": self.captured,
            "count": self.count,
            "note": self.note or None,
        }


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What must hold in the whole log for the signs to mean the failure."""

    holds: Callable[[Match, Facts], bool]
    otherwise: str
    """Why the failure is not reported, when it does not hold."""


CONDITIONS = {
    "rdma-enabled": Condition(
        holds=lambda _, facts: not facts.ib_off, otherwise="NCCL_IB_DISABLE=1 is set"
    ),
    "tcp-used": Condition(
        holds=lambda _, facts: facts.via.get("NET/Socket", 0) > 0 and not facts.ib_off,
        otherwise="no traffic between nodes goes over TCP",
    ),
    "after-start": Condition(
        holds=lambda match, facts: match.while_up or match.last_number > facts.progress,
        otherwise="it occurs only while the server loads and compiles, and the start goes on",
    ),
}
"""By the name that an entry gives as ``when``."""


class Sign(Strict):
    """What shows a failure on one line of a log."""

    literal: Text
    pattern: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None

    def match(self, line: str) -> dict[str, str] | None:
        """The pattern's named groups; None when the line does not show it."""
        if self.literal not in line or (self.unless and self.unless.search(line)):
            return None
        if self.pattern is None:
            return {}
        match = self.pattern.search(line)
        if match is None:
            return None
        return {name: value for name, value in match.groupdict().items() if value is not None}


class Entry(Strict):
    """A known failure: its signs, its cause, how to fix it, and the pages that show it."""

    id: Name
    title: Text
    says: Text
    signs: list[Sign] = Field(default=[])
    when: Literal["rdma-enabled", "tcp-used", "after-start"] | None = None
    cause: Text
    fix: Text
    generic: bool = False
    tells_nccl: bool = False
    sources: list[Text] = Field(min_length=1)

    def holds(self, match: Match, facts: Facts) -> bool:
        """Whether the signs mean this failure, given the whole log."""
        return self.when is None or CONDITIONS[self.when].holds(match, facts)


class Combination(Strict):
    """What is known of a release of NCCL, or of a kernel, on some nodes."""

    id: Name
    nccl: list[Text] = Field(default=[])
    kernel: list[Text] = Field(default=[])
    gpu: Text = "*"
    nodes: int = Field(default=1, ge=1)
    known: Text = Field(alias="is")
    shows: list[Name] = Field(min_length=1)
    fix: Text
    warn: bool = False
    sources: list[Text] = Field(min_length=1)

    @staticmethod
    def fits_any(globs: Iterable[str], value: str | None) -> bool:
        """Whether one of the globs matches; none does what is not known."""
        return value is not None and any(fnmatchcase(value, glob) for glob in globs)


class Failures(Strict):
    """failures.yaml"""

    combinations: list[Combination]
    areas: dict[str, list[Entry]]

    @cached_property
    def by_id(self) -> dict[str, Entry]:
        """All entries, in the file's order."""
        return {entry.id: entry for entries in self.areas.values() for entry in entries}

    @cached_property
    def signs(self) -> tuple[tuple[str, Entry, Sign], ...]:
        """Every sign with its literal and its entry. The first one of an entry on a line counts;
        a line may show several entries."""
        return tuple(
            (sign.literal, entry, sign) for entry in self.by_id.values() for sign in entry.signs
        )

    def known_of(
        self,
        *,
        nccl: str | None = None,
        kernel: str | None = None,
        gpus: Iterable[str] | None = None,
        nodes: int | None = None,
    ) -> list[Combination]:
        """What is known of this release of NCCL, or of this kernel; None: not known here."""
        return [
            one
            for one in self.combinations
            if (one.fits_any(one.nccl, nccl) or one.fits_any(one.kernel, kernel))
            and (nodes is None or nodes >= one.nodes)
            and (gpus is None or any(fnmatchcase(gpu, one.gpu) for gpu in gpus))
        ]

    def judge_nccl(self, versions: Iterable[str], shown: str) -> str:
        """What is known of these versions of NCCL that shows as the failure ``shown``."""
        releases = dict.fromkeys(version.split("+")[0] for version in versions)
        known = [
            f"{release} is {one.known}: {one.fix} {one.sources[0]}"
            for release in releases
            for one in self.known_of(nccl=release)
            if shown in one.shows
        ]
        return f" ({'; '.join(known)})" if known else ""


def reference() -> str:
    """docs/troubleshooting.md"""
    page = templates.render(
        "troubleshooting.md", areas=known().areas, combinations=known().combinations,
        conditions=CONDITIONS,
    )  # fmt: skip
    return page.rstrip()


@cache
def known() -> Failures:
    """The file, read once and not before it is needed."""
    with as_file(files("sparkimage") / "data" / FILE) as path:
        return validation.parse(yamlfile.load(path), Failures)
