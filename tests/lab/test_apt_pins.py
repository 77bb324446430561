"""Packages of suites, resolved by a real apt from small real archives in Debian's and in Ubuntu's
shape: what is locked for which base, what is fetched, and what is said."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import below, lockfile, plan, planning
from sparkimage.config.address import Mirrors, Place
from sparkimage.config.lock_items import Deb
from sparkimage.config.lockfile import Lock
from sparkimage.config.matrix import Matrix
from sparkimage.core import paths, suites
from sparkimage.core.errors import ConfigError, LockError, NetworkError, SparkError
from sparkimage.core.process import Local
from sparkimage.image.store import MANIFEST, Descriptor, Store
from sparkimage.resolve import fetch, resolver
from sparkimage.resolve.apt_source import Source, default_sources
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.resolver import Outcome
from sparkimage.resolve.skopeo import Repository
from sparkimage.resolve.tools import Tools
from tests.lab import servers
from tests.lab.apt_maker import Archive, Key, installed
from tests.unit import oci_maker
from tests.unit import project_maker as maker

ARM = "linux/arm64"
IMAGE = {"kind": "image", "image": "lab/cuda:1"}


@dataclass
class Site:
    """A project, an archive with its server, and a registry with a base image."""

    root: Path
    archive: Archive
    url: str
    key: Key
    registry: str

    def write(
        self,
        pins: Mapping[str, Any],
        base: Mapping[str, Any] = IMAGE,
        more: Mapping[str, Any] | None = None,
    ) -> Matrix:
        """A matrix with a layer for each of the pins, in order, on a base; and ``more`` pins."""
        every = {"os": {"1.0.0": base}, **{name: {"1.0.0": pin} for name, pin in pins.items()}}
        layers: dict[str, Any] = {"low": {"base": "os"}}
        layers |= {f"of-{name}": {"debs": name} for name in pins}
        used = dict.fromkeys(every, "1.0.0")
        variant = maker.include("v", *layers, platform=ARM, **used)
        data = maker.document({**every, **(more or {})}, layers, [variant])
        return maker.write(self.root, data)

    def pin(self, *packages: str, **more: Any) -> dict[str, Any]:
        """A pin of the archive's suite noble."""
        return {
            "kind": "deb", "suite": "noble", "packages": list(packages), "key": "key.asc",
            "repository": {ARM: self.url}, **more,
        }  # fmt: skip

    def context(self) -> ResolveContext:
        mirrors = Mirrors(rules={"docker.io": self.registry})
        return ResolveContext(
            home=paths.home(), runner=Local(), mirrors=mirrors, say=lambda _: None
        )

    def lock(self, read: Matrix, lock: Lock | None = None, *update: str) -> Outcome:
        moved = resolver.parse_update(read, lock, update)
        return resolver.resolve(read, lock, self.context(), moved)

    def push(self, *packages: str, status: bool = True, tag: str = "1") -> None:
        """An image of the registry that has these packages: stanzas of dpkg's status."""
        store = Store.open(self.root / "store")
        files: oci_maker.Files = {"etc": None, "etc/os-release": b"ID=lab\n"}
        if status:
            files["var/lib/dpkg/status"] = "".join(packages).encode()
        image = oci_maker.make_image(store, [files])
        size = store.path(image.digest).stat().st_size
        repository = Repository(
            place=Place.parse(f"{self.registry}/lab/cuda"), tools=Tools(outside=self.context())
        )
        repository.copy(store, Descriptor(media_type=MANIFEST, digest=image.digest, size=size))
        repository.tag(image.digest, tag)


