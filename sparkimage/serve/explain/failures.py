"""The known failures, read from ``data/failures.yaml``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib.resources import as_file, files
from typing import Annotated, Literal

from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.validation import Name, Strict
from sparkimage.core.program import as_called
from sparkimage.serve.explain.places import Kind, Place
from sparkimage.serve.explain.regex import Pattern

FILE = "failures.yaml"
MIXED_NCCL = "mixed-nccl"
COLD_CACHE = "cold-cache"
WORKER_DIED = "worker-died"
FIRST_FAULT = "first-fault"
"""The entry of a fault that no other one knows."""
ONLY_FOLLOWING = "only-following"
"""The entry of a log that has nothing but what follows from another failure."""
WORD = re.compile(r"\w{3,}", re.ASCII)
"""What a sign is looked up by: see ``Sign.word``."""
Text = Annotated[str, Field(min_length=1)]


class Sign(Strict):
    """What shows a failure on one line of a log."""

    literal: Text
    pattern: Pattern | None = None
    unless: Pattern | None = None

    @property
    def word(self) -> str:
        """The longest word of the literal; a line without it is not looked at further."""
        words: list[str] = WORD.findall(self.literal)
        return max(words, key=len)

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


class Value(Strict):
    """Title, cause and fix of a failure for some of the values that its lines name."""

    of: dict[str, Pattern] = Field(min_length=1)
    """Group → what all of its text must match; a group that the line lacks is empty."""
    title: str = ""
    cause: str = ""
    fix: str = ""
    sources: list[Text] = Field(default=[])

    def fits(self, captured: Mapping[str, str]) -> bool:
        """Whether the line names such values."""
        return all(
            pattern.fullmatch(captured.get(name, "")) is not None
            for name, pattern in self.of.items()
        )


RANKS = ("root", "general", "transport", "outcome", "echo", "wrapper")
"""What a failure is to the others: where it began; the same, told by its kind alone (left out where
a root is there); the network that carries it; what became of a process or a container (left out
where a cause is there); what another rank or process noticed of it; and what only says that
something failed."""


class Entry(Strict):
    """A known failure: its signs, its cause, how to fix it, and the pages that show it."""

    id: Name
    title: Text
    says: Text
    signs: list[Sign] = Field(default=[])
    when: Literal["rdma-enabled", "tcp-used", "after-start", "link-lost", "start-failed"] | None = (
        None
    )
    cause: Text
    fix: Text
    rank: Literal["root", "general", "transport", "outcome", "echo", "wrapper"] = "root"
    values: list[Value] = Field(default=[])
    info: bool = False
    hint: bool = False
    persists: bool = False
    passing: bool = False
    heads: bool = False
    tells: str = ""
    tells_nccl: bool = False
    near: list[Text] = Field(default=[])
    sources: list[Text] = Field(min_length=1)


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

    handled: list[Sign]
    survived: list[str]
    wrappers: list[Sign]
    combinations: list[Combination]
    kinds: list[Kind]
    places: list[Place]
    areas: dict[str, list[Entry]]

    @cached_property
    def by_id(self) -> dict[str, Entry]:
        """All entries, in the file's order."""
        return {entry.id: entry for entries in self.areas.values() for entry in entries}

    @cached_property
    def signs(self) -> dict[str, list[tuple[int, Entry, Sign]]]:
        """The signs by their words, with their place in the file. The first one of an entry on a
        line counts; a line may show several entries."""
        numbered = [(entry, sign) for entry in self.by_id.values() for sign in entry.signs]
        signs: dict[str, list[tuple[int, Entry, Sign]]] = {}
        for number, (entry, sign) in enumerate(numbered):
            signs.setdefault(sign.word, []).append((number, entry, sign))
        return signs

    def has_no_sign(self, text: str) -> bool:
        """Whether no line of a text can show an entry."""
        return self.signs.keys().isdisjoint(WORD.findall(text))

    @cached_property
    def info_signs(self) -> tuple[tuple[Entry, Sign], ...]:
        """Those of lines that say INFO."""
        return tuple(
            (entry, sign) for entry in self.by_id.values() if entry.info for sign in entry.signs
        )

    def is_handled(self, text: str, words: Collection[str]) -> bool:
        """Whether the line, of these words, tells of what was handled, or is harmless."""
        return _shows(self._handled, text, words)

    def is_survived(self, text: str) -> bool:
        """Whether the line announces a traceback of what its process survives."""
        # A loop is twice as fast as any() with a generator, and every line comes here.
        for literal in self.survived:  # noqa: SIM110
            if literal in text:
                return True
        return False

    def is_wrapper(self, text: str, words: Collection[str]) -> bool:
        """Whether the line, of these words, only says that something else failed."""
        return _shows(self._wrappers, text, words)

    @cached_property
    def _handled(self) -> dict[str, list[Sign]]:
        return _by_word(self.handled)

    @cached_property
    def _wrappers(self) -> dict[str, list[Sign]]:
        return _by_word(self.wrappers)

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

    def judge_nccl(self, versions: Iterable[str], shown: str, nodes: int | None = None) -> str:
        """What is known of these versions of NCCL that shows as the failure ``shown``."""
        releases = dict.fromkeys(version.split("+")[0] for version in versions)
        known = [
            f"{release} is {one.known}: {as_called(one.fix)} {one.sources[0]}"
            for release in releases
            for one in self.known_of(nccl=release, nodes=nodes)
            if shown in one.shows
        ]
        return f" ({'; '.join(known)})" if known else ""


def _by_word(signs: Iterable[Sign]) -> dict[str, list[Sign]]:
    by_word: dict[str, list[Sign]] = {}
    for sign in signs:
        by_word.setdefault(sign.word, []).append(sign)
    return by_word


def _shows(signs: Mapping[str, Sequence[Sign]], text: str, words: Collection[str]) -> bool:
    for word in words:
        if word in signs and any(sign.match(text) is not None for sign in signs[word]):
            return True
    return False


@cache
def known() -> Failures:
    """The file, read once and not before it is needed."""
    with as_file(files("sparkimage") / "data" / FILE) as path:
        return validation.parse(yamlfile.load(path), Failures)
