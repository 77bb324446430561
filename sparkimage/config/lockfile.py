"""The lock: what every pin of the matrix resolved to.

``matrix.lock`` is made by ``python build.py lock`` and read by everything else. It holds hashes
and no address of a package index: an address may change, or be mirrored; the hash is the proof.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue

from sparkimage.config import validation, yamlfile
from sparkimage.config.patch_specs import PATCHES, same_commit
from sparkimage.config.strict import Strict
from sparkimage.core.errors import ConfigError, LockError, Problem

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.config.patch_specs import Patch

VERSION = 2
REMEDY = "run `python build.py lock`, and commit matrix.lock"
ANY = "any"
"""The platform of what is the same on all of them: a commit, a patch."""
MAX_BYTES = 16 << 20
MISSING = "missing"
"""Stands where a sha256 does for a file that is not there."""


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
    """The manifest of one platform, by the image's full name and ``sha256:<hex>``; ``tagged`` is
    what the tag stood for, an index or the manifest itself."""

    name: str
    digest: str
    tagged: str


@dataclass(frozen=True, kw_only=True, order=True)
class Commit:
    """A git commit of 40 digits, and the tree that it names."""

    commit: str
    tree: str


@dataclass(frozen=True, kw_only=True, order=True)
class PatchText:
    """A patch's file: size in bytes, sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True, order=True)
class Target:
    """A file that a patch changes at a fork's commit: sha256 before and after (or ``MISSING``),
    size after, path below the patch's root."""

    commit: str
    before: str
    after: str
    size: int
    path: str


