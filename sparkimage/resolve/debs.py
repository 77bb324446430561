"""Debian packages of a pin, resolved for what they are installed on: the base and the layers below.

An image says in /var/lib/dpkg/status what it has (https://manpages.debian.org/dpkg.1), which apt
reads as if it ran in there; so the lock has what the image lacks, and nothing else.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkimage.config.lock_items import Deb, Item, PinnedImage
from sparkimage.config.pins import DebianPin, DebPin, FilePin, Pin
from sparkimage.config.plan import ROOT
from sparkimage.core.errors import Locked, LockError
from sparkimage.resolve import apt, image_files
from sparkimage.resolve.apt_source import Source
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.files import Download

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix

STATUS = "/var/lib/dpkg/status"


@dataclass(frozen=True, kw_only=True)
class Below:
    """A pin below, with what it is locked to."""

    locked: Locked
    pin: Pin
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class DebResolver:
    """Resolves the packages of one pin for one platform."""

    matrix: Matrix
    locked: Locked
    pin: DebianPin | DebPin
    platform: str
    context: ResolveContext

    def resolve(self, stacks: Sequence[Sequence[Below]], *, is_root: bool) -> tuple[Deb, ...]:
        """The root of the suite (``is_root``), and what the packages need on each of ``stacks``,
        from the lowest up. Errors as ``apt.closure``."""
        source, packages = self.source(self.pin), sorted(self.pin.packages)
        if self.pin.suite is None:
            return apt.find(self.locked, source, packages, self.context)
        debs: dict[Deb, None] = {}
        if is_root or not stacks:
            debs |= dict.fromkeys(apt.resolve(self.locked, source, packages, self.context))
        for stack in stacks:
            status = self._status(stack)
            debs |= dict.fromkeys(apt.closure(self.locked, source, packages, status, self.context))
        return tuple(debs)

    def newest(self) -> tuple[Deb, ...]:
        """The newest versions of the packages that the pin names, without what they need."""
        names = [package.partition("=")[0] for package in sorted(self.pin.packages)]
        return apt.find(self.locked, self.source(self.pin), names, self.context)

    def source(self, pin: DebianPin | DebPin) -> Source:
        """Where a pin's packages come from. Raises ``LockError``, or ``NetworkError`` for a key."""
        address = pin.address(self.platform)
        if address is None and (pin.repository or pin.suite is None):
            raise LockError(
                f"{self.locked} names no repository for {self.platform}",
                hint="add its address to `repository`, or leave the platform out",
            )
        return Source(
            suite=pin.suite,
            repository=address,
            components=tuple(pin.components),
            pockets=tuple(pin.pockets),
            arch=self.platform.rsplit("/", maxsplit=1)[-1],
            key=None if pin.key is None else self._key(pin.key),
            dated=pin.snapshot is not None,
        )

    def _key(self, name: str) -> bytes:
        for pin in self.matrix.pins.get(name, {}).values():
            # Of one value and with a sha256, as the matrix was checked.
            assert isinstance(pin, FilePin)
            url, sha256 = pin.url, str(pin.sha256)
            file = Download(locked=self.locked, url=url, name=pin.file, context=self.context)
            return binary_keyring((file.fetch(sha256) / pin.file).read_bytes(), self.locked)
        return binary_keyring((self.matrix.root / name).read_bytes(), self.locked)

    def _status(self, stack: Sequence[Below]) -> str:
        """Dpkg's status with all that lies below."""
        if not stack:
            raise LockError(
                f"{self.locked}: what its packages are installed on is not known: its variant has "
                "no `base`",
                hint="give the lowest layer a `base`, or add its packages to the source's "
                "Dockerfile",
            )
        base, *others = stack
        stanzas: dict[tuple[str, str], str] = {}
        if image := _image(base):
            text = image_files.read_file(self.locked, image, STATUS, self.context)
            if text is None:
                raise LockError(
                    f"{self.locked}: {image.name} has no {STATUS}: it is no image of Debian or "
                    "Ubuntu",
                    hint="install there what a `file` pin or a `wheels` pin provides",
                )
            stanzas |= by_package(text.decode(errors="replace").split("\n\n"))
        else:
            stanzas |= self._installed(base, [d for d in _debs(base) if d.part == ROOT])
        for below in others:
            stanzas |= self._installed(below, [d for d in _debs(below) if d.part != ROOT])
        return "".join(f"{stanza}\n\n" for stanza in stanzas.values())

    def _installed(self, below: Below, debs: Sequence[Deb]) -> Mapping[tuple[str, str], str]:
        """The stanzas of packages as if they were installed, from their files."""
        assert isinstance(below.pin, DebianPin | DebPin)
        source = self.source(below.pin)
        files = apt.fetch(below.locked, source, debs, self.context)
        controls = (
            self.context.runner.run(["dpkg-deb", "--field", str(path)]).stdout.strip()
            for path in files.values()
        )
        return by_package(f"{control}\nStatus: install ok installed" for control in controls)


def _image(below: Below) -> PinnedImage | None:
    return next((item for item in below.items if isinstance(item, PinnedImage)), None)


def _debs(below: Below) -> list[Deb]:
    return [item for item in below.items if isinstance(item, Deb)]


def by_package(stanzas: Iterable[str]) -> dict[tuple[str, str], str]:
    """Stanzas by package and architecture; all architectures are one for dpkg's `all`."""
    found = {}
    for stanza in stanzas:
        fields = dict(re.findall(r"(?m)^(Package|Architecture): (.*)$", stanza))
        if "Package" in fields:
            found[fields["Package"], fields.get("Architecture", "")] = stanza.strip("\n")
    return found


ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+: [^\r\n]*\r?\n)*\r?\n"
    rb"([A-Za-z0-9+/=\s]+?)(?:\r?\n=[A-Za-z0-9+/]{4})?\r?\n-----END"
)
"""https://www.rfc-editor.org/rfc/rfc9580#name-forming-ascii-armor"""


def binary_keyring(key: bytes, locked: Locked) -> bytes:
    """A public key as apt reads it in a file of any name. Raises ``LockError`` where it is none."""
    if armored := ARMOR.findall(key):
        return b"".join(base64.b64decode(block) for block in armored)
    # The first octet of a packet: https://www.rfc-editor.org/rfc/rfc9580#name-packet-headers
    if key[:1] in (b"\x98", b"\x99", b"\xc6"):
        return key
    raise LockError(
        f"{locked}: its `key` is not an OpenPGP public key",
        hint="take what `gpg --export` writes, with --armor or without",
    )
