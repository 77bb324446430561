"""One error family, with an exit code for each kind of failure.

Every error says what failed, on which target, what was seen, and what to do next.
``main`` catches ``SparkError`` once and prints it; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparkimage.core.program import program


@dataclass(frozen=True, kw_only=True)
class Locked:
    """A locked pin or tool, as errors name it."""

    title: str
    update: str
    """The command that locks its current state."""

    @classmethod
    def pin(cls, name: str, value: str) -> Locked:
        """A pin of the matrix."""
        return cls(
            title=f"pin {name} {value}", update=f"{program()} lock --update '{name}=={value}'"
        )

    @classmethod
    def tool(cls, name: str) -> Locked:
        """A program that this version of the package fetches."""
        return cls(title=name, update="upgrade sparkimage")

    def __str__(self) -> str:
        return self.title


class SparkError(Exception):
    """A failure to print for the user.

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
    """One problem of a file: where, what, and the next action."""

    file: str
    line: int
    what: str
    todo: str
    LETTERS: ClassVar[int] = 500

    @classmethod
    def of_encoding(cls, file: str, error: UnicodeDecodeError) -> Problem:
        """The problem of a file whose bytes are not UTF-8."""
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"invalid UTF-8: {error.reason}"
        return cls(file=file, line=line, what=what, todo="save it as UTF-8")

    def __str__(self) -> str:
        what = self.what if len(self.what) <= self.LETTERS else f"{self.what[: self.LETTERS]}…"
        return f"{self.file}:{self.line}: {what}\n    {self.todo}"


class ConfigError(SparkError):
    """A file of the user is wrong. It has every problem of the file, sorted by line, and prints
    the first ``SHOWN``."""

    exit_code = 2
    SHOWN = 100

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        count = len(self.problems)
        lines = [str(problem) for problem in self.problems[: self.SHOWN]]
        if count > self.SHOWN:
            lines.append(f"and {count - self.SHOWN} more")
        files = {problem.file for problem in self.problems}
        place = self.problems[0].file if len(files) == 1 else f"{len(files)} files"
        super().__init__(
            f"{count} problem{'s' if count != 1 else ''} in {place}",
            detail="\n".join(lines),
        )


class UsageError(SparkError):
    """What was requested does not exist, or does not go together."""

    exit_code = 2


class EngineError(SparkError):
    """No Docker engine answers, or it answers with an error."""

    exit_code = 3


class EnginePermissionError(EngineError):
    """A Docker engine runs, but this user has no permission to use it."""

    exit_code = 4


class ImageMissingError(SparkError):
    """The engine or the store answers, but does not have the requested image."""

    exit_code = 5


class BuildError(SparkError):
    """BuildKit refused or failed a build."""

    exit_code = 6


class VerifyError(SparkError):
    """At least one check of an image failed."""

    exit_code = 7


class StoreError(SparkError):
    """Stored data is damaged or incomplete: in the image store, or in an archive of one image."""

    exit_code = 8


class PreflightError(SparkError):
    """This machine lacks disk space, emulation, tools or rights for the command."""

    exit_code = 9


class NetworkError(SparkError):
    """A server that something must be fetched from cannot be reached."""

    exit_code = 10


class LockError(SparkError):
    """The lock and the matrix disagree, or the lock lacks a pin."""

    exit_code = 11


class CommandError(SparkError):
    """A command failed; printed so that it can be pasted, with its output below."""

    exit_code = 12

    def __init__(self, argv: Sequence[str], returncode: int, output: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.output = output
        super().__init__(
            f"command failed with exit code {returncode}: {shlex.join(argv)}",
            detail=output.strip(),
        )


class NodeError(SparkError):
    """A node cannot be reached, refuses, or answers with an error."""

    exit_code = 13


class UnreachableError(NodeError):
    """The connection to a node failed or was lost. Worth a retry unless ``definite``, and at once
    where its sshd was ``busy``. ``reason`` names a cause that ssh reports: ``nodes.ssh.DEFINITE``.
    """

    def __init__(
        self,
        message: str,
        *,
        definite: bool = False,
        busy: bool = False,
        reason: str = "",
        hint: str = "",
        detail: str = "",
    ) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.definite, self.busy, self.reason = definite, busy, reason


class DamagedError(NodeError):
    """A node has an image that it can create no container of."""


class GateError(SparkError):
    """An image may not ship: its seal is missing, broken, FAILED, or says too little."""

    exit_code = 14


class MixedFleetError(NodeError):
    """The nodes do not have the same image under one name, and it could not be fixed."""

    exit_code = 15


class PublishedError(SparkError):
    """What a registry has is unsigned, not proven, moved or damaged."""

    exit_code = 16


class RegistryError(SparkError):
    """A registry refuses: the login, the right, the storage, or the content."""

    exit_code = 17


class LaunchError(SparkError):
    """A deployment could not be started, did not become ready, or is not healthy."""

    exit_code = 18


class DoctorError(SparkError):
    """The doctor found a problem that stops or slows a model server on this cluster."""

    exit_code = 19


class ProbeError(SparkError):
    """A model server refuses, closes the connection, or sends something else than a completion."""

    exit_code = 20


class KnownFailureError(SparkError):
    """A log shows a known failure; only with the option that checks for one."""

    exit_code = 21
