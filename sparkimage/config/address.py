"""Names of images and repositories, and the mirrors of addresses. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

from sparkimage.core.errors import UsageError
from sparkimage.core.spelling import closest

WHEELS = "wheels"
DEBIAN = "debian"
UBUNTU = "ubuntu"
"""Names of the clients' defaults: the index of wheels, and the mirrors of the distributions."""

DEFAULT_REGISTRY = "docker.io"
"""The registry of a name without one: https://pkg.go.dev/github.com/distribution/reference."""

REGISTRIES = (DEFAULT_REGISTRY, "ghcr.io", "quay.io", "nvcr.io")
"""Registries that a mirror's misspelled name may mean."""


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """A full image name: ``docker.io/nvidia/cuda``, its tag, its digest (``sha256:…``)."""

    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def image_name(text: str) -> ImageName:
    """Parse a name as the Docker CLI does: registry and ``library/`` are filled in."""
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


def parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address ``host``; None where it is a name."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository of a registry: ``registry.example:5000`` and ``team/image``."""

    registry: str
    repository: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parse REGISTRY/REPOSITORY as the Docker CLI does."""
        registry, _, repository = image_name(text).repository.partition("/")
        return cls(registry=registry, repository=repository)

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine: only there plain HTTP is used."""
        host = urlsplit(f"//{self.registry}").hostname or ""
        ip = parse_ip(host)
        return ip.is_loopback if ip is not None else host == "localhost"


def without_login(text: str) -> str:
    """The text without the user and the password of any address in it."""
    return re.sub(r"(?<=://)[^\s/@]+@", "", text)


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """Mirrors by the beginning of the address that they replace; the longest one counts."""

    rules: Mapping[str, str] = field(default_factory=dict)
    logins: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the matrix with their user and password, by the same without them."""

    def of(self, address: str) -> str:
        """The mirror's address for ``address``; itself where there is none."""
        for start in sorted(self.rules, key=len, reverse=True):
            to, rest = self.rules[start], address.removeprefix(start)
            if rest == "":
                return to
            # Whole parts only: a rule for example.org does not apply to example.org.uk.
            if rest != address and (start.endswith("/") or rest.startswith("/")):
                return f"{to.rstrip('/')}/{rest.lstrip('/')}"
        return self.logins.get(address, address)

    def over_ssh(self, address: str) -> bool:
        """Whether a repository is fetched with ssh."""
        return urlsplit(self.of(address)).scheme == "ssh"

    def client(self, name: str) -> str | None:
        """The mirror for ``WHEELS``, ``DEBIAN`` or ``UBUNTU``; None for the client's own."""
        return self.rules.get(name)


def mirror_problem(start: str, to: str) -> tuple[str, str] | None:
    """What is wrong with a mirror, and the next action: an address has a scheme, and the name of a
    registry has none."""
    scheme = re.match(r"[a-z][a-z0-9+.-]*://|/", to)
    if start in (WHEELS, DEBIAN, UBUNTU) or "://" in start:
        if scheme is None:
            return (
                f"the mirror of {start} is {to!r}, which is no address",
                f"did you mean 'https://{to}'?",
            )
    elif not re.search(r"[.:/]|^localhost$", start):
        # As Docker tells a registry from the first part of a name.
        what = f"the mirror of {start} is {without_login(to)!r}, and {start} is no registry"
        known = (WHEELS, DEBIAN, UBUNTU, *REGISTRIES)
        if near := closest(start, known, cutoff=0.6):
            return what, f"did you mean {near!r}?"
        return what, f"write {WHEELS}, {DEBIAN}, {UBUNTU}, an address, or one such as docker.io"
    elif scheme is not None:
        name = without_login(to).partition("://")[2] or "registry.example:5000/hub"
        what = f"the mirror of {start} is {without_login(to)!r}: a registry's name has no scheme"
        return what, f"did you mean {name!r}?"
    return None


def parse_rules(words: Iterable[str]) -> Mirrors:
    """Mirrors from ``FROM=TO`` words. Raises ``UsageError``."""
    rules: dict[str, str] = {}
    for word in words:
        start, equals, to = word.partition("=")
        if not (start and equals and to) or re.search(r"\s", word):
            raise UsageError(
                f"--mirror {word!r} is not FROM=TO",
                hint="for instance --mirror docker.io=registry.example:5000/hub; FROM can be the "
                f"beginning of an address, {WHEELS}, {DEBIAN} or {UBUNTU}",
            )
        if (found := mirror_problem(start, to)) is not None:
            what, todo = found
            raise UsageError(what, hint=todo)
        rules[start] = to
    return Mirrors(rules=rules)
