"""Finds what must never be in an image: keys, tokens, logins, by the patterns of
``data/secrets.yaml``.

A finding names the kind of secret and never its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import yaml

SITE_CA = "CA bundle of a site"
_SITE_BUNDLE = re.compile(r"^(usr/local/share/ca-certificates/.+|run/.+)$")
"""Where a site's own certificates are; a distribution's are elsewhere."""
_SECRET = re.compile(r"[^\s/$].{5,}")
"""What may be a secret: no path of one, no `1`, no EMPTY as vLLM's clients pass it."""
Rule = tuple[str, re.Pattern[str], list[bytes], re.Pattern[bytes]]


@cache
def _data() -> Any:
    file = resources.files("sparkimage").joinpath("data", "secrets.yaml")
    return yaml.safe_load(file.read_text())


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
        kinds = in_text(value)
        secret = _SECRET.match(value) is not None
        if secret and re.search(_data()["variables"], name, re.IGNORECASE):
            kinds.append("by its name")
        findings += [f"{name}: {kind}" for kind in sorted(kinds)]
    return findings


def in_text(text: str) -> list[str]:
    """The kinds of secret in a label or in a line of the history."""
    data = text.encode(errors="replace")
    return sorted({*_kinds("tokens", data), *_kinds("lines", data)})
