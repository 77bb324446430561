"""The lock: what every pin of the matrix resolves to.

``sparkimage lock`` writes ``matrix.lock``, and everything else reads it. It has hashes and no
address of a package index: an address may change, or be mirrored; the hash is the proof.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue

from sparkimage.config import below, series, validation, yamlfile
from sparkimage.config.lock_items import (
    CHANGES,
    KEPT,
    PRESENT,
    Commit,
    Deb,
    File,
    Item,
    PatchText,
    PinnedImage,
    Step,
    Target,
    Wheel,
)
from sparkimage.config.patch_specs import MISSING, PATCHES
from sparkimage.config.pins import Key
from sparkimage.config.series import SERIES, Series
from sparkimage.config.validation import Report, Strict, shown
from sparkimage.core import files
from sparkimage.core.errors import ConfigError, LockError
from sparkimage.core.program import program

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix

VERSION = 3
OLDER = 2
"""The version before, whose wheels, packages, images and commits have the same form."""
REMEDY = f"run `{program()} lock`, and commit matrix.lock"
NEWER = f"upgrade to the version that wrote it; or {REMEDY}"
ANY = "any"
"""The platform of what is the same on all of them: a commit, a file, a patch."""
MAX_BYTES = 16 << 20


WORDS: Mapping[str, type[Item]] = {
    "wheel": Wheel,
    "deb": Deb,
    "image": PinnedImage,
    "commit": Commit,
    "patch": PatchText,
    "step": Step,
    "target": Target,
    "file": File,
}
"""The items by the first word of their lines."""
HOLDS: Mapping[str, tuple[type[Item], ...]] = {
    "wheels": (Wheel,),
    "deb": (Deb,),
    "debian": (Deb,),
    "image": (PinnedImage,),
    "git": (Commit,),
    "file": (File,),
    "replace": (PatchText,),
    "diff": (PatchText,),
    "series": (Step, Target),
}
"""The items of a pin or a patch, by its kind."""
SINGLE = (PinnedImage, Commit, PatchText, File)
"""Of these an entry has one for each platform."""
_SHA256, _SHA1 = "[0-9a-f]{64}", "[0-9a-f]{40}"
FORMS: Mapping[str, str] = {
    "size": "[0-9]{1,15}",
    "sha256": _SHA256,
    "before": f"{_SHA256}|{MISSING}",
    "after": f"{_SHA256}|{MISSING}",
    "number": "[0-9]{1,4}",
    "state": f"{CHANGES}|{PRESENT}",
    "mode": f"{KEPT}|644|755",
    "digest": f"sha256:{_SHA256}",
    "tagged": f"sha256:{_SHA256}",
    "commit": _SHA1,
    "tree": _SHA1,
    "part": "root|more",
    "file": r"(?!\.\.?$)[^/\x00-\x1f\x7f]+",
    "path": r"(?!/|(.*/)?\.\.(/|$))[^\x00-\x1f\x7f]+",
}
"""The patterns of an item's fields; the others are any text. No file lies outside of its folder."""
TEXT = r"[^\x00-\x1f\x7f]+"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the matrix requested, and the items by platform; or why there are none."""

    requested: Mapping[str, Any]
    platforms: Mapping[str, tuple[Item, ...]] = field(default_factory=dict)
    unresolved: str | None = None


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The whole lock, with the digest of all that the matrix requests."""

    file: str
    request_digest: str
    entries: Mapping[Key, Entry]

    def find(self, pin: str, value: str, platform: str) -> tuple[Item, ...] | None:
        """The items of one pin for one platform; None when it is not locked."""
        entry = self.entries.get((pin, value))
        return entry.platforms.get(platform, entry.platforms.get(ANY)) if entry else None

    def items(self, pin: str, value: str, platform: str) -> tuple[Item, ...]:
        """The items of one pin for one platform. Raises ``LockError`` when it is not locked."""
        items = self.find(pin, value, platform)
        if items is None:
            raise LockError(
                f"{self.file} has nothing for pin {pin} {value} on {platform}", hint=REMEDY
            )
        return items

    def unresolved(self, pin: str, value: str) -> str | None:
        """Why this pin is not resolved; None when it is, or is not in the lock."""
        entry = self.entries.get((pin, value))
        return entry.unresolved if entry is not None else None


def nccl_releases(lock: Lock) -> dict[str, list[str]]:
    """The releases of NCCL that are locked, as wheels or as packages, and the pins with each."""
    found: dict[str, list[str]] = {}
    for (pin, value), entry in sorted(lock.entries.items()):
        for item in (one for items in entry.platforms.values() for one in items):
            if isinstance(item, Wheel | Deb) and re.match(r"nvidia-nccl-|libnccl2$", item.name):
                pins = found.setdefault(item.version.partition("-")[0], [])
                pins += [f"{pin} {value}"] if f"{pin} {value}" not in pins else []
    return found


