"""What a Dockerfile takes from outside: its stages, its arguments, the images that it names. Pure.

BuildKit's own reader is ``docker buildx build --call=outline``, which needs a running BuildKit; a
plan is printed without one. https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

PREDEFINED = re.compile(
    r"((HTTPS?|FTP|NO|ALL)_PROXY|(https?|ftp|no|all)_proxy|BUILDKIT_\w+|SOURCE_DATE_EPOCH"
    r"|(TARGET|BUILD)(PLATFORM|OS|ARCH|VARIANT))"
)
"""Arguments that BuildKit knows by itself:
https://docs.docker.com/reference/dockerfile/#predefined-args"""
SYNTAX = re.compile(r"#\s*syntax\s*=\s*(\S+)", re.IGNORECASE)
DIRECTIVE = re.compile(r"#\s*[A-Za-z][A-Za-z0-9]*\s*=\s*\S")
"""https://github.com/moby/buildkit/blob/master/frontend/dockerfile/parser/directives.go"""
VARIABLE = re.compile(r"\$(?:\{(\w+)(?:(:?[-+])([^{}]*))?\}|(\w+))")
HEREDOC = re.compile(r"<<(-?)([\"']?)(\w+)\2")
REMOTE = re.compile(r"(https?|git|ssh)://|git@|.*\.git(#|$)")
"""A source of ADD that is fetched: https://docs.docker.com/reference/dockerfile/#add"""
FLAG = re.compile(r"\s*--([a-z-]+)(?:=(\S*))?")
SCRATCH = "scratch"


@dataclass(frozen=True, kw_only=True)
class Use:
    """A stage, an image, a named context or a remote file that an instruction names."""

    line: int
    instruction: str
    """Up to the name, such as ``COPY --from=``."""
    name: str
    written: str
    """The name with the variables that it was made of."""

    def __str__(self) -> str:
        return f"{self.instruction}{self.name or repr(self.written)}"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction: its line, its name in capitals, and the rest with its continuation lines
    joined."""

    line: int
    word: str
    rest: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One build stage. ``uses`` begins with what its FROM names."""

    name: str | None
    args: dict[str, str | None]
    """Its own arguments with their defaults."""
    uses: list[Use]
    entrypoints: list[Instruction]
    """Of which the last one counts."""


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """The parts of a Dockerfile, its variables as they are written."""

    syntax: Use | None
    args: Mapping[str, str | None]
    """The global arguments with their defaults, in order."""
    lines: Mapping[str, int]
    """The line of each argument's first ARG."""
    stages: Sequence[Stage]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of its stages."""
        return tuple(stage.name for stage in self.stages if stage.name is not None)

    def values(self, given: Mapping[str, str]) -> dict[str, str]:
        """The global arguments' values with these build arguments."""
        values = {name: text for name, text in given.items() if PREDEFINED.fullmatch(name)}
        for name, default in self.args.items():
            values[name] = given.get(name, expand(default or "", values))
        return values

    def reach(
        self, target: str | None, given: Mapping[str, str], contexts: Collection[str]
    ) -> Reach:
        """What the stage ``target`` (default: the last) is built of, with these build arguments.

        A name of ``contexts`` is a named build context, which goes before a stage and an image.
        Raises ``KeyError`` where there is no such stage.
        """
        values = self.values(given)
        last = len(self.stages) - 1 if target is None else self._number(target, len(self.stages))
        if last is None or last < 0:
            raise KeyError(target)
        wanted, seen, outside = [last], set[int](), dict[Use, None]()
        while wanted:
            number = wanted.pop()
            seen.add(number)
            for use in self.stages[number].uses:
                named = replace(use, name=expand(use.name, values))
                below = self._number(named.name, number)
                if below is None or familiar(named.name) in contexts:
                    outside[named] = None
                elif below not in seen:
                    wanted.append(below)
        base = self.stages[last].uses[0]
        while True:
            base = replace(base, name=expand(base.name, values))
            below = self._number(base.name, last)
            if below is None or familiar(base.name) in contexts:
                break
            base, last = self.stages[below].uses[0], below
        return Reach(
            stages=tuple(self.stages[number] for number in sorted(seen)),
            outside=tuple(sorted(outside, key=lambda use: use.line)),
            base=base,
        )

    def _number(self, name: str, before: int) -> int | None:
        """The number of the stage that ``name`` means in stage ``before``: the last one of it."""
        if name.isdigit() and int(name) < before:
            return int(name)
        numbers = (n for n in reversed(range(before)) if self.stages[n].name is not None)
        return next((n for n in numbers if name.lower() == str(self.stages[n].name).lower()), None)


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What one target of a Dockerfile is built of."""

    stages: tuple[Stage, ...]
    outside: tuple[Use, ...]
    """What is no stage, in the order of the lines."""
    base: Use
    """What the lowest stage below the target is made FROM."""


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile; what it does not understand it leaves to BuildKit."""
    args, lines, stages = dict[str, str | None](), dict[str, int](), list[Stage]()
    for one in instructions(text):
        line, word, rest = one.line, one.word, one.rest
        if word == "FROM":
            words = [text for text in _words(rest) if not text.startswith("--")] or [""]
            named = len(words) > 2 and words[1].upper() == "AS"
            use = Use(line=line, instruction="FROM ", name=words[0], written=words[0])
            name = words[2] if named else None
            stages.append(Stage(name=name, args={}, uses=[use], entrypoints=[]))
        elif word == "ARG":
            for name, equals, value in (text.partition("=") for text in _words(rest)):
                (stages[-1].args if stages else args)[name] = value if equals else None
                lines.setdefault(name, line)
        elif word in ("COPY", "ADD", "RUN") and stages:
            stages[-1].uses.extend(_uses(line, word, rest))
        elif word == "ENTRYPOINT" and stages:
            stages[-1].entrypoints.append(one)
    return Dockerfile(syntax=frontend(text), args=args, lines=lines, stages=stages)


