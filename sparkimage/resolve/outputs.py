"""Errors of the programs that fetch something, by what they print: ``data/outputs.yaml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from sparkimage.core.errors import LockError, NetworkError, RegistryError, SparkError
from sparkimage.core.program import as_called

ERRORS = {error.__name__: error for error in (LockError, NetworkError, RegistryError)}


@dataclass(frozen=True, kw_only=True)
class KnownOutput:
    """An entry of the table."""

    pattern: str
    message: str
    hint: str
    error: str = LockError.__name__


@cache
def _known() -> dict[str, tuple[KnownOutput, ...]]:
    text = files("sparkimage").joinpath("data", "outputs.yaml").read_text("utf-8")
    table = yaml.safe_load(text)
    return {program: tuple(KnownOutput(**e) for e in entries) for program, entries in table.items()}


def explain(program: str, output: str, *, detail: str, **facts: object) -> SparkError | None:
    """The error for what a program of the table printed; None for an unknown output.

    ``detail`` is shown below it, ``facts`` are the names in its texts.
    """
    for known in _known()[program]:
        if (match := re.search(known.pattern, output)) is not None:
            facts = {"detail": detail, **facts, **match.groupdict()}
            return ERRORS[known.error](
                known.message.format(**facts),
                hint=as_called(known.hint).format(**facts),
                detail=str(facts["detail"]),
            )
    return None