BASE = (
    installed("libc6", "2.39-0ubuntu8.5"),
    installed("libnccl2", "2.28.3-1+cuda13.0", Status="hold ok installed"),
    installed("perl", "5.38"),
)
"""Of NVIDIA's image of Ubuntu 24.04, a part."""
GIT = "perl, git-man, libc6 (>= 2.38)"
SCRIPTS = {
    "usr/sbin/update-shells": 'echo the root >"$2/etc/shells"\n',
    "usr/sbin/pam-auth-update": """#!/bin/sh
cp '/usr/share/pam/common-auth' "$2/etc/pam.d/common-auth"
""",
    "usr/share/pam/common-auth": "the root's\n",
    "etc/pam.d/common-auth": "this machine's\n",
    "etc/shells": "this machine\n",
    "etc/ld.so.cache": "this machine's\n",
}
"""What stands in for packages' own scripts, and for what this machine's would have made."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Ubuntu's shape: components, pockets; Debian's is the same with other names."""
    key = Key.make(tmp_path / "gnupg")
    archive = Archive(folder=tmp_path / "archive", key=key)
    add = archive.add
    add("noble", "libc6", "2.39-0ubuntu8")
    add("noble", "libc6-dev", "2.39-0ubuntu8", Depends="libc6 (= 2.39-0ubuntu8)")
    add("noble-updates", "libc6", "2.39-0ubuntu8.5")
    add("noble-updates", "libc6-dev", "2.39-0ubuntu8.5", Depends="libc6 (= 2.39-0ubuntu8.5)")
    add("noble", "git", "2.43", Depends=GIT, Recommends="less")
    add("noble", "git-man", "2.43", arch="all")
    add("noble", "less", "590")
    add("noble", "cmake", "3.28", component="universe", Depends="git, libc6-dev")
    add("noble", "hungry", "1.0", Depends="libmissing (>= 2)")
    add("noble", "rival", "1.0", Conflicts="perl")
    add("noble", "libnccl2", "2.30.4-1+cuda13.2", Depends="libc6")
    add("noble", "base-files", "13", programs=SCRIPTS, Essential="yes")
    add("noble", "apt", "2.7", Depends="base-files", Priority="required")
    archive.publish()
    (tmp_path / "key.asc").write_bytes(key.public(armored=True))
    with (
        servers.http_folder(archive.folder) as web,
        servers.registry(tmp_path / "registry") as registry,
    ):
        yield Site(root=tmp_path, archive=archive, url=web.url, key=key, registry=registry.address)
    key.stop()


def debs(outcome: Outcome, pin: str) -> list[str]:
    assert outcome.failures == {}
    items = outcome.lock.items(pin, "1.0.0", ARM)
    return [f"{item.name}={item.version}" for item in items if isinstance(item, Deb)]


def failure(outcome: Outcome) -> SparkError:
    ((_, error),) = outcome.failures.items()
    return error


def test_only_what_the_base_lacks_is_locked_and_fetched(site: Site) -> None:
    site.push(*BASE)
    read = site.write(
        {"tools": site.pin("cmake", "git", components=["main", "universe"], pockets=["updates"])}
    )
    outcome = site.lock(read)
    # Of what is there nothing: perl, and the C library that the image has from the pocket.
    assert debs(outcome, "tools") == [
        "cmake=3.28", "git=2.43", "git-man=2.43", "libc6-dev=2.39-0ubuntu8.5",
    ]  # fmt: skip
    requested = outcome.lock.entries["tools", "1.0.0"].requested
    assert requested["on"] == ["os 1.0.0"]
    # It is fetched by the lock: its key is asked for no more.
    (site.root / "matrix.lock").write_text(lockfile.dump(outcome.lock))
    held = lockfile.load(site.root / "matrix.lock")
    assert held == outcome.lock
    planned = planning.make(read, read.variants[0], held, maker.ORIGIN)
    (site.root / "key.asc").unlink()
    inputs = fetch.ready(planned, site.root, site.context(), "amd64")
    folder = inputs.layers["of-tools"]
    assert sorted(path.name for path in (folder / "debs").glob("*.deb")) == [
        "cmake_3.28_arm64.deb", "git-man_2.43_all.deb", "git_2.43_arm64.deb",
        "libc6-dev_2.39-0ubuntu8.5_arm64.deb",
    ]  # fmt: skip
    assert (folder / "packages").read_text() == "cmake\ngit\n"


