"""Finds what must never be in an image: keys, tokens, logins, by the patterns of
``data/secrets.yaml``.

A finding names the kind of secret and never its value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

_SITE_BUNDLE = re.compile(r"^(usr/local/share/ca-certificates/.+|run/.+)$")
"""Where a site's own certificates are; a distribution's are elsewhere."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    kind: str
    pattern: re.Pattern[bytes]
    literals: tuple[bytes, ...] = ()
    """Where there are any, the pattern matches only data with one of them."""
    names: re.Pattern[str] | None = None
    """The names of the files that are searched; None for every file."""

    def matches(self, data: bytes) -> bool:
        return (
            not self.literals or any(literal in data for literal in self.literals)
        ) and self.pattern.search(data) is not None


@cache
def _rules(table: str) -> tuple[_Rule, ...]:
    return tuple(
        _Rule(
            kind=rule["kind"],
            pattern=re.compile(rule["pattern"].encode()),
            literals=tuple(literal.encode() for literal in rule.get("literals", ())),
            names=re.compile(rule["names"]) if "names" in rule else None,
        )
        for rule in _data()[table]
    )


@cache
def _data() -> Any:
    return yaml.safe_load(
        resources.files("sparkimage").joinpath("data", "secrets.yaml").read_text()
    )


def _kinds(data: bytes, *tables: str) -> list[str]:
    return [rule.kind for table in tables for rule in _rules(table) if rule.matches(data)]


def in_file(path: str, data: bytes) -> list[str]:
    """The kinds of secret in a file of a layer; ``path`` without a leading slash."""
    kinds = []
    if b"\0" not in data[:8192]:
        name = path.rpartition("/")[2]
        kinds = _kinds(data, "tokens")
        kinds += [
            rule.kind
            for rule in _rules("files")
            if rule.names and rule.names.fullmatch(name) and rule.matches(data)
        ]
    if _SITE_BUNDLE.match(path) and b"-----BEGIN CERTIFICATE" in data:
        kinds.append("CA bundle of a site")
    return sorted(set(kinds))


def in_environment(environment: Iterable[str]) -> list[str]:
    """The variables (NAME=VALUE) of an image's config that hold a secret, each with its kind."""
    findings = []
    for variable in environment:
        name, _, value = variable.partition("=")
        kinds = set(in_text(value))
        if value and re.search(_data()["variables"], name, re.IGNORECASE):
            kinds.add("by its name")
        findings += [f"{name}: {kind}" for kind in sorted(kinds)]
    return findings


def in_text(text: str) -> list[str]:
    """The kinds of secret in a label or in a line of the history."""
    return sorted(set(_kinds(text.encode(errors="replace"), "tokens", "lines")))
