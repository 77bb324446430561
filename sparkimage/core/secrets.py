"""Finds what must never be in an image or in a file of the project: keys, tokens, logins, by the
patterns of ``data/secrets.yaml``.

A finding names the kind of secret and never its value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

SITE_CA = "CA bundle of a site"
_SITE_BUNDLE = re.compile(r"^(usr/local/share/ca-certificates/.+|run/.+)$")
"""Where a site's own certificates are; a distribution's are elsewhere."""
_SECRET = re.compile(r"[^\s/$].{5,}")
"""What may be a secret: no path of one, no `1`, no EMPTY as vLLM's clients pass it."""
SHORT = 8
"""Characters of the shortest value that is looked for: a shorter one may be any word."""
Rule = tuple[str, re.Pattern[str], list[bytes], re.Pattern[bytes]]


@cache
def _data() -> Any:
    # Most files have nothing for which the patterns are needed.
    from importlib import resources

    import yaml

    file = resources.files("sparkimage").joinpath("data", "secrets.yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_text(), Loader=loader)  # noqa: S506  # one of the safe loaders


@cache
def _rules(table: str) -> list[Rule]:
    """Kind, file names, literals and pattern of each rule; the empty literal is in all data."""
    return [
        (
            rule["kind"],
            re.compile(rule.get("names", "")),
            [literal.encode() for literal in rule.get("literals", [""])],
            re.compile(rule["pattern"].encode()),
        )
        for rule in _data()[table]
    ]


def _kinds(table: str, data: bytes, name: str = "") -> list[str]:
    return [
        kind
        for kind, names, literals, pattern in _rules(table)
        if names.fullmatch(name)
        and any(literal in data for literal in literals)
        and pattern.search(data)
    ]


def in_file(path: str, data: bytes) -> list[str]:
    """The kinds of secret in a file of a layer; ``path`` without a leading slash."""
    kinds = []
    if b"\0" not in data[:8192]:
        kinds = _kinds("tokens", data) + _kinds("files", data, path.rpartition("/")[2])
    if _SITE_BUNDLE.match(path) and b"-----BEGIN CERTIFICATE" in data:
        kinds.append(SITE_CA)
    return sorted(set(kinds))


def in_environment(environment: Iterable[str]) -> list[str]:
    """The variables (NAME=VALUE) of an image's config that hold a secret, each with its kind."""
    findings = []
    for variable in environment:
        name, _, value = variable.partition("=")
        findings += [f"{name}: {kind}" for kind in in_variable(name, value)]
    return findings


def in_variable(name: str, value: str) -> list[str]:
    """The kinds of secret in the value of a variable."""
    kinds = in_text(value)
    if _SECRET.match(value) and re.search(rf"(^|_)(?:{_data()['names']})$", name, re.IGNORECASE):
        kinds.append("by its name")
    return sorted(kinds)


def in_text(text: str) -> list[str]:
    """The kinds of secret in a label or in a line of the history."""
    data = text.encode(errors="replace")
    return sorted({*_kinds("tokens", data), *_kinds("lines", data)})


def values_in(text: str) -> list[str]:
    """The values in a text that may be secrets: those of known forms, and what stands behind the
    name of a secret as a variable (``NAME: VALUE``) or as an option (``--name VALUE``)."""
    data, name = text.encode(errors="replace"), rf"(?:{_data()['names']})[\"']?"
    found = [match[0] for *_, pattern in _rules("tokens") for match in pattern.finditer(data)]
    before = rf"(?:{name}[ \t]*[:=][ \t]*|__\w*{name}(?:=|[\s,_]+))"
    value = r"""[@!*&`]?(?:"([^"\n]{6,})"|'([^'\n]{6,})'|([^\s"',\]}]{6,}))"""
    # An option has hyphens for the underscores of a variable.
    same = data.replace(b"-", b"_")
    for match in re.finditer(f"{before}{value}".encode(), same, re.IGNORECASE):
        begin, end = match.span(match.lastindex or 0)
        found.append(data[begin:end])
    return [value.decode(errors="replace") for value in found]


def hider(values: Iterable[str]) -> Callable[[str], str]:
    """What replaces these values in a text."""
    ordered = sorted(values, key=len, reverse=True)

    def hidden(text: str) -> str:
        for value in ordered:
            text = text.replace(value, "***")
        return text

    return hidden
