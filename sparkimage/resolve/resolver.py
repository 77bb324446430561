"""Resolves the matrix's pins, each kind by its own client, and keeps what is locked.

A pin whose lock entry fits stays as it is; one that cannot be resolved is reported, and is
``unresolved`` in the lock, beside all that could.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sparkimage.config import below, lockfile
from sparkimage.config.folders import PATCH_FILE
from sparkimage.config.lock_items import (
    Commit,
    Deb,
    Item,
    PatchText,
    PinnedImage,
    Step,
    Target,
    Wheel,
)
from sparkimage.config.lockfile import ANY, Entry, Lock
from sparkimage.config.patch_planning import patch_plan, to_plan
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import DebianPin, DebPin, FilePin, GitPin, ImagePin, Key, WheelsPin
from sparkimage.config.series import SERIES, Series
from sparkimage.config.validation import nearest
from sparkimage.core.errors import Locked, LockError, NetworkError, SparkError, UsageError
from sparkimage.core.program import program
from sparkimage.resolve import images, patch_files, wheels
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.debs import Below, DebResolver
from sparkimage.resolve.files import Download
from sparkimage.resolve.git import Repository

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.variants import Variant

Items = tuple[Item, ...]
NOT_ASKED = "no `lock` has been asked for it yet"
"""Why the lock lacks a pin that ``--only`` leaves out."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The new lock, and the pins that could not be resolved, with why."""

    lock: Lock
    failures: Mapping[Key, SparkError]


@dataclass(frozen=True, kw_only=True)
class OutdatedPin:
    """Something of which there is a newer version than the locked one."""

    pin: str
    what: str
    locked: str
    newest: str


@dataclass(frozen=True, kw_only=True)
class Update:
    """What ``--update`` names: pins to resolve anew, and projects of wheels with the version to
    move to, or None for the newest that fits."""

    pins: tuple[Key, ...] = ()
    projects: Mapping[str, str | None] = field(default_factory=dict)

    def includes(self, key: Key, items: Sequence[Item]) -> bool:
        """Whether the pin with these locked items is to be resolved anew."""
        locked = {item.name: item.version for item in items if isinstance(item, Wheel)}
        return key in self.pins or any(
            project in locked and locked[project] != version
            for project, version in self.projects.items()
        )

    def constraints(self, key: Key, items: Sequence[Item]) -> dict[str, str] | None:
        """The versions of the projects that are to stay, or to move to; None for no constraint."""
        locked = {item.name: item.version for item in items if isinstance(item, Wheel)}
        if key in self.pins or not locked.keys() & self.projects:
            return None
        versions = {**locked, **self.projects}
        return {project: version for project, version in versions.items() if version}


def parse_update(matrix: Matrix, lock: Lock | None, words: Sequence[str]) -> Update:
    """The pins (NAME or NAME==VALUE, as globs) and projects (NAME or NAME==VERSION) that the words
    of ``--update`` name. Raises ``UsageError`` for one that names nothing."""
    pins: list[Key] = []
    projects: dict[str, str | None] = {}
    known = [key for key in lockfile.requests(matrix) if key[0] != SERIES]
    locked_projects = {
        item.name
        for entry in (lock.entries.values() if lock is not None else ())
        for items in entry.platforms.values()
        for item in items
        if isinstance(item, Wheel)
    }
    for word in words:
        name, _, value = word.partition("==")
        matches = [
            key
            for key in known
            if fnmatch.fnmatchcase(key[0] if key[0] != PATCHES or value else key[1], name)
            and fnmatch.fnmatchcase(key[1], value or "*")
        ]
        if matches:
            pins += matches
        elif name in locked_projects:
            projects[name] = value or None
        elif values := [v for pin, v in known if pin == name]:
            raise UsageError(
                f"pin {name} has no value {value!r} that a variant uses; it has "
                + ", ".join(values),
                hint=f"add `{value}` to pins.{name} in {matrix.file.name} and to a variant; then "
                f"{program()} lock",
            )
        else:
            raise UsageError(
                f"{word!r} is no pin of {matrix.file.name} and no locked project",
                hint=nearest(name, {pin for pin, _ in known if pin != PATCHES}),
            )
    return Update(pins=tuple(dict.fromkeys(pins)), projects=projects)


