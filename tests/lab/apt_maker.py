"""Makes small real apt repositories: debs, suites with components and pockets, signed with a key of
the test. https://wiki.debian.org/DebianRepository/Format"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

DATE = "Thu, 01 Oct 2026 00:00:00 UTC"
EXPIRED = "Fri, 02 Oct 2026 00:00:00 UTC"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that signs, in a keyring of its own."""

    home: Path

    @classmethod
    def make(cls, home: Path) -> Key:
        home.mkdir(mode=0o700, parents=True)
        key = cls(home=home)
        key.gpg("--passphrase", "", "--quick-gen-key", "lab", "ed25519", "sign", "never")
        return key

    def gpg(self, *words: str, text: str | None = None) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        given = None if text is None else text.encode()
        return subprocess.run(argv, input=given, capture_output=True, check=True).stdout

    def public(self, *, armored: bool) -> bytes:
        return self.gpg(*(["--armor"] if armored else []), "--export")

    def stop(self) -> None:
        """End the agent that gpg started for it."""
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False
        )  # fmt: skip


def deb(
    folder: Path,
    name: str,
    version: str,
    arch: str = "arm64",
    programs: Mapping[str, str] = MappingProxyType({}),
    **fields: str,
) -> Path:
    """A package with one file, and ``programs`` by their paths; ``fields`` as in control, such as
    ``Depends``."""
    made = folder / f"{name}_{version}_{arch}.deb"
    tree = folder / f".{made.stem}"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {**_fields(name, version, arch), **fields}
    (tree / "DEBIAN" / "control").write_text("".join(f"{k}: {v}\n" for k, v in control.items()))
    (tree / "opt").mkdir()
    (tree / "opt" / name).write_text(version)
    for path, text in programs.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        (tree / path).chmod(0o755)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(made)],
        check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "946684800"},
    )  # fmt: skip
    return made


def _fields(name: str, version: str, arch: str) -> dict[str, str]:
    return {
        "Package": name,
        "Version": version,
        "Architecture": arch,
        "Maintainer": "lab <lab@example.org>",
        "Description": "a stand-in",
    }


def installed(name: str, version: str, arch: str = "arm64", **fields: str) -> str:
    """The stanza of an installed package in dpkg's status; ``Status`` where it is another."""
    parts = {**_fields(name, version, arch), "Status": "install ok installed", **fields}
    return "".join(f"{key}: {value}\n" for key, value in parts.items()) + "\n"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A repository with suites, as Debian's and Ubuntu's are."""

    folder: Path
    key: Key | None
    origin: str = "Lab"
    pools: dict[str, dict[str, list[Path]]] = field(default_factory=dict)

    def add(
        self,
        suite: str,
        name: str,
        version: str,
        *,
        component: str = "main",
        arch: str = "arm64",
        programs: Mapping[str, str] = MappingProxyType({}),
        **fields: str,
    ) -> None:
        """A package in a component of a suite (or of a pocket of it)."""
        pool = self.folder / "pool" / component
        pool.mkdir(parents=True, exist_ok=True)
        components = self.pools.setdefault(suite, {"main": []})
        components.setdefault(component, []).append(
            deb(pool, name, version, arch, programs, **fields)
        )

    def publish(self, *, expired: bool = False) -> None:
        """Write the lists of every suite, and sign them."""
        for suite, components in self.pools.items():
            top = self.folder / "dists" / suite
            sums = []
            for component, debs in components.items():
                for arch in ("amd64", "arm64"):
                    folder = top / component / f"binary-{arch}"
                    folder.mkdir(parents=True, exist_ok=True)
                    chosen = [d for d in debs if d.stem.endswith((f"_{arch}", "_all"))]
                    text = "\n".join(self._stanza(one) for one in chosen).encode()
                    (folder / "Packages").write_bytes(text)
                    path = (folder / "Packages").relative_to(top)
                    sums.append(f" {hashlib.sha256(text).hexdigest()} {len(text)} {path}\n")
            until = f"Valid-Until: {EXPIRED}\n" if expired else ""
            release = (
                f"Origin: {self.origin}\nSuite: {suite}\nCodename: {suite}\nDate: {DATE}\n{until}"
                f"Architectures: amd64 arm64\nComponents: {' '.join(components)}\n"
                f"SHA256:\n{''.join(sums)}"
            )
            (top / "Release").write_text(release)
            if self.key is not None:
                signed = self.key.gpg("--clearsign", text=release)
                (top / "InRelease").write_bytes(signed)

    def _stanza(self, path: Path) -> str:
        control = subprocess.run(
            ["dpkg-deb", "--field", str(path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        data = path.read_bytes()
        return (
            f"{control}\nFilename: {path.relative_to(self.folder)}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
        )
