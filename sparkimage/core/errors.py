"""One error family, with an exit code for each kind of failure.

Every error says what failed, on which target, what was seen, and what to do next.
``main`` catches ``SparkError`` once and prints it; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Locked:
    """Something that is locked, for errors that speak of it."""

    title: str
    update: str
    """The command that locks what there is now."""

    @classmethod
    def pin(cls, name: str, value: str) -> Locked:
        """A pin of the matrix."""
        return cls(
            title=f"pin {name} {value}", update=f"python build.py lock --update '{name}=={value}'"
        )

    @classmethod
    def tool(cls, name: str) -> Locked:
        """A program that this version of the package fetches for itself."""
        return cls(title=name, update="upgrade sparkimage")

    def __str__(self) -> str:
        return self.title


class SparkError(Exception):
    """A failure that a user can read.

    ``message`` is one sentence with the target and what was seen; ``hint`` is the next action
    (a command where there is one); ``detail`` is longer output to print below.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One thing wrong in a file: where, what, and what to do about it."""

    file: str
    line: int
    what: str
    todo: str
    LETTERS: ClassVar[int] = 500

    def __str__(self) -> str:
        what = self.what if len(self.what) <= self.LETTERS else f"{self.what[: self.LETTERS]}…"
        return f"{self.file}:{self.line}: {what}\n    {self.todo}"


class ConfigError(SparkError):
    """A file of the user's is wrong; carries every problem of that file, sorted by line, of which
    so many are shown."""

    exit_code = 2
    SHOWN = 100

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        count = len(self.problems)
        lines = [str(problem) for problem in self.problems[: self.SHOWN]]
        if count > self.SHOWN:
            lines.append(f"and {count - self.SHOWN} more")
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} in {self.problems[0].file}",
            detail="\n".join(lines),
        )


class UsageError(SparkError):
    """What was asked for does not exist or does not fit together."""

    exit_code = 2


class EngineError(SparkError):
    """No Docker engine answers (a dead daemon), or it answers with an error."""

    exit_code = 3


class EnginePermissionError(EngineError):
    """A Docker engine is there, but this user may not talk to it."""

    exit_code = 4


class ImageMissingError(SparkError):
    """The engine or the store answers, but does not hold the image that was asked for."""

    exit_code = 5


class BuildError(SparkError):
    """BuildKit refused or failed a build."""

    exit_code = 6


class VerifyError(SparkError):
    """At least one check of an image failed."""

    exit_code = 7


class StoreError(SparkError):
    """The image store is damaged or lacks what it names."""

    exit_code = 8


class PreflightError(SparkError):
    """This machine cannot do what is asked: disk, emulation, tools or rights are lacking."""

    exit_code = 9


class NetworkError(SparkError):
    """Something that must be fetched cannot be reached."""

    exit_code = 10


class LockError(SparkError):
    """The lock and the matrix disagree, or the lock lacks a pin."""

    exit_code = 11


class CommandError(SparkError):
    """A command failed; shown so that it can be pasted, with its output below it."""

    exit_code = 12

    def __init__(
        self, argv: Sequence[str], returncode: int, output: str, *, hint: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.output = output
        super().__init__(
            f"command failed with exit code {returncode}: {shlex.join(argv)}",
            detail=output.strip(),
            hint=hint,
        )


class NodeError(SparkError):
    """A node cannot be reached, refuses, or answers with an error."""

    exit_code = 13


class UnreachableError(NodeError):
    """The connection to a node was not made, or was lost. May pass, unless ``definite``."""

    def __init__(self, message: str, *, definite: bool, hint: str = "", detail: str = "") -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.definite = definite


class DamagedError(NodeError):
    """A node has an image of which it can make no container."""


class GateError(SparkError):
    """An image may not ship: its seal is missing, broken, FAILED, or says too little."""

    exit_code = 14


class MixedFleetError(NodeError):
    """The nodes do not have one image under one name, and it could not be mended now."""

    exit_code = 15


class PublishedError(SparkError):
    """What a registry holds is not what it must be: unsigned, not proven, moved or damaged."""

    exit_code = 16


class RegistryError(SparkError):
    """A registry refuses: the login, the right, the room, or what it was given."""

    exit_code = 17


class LaunchError(SparkError):
    """A set of containers cannot be started, did not become ready, is not what it must be, or is
    broken."""

    exit_code = 18


class DoctorError(SparkError):
    """The doctor found what keeps a server of models from running here, or running well."""

    exit_code = 19


class ProbeError(SparkError):
    """A server of models refuses, breaks off or answers with something else than answers."""

    exit_code = 20


class KnownFailureError(SparkError):
    """A log shows a failure that is known; only where one was asked to check."""

    exit_code = 21
