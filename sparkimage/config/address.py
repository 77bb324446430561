"""Addresses of images and repositories, and the mirrors that stand in for them. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sparkimage.core.errors import UsageError

WHEELS = "wheels"
DEBIAN = "debian"
CLIENTS = (WHEELS, DEBIAN)
"""Words for what the clients know by default: the index of wheels, and Debian's mirror."""

DEFAULT_REGISTRY = "docker.io"
"""What a name without a registry means: https://pkg.go.dev/github.com/distribution/reference."""


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """An image's name in full: ``docker.io/nvidia/cuda``, its tag, its digest (``sha256:…``)."""

    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def image_name(text: str) -> ImageName:
    """Read a name as the Docker CLI does: registry and ``library/`` are filled in."""
    rest, _, digest = text.partition("@")
    repository, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = rest, ""
    first, slash, _ = repository.partition("/")
    if not slash:
        repository = f"{DEFAULT_REGISTRY}/library/{repository}"
    elif not ("." in first or ":" in first or first == "localhost"):
        repository = f"{DEFAULT_REGISTRY}/{repository}"
    elif first == DEFAULT_REGISTRY and "/" not in repository.removeprefix(f"{first}/"):
        repository = repository.replace("/", "/library/", 1)
    return ImageName(repository=repository, tag=tag or None, digest=digest or None)


def is_loopback(authority: str) -> bool:
    """Whether ``authority``, HOST[:PORT], is on this machine."""
    host = urlsplit(f"//{authority}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository of a registry: ``registry.example:5000`` and ``team/image``."""

    registry: str
    repository: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read REGISTRY/REPOSITORY as the Docker CLI does."""
        registry, _, repository = image_name(text).repository.partition("/")
        return cls(registry=registry, repository=repository)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, where alone plain HTTP is spoken."""
        return is_loopback(self.registry)


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """Where to ask instead: by the beginning of an address, the longest one that fits."""

    rules: Mapping[str, str] = field(default_factory=dict)

    def of(self, address: str) -> str:
        """The address to ask for ``address``; itself where there is no mirror."""
        for start in sorted(self.rules, key=len, reverse=True):
            to, rest = self.rules[start], address.removeprefix(start)
            if rest == "":
                return to
            # Whole parts only: a rule for example.org says nothing of example.org.uk.
            if rest != address and (start.endswith("/") or rest.startswith("/")):
                return f"{to.rstrip('/')}/{rest.lstrip('/')}"
        return address

    def client(self, word: str) -> str | None:
        """The address for one of ``CLIENTS``; None for the client's own default."""
        return self.rules.get(word)

    def over(self, below: Mapping[str, str]) -> Mirrors:
        """These mirrors, and those of ``below`` for what these say nothing of."""
        return Mirrors(rules={**below, **self.rules})


def parse_rules(given: Iterable[str]) -> Mirrors:
    """Mirrors from ``FROM=TO`` words. Raises ``UsageError``."""
    rules: dict[str, str] = {}
    for word in given:
        start, equals, to = word.partition("=")
        if not (start and equals and to) or re.search(r"\s", word):
            raise UsageError(
                f"--mirror {word!r} is not FROM=TO",
                hint="for instance --mirror docker.io=registry.example:5000/hub; FROM can be the "
                f"beginning of an address, {WHEELS} or {DEBIAN}",
            )
        rules[start] = to
    return Mirrors(rules=rules)


def read_rules(path: Path) -> Mapping[str, str]:
    """The ``mirrors:`` of a user's own file; none where there is no file.

    Raises ``ConfigError`` for a file that cannot be read as one.
    """
    from sparkimage.config import yamlfile
    from sparkimage.core.errors import ConfigError, Problem

    if not path.is_file():
        return {}
    data: Any = yamlfile.load(path).data
    rules = data.get("mirrors") if isinstance(data, dict) and set(data) == {"mirrors"} else None
    if isinstance(rules, dict) and all(isinstance(to, str) and to for to in rules.values()):
        return dict(rules)
    raise ConfigError(
        [
            Problem(
                file=str(path),
                line=1,
                what="this is no list of mirrors",
                todo="write `mirrors:` with lines `FROM: TO` below it, and nothing else",
            )
        ]
    )