def series_to_lock(matrix: Matrix) -> dict[str, Series]:
    """Every series of the variants that can be locked, by its key."""
    return {one.key: one for variant in matrix.variants for one in series.to_lock(matrix, variant)}


def requests(matrix: Matrix) -> dict[Key, tuple[dict[str, Any], tuple[str, ...]]]:
    """What the variants need of the lock: the request and the platforms of each pin and patch."""
    platforms: dict[Key, set[str]] = {}
    asked: dict[Key, dict[str, Any]] = {}
    for variant in matrix.variants:
        for pin, value in variant.pins.items():
            same = matrix.pins[pin][value].kind in ("git", "file")
            platforms.setdefault((pin, value), set()).add(ANY if same else variant.platform)
        for layer in variant.layers:
            for name in matrix.layers[layer].patches:
                platforms[PATCHES, name] = {ANY}
                asked[PATCHES, name] = matrix.patches[name].request()
        for one in series.to_lock(matrix, variant):
            kind = matrix.pins[str(one.pin)][str(one.value)].kind
            platform = ANY if kind == "git" else variant.platform
            platforms.setdefault((SERIES, one.key), set()).add(platform)
            # The paths of an image are below the root; those of all others are the pin's own.
            root = {"root": one.root} if kind == "image" else {}
            asked[SERIES, one.key] = {"kind": "series", **root}
    context = below.requests(matrix)
    return {
        key: (
            asked[key]
            if key in asked
            else matrix.pins[key[0]][key[1]].request() | context.get(key, {}),
            tuple(sorted(names)),
        )
        for key, names in sorted(platforms.items())
    }


def request_digest(matrix: Matrix) -> str:
    """sha256 over all requests: comments and order in the matrix do not change it."""
    needed = [[*key, *request] for key, request in requests(matrix).items()]
    return hashlib.sha256(json.dumps(needed, sort_keys=True).encode()).hexdigest()


class _EntryText(Strict):
    asked: dict[str, JsonValue]
    platforms: dict[Literal["any", "linux/amd64", "linux/arm64"], list[str]] = Field(default={})
    unresolved: str | None = None


class _LockText(Strict):
    """matrix.lock"""

    version: Literal[2, 3]
    matrix: str
    pins: dict[str, dict[str, _EntryText]]


def load(path: Path, *, older: bool = False) -> Lock:
    """Read ``matrix.lock``. Raises ``LockError`` when it is missing, damaged or of another version,
    with every problem.

    ``older``: of a lock of version 2, take all but the patches, which had another form.
    """
    file = files.shown(path)
    if not path.exists():
        raise LockError(f"{file} is missing", hint=REMEDY)
    hint = REMEDY
    try:
        document = yamlfile.load(path, max_bytes=MAX_BYTES)
        version = document.data.get("version") if isinstance(document.data, dict) else None
        if version not in (VERSION, OLDER if older else VERSION):
            what = f"is of version {OLDER}, not" if version == OLDER else "is not a lock of version"
            if isinstance(version, int) and version > VERSION:
                what, hint = f"is of version {version}, of a newer sparkimage, not", NEWER
            raise LockError(f"{file} {what} {VERSION}", hint=hint)
        text = validation.parse(document, _LockText)
        if version == OLDER:
            text.pins.pop(PATCHES, None)
        report = Report(document)
        entries = {
            (pin, value): _entry(report, (pin, value), entry)
            for pin, values in text.pins.items()
            for value, entry in values.items()
        }
        report.close()
    except ConfigError as error:
        first, *others = error.problems
        raise LockError(
            f"{file} is damaged: {first.what} (line {first.line})",
            detail="\n".join(f"{p.file}:{p.line}: {p.what}" for p in others[: error.SHOWN]),
            hint=REMEDY,
        ) from None
    return Lock(file=path.name, request_digest=text.matrix, entries=entries)


def _entry(report: Report, key: Key, text: _EntryText) -> Entry:
    """The entry of a pin; its problems are added to the report."""
    platforms: dict[str, tuple[Item, ...]] = {}
    kinds = HOLDS.get(str(text.asked.get("kind")), ())

    def wrong(below: yamlfile.Key, what: str) -> None:
        report.add(("pins", *key, *below), f"{validation.dotted(('pins', *key))}: {what}", REMEDY)

    if not kinds:
        wrong(("asked",), "asked is of no known kind")
    for platform, lines in text.platforms.items():
        items: list[Item] = []
        for i, line in enumerate(lines):
            try:
                items.append(_parse(line))
            except ValueError as error:
                wrong(("platforms", platform, i), str(error))
                continue
            if kinds and not isinstance(items[-1], kinds):
                what = f"{shown(line, quote=True)} is of another kind of pin"
                wrong(("platforms", platform, i), what)
        count = sum(isinstance(item, SINGLE) for item in items)
        if kinds and kinds[0] in SINGLE and not report.problems and count != 1:
            word = next(word for word, kind in WORDS.items() if kind is kinds[0])
            what = f"{platform} must have one `{word}` line, not {count}"
            wrong(("platforms", platform), what)
        platforms[platform] = tuple(items)
    return Entry(requested=text.asked, platforms=platforms, unresolved=text.unresolved)


