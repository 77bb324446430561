"""Resolves the matrix's pins, each kind through its own client, and keeps what is locked.

A pin that fits its entry in the lock is left alone; what cannot be resolved is reported and
stands in the lock as such, beside all that could.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparkimage.config import lockfile
from sparkimage.config.lockfile import (
    ANY,
    Commit,
    Deb,
    Entry,
    Item,
    Key,
    Lock,
    PinnedImage,
    Target,
    Wheel,
)
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.plan import MORE
from sparkimage.config.schema import DebianPin, DebPin, GitPin, ImagePin, WheelsPin
from sparkimage.core.errors import Locked, LockError, NetworkError, SparkError, UsageError
from sparkimage.resolve import apt, images, patch_files, wheels
from sparkimage.resolve.context import Outside

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One pin that could not be resolved, and why."""

    key: Key
    error: SparkError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The new lock, what in it was resolved now, and what could not be."""

    lock: Lock
    moved: tuple[Key, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True)
class News:
    """One thing that is newer outside than in the lock."""

    pin: str
    what: str
    locked: str
    newest: str


@dataclass(frozen=True, kw_only=True)
class Move:
    """What ``--update`` asks for: pins (NAME or NAME==VALUE, as globs), and projects of wheels
    with the version to move to, or None for the newest that fits."""

    pins: tuple[Key, ...] = ()
    projects: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def pin(self, key: Key) -> bool:
        """Whether this pin is to be resolved anew, as a whole."""
        return key in self.pins


def read_move(matrix: Matrix, held: Lock | None, words: Sequence[str]) -> Move:
    """What the words of ``--update`` mean. Raises ``UsageError`` for one that means nothing."""
    pins: list[Key] = []
    projects: dict[str, str | None] = {}
    known = lockfile.wanted(matrix)
    there = {
        item.name
        for entry in (held.entries.values() if held is not None else ())
        for items in entry.platforms.values()
        for item in items
        if isinstance(item, Wheel)
    }
    for word in words:
        name, _, value = word.partition("==")
        found = [
            key
            for key in known
            if fnmatch.fnmatchcase(key[0] if key[0] != PATCHES or value else key[1], name)
            and fnmatch.fnmatchcase(key[1], value or "*")
        ]
        if found:
            pins += found
        elif name in there:
            projects[name] = value or None
        elif name in {pin for pin, _ in known}:
            values = ", ".join(v for pin, v in known if pin == name)
            raise UsageError(
                f"pin {name} has no value {value!r} that a variant uses; it has {values}",
                hint=f"add `{value}` to pins.{name} in {matrix.file.name} and to a variant; then "
                "python build.py lock",
            )
        else:
            raise UsageError(
                f"{word!r} is no pin of {matrix.file.name} and no locked project",
                hint="known are " + ", ".join(sorted({pin for pin, _ in known})),
            )
    return Move(pins=tuple(dict.fromkeys(pins)), projects=projects)


def resolve(matrix: Matrix, held: Lock | None, outside: Outside, move: Move) -> Outcome:
    """Resolve what the lock lacks, what asks for something else now, and what is to move."""
    needed = lockfile.wanted(matrix)
    old = {} if held is None else dict(held.entries)
    kept: dict[Key, dict[str, tuple[Item, ...]]] = {}
    jobs: list[tuple[Key, str]] = []
    for key, (ask, platforms) in needed.items():
        entry = old.get(key)
        fits = entry is not None and dict(entry.asked) == ask and entry.unresolved is None
        for platform in platforms:
            items = entry.platforms.get(platform) if entry is not None and fits else None
            if items is not None and not _moves(key, items, move):
                kept.setdefault(key, {})[platform] = items
            else:
                jobs.append((key, platform))
    # Patches come last: they look into the commits that the git pins came to.
    jobs.sort(key=lambda job: job[0][0] == PATCHES)
    failures: dict[Key, SparkError] = {}
    moved: list[Key] = []

    def one(job: tuple[Key, str]) -> tuple[Item, ...] | SparkError:
        key, platform = job
        try:
            before = old[key].platforms.get(platform, ()) if key in old else ()
            return _one(matrix, key, platform, before, kept, outside, move)
        except SparkError as error:
            return error

    for batch in ([j for j in jobs if j[0][0] != PATCHES], [j for j in jobs if j[0][0] == PATCHES]):
        # Each client waits for the network nearly all of the time.
        with ThreadPoolExecutor(max_workers=8) as pool:
            for (key, platform), found in zip(batch, pool.map(one, batch), strict=True):
                if isinstance(found, SparkError):
                    failures.setdefault(key, found)
                    continue
                kept.setdefault(key, {})[platform] = found
                moved.append(key)
                outside.say(f"{' '.join(key)} {platform}: {_summary(found)}")
    entries: dict[Key, Entry] = {}
    for key, (ask, platforms) in needed.items():
        entry = old.get(key)
        if key not in failures:
            entries[key] = Entry(asked=ask, platforms={p: kept[key][p] for p in platforms})
        elif (
            entry is not None
            and dict(entry.asked) == ask
            and set(platforms) <= set(entry.platforms)
        ):
            entries[key] = entry  # it was to move and could not: it stays
        else:
            entries[key] = Entry(asked=ask, unresolved=failures[key].message)
    return Outcome(
        lock=Lock(file="matrix.lock", meaning=lockfile.meaning(matrix), entries=entries),
        moved=tuple(dict.fromkeys(key for key in moved if key not in failures)),
        failures=tuple(Failure(key=key, error=error) for key, error in failures.items()),
    )


def outdated(matrix: Matrix, held: Lock, outside: Outside) -> tuple[tuple[News, ...], Outcome]:
    """What is newer outside than in the lock: everything is resolved anew, and nothing written.

    Tags of images that moved, branches' tips, newer packages and wheels within what is asked.
    """
    pins = tuple(lockfile.wanted(matrix))
    fresh = resolve(matrix, held, outside, Move(pins=pins))
    news: list[News] = []
    for key, entry in fresh.lock.entries.items():
        before = held.entries.get(key)
        if before is not None and entry is not before:
            news += _news(" ".join(key), before, entry)
    news += _tips(matrix, held, outside)
    news += _newer_debs(matrix, held, outside)
    return tuple(dict.fromkeys(news)), fresh


def _news(title: str, before: Entry, now: Entry) -> list[News]:
    def facts(entry: Entry) -> dict[str, str]:
        return {
            _called(item): _version(item) for items in entry.platforms.values() for item in items
        }

    old, new = facts(before), facts(now)
    return [
        News(pin=title, what=name, locked=old.get(name, "none"), newest=version)
        for name, version in new.items()
        if old.get(name) != version
    ]


def _called(item: Item) -> str:
    """What a user knows the item by."""
    if isinstance(item, PinnedImage):
        return f"tag of {item.name}"
    if isinstance(item, Wheel | Deb):
        return item.name
    return item.path if isinstance(item, Target) else type(item).__name__.lower()


def _version(item: Item) -> str:
    """What tells two states of the item apart, short enough for a table."""
    if isinstance(item, Wheel | Deb):
        return item.version
    if isinstance(item, PinnedImage):
        return item.tagged[:19]
    if isinstance(item, Commit):
        return item.commit[:12]
    return (item.after if isinstance(item, Target) else item.sha256)[:12]


def _tips(matrix: Matrix, held: Lock, outside: Outside) -> list[News]:
    """Branches whose tip is another commit than the locked one."""
    found = []
    for key in lockfile.wanted(matrix):
        pin = matrix.pins[key[0]][key[1]] if key[0] != PATCHES else None
        if not isinstance(pin, GitPin) or pin.branch is None or held.unresolved(*key):
            continue
        (commit,) = held.items(*key, ANY)
        assert isinstance(commit, Commit)
        try:
            repository = outside.repository(_title(key), pin.repository)
            tip = repository.tip(pin.branch)
        except SparkError:
            continue  # resolving it anew has reported it
        if tip is not None and tip != commit.commit:
            found.append(
                News(
                    pin=" ".join(key),
                    what=f"branch {pin.branch}",
                    locked=commit.commit[:12],
                    newest=tip[:12],
                )
            )
    return found


def _newer_debs(matrix: Matrix, held: Lock, outside: Outside) -> list[News]:
    """Newer versions of packages that the matrix asks for in an exact one."""
    found = []
    for key, (_, platforms) in lockfile.wanted(matrix).items():
        pin = matrix.pins[key[0]][key[1]] if key[0] != PATCHES else None
        if not isinstance(pin, DebPin) or held.unresolved(*key):
            continue
        for platform in platforms:
            place = apt.Place(
                suite=None, repository=_address(pin, platform), arch=platform.split("/")[1]
            )
            names = [package.partition("=")[0] for package in pin.packages]
            try:
                newest = apt.resolve(
                    Locked.pin(*key), place, names, outside.runner, outside.mirrors
                )
            except SparkError:
                continue  # resolving it anew has reported it
            locked = {deb.name: deb.version for deb in held.items(*key, platform)
                      if isinstance(deb, Deb)}  # fmt: skip
            found += [
                News(pin=" ".join(key), what=deb.name, locked=locked[deb.name], newest=deb.version)
                for deb in newest
                if locked.get(deb.name, deb.version) != deb.version
            ]
    return found


def _moves(key: Key, items: Sequence[Item], move: Move) -> bool:
    names = {item.name for item in items if isinstance(item, Wheel)}
    return move.pin(key) or any(
        project in names and not any(
            isinstance(i, Wheel) and i.name == project and i.version == version for i in items
        )
        for project, version in move.projects.items()
    )  # fmt: skip


def _one(
    matrix: Matrix,
    key: Key,
    platform: str,
    before: Sequence[Item],
    kept: Mapping[Key, Mapping[str, tuple[Item, ...]]],
    outside: Outside,
    move: Move,
) -> tuple[Item, ...]:
    """Resolve one pin for one platform."""
    name, value = key
    locked, runner, mirrors = Locked.pin(name, value), outside.runner, outside.mirrors
    if name == PATCHES:
        return _patch(matrix, value, kept, outside)
    pin = matrix.pins[name][value]
    arch = platform.rsplit("/", maxsplit=1)[-1]
    if isinstance(pin, WheelsPin):
        keep = None
        if not move.pin(key) and any(isinstance(i, Wheel) and i.name in move.projects
                                     for i in before):  # fmt: skip
            keep = {i.name: i.version for i in before if isinstance(i, Wheel)} | {
                project: version for project, version in move.projects.items() if version
            }
            for project, version in move.projects.items():
                if version is None:
                    keep.pop(project, None)
        links = matrix.root / pin.find_links if pin.find_links else None
        return wheels.resolve(str(locked), platform, pin, links, runner, mirrors, keep=keep)
    if isinstance(pin, ImagePin):
        return (images.resolve(locked, pin.image, platform, outside.docker, runner, mirrors),)
    if isinstance(pin, GitPin):
        repository = outside.repository(str(locked), pin.repository)
        commit = pin.commit
        if len(commit) < 40:
            commit = repository.whole(commit, pin.branch)
        repository.fetch(commit)
        return (Commit(commit=commit, tree=repository.tree(commit)),)
    apt.ready(runner, outside.say)
    if isinstance(pin, DebianPin):
        place = apt.Place(suite=pin.suite, repository=None, arch=arch)
        return apt.resolve(locked, place, sorted(pin.packages), runner, mirrors)
    place = apt.Place(suite=None, repository=_address(pin, platform), arch=arch)
    found = apt.resolve(locked, place, sorted(pin.packages), runner, mirrors)
    return tuple(dataclasses.replace(deb, part=MORE) for deb in found)


def _address(pin: DebPin, platform: str) -> str:
    found = pin.address(platform)
    if found is None:
        raise LockError(
            f"the deb pin with {pin.packages[0]} names no repository for {platform}",
            hint="add its address to `repository`, or leave the platform out",
        )
    return found


def _patch(
    matrix: Matrix,
    name: str,
    kept: Mapping[Key, Mapping[str, tuple[Item, ...]]],
    outside: Outside,
) -> tuple[Item, ...]:
    patch = matrix.patches[name]
    address, commit, path = patch.place
    text = patch_files.read(f"patch {name}", address, commit, path, matrix.root, outside.repository)
    found: list[Item] = [patch_files.summary(text)]
    for pin_name, value in lockfile.forks(matrix, name, patch):
        pin = matrix.pins[pin_name][value]
        assert isinstance(pin, GitPin)
        held = kept.get((pin_name, value), {}).get(ANY)
        if held is None:
            # Not an error of its own: what keeps that commit away is reported beside it.
            raise NetworkError(
                f"patch {name}: the fork commit {pin_name} {value} is not resolved",
                hint=f"python build.py lock --update '{pin_name}=={value}' where it can be",
            )
        (fork,) = held
        assert isinstance(fork, Commit)
        repository = outside.repository(_title((pin_name, value)), pin.repository)
        repository.fetch(fork.commit)
        found += patch_files.targets(name, patch, text, fork.commit, repository)
    return tuple(found)


def _title(key: Key) -> str:
    return " ".join(("patch", key[1]) if key[0] == PATCHES else ("pin", *key))


def _summary(items: Sequence[Item]) -> str:
    if len(items) == 1:
        return _version(items[0])
    sizes = sum(item.size for item in items if isinstance(item, Wheel | Deb))
    kind = "packages" if any(isinstance(item, Deb) for item in items) else "wheels"
    if not sizes:
        return f"{len(items)} files"
    return f"{len(items)} {kind}, {sizes / 1e6:.0f} MB"
