"""The static tier: checks the layers and the config of an image, on any host.

It starts and emulates nothing. ``data/static.yaml`` lists the exceptions that an image may contain.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sparkimage.config.patch_specs import MISSING
from sparkimage.config.plan import Plan
from sparkimage.config.plan import installed as installed_debs
from sparkimage.config.tier import Tier
from sparkimage.core import secrets
from sparkimage.core.units import human
from sparkimage.image.layerindex import (
    Entry,
    ImageFiles,
    content,
    entry_path,
    image_files,
    own_layers,
)
from sparkimage.image.linking import Linker, Root
from sparkimage.image.settings import Settings
from sparkimage.image.store import Image, Store
from sparkimage.verify import layer_checks, static_config, static_nccl, static_order
from sparkimage.verify import rules as rule_file
from sparkimage.verify.rules import PathRule, Rules, matches
from sparkimage.verify.seal import Check
from sparkimage.verify.static_nccl import Compared

TIER = Tier.STATIC
BASE = "the base image"
SHOWN = 20
"""A check lists at most this many faults."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most bytes that a layer may have."""

    stored: int = 10_000_000_000
    """Compressed, which is what a registry counts; the default is GHCR's limit."""
    unpacked: int = 4_000_000_000
    """Uncompressed, for a layer that we build."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The image that the checks examine, and its plan."""

    plan: Plan
    image: Image
    store: Store
    files: ImageFiles
    root: Root
    own: frozenset[int]
    """The numbers of the layers that we build: the others are a base image's, or a source's."""
    rules: Rules
    limits: Limits

    @property
    def settings(self) -> Settings:
        return self.image.settings

    @property
    def history(self) -> list[Mapping[str, Any]]:
        return list(self.image.config.get("history") or ())

    @property
    def env(self) -> dict[str, str]:
        return self.settings.env

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """The entries of all layers, without whiteouts."""
        return [entry for layer in self.files.layers for entry in layer if not entry.is_whiteout]

    @cached_property
    def own_entries(self) -> Sequence[Entry]:
        """The same of the layers that we build."""
        return [entry for entry in self.entries if entry.layer in self.own]

    @cached_property
    def linker(self) -> Linker:
        return self._linker(self.root)

    @cached_property
    def base_linker(self) -> Linker:
        """The same without the layers that we build."""
        layers = (la for number, la in enumerate(self.files.layers) if number not in self.own)
        return self._linker(Root(ImageFiles(tuple(layers)).final))

    def _linker(self, root: Root) -> Linker:
        plan = self.plan
        return Linker.of(root, plan.arch, plan.triplet, self.env.get("LD_LIBRARY_PATH", ""))

    @cached_property
    def cuda(self) -> str | None:
        """The major version of CUDA that the matrix expects, else that torch is built for."""
        seen = [
            str(entry.seen["cuda"]) for entry in self.root.final.values() if "cuda" in entry.seen
        ]
        return next(
            (version.split(".")[0] for version in (self.plan.expect.cuda, *seen) if version), None
        )

    @cached_property
    def installed(self) -> Mapping[str, str]:
        """Name to version of every package that dpkg has installed."""
        status = self.root.file("var/lib/dpkg/status")
        return status.seen.get("packages", {}) if status is not None else {}

    def package(self, entry: Entry) -> str | None:
        """The package of a layer that is not ours, by that layer's own records, which has the
        file."""
        name = entry.seen.get("package") if entry.layer not in self.own else None
        return f"the base's package {name}" if name in self.installed else None

    def is_base(self, entry: Entry) -> bool:
        """Whether a file is of the base image: no layer that is not ours is a source's."""
        return entry.layer not in self.own and not any(layer.source for layer in self.plan.layers)