def resolve(
    matrix: Matrix,
    lock: Lock | None,
    context: ResolveContext,
    update: Update,
    variants: Sequence[Variant] | None = None,
) -> Outcome:
    """Resolve what the lock lacks, what the matrix has changed, and what is to be updated.

    ``variants``: only the pins of these; others stay as they are, or unresolved.
    """
    wanted = lockfile.requests(matrix)
    asked = (
        wanted if variants is None else lockfile.requests(replace(matrix, variants=tuple(variants)))
    )
    entries = {} if lock is None else dict(lock.entries)
    fitting = {
        key: entries[key]
        for key, (request, _) in wanted.items()
        if key in entries and dict(entries[key].requested) == request
    }
    resolver = _Resolver(matrix, entries, context, update, lockfile.series_to_lock(matrix))
    dependencies = below.dependencies(matrix)
    needed = set(asked)
    while more := {other for key in needed for other in dependencies.get(key, ())} - needed:
        needed |= more
    failures: dict[Key, SparkError] = {}
    # What others are resolved against comes first.
    for level in below.levels(wanted, dependencies):
        jobs: list[tuple[Key, str]] = []
        for key in level:
            if key not in needed and not (key in fitting and fitting[key].platforms):
                continue
            others = dependencies.get(key, ())
            moved = any(resolver.resolved.get(o) != _platforms(entries, o) for o in others)
            # The same text at another path makes other files.
            moved |= key[0] == SERIES and any(other not in fitting for other in others)
            for platform in wanted[key][1]:
                items = fitting[key].platforms.get(platform) if key in fitting else None
                if items is not None and not moved and not update.includes(key, items):
                    resolver.resolved.setdefault(key, {})[platform] = items
                else:
                    jobs.append((key, platform))
        # Each client waits for the network nearly all of the time.
        with ThreadPoolExecutor(max_workers=8) as pool:
            for (key, platform), result in zip(jobs, pool.map(resolver.run, jobs), strict=True):
                if isinstance(result, SparkError):
                    failures.setdefault(key, result)
                    continue
                resolver.resolved.setdefault(key, {})[platform] = result
                context.say(f"{' '.join(key)} {platform}: {_summary(result)}")
    new: dict[Key, Entry] = {}
    for key, (request, platforms) in sorted(wanted.items(), key=lambda item: item[0][0] == SERIES):
        others = dependencies.get(key, ())
        if key not in resolver.resolved and key not in failures:
            reason = f"{_title(key)}: {NOT_ASKED}"
            new[key] = fitting.get(key, Entry(requested=request, unresolved=reason))
        elif key not in failures:
            items_of = {platform: resolver.resolved[key][platform] for platform in platforms}
            new[key] = Entry(requested=request, platforms=items_of)
        elif (
            key in fitting
            and set(platforms) <= set(fitting[key].platforms)
            # What patches made of other files, or other patches of them, says nothing any more.
            and (key[0] != SERIES or all(new.get(o) == entries.get(o) for o in others))
        ):
            new[key] = fitting[key]  # it could not be updated: it stays
        else:
            new[key] = Entry(requested=request, unresolved=failures[key].message)
    return Outcome(
        lock=Lock(file="matrix.lock", request_digest=lockfile.request_digest(matrix), entries=new),
        failures={key: failure for key, failure in failures.items() if key in asked},
    )


