"""The patches of a variant in its plan, and what each known patch is to it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from sparkimage.config import folders, lock_items, patch_specs, patched_pins, plan, series
from sparkimage.config.address import without_login
from sparkimage.config.lock_items import Commit, Item, PinnedImage, Wheel
from sparkimage.config.lockfile import ANY, Lock
from sparkimage.config.matrix import Matrix
from sparkimage.config.patch_specs import MISSING, PATCHES, State, Verdict
from sparkimage.config.pins import GitPin, Pin, WheelsPin
from sparkimage.config.schema import LayerSpec
from sparkimage.config.series import SERIES, Series
from sparkimage.config.variants import Variant
from sparkimage.core.errors import LockError
from sparkimage.core.program import program


@dataclass(frozen=True, kw_only=True)
class PatchState:
    """What a patch is to a variant."""

    patch: str
    verdict: Verdict
    layer: str | None = None
    """The layer that applies it; ``number`` is its place in that one's series of ``count``."""
    number: int | None = None
    count: int | None = None
    pin: str | None = None
    """The pin and value that it changes."""


@dataclass(frozen=True, kw_only=True)
class PatchPlanner:
    """Plans the patches of one variant."""

    matrix: Matrix
    variant: Variant
    lock: Lock

    @cached_property
    def pins(self) -> Mapping[str, Pin]:
        return self.matrix.pins_of(self.variant)

    @cached_property
    def series(self) -> tuple[Series, ...]:
        return series.of(self.matrix, self.variant)

    def of_layer(self, name: str) -> tuple[plan.PatchSeries, ...]:
        """The plans of a layer's series. Raises ``LockError``."""
        return tuple(self._series(one) for one in self.series if one.layer == name)

    def _known_commit(self, name: str | None) -> str | None:
        """The commit of a pin: the locked one, else what the matrix says."""
        if name is None:
            return None
        items = self.lock.find(name, self.variant.pins[name], ANY) or ()
        locked = (item.commit for item in items if isinstance(item, lock_items.Commit))
        return next(locked, series.commit_of(self.pins[name]))

    def states(self) -> Iterator[PatchState]:
        """What each known patch is to the variant: first those that its layers apply, in their
        order; of the others only those that may be for one of its pins."""
        applied: set[str] = set()
        for one in self.series:
            applied |= {*one.names}
            for number, name in enumerate(one.names, 1):
                yield PatchState(
                    patch=name,
                    layer=one.layer,
                    number=number,
                    count=len(one.names),
                    pin=f"{one.pin} {one.value}" if one.pin is not None else None,
                    verdict=self._judge(one, number),
                )
        lowest = self.matrix.layers[self.variant.layers[0]]
        for name, patch in sorted(self.matrix.patches.items()):
            pins = patched_pins.candidates(patch, LayerSpec(), lowest, self.pins)
            commits = [c for pin in pins if pin in self.pins if (c := self._known_commit(pin))]
            if name not in applied and commits:
                verdict = patch_specs.judge(patch, commit=commits[0], applied=False)
                yield PatchState(patch=name, verdict=verdict)

    def _judge(self, one: Series, number: int) -> Verdict:
        """Whether a patch of a series applies, by its number in it."""
        patch = self.matrix.patches[one.names[number - 1]]
        commit = self._known_commit(one.pin)
        verdict = patch_specs.judge(patch, commit=commit, applied=True)
        if verdict.state is not State.APPLIED:
            return verdict
        if one.pin is None:
            return Verdict(State.APPLIED, "checked in the image")
        if commit is None:
            verdict = Verdict(State.APPLIED, f"to {one.pin} {one.value}")
        if (reason := self.lock.unresolved(SERIES, one.key)) is not None:
            return Verdict(State.UNRESOLVED, reason)
        for item in self.lock.find(SERIES, one.key, self.variant.platform) or ():
            if isinstance(item, lock_items.Step) and item.number == number:
                if item.state == lock_items.PRESENT:
                    return Verdict(State.PRESENT, f"{verdict.reason}, whose files have it already")
                return verdict
        return Verdict(State.UNRESOLVED, "the files that it changes are not in the lock")

    def _series(self, one: Series) -> plan.PatchSeries:
        """The plan of a series. Raises ``LockError``."""
        for number, name in enumerate(one.names, 1):
            verdict = self._judge(one, number)
            if verdict.state not in (State.APPLIED, State.PRESENT):
                raise LockError(
                    f"patch {name} does not fit variant {self.variant.name}: {verdict.reason}",
                    hint=f"correct {folders.PATCH_FILE}, take the patch out of the variant's "
                    f"layers, or look at `{program()} patches`",
                )
        items = () if one.pin is None or one.value is None else self.lock.items(
            one.pin, one.value, self.variant.platform
        )  # fmt: skip
        made = to_plan(self.matrix, one, items, lambda name: self._text(name).sha256)
        targets = self._targets(one)
        projects = [patch.project for patch in (*made.below, *made.patches)]
        wheels = wheels_of(made.wheels, projects, (target.path for target in targets))
        return replace(made, wheels=wheels, targets=targets)

    def _targets(self, one: Series) -> tuple[lock_items.Target, ...]:
        """Every file that a series changes."""
        if one.pin is not None:
            items = self.lock.items(SERIES, one.key, self.variant.platform)
            return tuple(item for item in items if isinstance(item, lock_items.Target))
        targets: dict[str, lock_items.Target] = {}
        for name in one.names:
            patch, text = self.matrix.patches[name], self._text(name)
            path, expects = str(patch.replaces), str(patch.expects)
            targets[path] = lock_items.Target(
                path=path, before=targets[path].before if path in targets else expects,
                after=text.sha256, size=text.size,
                mode="644" if expects == MISSING else lock_items.KEPT,
            )  # fmt: skip
        return tuple(targets.values())

    def _text(self, name: str) -> lock_items.PatchText:
        (text,) = self.lock.items(PATCHES, name, ANY)
        assert isinstance(text, lock_items.PatchText)
        return text