def examine(
    plan: Plan, image: Image, store: Store, project: Path | None, *, limits: Limits | None = None
) -> tuple[Check, ...]:
    """Compare ``image`` with ``plan``; seals nothing.

    ``project`` has the layers' own checks, and may have rules of its own. Raises ``StoreError``
    for a damaged layer and ``ConfigError`` for rules that are none.
    """
    target = _target(plan, image, store, image_files(store, image), project, limits or Limits())
    checks = [
        Check.compare(f"{TIER}/{name}", *rest, tier=TIER) for name, *rest in _comparisons(target)
    ]
    if project is not None:
        checks += layer_checks.examine(plan, target.settings, target.root, project)
    return tuple(checks)


def ready(plan: Plan, project: Path) -> None:
    """Load the project's rules and its layers' checks, which come into use after the build.

    Raises ``ConfigError`` for what is wrong with them.
    """
    rule_file.load(project)
    layer_checks.count(plan, project, in_container=False)


def count(plan: Plan, image: Image, store: Store, project: Path) -> int:
    """How many checks ``examine`` makes: of its own as many as for an image without a file."""
    target = _target(plan, image, store, ImageFiles(layers=()), project, Limits())
    own = sum(1 for _ in _comparisons(target))
    return own + layer_checks.count(plan, project, in_container=False)


def _target(
    plan: Plan, image: Image, store: Store, files: ImageFiles, project: Path | None, limits: Limits
) -> _Target:
    history = image.config.get("history") or ()
    return _Target(
        plan=plan,
        image=image,
        store=store,
        files=files,
        root=Root(files.final),
        own=own_layers(
            len(image.layers),
            base=any(layer.image for layer in plan.layers),
            above=_steps_above_sources(plan),
            history=history,
        ),
        rules=rule_file.load(project),
        limits=limits,
    )


def _steps_above_sources(plan: Plan) -> int | None:
    """How many layers above the last source install something, each in a step; None where there is
    no source."""
    sources = [number for number, layer in enumerate(plan.layers) if layer.source]
    if not sources:
        return None
    return sum(1 for la in plan.layers[sources[-1] + 1 :] if la.debs or la.wheels or la.patches)


def _comparisons(target: _Target) -> Iterator[Compared]:
    read = partial(_content, target)
    yield from static_config.checks(target.plan, target.image, target.root, read)
    yield from _programs(target)
    yield from static_nccl.checks(target.plan, target.files, target.root, target.own)
    yield from static_order.checks(target.plan, target.files, target.own)
    yield from _preloads(target)
    yield from _toolkits(target)
    yield from _expected(target)
    yield from _contents(target)
    yield from _origin(target)
    yield from _secrets(target)
    yield from _layers(target)


def _programs(s: _Target) -> Iterator[Compared]:
    heads = list(s.root.elves())
    code = [(entry, head) for entry, head in heads if not head.is_gpu_code]
    seen, known = _reported(
        (s.package(entry), f"{entry.path}: {head.arch}")
        for entry, head in code
        if head.arch != s.plan.arch and not _allowed(entry.path, s.rules.foreign_elf)
    )
    title = f"all {len(heads):,} ELF files are for {s.plan.arch}"
    if len(code) < len(heads):
        title += f", or ({len(heads) - len(code):,}) for GPUs"
    seen = seen if code else ["the image has no ELF file"]
    yield "architecture", _but_for(title, known), seen, known
    broken = [f"{entry.path}: {head.problem}" for entry, head in heads if head.problem]
    yield "elf-heads", "every ELF file has a readable dynamic section", broken[:SHOWN], []
    linker = s.linker
    seen, known = _reported(
        (_lacked(s, entry, name), f"{entry.path} needs {name}")
        for entry, name in linker.unresolved()
        if not _excused(s, linker, entry.path, name)
    )
    number = sum(len(head.needed) for _, head in heads)
    yield "needed", _but_for(f"all {number:,} needed libraries resolve", known), seen, known


def _but_for(title: str, known: Sequence[str]) -> str:
    """The title of a check that allows for what packages of the base account for."""
    return f"{title}, but for {len(known)} known ones" if known else title