def outdated(
    matrix: Matrix, lock: Lock, context: ResolveContext
) -> tuple[tuple[OutdatedPin, ...], Outcome]:
    """What is newer than in the lock: everything is resolved anew, and nothing written.

    Tags of images that moved, branches' tips, newer packages and wheels within what is requested.
    """
    pins = tuple(lockfile.requests(matrix))
    fresh = resolve(matrix, lock, context, Update(pins=pins))
    rows: list[OutdatedPin] = []

    def compare(key: Key, locked: Mapping[str, str], newest: Mapping[str, str]) -> None:
        rows.extend(
            OutdatedPin(
                pin=" ".join(key), what=what, locked=locked.get(what, "none"), newest=version
            )
            for what, version in newest.items()
            if locked.get(what) != version
        )

    for key, entry in fresh.lock.entries.items():
        before = lock.entries.get(key)
        if before is not None and entry is not before:
            compare(key, _versions(before), _versions(entry))
    for key, (_, platforms) in lockfile.requests(matrix).items():
        pin = matrix.pins[key[0]][key[1]] if key[0] not in (PATCHES, SERIES) else None
        for platform in () if lock.unresolved(*key) else platforms:
            # What cannot be reached was reported when it was resolved anew.
            with suppress(SparkError):
                if isinstance(pin, GitPin) and pin.branch is not None:
                    tip = Repository(_title(key), pin.repository, context).tip(pin.branch)
                    (commit,) = map(_version, lock.items(*key, platform))
                    branch = f"branch {pin.branch}"
                    compare(key, {branch: commit}, {branch: tip[:12]} if tip is not None else {})
                elif isinstance(pin, DebPin):
                    # The newest versions of packages that are requested in an exact one.
                    debs = DebResolver(
                        matrix=matrix, locked=Locked.pin(*key), pin=pin, platform=platform,
                        context=context,
                    )  # fmt: skip
                    locked = _named(lock.items(*key, platform))
                    newest = _named(debs.newest())
                    compare(key, locked, {n: v for n, v in newest.items() if n in locked})
    return tuple(dict.fromkeys(rows)), fresh


def _versions(entry: Entry) -> dict[str, str]:
    return _named([item for items in entry.platforms.values() for item in items])


def _named(items: Sequence[Item]) -> dict[str, str]:
    """The items' versions, by the names that a user knows them by."""
    return {_name(item): _version(item) for item in items}


def _name(item: Item) -> str:
    if isinstance(item, PinnedImage):
        return f"tag of {item.name}"
    if isinstance(item, Wheel | Deb):
        return item.name
    if isinstance(item, Step):
        return f"patch {item.number}"
    return item.path if isinstance(item, Target) else type(item).__name__.lower()


def _version(item: Item) -> str:
    """What tells two states of the item apart, short enough for a table."""
    if isinstance(item, Wheel | Deb):
        return item.version
    if isinstance(item, PinnedImage):
        return item.tagged[:19]
    if isinstance(item, Commit):
        return item.commit[:12]
    if isinstance(item, Step):
        return f"{item.patch} {item.state}"
    return (item.after if isinstance(item, Target) else item.sha256)[:12]


