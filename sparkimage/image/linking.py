"""Which library the dynamic linker finds in an image, from the entries of its layers.

https://man7.org/linux/man-pages/man8/ld.so.8.html. Pure.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sparkimage.image.elf import Elf
from sparkimage.image.layerindex import Entry

MOST_LINKS = 40
"""As the kernel's: https://man7.org/linux/man-pages/man7/path_resolution.7.html"""


@dataclass(frozen=True)
class Root:
    """The root that a container sees."""

    final: Mapping[str, Entry]

    def real(self, path: str) -> str | None:
        """The path with all links resolved, without a leading slash; None where one dangles."""
        open_parts = path.split("/")[::-1]
        done: list[str] = []
        links = 0
        while open_parts:
            part = open_parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            entry = self.final.get("/".join((*done, part)))
            if entry is None or entry.kind != "2":
                done.append(part)
                continue
            links += 1
            if links > MOST_LINKS:
                return None
            if entry.target.startswith("/"):
                done = []
            open_parts += entry.target.split("/")[::-1]
        real = "/".join(done)
        return real if real in self.final else None

    def file(self, path: str) -> Entry | None:
        """The regular file behind ``path``, links followed."""
        entry = self.final.get(self.real(path) or "")
        return entry if entry is not None and entry.kind in ("0", "1") else None

    def text(self, path: str) -> str:
        """The text of a file whose text is kept as a fact; else empty."""
        entry = self.file(path)
        return str(entry.seen.get("text", "")) if entry is not None else ""

    @cached_property
    def by_name(self) -> Mapping[str, Sequence[str]]:
        """The paths of every file name."""
        paths: dict[str, list[str]] = {}
        for path in self.final:
            paths.setdefault(posixpath.basename(path), []).append(path)
        return paths

    def program(self, name: str, path: str) -> Entry | None:
        """The executable that ``name`` starts where PATH is ``path``."""
        places = [f"{folder}/{name}" for folder in path.split(":")] if "/" not in name else [name]
        files = (self.file(place) for place in places)
        return next((file for file in files if file is not None and file.mode & 0o111), None)

    def wheels(self, python: str | None, into: str | None = None) -> dict[str, list[str]]:
        """The versions of every package that was installed for Python ``python`` (X.Y), without
        the distribution's own, by its name; those in the venv or conda prefix ``into``."""
        folder = site_packages(python, into)
        versions: dict[str, list[str]] = {}
        for path, entry in self.final.items():
            if "wheel" in entry.seen and path.startswith(f"{folder}/"):
                name, version = entry.seen["wheel"]
                versions.setdefault(name, []).append(version)
        return versions

    def elves(self) -> Iterator[tuple[Entry, Elf]]:
        """Every ELF file."""
        for entry in self.final.values():
            if entry.elf is not None:
                yield entry, entry.elf


def site_packages(python: str | None, into: str | None = None) -> str:
    """The folder with the wheels of Python ``python`` (X.Y), without a leading slash:
    dist-packages, or that of the venv or conda prefix ``into``."""
    if into is None:
        return f"usr/local/lib/python{python}/dist-packages"
    return f"{into.lstrip('/')}/lib/python{python}/site-packages"


def configured(root: Root) -> tuple[str, ...]:
    """The folders that /etc/ld.so.conf names, in order."""
    folders: list[str] = []

    def read(path: str) -> None:
        for line in root.text(path).splitlines():
            words = line.partition("#")[0].split()
            if words[:1] == ["include"]:
                for pattern in words[1:]:
                    full = posixpath.join("etc", pattern).lstrip("/")
                    for match in sorted(fnmatch.filter(root.final, full)):
                        read(match)
            elif words:
                folders.append(words[0])

    read("etc/ld.so.conf")
    return tuple(dict.fromkeys(folders))


@dataclass(frozen=True)
class Linker:
    """ld.so of one image."""

    root: Root
    arch: str
    folders: tuple[str, ...]
    """Where it searches after the folders that a file itself names."""
    _usable: dict[str, Entry | None] = field(default_factory=dict, repr=False, compare=False)
    """The answers of ``usable``: an image has tens of thousands of needed libraries."""

    @classmethod
    def of(cls, root: Root, arch: str, triplet: str, library_path: str = "") -> Linker:
        """The linker under LD_LIBRARY_PATH ``library_path``."""
        default = (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib", "/usr/lib", "/lib64")
        first = tuple(folder for folder in library_path.replace(";", ":").split(":") if folder)
        return cls(root, arch, (*first, *configured(root), *default, "/usr/lib64"))

    def usable(self, path: str) -> Entry | None:
        """The library at ``path`` if it is of this architecture; ld.so ignores others."""
        if path not in self._usable:
            entry = self.root.file(path)
            fits = entry is not None and entry.elf is not None and entry.elf.arch == self.arch
            self._usable[path] = entry if fits else None
        return self._usable[path]

    def find(self, name: str, user: Entry | None = None) -> Entry | None:
        """The library ``name`` that the file ``user`` gets (None: a program without a RUNPATH)."""
        if "/" in name:
            # uv's Pythons need `$ORIGIN/../lib/libpython3.13.so.1.0`.
            return self.usable(self._expanded(name, user))
        own: Sequence[str] = ()
        if user is not None and user.elf is not None:
            own = user.elf.runpath or user.elf.rpath
        for folder in (*(self._expanded(path, user) for path in own), *self.folders):
            if (library := self.usable(f"{folder}/{name}")) is not None:
                return library
        return None

    def _expanded(self, folder: str, user: Entry | None) -> str:
        origin = "/" + posixpath.dirname(user.path if user is not None else "")
        for word, value in (("ORIGIN", origin), ("LIB", "lib")):
            folder = folder.replace(f"${{{word}}}", value).replace(f"${word}", value)
        return folder

    def unresolved(self) -> Iterator[tuple[Entry, str]]:
        """Every file with a library or an interpreter that it needs and that is not found."""
        left: list[tuple[Entry, str]] = []
        loaders: dict[str, list[Entry]] = {}
        for entry, head in self.root.elves():
            if head.arch != self.arch:
                continue
            for name in head.needed:
                if (found := self.find(name, entry)) is not None:
                    loaders.setdefault(found.path, []).append(entry)
                else:
                    left.append((entry, name))
            if head.interpreter is not None and self.usable(head.interpreter) is None:
                yield entry, head.interpreter
        before = len(left) + 1
        while len(left) < before:
            before, rest = len(left), []
            for entry, name in left:
                if (found := self._inherited(name, entry, loaders)) is not None:
                    loaders.setdefault(found.path, []).append(entry)
                else:
                    rest.append((entry, name))
            left = rest
        yield from left

    def _inherited(
        self, name: str, user: Entry, loaders: Mapping[str, Sequence[Entry]]
    ) -> Entry | None:
        """The library ``name`` by the RPATH of a file that loads ``user``, or of one that loads
        that: it counts for all that is loaded, unless a file has a RUNPATH."""
        known, files = {user.path}, [user]
        while files:
            file = files.pop()
            head = file.elf
            if head is None or head.runpath:
                continue
            for folder in head.rpath:
                if (library := self.usable(f"{self._expanded(folder, file)}/{name}")) is not None:
                    return library
            new = [loader for loader in loaders.get(file.path, ()) if loader.path not in known]
            known |= {loader.path for loader in new}
            files += new
        return None