def _reported(found: Iterable[tuple[str | None, str]]) -> tuple[list[str], list[str]]:
    """What is seen and what is expected of files that are not as they should be: what a package of
    the base accounts for (its name, and what to say of a file) is reported and no more."""
    refused, known = [], []
    for package, text in found:
        if package is None:
            refused.append(text)
        else:
            known.append(f"{text} (of {package})")
    known = sorted(known)[:SHOWN]
    return [*sorted(refused)[:SHOWN], *known], known


def _allowed(path: str, rules: Iterable[PathRule]) -> bool:
    """Whether one of the exceptions is for this path."""
    return matches(path, *(rule.path for rule in rules))


_CUDA_MARK = re.compile(r"(?:^|[/_.-])cu(?:da)?(1\d)\d?(?=[/_.-]|$)")
"""How wheels name what is for one CUDA: `bitsandbytes_cuda118.so`, `nixl_cu12.libs/`."""


def _is_for_other_cuda(s: _Target, path: str) -> bool:
    """Whether a file is a part for a major version of CUDA that the image does not have: wheels
    carry one part for each, and load the one that fits."""
    marks = set(_CUDA_MARK.findall(path))
    return bool(marks) and s.cuda is not None and s.cuda not in marks


def _lacked(s: _Target, entry: Entry, name: str) -> str | None:
    """Whose a file is that lacked the library before a layer of ours: what a base image has beside
    its Python packages, which make a prebuilt image."""
    part = s.package(entry)
    if part is None and s.is_base(entry) and "-packages/" not in entry.path:
        part = BASE
    return part if part and s.base_linker.find(name, entry) is None else None


def _excused(s: _Target, linker: Linker, path: str, name: str) -> bool:
    if any(library.name == name for library in s.rules.driver_libraries):
        return True
    if any(rule.covers(path, name) for rule in s.rules.absent) or _is_for_other_cuda(s, path):
        return True
    origins = [rule.origin for rule in s.rules.loaded_before if rule.covers(path, name)]
    return bool(origins) and any(
        matches(held, *origins) and linker.usable(held) is not None
        for held in s.root.by_name.get(name, ())
    )


def _preloads(s: _Target) -> Iterator[Compared]:
    linker = s.linker
    listed = re.split(r"[\s:]+", s.root.text("etc/ld.so.preload"))
    named = re.split(r"[\s:]+", s.env.get("LD_PRELOAD", ""))
    wrong = {}
    for path in filter(None, (*named, *listed)):
        if linker.find(path) is None:
            entry = s.root.file(path)
            head = entry.elf if entry is not None else None
            what = "not an ELF file" if head is None else head.arch
            wrong[path] = "missing" if entry is None else what
    # glibc only prints a line to stderr when it cannot preload a library.
    yield "preload", "ld.so ignores no preloaded library", wrong, {}


def _toolkits(s: _Target) -> Iterator[Compared]:
    """FlashInfer, DeepGEMM and others compile on the first start, and CUDA's headers refuse a
    compiler of another release (CCCL's cuda_toolkit.h): seen on a GPU with the newest wheel of nvcc
    beside the runtime of torch's CUDA."""
    seen, expected = {}, {}
    for path in s.root.by_name.get("nvcc", ()):
        compiler = s.root.file(path)
        home = posixpath.dirname(posixpath.dirname(path))
        headers = s.root.file(f"{home}/include/cuda_runtime_api.h")
        if compiler is not None and headers is not None and "nvcc" in compiler.seen:
            seen[path], expected[path] = compiler.seen["nvcc"], headers.seen.get("cudart")
    yield (
        "cuda-compiler",
        "every nvcc has the release of the CUDA headers beside it",
        seen,
        expected,
    )


def _expected(s: _Target) -> Iterator[Compared]:
    """What the matrix expects of torch and of the image's own project."""
    expect = s.plan.expect
    if expect.cuda is not None:
        wanted = expect.cuda.split(".")[:2]
        found = [str(e.seen["cuda"]) for e in s.root.final.values() if "cuda" in e.seen]
        seen = sorted({".".join(version.split(".")[: len(wanted)]) for version in found})
        title = f"torch is built for CUDA {'.'.join(wanted)}"
        yield "torch-cuda", title, seen, [".".join(wanted)]
    if expect.project is not None:
        number = _installations(s, expect.project)
        yield "project", f"{expect.project} is installed once", number, 1