def test_what_a_layer_below_brings_is_there(site: Site) -> None:
    site.push(*BASE)
    pins = {"first": site.pin("git"), "second": site.pin("git", "less")}
    outcome = site.lock(site.write(pins))
    assert debs(outcome, "first") == ["git=2.43", "git-man=2.43"]
    assert debs(outcome, "second") == ["less=590"]
    assert outcome.lock.entries["second", "1.0.0"].requested["on"] == ["os 1.0.0 + first 1.0.0"]
    # The base is another one now: what lies on it is resolved anew.
    site.push(*BASE, installed("git-man", "2.43", "all"))
    assert site.lock(site.write(pins), outcome.lock).lock == outcome.lock
    moved = site.lock(site.write(pins), outcome.lock, "os")
    assert debs(moved, "first") == ["git=2.43"]
    # And where all is there already, nothing is locked, and the lock can be read.
    git = {"Depends": GIT, "Recommends": "less"}
    here = (installed("git", "2.43", **git), installed("git-man", "2.43", "all"))
    site.push(*BASE, *here, installed("less", "590"))
    whole = site.lock(site.write(pins), moved.lock, "os")
    assert (debs(whole, "first"), debs(whole, "second")) == ([], [])
    (site.root / "matrix.lock").write_text(lockfile.dump(whole.lock))
    assert lockfile.load(site.root / "matrix.lock") == whole.lock


def test_an_exact_version_goes_before_what_the_base_holds(site: Site) -> None:
    site.push(*BASE)
    outcome = site.lock(site.write({"nccl": site.pin("libnccl2=2.30.4-1+cuda13.2")}))
    assert debs(outcome, "nccl") == ["libnccl2=2.30.4-1+cuda13.2"]
    site.push(*BASE[:1], installed("libnccl2", "2.32"))
    assert debs(site.lock(site.write({"nccl": site.pin("libnccl2")})), "nccl") == []


def test_packages_on_the_root_of_another_pin(site: Site) -> None:
    base = {
        "kind": "debian", "suite": "noble", "repository": {ARM: site.url}, "key": "key.asc",
        "packages": ["less"],
    }  # fmt: skip
    outcome = site.lock(site.write({"tools": site.pin("apt", "git-man")}, base))
    assert debs(outcome, "os") == ["apt=2.7", "base-files=13", "less=590"]
    parts = {i.name: i.part for i in outcome.lock.items("os", "1.0.0", ARM) if isinstance(i, Deb)}
    assert parts == {"apt": "root", "base-files": "root", "less": "more"}
    assert debs(outcome, "tools") == ["git-man=2.43"]


def test_a_root_is_the_same_wherever_it_is_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {
        "kind": "debian", "suite": "noble", "repository": {ARM: site.url}, "key": "key.asc",
        "packages": ["less"],
    }  # fmt: skip
    read = site.write({}, base)
    outcome = site.lock(read)
    assert outcome.failures == {}
    planned = planning.make(read, read.variants[0], outcome.lock, maker.ORIGIN)

    def made(home: str) -> list[tuple[object, ...]]:
        context = replace(site.context(), home=site.root / home)
        inputs = fetch.ready(planned, site.root, context, "amd64")
        assert inputs.root is not None
        with tarfile.open(inputs.root / "root.tar") as tar:
            return sorted(
                (one.name, one.mode, one.uid, one.gid, one.mtime, one.linkname,
                 file.read() if one.isreg() and (file := tar.extractfile(one)) else b"")
                for one in tar
            )  # fmt: skip

    root = made("one")
    files = {str(entry[0]): entry for entry in root}
    texts = {name: files[f"./etc/{name}"][-1] for name in ("shells", "pam.d/common-auth")}
    assert texts == {"shells": b"the root\n", "pam.d/common-auth": b"the root's\n"}
    assert "./etc/ld.so.cache" not in files
    assert not [name for name in files if name.startswith(("./tmp/", "./var/lib/apt/lists/"))]
    assert files["./etc/apt/sources.list"][1:4] == (0o644, 0, 0)
    # Where apt's user reads nothing, and files are private.
    private = site.root / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("TMPDIR", str(private))
    before = os.umask(0o077)
    try:
        assert made("two") == root
    finally:
        os.umask(before)