def to_plan(
    matrix: Matrix, one: Series, items: Sequence[Item], sha256: Callable[[str], str]
) -> plan.PatchSeries:
    """The plan of a series whose files are not known yet: it has every wheel of its pin.

    ``items`` is what its pin resolves to, ``sha256`` gives the hash of a patch's file.
    """
    pin = matrix.pins[one.pin][one.value] if one.pin is not None and one.value is not None else None
    roots = {matrix.patches[name].root for name in one.names}
    return plan.PatchSeries(
        pin=one.pin,
        value=one.value,
        repository=pin.repository if isinstance(pin, GitPin) else None,
        commit=next((item.commit for item in items if isinstance(item, Commit)), None),
        wheels=tuple(item for item in items if isinstance(item, Wheel)),
        find_links=pin.find_links if isinstance(pin, WheelsPin) else None,
        index=tuple(map(without_login, pin.index)) if isinstance(pin, WheelsPin) else (),
        python=pin.python if isinstance(pin, WheelsPin) else None,
        image=next((item for item in items if isinstance(item, PinnedImage)), None),
        root=one.root,
        installed=next(iter(roots)) if one.root is None and len(roots) == 1 else None,
        below=tuple(patch_plan(matrix, name, sha256(name)) for name in one.below),
        patches=tuple(patch_plan(matrix, name, sha256(name)) for name in one.names),
        targets=(),
    )


def patch_plan(matrix: Matrix, name: str, sha256: str) -> plan.PatchPlan:
    """The plan of one patch, whose file has this hash."""
    patch = matrix.patches[name]
    return plan.PatchPlan(
        name=name,
        kind=patch.kind,
        repository=patch.repository,
        commit=patch.commit,
        path=patch.path,
        url=patch.url,
        sha256=sha256,
        replaces=patch.replaces,
        expects=patch.expects,
        exclude=tuple(patch.exclude),
        project=patch.project,
    )


def wheels_of(
    wheels: Iterable[Wheel], projects: Iterable[str | None], paths: Iterable[str]
) -> tuple[Wheel, ...]:
    """The wheels with the files of patches: each patch's `project`, and those that are called as
    the first folder of a path."""
    from packaging.utils import canonicalize_name

    names = {canonicalize_name(project) for project in projects if project is not None}
    names |= {canonicalize_name(path.partition("/")[0].removesuffix(".py")) for path in paths}
    return tuple(wheel for wheel in wheels if wheel.name in names)