def _installations(s: _Target, project: str) -> int:
    """How often a project is installed: for the image's Python where layers of ours install, else
    wherever a base image has it."""
    places = {layer.into for layer in s.plan.layers if layer.wheels} | {None}
    versions = [v for into in places for v in s.root.wheels(s.plan.python, into).get(project, [])]
    python = f"/python{s.plan.python}/" if s.plan.python else "/"
    others = (
        path
        for path, entry in s.root.final.items()
        if entry.seen.get("wheel", ("",))[0] == project
        and entry.layer not in s.own
        and python in path
    )
    return len(versions) or sum(1 for _ in others)


def _contents(s: _Target) -> Iterator[Compared]:
    if patched := s.plan.patched_files:
        found = {path: s.root.file(path) for path in patched}
        expected = {
            path: target.after
            for path, (series, target) in patched.items()
            # What a source installs of its tree only it knows.
            if series.root is not None or found[path] is not None
        }
        seen = {p: e.seen.get("sha256") if (e := found[p]) else MISSING for p in expected}
        yield "patches", "the patched files have the lock's sha256", seen, expected
        # Otherwise a patch that does not parse shows with the first request only.
        wrong = [f"{p}: {why}" for p, e in found.items() if e and (why := _syntax_error(s, e))]
        yield "patches-parse", "every patched file is valid Python", wrong, []
    wheels = [(layer.into, wheel) for layer in s.plan.layers for wheel in layer.wheels]
    if wheels:
        places = {into for into, _ in wheels}
        installed = {into: s.root.wheels(s.plan.python, into) for into in places}
        other = {
            f"{wheel.name} in {into}" if into else wheel.name: installed[into].get(wheel.name, [])
            for into, wheel in wheels
            if installed[into].get(wheel.name) != [wheel.version]
        }
        yield "wheels", f"all {len(wheels)} wheels have the lock's versions", other, {}
    rights, known = _reported(
        (s.package(e), f"{e.path} {e.mode & 0o7777:o}")
        for e in s.root.final.values()
        if e.kind in ("0", "1")
        and e.mode & 0o6000
        and not _allowed(e.path, (r for r in s.rules.setuid if int(r.mode, 8) == e.mode & 0o7777))
    )
    yield "setuid", "no setuid or setgid file but known ones", rights, known


def _content(s: _Target, entry: Entry) -> bytes:
    """The bytes of a regular file; of a hard link those of what it names."""
    path = entry.target if entry.kind == "1" else entry.path
    return content(s.store, s.image.layers[entry.layer], entry_path(path))


def _syntax_error(s: _Target, entry: Entry) -> str | None:
    if not entry.path.endswith(".py"):
        return None
    try:
        ast.parse(_content(s, entry))
    except (SyntaxError, ValueError) as error:
        return str(error)
    return None