def check(matrix: Matrix, lock: Lock) -> list[str]:
    """Every difference between lock and matrix, as sentences; empty when they agree. No I/O."""
    problems = []
    needed = requests(matrix)
    for (pin, value), (request, platforms) in needed.items():
        entry = lock.entries.get((pin, value))
        if entry is None:
            problems.append(f"pin {pin} {value} is not locked")
            continue
        if dict(entry.requested) != request:
            problems.append(f"pin {pin} {value} has changed since it was locked")
        if entry.unresolved is None:
            problems += [
                f"pin {pin} {value} is not locked for {platform}"
                for platform in platforms
                if platform not in entry.platforms
            ]
    problems += [
        f"pin {pin} {value} is locked, but no variant uses it"
        for pin, value in lock.entries
        if (pin, value) not in needed
    ]
    if not problems and lock.request_digest != request_digest(matrix):
        problems.append("its checksum is not the matrix's: it was edited, or made elsewhere")
    return problems


def dump(lock: Lock) -> str:
    """The text of ``matrix.lock``: sorted, one line for each file."""
    lines = [
        "# Made by `sparkimage lock`, do not edit: what each pin of matrix.yaml resolves to.",
        *(f"# {word}: {' '.join(f.name for f in fields(kind))}" for word, kind in WORDS.items()),
        f"version: {VERSION}",
        "# Digest of what the matrix requests: comments and order do not change it.",
        f'matrix: "{lock.request_digest}"',
        "pins:" if lock.entries else "pins: {}",
    ]
    last = None
    for (pin, value), entry in sorted(lock.entries.items(), key=lambda item: item[0]):
        lines += [f"  {json.dumps(pin)}:"] if pin != last else []
        lines += [f"    {json.dumps(value)}:", f"      asked: {_quoted(entry.requested)}"]
        last = pin
        if entry.unresolved is not None:
            lines.append(f"      unresolved: {_quoted(entry.unresolved)}")
            continue
        lines.append("      platforms:")
        for platform, items in sorted(entry.platforms.items()):
            lines.append(f"        {platform}:" + " []" * (not items))
            lines += sorted(f"          - {_scalar(_format(item))}" for item in items)
    return "\n".join(lines) + "\n"


def _quoted(data: object) -> str:
    """JSON that YAML reads back the same: what it takes for the end of a line is escaped."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _scalar(line: str) -> str:
    """The line as YAML reads it back: quoted where YAML would take it for something else."""
    plain = re.fullmatch(r"[\w.+~%/@=: -]+", line, re.ASCII) and ": " not in line
    return line if plain and line[-1] not in ": " else _quoted(line)


def _format(item: Item) -> str:
    (word,) = (word for word, kind in WORDS.items() if isinstance(item, kind))
    return " ".join([word, *(str(part) for part in asdict(item).values())])


@cache
def _pattern(word: str) -> re.Pattern[str]:
    """The parts of a line that begins with this word. The last one is a file's name or path, which
    may have spaces."""
    *first, last = (f.name for f in fields(WORDS[word]))
    parts = [f"(?P<{name}>{FORMS.get(name, TEXT.replace(']', ' ]'))})" for name in first]
    return re.compile(" ".join([*parts, f"(?P<{last}>{FORMS.get(last, TEXT)})"]))


def _what_is_wrong(line: str, rest: str, kind: type[Item] | None) -> str:
    names = [f.name for f in fields(kind)] if kind is not None else []
    parts = rest.split(" ", len(names) - 1)
    if not names or len(parts) < len(names):
        known = ", ".join(WORDS)
        return f"{shown(line, quote=True)} is not a lock line ({known}, each with its parts)"
    name, part = next(
        (name, part)
        for name, part in zip(names, parts, strict=True)
        if not re.fullmatch(FORMS.get(name, TEXT), part)
    )
    return f"{shown(line, quote=True)} has an invalid {name}: {shown(part, quote=True)}"


def _parse(line: str) -> Item:
    """The item of a line. Raises ``ValueError`` with what is wrong with it."""
    word, _, rest = line.partition(" ")
    kind = WORDS.get(word)
    match = _pattern(word).fullmatch(rest) if kind is not None else None
    if kind is None or match is None:
        raise ValueError(_what_is_wrong(line, rest, kind))
    parts: dict[str, Any] = match.groupdict()
    for name in ("size", "number"):
        if name in parts:
            parts[name] = int(parts[name])
    return kind(**parts)
