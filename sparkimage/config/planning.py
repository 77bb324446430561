"""From a variant and the lock to its plan. Pure: no file is read and no process is started."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from typing import Any, TypeVar

from sparkimage.config import below, dockerfile, lock_items, overlays, plan, schema, series
from sparkimage.config.address import without_login
from sparkimage.config.defaults import LABEL
from sparkimage.config.lock_items import Deb, OneItem, Wheel
from sparkimage.config.lockfile import Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_planning import PatchPlanner
from sparkimage.config.patch_specs import PATCHES
from sparkimage.config.pins import (
    PYTHON_ARGUMENT,
    AptPin,
    DebianPin,
    DebPin,
    FilePin,
    GitPin,
    ImagePin,
    Key,
    Pin,
    PinBase,
    WheelsPin,
    commit_argument,
    version_argument,
    version_of,
)
from sparkimage.config.plan import (
    REVISION_LABEL,
    SOURCE_LABEL,
    Expected,
    LayerPlan,
    Origin,
    Plan,
    canonical,
)
from sparkimage.config.schema import Expect
from sparkimage.config.series import SERIES
from sparkimage.config.template import Template
from sparkimage.config.variants import Variant, expectations
from sparkimage.core.arch import ARCHES
from sparkimage.core.errors import LockError
from sparkimage.core.program import program
from sparkimage.core.units import byte_count

OnePin = TypeVar("OnePin", bound=PinBase)
Conflict = tuple[tuple[str, Wheel], tuple[str, Wheel]]
"""A project of two pins: each with its wheel, the lower one first."""


def make_all(
    matrix: Matrix, variants: Sequence[Variant], lock: Lock, origin: Origin
) -> tuple[Plan, ...]:
    """The plans of ``variants``, in their order.

    Raises ``LockError`` when the lock lacks one of their pins or does not fit it.
    """
    planner = _Planner(matrix, lock, origin)
    return tuple(planner.plan(variant) for variant in variants)


def make(matrix: Matrix, variant: Variant, lock: Lock, origin: Origin) -> Plan:
    """The plan of one variant; raises as ``make_all`` does."""
    return make_all(matrix, [variant], lock, origin)[0]


class _Planner:
    """Plans variants; what many of them share is computed once."""

    def __init__(self, matrix: Matrix, lock: Lock, origin: Origin) -> None:
        self.matrix, self.lock, self.origin = matrix, lock, origin
        self.partition = cache(self._partition)
        self.divide = cache(self._divide)
        self.locked_json = cache(self._locked_json)
        self.lock_checksum = cache(self._lock_checksum)
        self.expectations = cache(partial(expectations, matrix.layers))
        self.layers: dict[Hashable, LayerPlan] = {}

    def plan(self, variant: Variant) -> Plan:
        pins = _LockedVariant(matrix=self.matrix, variant=variant, lock=self.lock)
        patches = {patch for la in variant.layers for patch in self.matrix.layers[la].patches}
        keys: list[Key] = [*variant.pins.items(), *((PATCHES, name) for name in sorted(patches))]
        keys += [(SERIES, one.key) for one in series.to_lock(self.matrix, variant)]
        unresolved = tuple(
            plan.Unresolved(pin=pin, value=value, reason=reason)
            for pin, value in keys
            if (reason := self.lock.unresolved(pin, value)) is not None
        )
        if unresolved:
            layers = tuple(
                LayerPlan(name=name, dockerfile=f"images/{name}/Dockerfile", args={})
                for name in variant.layers
            )
        else:
            wheels = self._wheels(variant)
            layers = tuple(self._layer(pins, la, wheels.get(la, ())) for la in variant.layers)
            if sum(layer.debs is not None or layer.root is not None for layer in layers) > 1:
                overlays.refuse_older(variant.name, layers)
        versions = {
            name: version
            for name, pin in pins.pins.items()
            if (version := version_of(pin)) is not None
        }
        sources = [s for la in variant.layers if (s := self.matrix.layers[la].source) is not None]
        checksum = self.lock_checksum(tuple(keys), variant.platform)
        labels = {
            "org.opencontainers.image.title": variant.name,
            SOURCE_LABEL: self.origin.source,
            REVISION_LABEL: self.origin.revision,
            f"{LABEL}variant": variant.name,
            f"{LABEL}lock": f"sha256:{checksum}",
            **{f"{LABEL}pin.{pin}": value for pin, value in variant.pins.items()},
            **{f"{LABEL}axis.{axis}": value for axis, value in variant.axes.items()},
            **{f"{LABEL}version.{pin}": version for pin, version in versions.items()},
            **{f"{LABEL}commit.{tree.pin}": tree.commit for la in layers for tree in la.trees},
            **{f"{LABEL}file.{f.pin}": f"sha256:{f.sha256}" for la in layers for f in la.files},
            **{
                f"{LABEL}patch.{patch.name}": f"sha256:{patch.sha256}"
                for layer in layers
                for one in layer.patches
                for patch in one.patches
            },
        }
        expect = self._expect(variant, versions)
        if expect.version is not None:
            labels["org.opencontainers.image.version"] = expect.version
        answer = variant.answer
        return Plan(
            variant=variant.name,
            image=variant.image,
            platform=variant.platform,
            layers=layers,
            entrypoint=variant.entrypoint,
            cmd=variant.cmd,
            versions=versions,
            python=pins.python,
            requires=self.matrix.requires,
            answer=plan.Answer(**{**dict(answer), "args": tuple(answer.args)}) if answer else None,
            labels=dict(sorted(labels.items())),
            lock_checksum=checksum,
            epoch=self.origin.epoch,
            unresolved=unresolved,
            # What one source leaves in the builder is there when the next one is built.
            disk=sum(byte_count(source.disk) for source in sources if source.disk),
            memory=max(
                (byte_count(source.memory) for source in sources if source.memory), default=0
            ),
            expect=expect,
            user=variant.user,
        )

    def _expect(self, variant: Variant, versions: Mapping[str, str]) -> Expected:
        """What the layers of a variant expect of its image."""
        values = {
            key: versions[value] if key in Expect.PINS else value
            for key, value in self.expectations(variant.layers).items()
        }
        if "cuda" in values:
            values["cuda"] = Template.parse(values["cuda"]).fill(variant.words)
        return Expected(**values)

    def _layer(self, pins: _LockedVariant, name: str, wheels: tuple[Wheel, ...]) -> LayerPlan:
        """The plan of a layer: that of another variant where it is the same."""
        # Wheels are the lock's own: comparing hundreds of them would take longer than a plan.
        key = (id(wheels), *pins.decisive(name))
        if key not in self.layers:
            self.layers[key] = pins.layer(name, wheels)
        return self.layers[key]

    def _lock_checksum(self, keys: tuple[Key, ...], platform: str) -> str:
        """sha256 over the locked items of these pins, as canonical JSON: ``{"pin/value": […]}``."""
        parts = (self.locked_json(*key, platform) for key in sorted(keys, key="/".join))
        return hashlib.sha256(f"{{{','.join(parts)}}}".encode()).hexdigest()

    def _locked_json(self, pin: str, value: str, platform: str) -> str:
        items = [vars(item) for item in self.lock.find(pin, value, platform) or ()]
        return canonical({f"{pin}/{value}": items})[1:-1]

    def _wheels(self, variant: Variant) -> Mapping[str, tuple[Wheel, ...]]:
        """The wheels of each layer. Raises ``LockError``."""
        uses = tuple(
            (name, use.pin, variant.pins[use.pin], use.into)
            for name in variant.layers
            if (use := self.matrix.layers[name].wheels) is not None
        )
        wheels, conflicts = self.divide(variant.platform, uses)
        if conflicts:
            (lower, other), (upper, wheel) = conflicts[0]
            raise LockError(
                f"variant {variant.name}: pins {lower} {variant.pins[lower]} and {upper} "
                f"{variant.pins[upper]} both install {_two(other, wheel)}",
                detail="\n".join(
                    f"pins {one} and {two} both install {_two(below, above)}"
                    for (one, below), (two, above) in conflicts[1:]
                ),
                hint=f"add `constraints: [{lower}]` to pin {upper} in {self.matrix.file.name}, and "
                f"it is resolved to those of {lower}; or `exclude: [{wheel.name}]` to one of the "
                f"two; then run `{program()} lock`",
            )
        for name, part in wheels.items():
            if not part:
                raise LockError(
                    f"variant {variant.name}: layer {name} gets no wheel: what it selects is in "
                    "the layers below",
                    hint="take the layer out of this variant",
                )
        return wheels

    def _divide(
        self, platform: str, uses: tuple[tuple[str, str, str, str | None], ...]
    ) -> tuple[Mapping[str, tuple[Wheel, ...]], Sequence[Conflict]]:
        """The wheels of each layer (of layer, pin, value and place): every wheel of a pin goes to
        one layer, and a file that several pins have to the lowest; and what cannot be divided."""
        parts: dict[str, tuple[Wheel, ...]] = {}
        for pin, value in dict.fromkeys((pin, value) for _, pin, value, _ in uses):
            layers = tuple(name for name, other, _, _ in uses if other == pin)
            parts |= self.partition(pin, value, platform, layers)
        owners: dict[tuple[str | None, str], tuple[str, Wheel]] = {}
        wheels: dict[str, tuple[Wheel, ...]] = {}
        conflicts: list[Conflict] = []
        for name, pin, _, into in uses:
            for wheel in parts[name]:
                owner = owners.setdefault((into, wheel.name), (pin, wheel))
                if (owner[1].version, owner[1].sha256) != (wheel.version, wheel.sha256):
                    # Files of the upper layer would replace those of the lower one.
                    conflicts.append((owner, (pin, wheel)))
            own = tuple(w for w in parts[name] if owners[into, w.name][0] == pin)
            wheels[name] = parts[name] if len(own) == len(parts[name]) else own
        return wheels, conflicts

    def _partition(
        self, pin: str, value: str, platform: str, layers: tuple[str, ...]
    ) -> dict[str, tuple[Wheel, ...]]:
        """Divide one pin's wheels among ``layers``; the one without ``select`` takes the rest."""
        rest = [w for w in self.lock.items(pin, value, platform) if isinstance(w, Wheel)]
        uses = {name: use for name in layers if (use := self.matrix.layers[name].wheels)}
        parts: dict[str, tuple[Wheel, ...]] = {}
        for name in sorted(layers, key=lambda name: not uses[name].select):
            select = uses[name].select or ["*"]
            parts[name] = tuple(w for w in rest if _matches(w.name, select))
            if not parts[name]:
                raise LockError(
                    f"layer {name} gets no wheel: nothing in pin {pin} {value} on {platform} "
                    f"matches {uses[name].select}",
                    hint=f"correct `select` of layers.{name} in {self.matrix.file.name}",
                )
            rest = [w for w in rest if not _matches(w.name, select)]
        if rest:
            raise LockError(
                f"no layer takes {', '.join(w.name for w in rest[:5])}"
                f"{' and more' if len(rest) > 5 else ''} of pin {pin} {value} on {platform}",
                hint="add a layer with this pin and no `select`: it takes what the others leave",
            )
        return parts