def _origin(s: _Target) -> Iterator[Compared]:
    """Whether every file of ours comes from the planned distribution: Debian or one of its kin,
    unless a base image is of another one."""
    globs = tuple(rule.path for rule in s.rules.foreign_distribution)
    known = [
        f"{path}: {rule.reason}"
        for path, entry in s.root.final.items()
        if matches(path, *globs) and entry.layer in s.own
        for rule in s.rules.foreign_distribution
        if matches(path, rule.path)
    ]
    yield "distribution", "no files of another distribution", known[:SHOWN], []
    lowest = s.plan.layers[0].root
    if lowest is not None:
        match = re.search(r"(?m)^VERSION_CODENAME=\"?([\w-]+)", s.root.text("etc/os-release"))
        yield (
            "suite",
            f"the Debian suite is {lowest.suite}",
            match[1] if match else None,
            lowest.suite,
        )
    expected = {deb.name: deb.version for layer in s.plan.layers for deb in installed_debs(layer)}
    if expected:
        installed = s.installed
        # A base image that we do not build has others, too; and a layer may install a locked file.
        ours = lowest is not None and not any(layer.inputs for layer in s.plan.layers)
        names = expected.keys() | installed.keys() if ours else expected.keys()
        wrong = [n for n in sorted(names) if installed.get(n) != expected.get(n)]
        seen = {name: installed.get(name) for name in wrong[:SHOWN]}
        yield "packages", f"all {len(expected)} packages have the lock's versions", seen, {}
    bundle = s.root.file("etc/ssl/certs/ca-certificates.crt")
    folder = "usr/share/ca-certificates/mozilla/"
    parts = [e for path, e in s.root.final.items() if path.startswith(folder)]
    # A root may have the package's certificates without a bundle made of them.
    total = sum(e.seen.get("certificates", 0) for e in parts) if bundle is not None else 0
    number = bundle.seen.get("certificates") if bundle is not None else 0
    # A base image has its own, such as a company's.
    added = any(secrets.SITE_CA in e.seen.get("secrets", ()) for e in s.root.final.values())
    if bundle is not None and (bundle.layer not in s.own or added):
        total = number
    yield (
        "ca-bundle",
        "the CA bundle has the distribution's certificates, and no others",
        number,
        total,
    )


def _secrets(s: _Target) -> Iterator[Compared]:
    yield "env-secrets", "no secrets in ENV", secrets.in_environment(s.settings.environment), []
    labels = s.settings.labels
    found = [f"{n}: {kind}" for n, text in labels.items() for kind in secrets.in_text(str(text))]
    yield "label-secrets", "no secrets in labels", found, []
    lines = [
        f"step {number}: {kind}"
        for number, step in enumerate(s.history)
        for key in ("created_by", "comment", "author")
        for kind in secrets.in_text(str(step.get(key, "")))
    ]
    yield "history-secrets", "no secrets in the history", lines, []
    held = [
        f"{entry}: {kind}"
        for entry in s.entries
        for kind in entry.seen.get("secrets", ())
        if not (kind == secrets.SITE_CA and entry.layer not in s.own)
        and not _allowed(entry.path, (r for r in s.rules.secrets if kind in r.kinds))
    ]
    yield "secrets", "no secrets in any layer, deleted files included", held[:SHOWN], []
    places = [str(e) for e in s.own_entries if e.is_file and _SITE.match(e.path)]
    yield "site-ca", "no CA bundle or build secret in our layers", places[:SHOWN], []


_SITE = re.compile(r"^(run/ca\.pem|run/secrets/.+|usr/local/share/ca-certificates/.+)$")
"""A distribution's certificates lie elsewhere."""


def _layers(s: _Target) -> Iterator[Compared]:
    for rule in s.rules.leftovers:
        pattern = rule.pattern
        left = [
            str(entry) for entry in s.own_entries if entry.is_file and pattern.search(entry.path)
        ]
        yield rule.name, f"no {rule.name} in any of our layers", left[:SHOWN], []
    patched = s.plan.patched_files
    own = tuple(la for number, la in enumerate(s.files.layers) if number in s.own)
    twice = [
        path
        for path in ImageFiles(layers=own).duplicates()
        if path not in patched and not _allowed(path, s.rules.rewritten)
    ]
    yield "stored-twice", "no file in more than one of our layers", twice[:SHOWN], []
    stored = {la.digest: la.size for la in s.image.layers if la.size > s.limits.stored}
    yield "layer-stored", f"no layer over {human(s.limits.stored)} compressed", stored, {}
    sizes = dict(enumerate(s.files.layer_sizes()))
    large = {n: b for n, b in sizes.items() if n in s.own and b > s.limits.unpacked}
    yield (
        "layer-unpacked",
        f"none of our layers over {human(s.limits.unpacked)} uncompressed",
        large,
        {},
    )