def familiar(name: str) -> str:
    """An image's name as BuildKit looks for it among the named contexts: the shortest.

    https://docs.docker.com/reference/cli/docker/buildx/build/#build-context
    """
    return re.sub(r"^docker\.io/(library/)?|:latest$", "", name)


def expand(text: str, values: Mapping[str, str]) -> str:
    """Text with its variables replaced, as FROM does it."""

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1] or match[4], "")
        sign, other = match[2], match[3] or ""
        if sign is None:
            return found
        return (other if found else "") if sign.endswith("+") else found or other

    for _ in range(5):  # a default may have variables, too
        text, count = VARIABLE.subn(value, text)
        if not count:
            break
    return text


def frontend(text: str) -> Use | None:
    """The frontend that a ``# syntax=`` line names: one of the directives before all else.

    https://docs.docker.com/reference/dockerfile/#parser-directives
    """
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if (match := SYNTAX.match(line)) is not None:
            return Use(line=number, instruction="# syntax=", name=match[1], written=match[1])
        if DIRECTIVE.match(line) is None and not (number == 1 and line.startswith("#!")):
            return None
    return None


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions, without comments and the texts of here-documents."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, first in lines:
        line = first.strip()
        if not line or line.startswith("#"):
            continue
        parts = []
        while line.endswith("\\"):
            parts.append(line[:-1])
            # Comments and empty lines between the parts are no parts.
            line = next((t.strip() for _, t in lines if t.strip()[:1] not in ("", "#")), "")
        word, _, rest = " ".join([*parts, line]).strip().partition(" ")
        word = word.upper()
        if word in ("RUN", "COPY", "ADD"):
            for dash, _, end in HEREDOC.findall(rest):
                next((t for _, t in lines if (t.lstrip("\t") if dash else t).rstrip() == end), "")
        yield Instruction(line=number, word=word, rest=rest.strip())


def _uses(line: int, word: str, rest: str) -> Iterator[Use]:
    """What a COPY, ADD or RUN names in its flags, and what an ADD fetches."""
    while (flag := FLAG.match(rest)) is not None:
        rest = rest[flag.end() :]
        if flag[1] == "from":
            yield Use(line=line, instruction=f"{word} --from=", name=flag[2], written=flag[2])
        elif flag[1] == "mount":
            options = dict(part.partition("=")[::2] for part in flag[2].split(","))
            if "from" in options:
                yield Use(
                    line=line,
                    instruction="RUN --mount=from=",
                    name=options["from"],
                    written=options["from"],
                )
    for source in _words(rest)[:-1] if word == "ADD" else ():
        if REMOTE.match(source):
            yield Use(line=line, instruction="ADD ", name=source, written=source)


def _words(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError:  # an open quotation mark: BuildKit will say so
        return rest.split()
