"""A YAML file against its model: every deviation in a user's words, each with its line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from sparkimage.errors import ConfigError, Problem
from sparkimage.plans.strict import KINDS, Strict
from sparkimage.yamlfile import Document, Key

Model = TypeVar("Model", bound=Strict)
Known = Callable[[Key], Iterable[str]]
"""The keys that a model knows at a place of the file."""


def parse(document: Document, model: type[Model], known: Known) -> Model:
    """The document as ``model``. Raises ``ConfigError`` with every problem."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError([_problem(document, e, known) for e in error.errors()]) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that names nothing: the nearest known one, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "known are " + ", ".join(sorted(known))


def _problem(document: Document, error: Any, known: Known) -> Problem:
    """One pydantic error in a user's words."""
    # Discriminator tags are part of pydantic's location but not of the file.
    key: Key = tuple(part for part in error["loc"] if part != "[key]")
    real: Key = ()
    for part in key:
        if _at(document.data, (*real, part)) is not None or part == key[-1]:
            real = (*real, part)
    where = ".".join(str(part) for part in real) or "the file"
    kind, given = error["type"], error.get("input")
    what, todo = f"{where}: {error['msg']}", "correct this value"
    if kind == "extra_forbidden":
        what = f"unknown key {real[-1]!r} in {'.'.join(map(str, real[:-1])) or 'the file'}"
        todo = nearest(str(real[-1]), known(real[:-1])) or "remove it"
    elif kind == "missing":
        what, todo = f"{where} is missing", f"add `{real[-1]}:`"
    elif kind == "string_type":
        what = f"{where} must be text, but is {given!r}"
        todo = f'quote it: "{given}"'
    elif kind == "string_pattern_mismatch":
        what = f"{where}: {given!r} does not have the right form"
        todo = f"it must match {error['ctx']['pattern']}"
        if (real and real[-1] == "require") or (len(real) > 1 and real[-2] == "require"):
            todo = "pin it exactly: NAME==VERSION"
    elif kind == "literal_error":
        what = f"{where} is {given!r}"
        todo = f"it must be {error['ctx']['expected']}"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        what = f"{where} is of no known kind"
        todo = "give it one of " + ", ".join(f"`kind: {kind}`" for kind in KINDS)
    return Problem(file=document.file, line=document.line(real), what=what, todo=todo)


def _at(data: Any, key: Key) -> Any:
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data