def _two(one: Wheel, other: Wheel) -> str:
    """The project of two wheels, and what tells them apart."""
    if one.version == other.version:
        return f"{one.name} {one.version} (as {one.file} and {other.file})"
    return f"{one.name} ({one.version} and {other.version})"


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


@dataclass(frozen=True, kw_only=True)
class _LockedVariant:
    """The pins of a variant, what the lock has for them, and the layers that they make."""

    matrix: Matrix
    variant: Variant
    lock: Lock

    @cached_property
    def pins(self) -> Mapping[str, Pin]:
        return self.matrix.pins_of(self.variant)

    @cached_property
    def _patches(self) -> PatchPlanner:
        return PatchPlanner(matrix=self.matrix, variant=self.variant, lock=self.lock)

    @cached_property
    def python(self) -> str | None:
        """Python's X.Y: the pins that have one agree, as the matrix was checked."""
        pins = [pin for pin in self.pins.values() if isinstance(pin, WheelsPin | GitPin | ImagePin)]
        return min((pin.python for pin in pins if pin.python is not None), default=None)

    def _pin(self, name: str, kind: type[OnePin]) -> OnePin:
        pin = self.pins[name]
        assert isinstance(pin, kind)
        return pin

    def _items(self, name: str, kind: type[OneItem]) -> tuple[OneItem, ...]:
        items = self.lock.items(name, self.variant.pins[name], self.variant.platform)
        return tuple(item for item in items if isinstance(item, kind))

    def _item(self, name: str, kind: type[OneItem]) -> OneItem:
        (item,) = self._items(name, kind)
        return item

    def decisive(self, name: str) -> tuple[Hashable, ...]:
        """What decides the plan of a layer, besides its wheels."""
        variant, spec, lowest = self.variant, self.matrix.layers[name], self.variant.layers[0]
        pins, words = variant.pins, variant.words
        # A patch is judged by all that the variant has.
        used = pins if spec.patches else (*spec.uses, *self.matrix.layers[lowest].uses)
        return (
            name, variant.platform, self.python, variant.layers if spec.patches else lowest,
            tuple(map(pins.get, used)), tuple(words[axis] for axis in sorted(spec.filled)),
        )  # fmt: skip

    def layer(self, name: str, wheels: tuple[Wheel, ...]) -> LayerPlan:
        """The plan of a layer. Raises ``LockError``."""
        spec, arch = self.matrix.layers[name], ARCHES[self.variant.arch]
        args = {"TRIPLET": arch.triplet}
        if self.python is not None:
            args[PYTHON_ARGUMENT] = self.python
        for used in spec.uses:
            if (version := version_of(self.pins[used])) is not None:
                args[version_argument(used)] = version
            if (commit := self._commit(used)) is not None:
                args[commit_argument(used)] = commit
        find_links = None
        index: tuple[str, ...] = ()
        if spec.wheels is not None:
            wheels_pin = self._pin(spec.wheels.pin, WheelsPin)
            find_links = wheels_pin.find_links
            index = tuple(without_login(address) for address in wheels_pin.index)
            lowest = self.matrix.layers[self.variant.layers[0]]
            args["PYTHON_PLATFORM"] = arch.uv_platform(below.glibc(lowest, self.pins))
        source = None
        if spec.source is not None:
            source = self._source(spec.source)
            # Without it a git context comes without .git, which setuptools_scm needs:
            # https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args
            args["BUILDKIT_CONTEXT_KEEP_GIT_DIR"] = "1"
            # The argument of an image names a context of the build.
            args |= {arg: plan.context_name(arg, image) for arg, image in source.images.items()}
        args |= {arg: text.fill(self.variant.words) for arg, text in spec.templates.items()}
        root, image = None, None
        if spec.base is not None and self.pins[spec.base].kind == "image":
            image = self._item(spec.base, lock_items.PinnedImage)
        elif spec.base is not None:
            root = self._root(spec.base)
        return LayerPlan(
            name=name,
            dockerfile=source.dockerfile if source else f"images/{name}/Dockerfile",
            args=dict(sorted(args.items())),
            wheels=wheels,
            find_links=find_links,
            index=index,
            into=spec.wheels.into if spec.wheels is not None else None,
            root=root,
            image=image,
            debs=self._debs(spec.debs) if spec.debs is not None else None,
            source=source,
            patches=self._patches.of_layer(name),
            inputs=tuple(
                self._input(context, name) for context, name in sorted(spec.named_inputs.items())
            ),
            syntax=self._item(spec.syntax, lock_items.PinnedImage) if spec.syntax else None,
            secrets=tuple(spec.secrets),
            ssh=spec.ssh,
            checks=tuple(spec.checks),
            downgrade=spec.downgrade,
        )

    def _root(self, name: str) -> plan.DebianRoot:
        pin = self._pin(name, DebianPin)
        debs = tuple(deb for deb in self._items(name, Deb) if deb.part == plan.ROOT)
        return plan.DebianRoot(**self._archive(name, pin), suite=pin.suite, debs=debs)

    def _debs(self, name: str) -> plan.Debs:
        pin = self.pins[name]
        assert isinstance(pin, DebianPin | DebPin)
        entry = self.lock.entries[name, self.variant.pins[name]]
        return plan.Debs(
            **self._archive(name, pin),
            suite=pin.suite,
            debs=tuple(deb for deb in self._items(name, Deb) if deb.part == plan.MORE),
            names=tuple(sorted(pin.packages)),
            exact=len(entry.requested.get(below.ON, ())) <= 1,
        )

    def _archive(self, name: str, pin: AptPin) -> dict[str, Any]:
        return {
            "pin": name,
            "value": self.variant.pins[name],
            "arch": self.variant.arch,
            "repository": pin.address(self.variant.platform),
            "components": tuple(pin.components),
            "pockets": tuple(pin.pockets),
        }

    def _commit(self, name: str) -> str | None:
        """The commit of a git pin, or the one that an image pin says to be built from."""
        if isinstance(pin := self.pins[name], ImagePin):
            return pin.commit
        return self._item(name, lock_items.Commit).commit if isinstance(pin, GitPin) else None

    def _input(self, context: str, name: str) -> plan.Input:
        # BuildKit looks for no other form of an image's name.
        context = dockerfile.familiar(Template.parse(context).fill(self.variant.words))
        if name == schema.LAYER:
            return plan.Input(context=context, content=None)
        pin, value = self.pins[name], self.variant.pins[name]
        content: lock_items.PinnedImage | plan.GitTree | plan.WebFile
        if isinstance(pin, FilePin):
            file = self._item(name, lock_items.File)
            content = plan.WebFile(
                pin=name, value=value, url=pin.url, size=file.size, sha256=file.sha256,
                # Not the lock's: this one is a name and no path.
                name=pin.file,
            )  # fmt: skip
        elif isinstance(pin, GitPin):
            commit = self._item(name, lock_items.Commit)
            content = plan.GitTree(
                repository=pin.repository, **asdict(commit), pin=name, value=value
            )
        else:
            content = self._item(name, lock_items.PinnedImage)
        return plan.Input(context=context, content=content)

    def _source(self, use: schema.SourceUse) -> plan.SourceBuild:
        pin, commit = self._pin(use.pin, GitPin), self._item(use.pin, lock_items.Commit)
        return plan.SourceBuild(
            pin=use.pin,
            value=self.variant.pins[use.pin],
            repository=pin.repository,
            commit=commit.commit,
            tree=commit.tree,
            dockerfile=use.dockerfile,
            target=use.target,
            context=use.context,
            version=pin.version,
            images={
                arg: None if name == schema.LAYER else self._item(name, lock_items.PinnedImage)
                for arg, name in sorted(use.images.items())
            },
        )
