"""What a lock has of its pins: the items of its entries.

Plans are made of them. Every command that ships an image reads a plan, and most read no lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, kw_only=True, order=True)
class Wheel:
    """One wheel: normalised project name, version, size in bytes, sha256 in hex, file name."""

    name: str
    version: str
    size: int
    sha256: str
    file: str


@dataclass(frozen=True, kw_only=True, order=True)
class Deb:
    """One Debian package. ``part`` is "root" for a suite's minimal set, "more" for the rest;
    ``file`` is its file name, ``size`` in bytes."""

    name: str
    version: str
    part: str
    size: int
    sha256: str
    file: str


@dataclass(frozen=True, kw_only=True, order=True)
class PinnedImage:
    """The manifest of one platform: the image's full name, the manifest's ``sha256:<hex>``, and
    in ``tagged`` the digest of the tag, of an index or of this manifest."""

    name: str
    digest: str
    tagged: str


@dataclass(frozen=True, kw_only=True, order=True)
class Commit:
    """A git commit of 40 digits, and its tree."""

    commit: str
    tree: str


@dataclass(frozen=True, kw_only=True, order=True)
class PatchText:
    """A patch's file: size in bytes, sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, order=True)
class Step:
    """A patch of a series: its place in it from 1 on, what it does (``CHANGES``, or ``PRESENT``
    where the files have it already), its name."""

    number: int
    state: str
    patch: str


@dataclass(frozen=True, kw_only=True, order=True)
class Target:
    """A file that a series changes: sha256 before its first and after its last patch (or
    ``MISSING``), size after, the mode that the patches give it (or ``KEPT``), path below the
    patches' root."""

    before: str
    after: str
    size: int
    mode: str
    path: str


@dataclass(frozen=True, kw_only=True, order=True)
class File:
    """A file of a web server: size in bytes, sha256 in hex, its name in the build context."""

    size: int
    sha256: str
    name: str


Item = Wheel | Deb | PinnedImage | Commit | PatchText | Step | Target | File
CHANGES, PRESENT = "changes", "present"
KEPT = "kept"
OneItem = TypeVar("OneItem", bound=Item)
