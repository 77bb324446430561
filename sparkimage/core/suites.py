"""The suites of Debian and Ubuntu, and what of them has to be known before they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparkimage.core.arch import GLIBC


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Who makes a suite, and who has the keys that it is signed with."""

    title: str
    mirror: str
    """The name under `mirrors` that replaces its default mirror."""
    keyring: str
    """Path of its keys on this machine: https://manpages.debian.org/mmdebstrap (--keyring)."""
    package: str
    """The package that has the keys."""


DEBIAN = Distribution(
    title="Debian",
    mirror="debian",
    keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
    package="debian-archive-keyring",
)
UBUNTU = Distribution(
    title="Ubuntu",
    mirror="ubuntu",
    keyring="/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    package="ubuntu-archive-keyring",
)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One release of a distribution, and its glibc ("2.39")."""

    distribution: Distribution
    glibc: str


def _known(distribution: Distribution, **glibc: str) -> dict[str, Suite]:
    return {n: Suite(distribution=distribution, glibc=version) for n, version in glibc.items()}


# https://tracker.debian.org/pkg/glibc, https://launchpad.net/ubuntu/+source/glibc
SUITES: Mapping[str, Suite] = {
    **_known(DEBIAN, bullseye="2.31", bookworm="2.36", trixie="2.41"),
    **_known(
        UBUNTU, focal="2.31", jammy="2.35", noble="2.39", plucky="2.41", questing="2.42",
        resolute="2.43",
    ),
}  # fmt: skip


def find(name: str) -> Suite:
    """The suite ``name``, or that one whose pocket it is (noble-updates); an unknown one is taken
    for Debian's."""
    unknown = Suite(distribution=DEBIAN, glibc=GLIBC)
    return SUITES.get(name.partition("-")[0], unknown)