def test_a_root_names_its_own_keys(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where apt trusts the suite's keys anyway, mmdebstrap names none; elsewhere its own."""
    source = Source(suite="trixie", arch="arm64")
    lines = source.in_image(site.context())
    assert re.findall(r"\[.*?\]", lines) == 3 * [f"[signed-by={suites.DEBIAN.keyring}]"]
    (site.root / "none").mkdir()
    none = f'Dir::Etc::TrustedParts "{site.root}/none/"; Dir::Etc::Trusted "/none";'
    (site.root / "apt.conf").write_text(none)
    monkeypatch.setenv("APT_CONFIG", str(site.root / "apt.conf"))
    assert 'signed-by="' in default_sources("trixie", "arm64", ["main"], site.context())
    assert source.in_image(site.context()) == lines


def test_a_snapshot_holds_what_it_held(site: Site) -> None:
    site.push(*BASE)
    date = "20261001T000000Z"
    old = Archive(folder=site.archive.folder / date, key=site.key)
    old.add("noble", "git-man", "2.40", arch="all")
    old.add("noble", "git", "2.40", Depends="git-man, libcurl")
    old.publish(expired=True)
    at = {"snapshot": date, "repository": {ARM: f"{site.url}/"}}
    outcome = site.lock(site.write({"tools": site.pin("git-man", **at)}))
    assert debs(outcome, "tools") == ["git-man=2.40"]
    gone = failure(site.lock(site.write({"tools": site.pin("less", **at)})))
    assert isinstance(gone, LockError)
    assert f"the snapshot {site.url}/{date} noble (arm64) does not have less" in gone.message
    assert "`snapshot`" in gone.hint
    half = failure(site.lock(site.write({"tools": site.pin("git", **at)})))
    assert f"{site.url}/{date} noble (arm64) cannot satisfy all dependencies" in half.message
    assert "git : Depends: libcurl but it is not installable" in half.detail
    # What is no snapshot must not be as old.
    plain = {"repository": {ARM: f"{site.url}/{date}"}}
    assert "expired" in failure(site.lock(site.write({"t": site.pin("git", **plain)}))).detail


@pytest.mark.parametrize(
    ("packages", "more", "what", "hint"),
    [
        (["cmake"], {}, "no longer has cmake", "lock --update"),
        (["git=1"], {}, "no longer has git 1", "lock --update"),
        (["hungry"], {}, "cannot satisfy all dependencies", "`components`, `pockets`"),
        (["rival"], {}, "would remove perl, which lies below", "only adds"),
        (["git"], {"suite": "jammy"}, "there is no http", "`suite`"),
        (["git"], {"pockets": ["backports"]}, "there is no http", "`pockets`"),
        (["git"], {"components": ["contrib"]}, "none of the components contrib", "`components`"),
        (["git"], {"key": None}, "which this machine does not have",
         "sudo apt-get install ubuntu-archive-keyring"),
        (["git"], {"key": None, "suite": "noble-updates"}, "which this machine does not have",
         "give the pin its `key:`"),
        (["git"], {"key": "other.asc"}, "which its `key` is not", "correct its `key`"),
        (["git"], {"key": "no-key.asc"}, "is not an OpenPGP public key", "gpg --export"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved_is_said(
    site: Site, packages: list[str], more: dict[str, Any], what: str, hint: str
) -> None:
    site.push(*BASE)
    if more.get("key") == "other.asc":
        other = Key.make(site.root / "other")
        (site.root / "other.asc").write_bytes(other.public(armored=False))
        other.stop()
    (site.root / "no-key.asc").write_text("hello\n")
    pin = {key: one for key, one in site.pin(*packages, **more).items() if one is not None}
    error = failure(site.lock(site.write({"tools": pin})))
    assert isinstance(error, LockError)
    assert what in error.message
    assert hint in error.hint


def test_an_archive_without_a_signature(site: Site) -> None:
    site.push(*BASE)
    for file in site.archive.folder.glob("dists/*/InRelease"):
        file.unlink()
    error = failure(site.lock(site.write({"tools": site.pin("git")})))
    assert "is not signed" in error.message
    assert "a pin without `suite`" in error.hint


def test_an_archive_that_cannot_be_reached(site: Site) -> None:
    site.push(*BASE)
    dead = {"repository": {ARM: "http://127.0.0.1:9/ubuntu"}}
    error = failure(site.lock(site.write({"tools": site.pin("git", **dead)})))
    assert isinstance(error, NetworkError)
    assert "http://127.0.0.1:9/ubuntu noble (arm64) cannot be reached" in error.message


def test_a_base_that_is_no_debian(site: Site) -> None:
    site.push(status=False)
    error = failure(site.lock(site.write({"tools": site.pin("git")})))
    assert "docker.io/lab/cuda has no /var/lib/dpkg/status" in error.message


def test_a_key_of_a_file_pin(site: Site) -> None:
    site.push(*BASE)
    (site.archive.folder / "lab.gpg").write_bytes(site.key.public(armored=False))
    digest = sha256((site.archive.folder / "lab.gpg").read_bytes()).hexdigest()
    file = {"kind": "file", "url": f"{site.url}/lab.gpg", "sha256": digest}
    read = site.write({"tools": site.pin("less", key="lab-key")}, more={"lab-key": {"1": file}})
    assert debs(site.lock(read), "tools") == ["less=590"]


def test_what_any_of_several_bases_needs_is_locked(site: Site) -> None:
    site.push(*BASE)
    site.push(*BASE, installed("git-man", "2.43", "all"), tag="2")
    bases = {"a": IMAGE, "b": {**IMAGE, "image": "lab/cuda:2"}}
    pins = {"os": bases, "tools": {"noble": site.pin("git")}}
    layers = {"low": {"base": "os"}, "tools": {"debs": "tools"}}
    variants = [maker.include(f"on-{n}", *layers, os=n, tools="noble") for n in bases]
    outcome = site.lock(maker.write(site.root, maker.document(pins, layers, variants)))
    assert outcome.failures == {}
    items = outcome.lock.items("tools", "noble", ARM)
    assert [item.name for item in items if isinstance(item, Deb)] == ["git", "git-man"]


def test_one_pin_on_several_bases(tmp_path: Path) -> None:
    """The lock has what any of them needs; each image what apt takes of that for its own."""
    bases = {name: {**IMAGE, "version": "1.0.0", "image": f"lab/{name}:1"} for name in ("a", "b")}
    tools = {"kind": "deb", "suite": "noble", "packages": ["git=1", "less"]}
    pins = {"os": bases, "tools": {"noble": tools}}
    layers = {"low": {"base": "os"}, "tools": {"debs": "tools"}}
    variants = [maker.include(f"on-{n}", *layers, os=n, tools="noble") for n in bases]
    read = maker.write(tmp_path, maker.document(pins, layers, variants))
    held = maker.locked(read)
    assert held.entries["tools", "noble"].requested["on"] == ["os a", "os b"]
    entry = held.entries["tools", "noble"]
    two = tuple(
        Deb(name=n, version="1", part="more", size=1, sha256="0" * 64, file=f"{n}_1_all.deb")
        for n in ("git", "less")
    )
    entry = replace(entry, platforms=dict.fromkeys(entry.platforms, two))
    held = replace(held, entries={**held.entries, ("tools", "noble"): entry})
    for made in planning.make_all(read, read.variants, held, maker.ORIGIN):
        assert [deb.name for deb in plan.installed(made.layers[1])] == ["git"]
        assert made.versions == {"os": "1.0.0"}
    one = replace(entry, requested={**entry.requested, "on": ["os a"]})
    held = replace(held, entries={**held.entries, ("tools", "noble"): one})
    made = planning.make(read, read.variants[0], held, maker.ORIGIN)
    assert [deb.name for deb in plan.installed(made.layers[1])] == ["git", "less"]


def test_pins_that_lie_below_each_other(tmp_path: Path) -> None:
    pins = {"os": {"1.0.0": IMAGE}} | {
        name: {"1.0.0": {"kind": "deb", "suite": "noble", "packages": ["less"]}} for name in "ab"
    }
    layers = {"low": {"base": "os"}, "a": {"debs": "a"}, "b": {"debs": "b"}}
    used = dict.fromkeys(pins, "1.0.0")
    variants = [maker.include(f"v{x}{y}", "low", x, y, **used) for x, y in ("ab", "ba")]
    read = maker.write(tmp_path, maker.document(pins, layers, variants))
    with pytest.raises(LockError, match="are each below the other in some variant"):
        list(below.levels(lockfile.requests(read), below.dependencies(read)))


FLAT = {"kind": "deb", "packages": ["aa=1"], "repository": {ARM: "https://a.example"}}
SUITE = {"kind": "deb", "packages": ["aa"], "suite": "noble"}
FILE = {"kind": "file", "url": "https://a.example/key.gpg"}


@pytest.mark.parametrize(
    ("pin", "what", "todo"),
    [
        ({"kind": "deb", "packages": ["aa=1"]}, "has neither a `suite` nor a `repository`",
         "`suite: noble`"),
        ({**FLAT, "packages": ["aa=1", "bb"]}, "'bb' has no version", "write NAME=VERSION"),
        ({**FLAT, "components": ["main"]}, "`components` is of a suite", "add `suite:`"),
        ({**FLAT, "snapshot": "20260101T000000Z"}, "`snapshot` is of a suite", "add `suite:`"),
        ({**FLAT, "repository": {ARM: "https://me:secret@a.example"}},
         "'https://a.example' has a login, which plans and labels would show", "without a login"),
        ({**SUITE, "snapshot": "20260101T000000Z"}, "is no snapshot service", "`repository`"),
        ({**SUITE, "pockets": ["updates"]}, "has its pockets anyway", "or remove it"),
        ({**SUITE, "snapshot": "2026-01-01"}, "does not have the right form", "YYYYMMDDTHHMMSSZ"),
        ({**SUITE, "key": "none.asc"}, "'none.asc' is neither a file of the project nor a pin",
         "gpg --armor --export"),
        ({**SUITE, "key": "../key.asc"}, "does not have the right form", "a path below"),
        ({**SUITE, "key": "file"}, "is not a file pin of one value with a", "give it that"),
        ({**SUITE, "key": "os"}, "is not a file pin of one value with a", "give it that"),
        ({**SUITE, "suite": "Noble"}, "does not have the right form", "such as noble"),
        ({**SUITE, "packages": ["aa b"]}, "does not have the right form", "NAME=VERSION"),
    ],
)  # fmt: skip
def test_wrong_pins(tmp_path: Path, pin: dict[str, Any], what: str, todo: str) -> None:
    pins = {"os": {"1.0.0": IMAGE}, "tools": {"1.0.0": pin}, "file": {"1": FILE}}
    layers = {"low": {"base": "os"}, "tools": {"debs": "tools"}}
    variant = maker.include("v", *layers, os="1.0.0", tools="1.0.0")
    with pytest.raises(ConfigError) as caught:
        maker.write(tmp_path, maker.document(pins, layers, [variant]))
    (problem,) = caught.value.problems
    assert what in problem.what
    assert todo in problem.todo
