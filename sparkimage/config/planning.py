"""From a variant and the lock to its plan. Pure: no file is read and no process is started."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sparkimage.config import patch_specs
from sparkimage.config.lockfile import (
    ANY,
    MISSING,
    Commit,
    Deb,
    Item,
    Key,
    Lock,
    PatchText,
    PinnedImage,
    Target,
    Wheel,
)
from sparkimage.config.matrix import Matrix, Variant
from sparkimage.config.patch_specs import PATCHES, Patch, State, Verdict
from sparkimage.config.plan import (
    LABEL,
    MORE,
    ROOT,
    Answer,
    DebianRoot,
    Debs,
    LayerPlan,
    Origin,
    PatchPlan,
    Plan,
    SourceBuild,
    Unresolved,
    canonical,
    context_name,
)
from sparkimage.config.schema import (
    LAYER,
    PYTHON_ARGUMENT,
    AnswerSpec,
    DebianPin,
    DebPin,
    GitPin,
    ImagePin,
    Pin,
    SourceUse,
    WheelsPin,
    version_argument,
)
from sparkimage.core.arch import ARCHES
from sparkimage.core.errors import LockError


def make(matrix: Matrix, variant: Variant, lock: Lock, origin: Origin) -> Plan:
    """Decide everything about ``variant``.

    Raises ``LockError`` when the lock lacks one of its pins or fits it no longer.
    """
    return make_all(matrix, [variant], lock, origin)[0]


def make_all(
    matrix: Matrix, variants: Sequence[Variant], lock: Lock, origin: Origin
) -> tuple[Plan, ...]:
    """Decide everything about each of ``variants``, in their order; raises as ``make`` does."""
    shared = _Shared(matrix=matrix, lock=lock)
    return tuple(_make(matrix, variant, shared, origin) for variant in variants)


def _make(matrix: Matrix, variant: Variant, shared: _Shared, origin: Origin) -> Plan:
    pins = {pin: matrix.pins[pin][value] for pin, value in variant.pins.items()}
    patches = sorted({p for la in variant.layers for p in matrix.layers[la].patches})
    keys = [*variant.pins.items(), *((PATCHES, name) for name in patches)]
    unresolved = tuple(
        Unresolved(pin=pin, value=value, reason=reason)
        for pin, value in keys
        if (reason := shared.lock.unresolved(pin, value)) is not None
    )
    layers: tuple[LayerPlan, ...]
    if unresolved:
        layers = tuple(
            LayerPlan(name=name, dockerfile=f"images/{name}/Dockerfile", args={})
            for name in variant.layers
        )
    else:
        wheels = shared.partition(variant)
        making = _Making(matrix=matrix, variant=variant, lock=shared.lock)
        layers = tuple(making.layer(name, wheels.get(name, ())) for name in variant.layers)
    versions = {
        name: str(pin.version)
        for name, pin in pins.items()
        if isinstance(pin, WheelsPin | DebPin | ImagePin | GitPin)
    }
    checksum = shared.lock_checksum(variant, keys)
    labels = {
        "org.opencontainers.image.title": variant.name,
        "org.opencontainers.image.source": origin.source,
        "org.opencontainers.image.revision": origin.revision,
        f"{LABEL}variant": variant.name,
        f"{LABEL}lock": f"sha256:{checksum}",
        **{f"{LABEL}pin.{pin}": value for pin, value in variant.pins.items()},
        **{f"{LABEL}version.{pin}": version for pin, version in versions.items()},
        **{f"{LABEL}commit.{la.source.pin}": la.source.commit for la in layers if la.source},
        **{f"{LABEL}patch.{p.name}": f"sha256:{p.sha256}" for la in layers for p in la.patches},
    }
    if "vllm" in versions:
        labels["org.opencontainers.image.version"] = versions["vllm"]
    return Plan(
        variant=variant.name,
        image=f"{matrix.repository}:{variant.name}",
        platform=variant.platform,
        layers=layers,
        entrypoint=variant.entrypoint,
        cmd=variant.cmd,
        versions=versions,
        python=_python(pins),
        requires=matrix.requires,
        answer=_answer(variant.answer),
        labels=dict(sorted(labels.items())),
        lock_checksum=checksum,
        epoch=origin.epoch,
        unresolved=unresolved,
    )


def _answer(given: AnswerSpec | None) -> Answer | None:
    if given is None:
        return None
    return Answer(args=tuple(given.args), says=given.says, without_gpu=given.without_gpu)


def _python(pins: Mapping[str, Pin]) -> str | None:
    """Python's X.Y, of the pin that says it; the matrix has seen to it that they agree."""
    found = {pin.python for pin in pins.values() if isinstance(pin, WheelsPin | GitPin | ImagePin)}
    return min((one for one in found if one is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """What the layers of one variant are made from."""

    matrix: Matrix
    variant: Variant
    lock: Lock

    def layer(self, name: str, wheels: tuple[Wheel, ...]) -> LayerPlan:
        spec = self.matrix.layers[name]
        variant = self.variant
        args = {"TRIPLET": ARCHES[variant.arch].triplet}
        python = _python({pin: self._pin(pin) for pin in variant.pins})
        if python is not None:
            args[PYTHON_ARGUMENT] = python
        for used in spec.uses:
            pin = self._pin(used)
            if not isinstance(pin, DebianPin):
                args[version_argument(used)] = str(pin.version)
        find_links = None
        if spec.wheels is not None:
            pin = self._pin(spec.wheels.pin)
            assert isinstance(pin, WheelsPin)
            find_links = pin.find_links
            args["PYTHON_PLATFORM"] = ARCHES[variant.arch].uv_platform
        args |= spec.args
        root, image = self._base(spec.base)
        source = None
        if spec.source is not None:
            source = self._source(spec.source)
            args |= _source_args(spec.source, source)
        return LayerPlan(
            name=name,
            dockerfile=source.dockerfile if source else f"images/{name}/Dockerfile",
            args=dict(sorted(args.items())),
            wheels=wheels,
            find_links=find_links,
            root=root,
            image=image,
            debs=self._debs(spec.debs) if spec.debs is not None else None,
            source=source,
            patches=tuple(self._patch(patch) for patch in spec.patches),
            checks=tuple(spec.checks),
        )

    def _pin(self, name: str) -> Pin:
        return self.matrix.pins[name][self.variant.pins[name]]

    def _items(self, pin: str) -> tuple[Item, ...]:
        return self.lock.items(pin, self.variant.pins[pin], self.variant.platform)

    def _base(self, name: str | None) -> tuple[DebianRoot | None, PinnedImage | None]:
        if name is None:
            return None, None
        pin = self._pin(name)
        if isinstance(pin, DebianPin):
            root = tuple(i for i in self._items(name) if isinstance(i, Deb) and i.part == ROOT)
            return DebianRoot(
                pin=name, value=self.variant.pins[name], suite=pin.suite,
                arch=self.variant.arch, debs=root,
            ), None  # fmt: skip
        return None, self._image(name)

    def _image(self, name: str) -> PinnedImage:
        (image,) = self._items(name)
        assert isinstance(image, PinnedImage)
        return image

    def _debs(self, name: str) -> Debs:
        pin = self._pin(name)
        found = (item for item in self._items(name) if isinstance(item, Deb) and item.part == MORE)
        assert isinstance(pin, DebianPin | DebPin)
        return Debs(
            pin=name,
            value=self.variant.pins[name],
            arch=self.variant.arch,
            debs=tuple(found),
            names=tuple(sorted(pin.packages)),
            suite=pin.suite if isinstance(pin, DebianPin) else None,
            repository=(pin.address(self.variant.platform) if isinstance(pin, DebPin) else None),
        )

    def _source(self, use: SourceUse) -> SourceBuild:
        pin = self._pin(use.pin)
        (commit,) = self._items(use.pin)
        assert isinstance(pin, GitPin)
        assert isinstance(commit, Commit)
        return SourceBuild(
            pin=use.pin,
            value=self.variant.pins[use.pin],
            repository=pin.repository,
            commit=commit.commit,
            tree=commit.tree,
            dockerfile=use.dockerfile,
            target=use.target,
            version=pin.version,
            images={
                arg: None if name == LAYER else self._image(name)
                for arg, name in sorted(use.images.items())
            },
        )

    def fork(self, patch: Patch) -> tuple[str | None, str | None]:
        """Repository and commit of the pin that the patch is for, as far as they are known: of
        several the one of which patches.yaml says something."""
        found = list(self._forks())
        named = [one for one in found if patch_specs.names(patch, one[1])]
        return next(iter(named or found), (None, None))

    def _forks(self) -> Iterator[tuple[str | None, str]]:
        for name in self.variant.pins:
            pin = self._pin(name)
            if isinstance(pin, GitPin):
                entry = self.lock.entries.get((name, self.variant.pins[name]))
                items = entry.platforms.get(ANY, ()) if entry is not None else ()
                locked = [item.commit for item in items if isinstance(item, Commit)]
                yield pin.repository, locked[0] if locked else pin.commit
            elif isinstance(pin, ImagePin) and pin.commit is not None:
                yield None, pin.commit

    def judge(self, name: str) -> Verdict:
        """What the patch is to this variant, by the matrix and the lock."""
        patch = self.matrix.patches[name]
        applied = any(name in self.matrix.layers[la].patches for la in self.variant.layers)
        repository, commit = self.fork(patch)
        before: dict[str, str | None] | None = {
            target.path: None if target.before == MISSING else target.before
            for target in self._targets(name, commit)
        }
        if not before:
            before = None
            if repository is None and patch.replaces is not None and patch.expects is not None:
                before = {patch.replaces: patch.expects}
        return patch_specs.judge(patch, commit=commit, applied=applied, before=before)

    def _targets(self, name: str, commit: str | None) -> tuple[Target, ...]:
        entry = self.lock.entries.get((PATCHES, name))
        items = entry.platforms.get(ANY, ()) if entry is not None else ()
        return tuple(i for i in items if isinstance(i, Target) and i.commit == commit)

    def _patch(self, name: str) -> PatchPlan:
        patch = self.matrix.patches[name]
        verdict = self.judge(name)
        if verdict.state is not State.APPLIED:
            raise LockError(
                f"patch {name} does not fit variant {self.variant.name}: {verdict.reason}",
                hint=f"correct {patch_specs.FILE}, take the patch out of the variant's layers, or "
                "look at `python build.py patches`",
            )
        repository, commit = self.fork(patch)
        text = next(
            item for item in self.lock.items(PATCHES, name, ANY) if isinstance(item, PatchText)
        )
        targets = self._targets(name, commit)
        if not targets:
            assert patch.replaces is not None
            assert patch.expects is not None
            targets = (
                Target(
                    commit=commit or ANY, before=patch.expects, after=text.sha256, size=text.size,
                    path=patch.replaces,
                ),
            )  # fmt: skip
        origin, at, path = patch.place
        return PatchPlan(
            name=name,
            kind=patch.kind,
            repository=origin,
            commit=at,
            path=path,
            sha256=text.sha256,
            root=patch.root,
            fork=(repository, commit) if repository is not None and commit is not None else None,
            targets=targets,
        )


def judge_patches(matrix: Matrix, variant: Variant, lock: Lock) -> dict[str, Verdict]:
    """What each known patch is to ``variant``."""
    making = _Making(matrix=matrix, variant=variant, lock=lock)
    return {name: making.judge(name) for name in sorted(matrix.patches)}


def has_fork(matrix: Matrix, variant: Variant) -> bool:
    """Whether the variant holds a fork's commit, so that patches have a say in it."""
    return any(
        isinstance(pin := matrix.pins[name][value], GitPin)
        or (isinstance(pin, ImagePin) and pin.commit is not None)
        for name, value in variant.pins.items()
    )


def _source_args(use: SourceUse, source: SourceBuild) -> dict[str, str]:
    """The arguments of vLLM's Dockerfile; an image's argument names a context of the build."""
    return {
        **{arg: context_name(arg, image) for arg, image in source.images.items()},
        # Without it a git context comes without .git, which setuptools_scm asks for:
        # https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args
        "BUILDKIT_CONTEXT_KEEP_GIT_DIR": "1",
        "max_jobs": str(use.jobs),
        "nvcc_threads": str(use.threads),
        "torch_cuda_arch_list": use.arch_list,
    }


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What is worked out once for all variants: a thousand of them hold few pins."""

    matrix: Matrix
    lock: Lock
    split: dict[tuple[str, ...], dict[str, tuple[Wheel, ...]]] = field(default_factory=dict)
    slices: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def partition(self, variant: Variant) -> dict[str, tuple[Wheel, ...]]:
        """Give every wheel of every wheels pin to exactly one layer of the variant."""
        by_pin: dict[str, list[str]] = {}
        for name in variant.layers:
            use = self.matrix.layers[name].wheels
            if use is not None:
                by_pin.setdefault(use.pin, []).append(name)
        given: dict[str, tuple[Wheel, ...]] = {}
        for pin, names in by_pin.items():
            key = (pin, variant.pins[pin], variant.platform, *names)
            if key not in self.split:
                self.split[key] = _split(self.matrix, variant, self.lock, pin, names)
            given |= self.split[key]
        if len(by_pin) > 1:
            self._refuse_twice(variant, by_pin, given)
        return given

    def _refuse_twice(
        self,
        variant: Variant,
        by_pin: Mapping[str, Sequence[str]],
        given: Mapping[str, tuple[Wheel, ...]],
    ) -> None:
        """One project of two pins: files of the upper layer would replace those of the lower."""
        known: dict[str, tuple[str, str]] = {}
        for pin, names in by_pin.items():
            for wheel in (wheel for name in names for wheel in given[name]):
                other, version = known.setdefault(wheel.name, (pin, wheel.version))
                if other != pin:
                    raise LockError(
                        f"variant {variant.name}: pins {other} {variant.pins[other]} and {pin} "
                        f"{variant.pins[pin]} both bring {wheel.name} ({version} and "
                        f"{wheel.version})",
                        hint=f"add `exclude: [{wheel.name}]` to one of the two in "
                        f"{self.matrix.file.name}, then run `python build.py lock`",
                    )

    def lock_checksum(self, variant: Variant, keys: Sequence[Key]) -> str:
        """sha256 over ``lock.slice`` of these keys in canonical JSON."""
        parts = {}
        for pin, value in keys:
            key = (pin, value, variant.platform)
            if key not in self.slices:
                one = canonical(self.lock.slice([(pin, value)], variant.platform))
                self.slices[key] = one.removeprefix("{").removesuffix("}")
            parts[f"{pin}/{value}"] = self.slices[key]
        text = ",".join(parts[name] for name in sorted(parts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


def _split(
    matrix: Matrix, variant: Variant, lock: Lock, pin: str, names: Sequence[str]
) -> dict[str, tuple[Wheel, ...]]:
    """Divide one pin's wheels among the layers ``names``; the one without ``select`` comes last."""
    given: dict[str, tuple[Wheel, ...]] = {}
    rest = lock.wheels(pin, variant.pins[pin], variant.platform)
    selects = {name: use.select for name in names if (use := matrix.layers[name].wheels)}
    for name in sorted(names, key=lambda n: not selects[n]):
        select = selects[name]
        taken = tuple(w for w in rest if not select or _matches(w.name, select))
        if not taken:
            raise LockError(
                f"layer {name} of variant {variant.name} gets no wheel: "
                f"nothing in pin {pin} {variant.pins[pin]} matches {list(select)}",
                hint=f"correct `select` of layers.{name} in {matrix.file.name}",
            )
        rest = tuple(w for w in rest if select and not _matches(w.name, select))
        given[name] = taken
    if rest:
        raise LockError(
            f"variant {variant.name}: no layer takes {', '.join(w.name for w in rest[:5])}"
            f"{' and more' if len(rest) > 5 else ''} of pin {pin} {variant.pins[pin]}",
            hint="add a layer with this pin and no `select`: it takes what the others leave",
        )
    return given


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
