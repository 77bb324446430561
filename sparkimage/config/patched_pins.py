"""Which pin of a variant a patch is for, and what is wrong with that. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sparkimage.config import folders, patch_specs, validation
from sparkimage.config.patch_specs import Patch
from sparkimage.config.pins import GitPin, ImagePin, Pin, WheelsPin
from sparkimage.config.schema import LayerSpec
from sparkimage.config.variants import Variant

KINDS = ("git", "image", "wheels")
"""Of the pins that can be patched."""


def candidates(
    patch: Patch, layer: LayerSpec, lowest: LayerSpec, pins: Mapping[str, Pin]
) -> tuple[str, ...]:
    """The pins of a variant that ``patch`` of ``layer`` may be for: one where it is clear.

    ``lowest`` is the variant's lowest layer.
    """
    if patch.pin is not None:
        return (patch.pin,)
    if layer.source is not None:
        return (layer.source.pin,)
    commits = {
        name: pin.commit
        for name, pin in pins.items()
        if isinstance(pin, GitPin | ImagePin) and pin.commit is not None
    }
    if mentioned := [name for name in commits if patch_specs.mentions(patch, commits[name])]:
        return tuple(mentioned)
    if forks := [name for name, pin in pins.items() if pin.kind == "git"] or list(commits):
        return tuple(forks)
    base = pins.get(lowest.base or "")
    return (str(lowest.base),) if base is not None and base.kind == "image" else ()


def problems(
    variant: Variant,
    layers: Mapping[str, LayerSpec],
    patches: Mapping[str, Patch],
    pins: Mapping[str, Mapping[str, Pin]],
) -> Iterator[tuple[str, str, str]]:
    """What is wrong with the patches of a variant: the layer, what, and the next action."""
    used = {
        name: pins[name][value]
        for name, value in variant.pins.items()
        if value in pins.get(name, {})
    }
    known = [name for name in variant.layers if name in layers]
    seen: dict[str, str] = {}
    for name in known:
        layer = layers[name]
        for one in (one for one in layer.patches if one in patches):
            patch, title = patches[one], f"variant {variant.name}: layer {name}: patch {one}"
            if (other := seen.setdefault(one, name)) != name or layer.patches.count(one) > 1:
                yield name, f"{title} is applied twice (layer {other})", "keep one of them"
            of_it = candidates(patch, layer, layers[known[0]], used)
            if of_it and of_it[0] not in pins:
                what = f"layer {name}: patch {one} is for {of_it[0]}, which is not in pins"
                todo = validation.nearest(of_it[0], pins)
                yield name, what, f"correct `for` in {folders.PATCH_FILE}: {todo}"
                continue
            yield from ((name, f"{title} {what}", todo) for what, todo in _wrong(
                patch, layer, of_it, used
            ))  # fmt: skip


def _wrong(
    patch: Patch,
    layer: LayerSpec,
    of_it: Sequence[str],
    used: Mapping[str, Pin],
) -> Iterator[tuple[str, str]]:
    where = f"in {folders.PATCH_FILE}"
    if len(of_it) > 1:
        names = " or ".join(sorted(of_it))
        yield f"may be for {names}", f"say which {where}: `for: {min(of_it)}`"
        return
    if not of_it:
        if patch.replaces is None or patch.expects is None:
            yield "is for no pin of the variant", f"say which {where}: `for: PIN`"
    elif of_it[0] not in used:
        yield f"is for pin {of_it[0]}, which the variant has no value of", f"correct `for` {where}"
    elif layer.source is not None and of_it[0] != layer.source.pin:
        todo = f"apply it in a layer above, or correct `for` {where}"
        yield f"is for {of_it[0]}, and the source is built from {layer.source.pin}", todo
    elif used[of_it[0]].kind not in KINDS:
        todo = f"a pin of kind {', '.join(KINDS)} can be patched"
        yield f"is for {of_it[0]}, which is of kind {used[of_it[0]].kind}", todo
    if layer.source is None and patch.root is None:
        yield (
            "has no `root`",
            f"name the folder of the image that has its files {where}: `root: /…`",
        )
    if patch.project is not None and of_it and not isinstance(used.get(of_it[0]), WheelsPin):
        yield "has a `project`, and its pin is of no wheels", f"remove it {where}"