@dataclass(frozen=True)
class _Resolver:
    """Resolves one pin for one platform at a time."""

    matrix: Matrix
    entries: Mapping[Key, Entry]
    """Of the lock until now."""
    context: ResolveContext
    update: Update
    series: Mapping[str, Series]
    """By their keys in the lock."""
    resolved: dict[Key, dict[str, Items]] = field(default_factory=dict)
    """What was resolved until now, or stays, by platform."""

    def run(self, job: tuple[Key, str]) -> Items | SparkError:
        key, platform = job
        try:
            if key[0] == SERIES:
                return self._series(key, platform)
            return self._patch(key[1]) if key[0] == PATCHES else self._pin(key, platform)
        except SparkError as error:
            return error

    def _pin(self, key: Key, platform: str) -> Items:
        pin = self.matrix.pins[key[0]][key[1]]
        locked, context = Locked.pin(*key), self.context
        if isinstance(pin, WheelsPin):
            return self._wheels(key, platform, pin)
        if isinstance(pin, ImagePin):
            return (images.resolve(locked, pin.image, platform, context),)
        if isinstance(pin, GitPin):
            repository = Repository(str(locked), pin.repository, context)
            commit = pin.commit
            if len(commit) < 40:
                commit = repository.full_commit(commit, pin.branch)
            repository.fetch(commit)
            return (Commit(commit=commit, tree=repository.tree(commit)),)
        if isinstance(pin, FilePin):
            file = Download(locked=locked, url=pin.url, name=pin.file, context=context)
            return (file.resolve(pin.sha256),)
        return self._debs(key, platform, pin)

    def _debs(self, key: Key, platform: str, pin: DebianPin | DebPin) -> Items:
        locked = Locked.pin(*key)
        stacks = [
            [
                Below(
                    locked=Locked.pin(*other),
                    pin=self.matrix.pins[other[0]][other[1]],
                    items=self._dependency(str(locked), other, platform),
                )
                for other in stack
            ]
            for stack in below.stacks(self.matrix).get(key, {}).get(platform, ())
        ]
        debs = DebResolver(
            matrix=self.matrix, locked=locked, pin=pin, platform=platform, context=self.context
        )
        return debs.resolve(stacks, is_root=key in below.roots(self.matrix))

    def _wheels(self, key: Key, platform: str, pin: WheelsPin) -> Items:
        title = str(Locked.pin(*key))
        before = self.entries[key].platforms.get(platform, ()) if key in self.entries else ()
        keep = self.update.constraints(key, before) or {}
        for other in below.constraints(self.matrix).get(key, ()):
            items = self._dependency(title, other, platform)
            keep |= {item.name: item.version for item in items if isinstance(item, Wheel)}
        glibc = below.wheels_glibc(self.matrix)[key]
        links = self.matrix.root / pin.find_links if pin.find_links else None
        return wheels.resolve(title, platform, pin, glibc, links, self.context, keep)

    def _dependency(self, title: str, other: Key, platform: str) -> Items:
        """The items of a pin that another one is resolved against."""
        platforms = self.resolved.get(other, {})
        items = platforms.get(platform, platforms.get(ANY))
        if items is None:
            # No failure of its own: why that pin is not resolved is reported beside it.
            raise NetworkError(
                f"{title}: pin {' '.join(other)}, which it is resolved against, is not resolved",
                hint=f"correct that one; then {program()} lock",
            )
        return items

    def _patch(self, name: str) -> Items:
        patch = patch_plan(self.matrix, name, "")
        text = patch_files.summary(patch_files.read(patch, self.matrix.root, self.context))
        expected = self.matrix.patches[name].sha256
        if expected not in (None, text.sha256):
            raise LockError(
                f"patch {name}: {patch.url} has sha256 {text.sha256}, and {PATCH_FILE} says "
                f"{expected}",
                hint=f"look at what changed, then correct `sha256` in {PATCH_FILE}",
            )
        return (text,)

    def _series(self, key: Key, platform: str) -> Items:
        one = self.series[key[1]]
        pin, *texts = (self._dependency(" ".join(key), other, platform) for other in one.depends_on)
        names = dict(zip((*one.below, *one.names), texts, strict=True))

        def sha256(name: str) -> str:
            (text,) = names[name]
            assert isinstance(text, PatchText)
            return text.sha256

        plan = to_plan(self.matrix, one, pin, sha256)
        result = patch_files.apply(plan, self.matrix.root, self.context)
        return (*result.steps, *result.targets)


def _platforms(entries: Mapping[Key, Entry], key: Key) -> Mapping[str, Items]:
    return entries[key].platforms if key in entries else {}


def _title(key: Key) -> str:
    return " ".join(("pin", *key))


def _summary(items: Sequence[Item]) -> str:
    if len(items) == 1:
        return _version(items[0])
    size = sum(item.size for item in items if isinstance(item, Wheel | Deb))
    kind = "packages" if any(isinstance(item, Deb) for item in items) else "wheels"
    files = [item for item in items if isinstance(item, Target)]
    return f"{len(items)} {kind}, {size / 1e6:.0f} MB" if size else f"{len(files)} files"