Item = Wheel | Deb | PinnedImage | Commit | PatchText | Target
WORDS: Mapping[str, type[Item]] = {
    "wheel": Wheel,
    "deb": Deb,
    "image": PinnedImage,
    "commit": Commit,
    "patch": PatchText,
    "target": Target,
}
HOLDS: Mapping[str, tuple[type[Item], ...]] = {
    "wheels": (Wheel,),
    "deb": (Deb,),
    "debian": (Deb,),
    "image": (PinnedImage,),
    "git": (Commit,),
    "replace": (PatchText, Target),
    "diff": (PatchText, Target),
}
"""What a pin or a patch of each kind comes to."""
SINGLE = (PinnedImage, Commit, PatchText)
"""Of which an entry has one for each platform."""
_SHA256, _SHA1 = "[0-9a-f]{64}", "[0-9a-f]{40}"
FORMS: Mapping[str, str] = {
    "size": "[0-9]{1,15}",
    "sha256": _SHA256,
    "before": f"{_SHA256}|{MISSING}",
    "after": _SHA256,
    "digest": f"sha256:{_SHA256}",
    "tagged": f"sha256:{_SHA256}",
    "commit": _SHA1,
    "tree": _SHA1,
    "part": "root|more",
}
"""The forms of an item's parts; the others are any text."""
Key = tuple[str, str]
"""A pin's name and the name of its value; or ``PATCHES`` and a patch's name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was asked for, and per platform what it came to; or why it could not be resolved."""

    asked: Mapping[str, Any]
    platforms: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    unresolved: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The whole lock. ``meaning`` is the checksum of what the matrix asked for."""

    file: str
    meaning: str
    entries: Mapping[Key, Entry]

    def items(self, pin: str, value: str, platform: str) -> tuple[Item, ...]:
        """What one pin came to on one platform. Raises ``LockError`` when it is not locked."""
        entry = self.entries.get((pin, value))
        if entry is not None:
            for known in (platform, ANY):
                if known in entry.platforms:
                    return entry.platforms[known]
        raise LockError(
            f"{self.file} holds nothing for pin {pin} {value} on {platform}", hint=REMEDY
        )

    def wheels(self, pin: str, value: str, platform: str) -> tuple[Wheel, ...]:
        """The wheels of one pin for one platform. Raises ``LockError`` when not locked."""
        return tuple(one for one in self.items(pin, value, platform) if isinstance(one, Wheel))

    def unresolved(self, pin: str, value: str) -> str | None:
        """Why this pin is not resolved; None when it is, or is not asked for."""
        entry = self.entries.get((pin, value))
        return entry.unresolved if entry is not None else None

    def slice(self, keys: Iterable[Key], platform: str) -> dict[str, Any]:
        """What the lock holds for these pins on this platform, as plain data."""
        held: dict[str, Any] = {}
        for pin, value in sorted(keys):
            entry = self.entries.get((pin, value))
            found = entry.platforms if entry is not None else {}
            items = found.get(platform, found.get(ANY, ()))
            held[f"{pin}/{value}"] = [asdict(item) for item in items]
        return held


def asked(pin: Any) -> dict[str, Any]:
    """What a pin asks for; the lock is stale when this has changed."""
    wanted: dict[str, Any] = {"kind": pin.kind}
    if pin.kind == "wheels":
        wanted |= {
            "require": sorted(pin.require),
            "exclude": sorted(pin.exclude),
            "python": pin.python,
        }
    elif pin.kind == "debian":
        wanted |= {"suite": pin.suite, "packages": sorted(pin.packages)}
    elif pin.kind == "deb":
        wanted |= {"repository": dict(pin.repository), "packages": sorted(pin.packages)}
    elif pin.kind == "image":
        wanted |= {"image": pin.image}
    else:
        wanted |= {"repository": pin.repository, "commit": pin.commit}
    return wanted


def asked_of_patch(matrix: Matrix, name: str) -> dict[str, Any]:
    """What a patch asks for: its text, and the fork commits that it is applied to."""
    patch = matrix.patches[name]
    return {
        "kind": patch.kind,
        "origin": patch.origin.model_dump() if patch.origin is not None else None,
        "file": patch.file,
        "replaces": patch.replaces,
        "forks": sorted(
            f"{pin} {value} {asked(matrix.pins[pin][value])['commit']}"
            for pin, value in forks(matrix, name, patch)
        ),
    }


def forks(matrix: Matrix, name: str, patch: Patch) -> tuple[Key, ...]:
    """The git pins whose commits some variant applies the patch to."""
    found = set()
    for variant in matrix.variants:
        if any(name in matrix.layers[layer].patches for layer in variant.layers):
            found |= {
                (pin, value)
                for pin, value in variant.pins.items()
                if (one := matrix.pins[pin][value]).kind == "git"
                and any(same_commit(one.commit, known) for known in patch.needed_by)
            }
    return tuple(sorted(found))


def wanted(matrix: Matrix) -> dict[Key, tuple[dict[str, Any], tuple[str, ...]]]:
    """Everything that some variant needs of the lock: what is asked, and on which platforms."""
    platforms: dict[Key, set[str]] = {}
    for variant in matrix.variants:
        for pin, value in variant.pins.items():
            same = matrix.pins[pin][value].kind == "git"
            platforms.setdefault((pin, value), set()).add(ANY if same else variant.platform)
        for layer in variant.layers:
            for name in matrix.layers[layer].patches:
                platforms.setdefault((PATCHES, name), set()).add(ANY)
    return {
        (pin, value): (
            asked_of_patch(matrix, value) if pin == PATCHES else asked(matrix.pins[pin][value]),
            tuple(sorted(found)),
        )
        for (pin, value), found in sorted(platforms.items())
    }


def meaning(matrix: Matrix) -> str:
    """sha256 over what the matrix asks of the lock: comments and order change nothing in it."""
    said = [[*key, *one] for key, one in wanted(matrix).items()]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class _EntryText(Strict):
    asked: dict[str, JsonValue]
    platforms: dict[Literal["any", "linux/amd64", "linux/arm64"], list[str]] = Field(default={})
    unresolved: str | None = None


class _LockText(Strict):
    """matrix.lock"""

    version: Literal[2]
    matrix: str
    pins: dict[str, dict[str, _EntryText]]


def load(path: Path) -> Lock:
    """Read ``matrix.lock``. Raises ``LockError`` when it is missing, damaged or foreign, with all
    that is wrong with it."""
    if not path.exists():
        raise LockError(f"{path.name} is missing", hint=REMEDY)
    try:
        document = yamlfile.load(path, max_bytes=MAX_BYTES)
        data = document.data
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise LockError(f"{path.name} is not a lock of version {VERSION}", hint=REMEDY)
        text = validation.parse(document, _LockText, _spell)
        problems: list[Problem] = []
        entries = {
            (pin, value): Entry(
                asked=entry.asked,
                platforms={
                    platform: _items(document, (pin, value), platform, lines, entry.asked, problems)
                    for platform, lines in entry.platforms.items()
                },
                unresolved=entry.unresolved,
            )
            for pin, values in text.pins.items()
            for value, entry in values.items()
        }
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        first, *others = error.problems
        raise LockError(
            f"{path.name} is damaged: {first.what} (line {first.line})",
            detail="\n".join(f"{one.file}:{one.line}: {one.what}" for one in others[:100]),
            hint=REMEDY,
        ) from None
    return Lock(file=path.name, meaning=text.matrix, entries=entries)


def _spell(key: yamlfile.Key) -> str:
    """A place of the lock for messages."""
    if key[:1] != ("pins",) or len(key) < 3:
        return validation.dotted(key)
    pin = f"pin {validation.shown(key[1])} {validation.shown(key[2])}"
    return f"{pin}, {validation.dotted(key[3:])}" if key[3:] else pin


def _items(
    document: yamlfile.Document,
    key: Key,
    platform: str,
    lines: Sequence[str],
    asked: Mapping[str, Any],
    problems: list[Problem],
) -> tuple[Item, ...]:
    """What the lines of a pin's platform say; what is wrong with them is added to ``problems``."""
    place: yamlfile.Key = ("pins", *key, "platforms", platform)
    items: list[Item] = []

    def wrong(place: yamlfile.Key, what: str) -> None:
        line = document.line(place)
        what = f"{_spell(place[:3])}: {what}"
        problems.append(Problem(file=document.file, line=line, what=what, todo=REMEDY))

    kinds = HOLDS.get(str(asked.get("kind")), ())
    for i, line in enumerate(lines):
        try:
            item = _read(line)
        except ValueError as error:
            wrong((*place, i), str(error))
            continue
        if kinds and not isinstance(item, kinds):
            wrong((*place, i), f"{validation.shown(line, quote=True)} is of another kind of pin")
        items.append(item)
    single = [item for item in items if isinstance(item, SINGLE)]
    if not kinds:
        wrong((*place[:3], "asked"), "asked is of no known kind")
    elif not problems and kinds[0] in SINGLE and len(single) != 1:
        word = next(word for word, kind in WORDS.items() if kind is kinds[0])
        wrong(place, f"{platform} must have one `{word}` line, not {len(single)}")
    return tuple(items)


