"""What is wrong with a text that is no YAML, in words of the one who wrote it.

libyaml says what it expected, at the place where it gave up: often lines below the mistake. The
tokens before that place say more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

Finding = tuple[int, str, str]
"""The line from 1, what is wrong, and the next action."""
CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( .*)?$")
"""A line that git writes between two sides: https://git-scm.com/docs/git-merge#_how_conflicts_are_presented"""
WORD = re.compile(r"[^\s,\]}]+")
FILLED = re.compile(r"(?:^|[:,\[{-]\s+)(\{[\w-]+\}(?:[^\s,\]{}]|\{[\w-]+\})+)")
"""A value that begins with ``{name}`` and goes on: for YAML a mapping, and then something else."""


def explain(text: str, error: yaml.MarkedYAMLError, loader: Any) -> Finding:
    """The mistake that made YAML's reader give up."""
    lines = text.splitlines() or [""]
    mark = error.problem_mark or error.context_mark
    last = min(mark.line, len(lines) - 1) if mark else 0
    for number, line in enumerate(lines[: last + 2], start=1):
        if CONFLICT.match(line):
            what, todo = "a merge conflict of git", "keep one side, and remove git's three lines"
            return number, what, todo
    if "expected a single document" in str(error):
        return last + 1, str(error.problem), "write one document, without `---` between parts"
    context = error.context or ""
    begin = error.context_mark if "alias" in context or "tag" in context else mark
    at = (begin.line, begin.column) if begin and begin.line < len(lines) else (last, 0)
    return (
        _character(lines, *at)
        or _value(lines, last)
        or _scalar(lines, text, error, loader)
        or _unclosed(error)
        or _usual(error, last)
    )


def _quote(value: str) -> str:
    return f'quote it: "{value}"'


def _character(lines: Sequence[str], row: int, column: int) -> Finding | None:
    """A character with a meaning of its own where a value was to begin."""
    rest = lines[row][column:]
    word = WORD.match(rest)
    if rest.startswith("\t") or "\t" in lines[row][: len(lines[row]) - len(lines[row].lstrip())]:
        return row + 1, "a tab, which YAML does not take here", "indent with spaces"
    if word is None:
        return None
    if rest[0] == "*":
        name, todo = word[0][1:], _quote(word[0])
        what = f"`{word[0]}` means the value of an anchor, and no `&{name}` is above it"
        return row + 1, what, f"write `&{name}` there, or {todo}" if name.isidentifier() else todo
    if rest[0] in "@`%!|>":
        return row + 1, f"no value can begin with `{rest[0]}`", _quote(word[0])
    return None


def _value(lines: Sequence[str], row: int) -> Finding | None:
    """A value that begins with a brace, and goes on behind it."""
    match = FILLED.search(lines[row])
    if match is None:
        return None
    return row + 1, f"`{match[1]}` begins as a mapping", _quote(match[1])


def _scalar(
    lines: Sequence[str], text: str, error: yaml.MarkedYAMLError, loader: Any
) -> Finding | None:
    """A value before the error that goes over several lines, which its writer did not intend."""
    scalar = None
    try:
        for token in yaml.scan(text, Loader=loader):
            if isinstance(token, yaml.ScalarToken):
                scalar = token
            if error.problem_mark and token.end_mark.index >= error.problem_mark.index:
                break
    except yaml.YAMLError:
        pass
    ended = "unexpected" in str(error.problem) and "quoted scalar" in (error.context or "")
    if ended and error.context_mark:
        return error.context_mark.line + 1, "a quotation mark is never closed", "close it"
    if "simple key" in (error.context or "") and error.context_mark:
        row = error.context_mark.line
        return row + 1, f"no `:` behind `{lines[row].strip()}`", "write `name: value`"
    if scalar is None or error.problem_mark is None:
        return None
    first, end = scalar.start_mark.line, scalar.end_mark.line
    if scalar.style in ("'", '"') and first < end:
        what = f"a quotation mark is closed only in line {end + 1}"
        return first + 1, what, "close it in its own line"
    if "mapping values are not allowed" not in str(error.problem) or scalar.style:
        return None
    begin = lines[first][scalar.start_mark.column :]
    if first == error.problem_mark.line:
        return first + 1, "a value with `: ` in it", f'quote it: "{begin.rstrip()}"'
    if (key := re.match(r"[\w-]+:(?=\S)", begin)) is not None:
        return first + 1, f"no space behind `{key[0]}`", f"write `{key[0]} …`"
    return first + 1, f"no `:` behind `{begin.strip()}`", "write `name: value`"


def _unclosed(error: yaml.MarkedYAMLError) -> Finding | None:
    """A list or a mapping whose bracket is not closed."""
    kind = re.search(r"flow (sequence|mapping)", error.context or "")
    if kind is None or error.context_mark is None or error.problem_mark is None:
        return None
    begin, end = "[]" if kind[1] == "sequence" else "{}"
    line = error.context_mark.line
    place = f" before line {error.problem_mark.line + 1}"
    what = f"`{begin}` is not closed{place if error.problem_mark.line > line else ''}"
    return line + 1, what, f"write `{end}`; or quote a value, or write a `,` between two"


def _usual(error: yaml.MarkedYAMLError, row: int) -> Finding:
    todo = "correct the YAML here; indent with spaces, and quote values with `: ` or `#`"
    return row + 1, str(error.problem), todo