def check(matrix: Matrix, lock: Lock) -> list[str]:
    """Every way in which lock and matrix disagree, as sentences; empty when they agree. No I/O."""
    wrong = []
    needed = wanted(matrix)
    for (pin, value), (ask, platforms) in needed.items():
        entry = lock.entries.get((pin, value))
        if entry is None:
            wrong.append(f"pin {pin} {value} is not locked")
            continue
        if dict(entry.asked) != ask:
            wrong.append(f"pin {pin} {value} asks for something else than was locked")
        if entry.unresolved is None:
            wrong += [
                f"pin {pin} {value} is not locked for {platform}"
                for platform in platforms
                if platform not in entry.platforms
            ]
    wrong += [
        f"pin {pin} {value} is locked but no variant uses it"
        for pin, value in lock.entries
        if (pin, value) not in needed
    ]
    if not wrong and lock.meaning != meaning(matrix):
        wrong.append("its checksum is not the matrix's: it was edited by hand, or made elsewhere")
    return wrong


def dump(lock: Lock) -> str:
    """The lock as the text of ``matrix.lock``: sorted, one line a file."""
    lines = [
        "# Made by `python build.py lock`, not to be edited: what each pin of matrix.yaml came to.",
        *(
            f"# {word}: {' '.join(one.name for one in fields(kind))}"
            for word, kind in WORDS.items()
        ),
        f"version: {VERSION}",
        "# Of what the matrix asks for: comments and order do not change it.",
        f'matrix: "{lock.meaning}"',
        "pins:" if lock.entries else "pins: {}",
    ]
    for pin in sorted({pin for pin, _ in lock.entries}):
        lines.append(f"  {json.dumps(pin)}:")
        for (_, value), entry in sorted(e for e in lock.entries.items() if e[0][0] == pin):
            lines.append(f"    {json.dumps(value)}:")
            asked = _quoted(entry.asked)
            lines.append(f"      asked: {asked}")
            if entry.unresolved is not None:
                reason = _quoted(entry.unresolved)
                lines.append(f"      unresolved: {reason}")
                continue
            lines.append("      platforms:")
            for platform, items in sorted(entry.platforms.items()):
                lines.append(f"        {platform}:")
                lines += sorted(f"          - {_scalar(_write(item))}" for item in items)
    return "\n".join(lines) + "\n"


def _quoted(data: object) -> str:
    """JSON that YAML reads back the same: what it takes for the end of a line is escaped."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in text)


def _scalar(line: str) -> str:
    """The line as YAML reads it back: as it is, but for what YAML would take for something else."""
    plain = re.fullmatch(r"[\w.+~%/@=: -]+", line, re.ASCII) and ": " not in line
    return line if plain and line[-1] not in ": " else _quoted(line)


def _write(item: Item) -> str:
    (word,) = (word for word, kind in WORDS.items() if isinstance(item, kind))
    return " ".join([word, *(str(part) for part in asdict(item).values())])


def _read(line: str) -> Item:
    """The item of a line. Raises ``ValueError`` with what is wrong with it."""
    word, _, rest = line.partition(" ")
    kind = WORDS.get(word)
    names = [one.name for one in fields(kind)] if kind is not None else []
    # The last one is a file's name or path, which may hold spaces.
    parts: dict[str, Any] = dict(zip(names, rest.split(" ", len(names) - 1), strict=False))
    shown = validation.shown(line, quote=True)
    if kind is None or len(parts) < len(names):
        known = ", ".join(WORDS)
        raise ValueError(f"{shown} is no line of a lock ({known}, each with its parts)")
    for name, text in parts.items():
        if not re.fullmatch(FORMS.get(name, r"[^\x00-\x1f\x7f]+"), text):
            raise ValueError(f"{shown} has no {name} in its place")
    if "size" in parts:
        parts["size"] = int(parts["size"])
    return kind(**parts)
