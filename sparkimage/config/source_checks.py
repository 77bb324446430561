"""What a source's own Dockerfile has against its layer: said before anything is built. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from sparkimage.config import dockerfile
from sparkimage.config.dockerfile import PREDEFINED, Dockerfile, Reach, Use
from sparkimage.config.matrix import Matrix
from sparkimage.config.pins import version_argument
from sparkimage.config.plan import LayerPlan, Plan, SourceBuild, context_name
from sparkimage.config.schema import LAYER, LayerSpec, SourceUse
from sparkimage.config.validation import Finding, nearest


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A source's Dockerfile at its commit."""

    text: str | None
    """None where the commit has no such file."""
    paths: tuple[str, ...] = ()
    """The paths of the commit, then."""


def findings(
    matrix: Matrix, plan: Plan, layer: LayerPlan, source: SourceBuild, file: SourceFile
) -> Iterator[Finding]:
    """Every problem, with its key below the layer in matrix.yaml."""
    spec = matrix.layers[layer.name]
    assert spec.source is not None
    path = source.path(source.dockerfile)
    where = f"{path} of {source.pin} {source.value} ({source.commit[:9]})"
    if file.text is None:
        known = [path for path in file.paths if "dockerfile" in path.rpartition("/")[2].lower()]
        what = f"{source.pin} {source.value} ({source.commit[:9]}) has no {path}"
        yield ("source", "dockerfile"), what, nearest(path, known)
        return
    read = dockerfile.parse(file.text)
    contexts = {taken.context for taken in layer.inputs}
    contexts |= {context_name(arg, image) for arg, image in source.images.items()}
    try:
        reach = read.reach(spec.source.target, layer.args, contexts)
    except KeyError:
        what = f"{where} has no target {spec.source.target!r}"
        yield ("source", "target"), what, nearest(str(spec.source.target), read.targets)
        return
    yield from _arguments(spec, spec.source, read, reach, where)
    yield from _without_name(read, layer, where)
    yield from _images(spec, layer, reach, contexts, where)
    yield from _versions(matrix, plan, spec, read, reach, where)


def _arguments(
    spec: LayerSpec, use: SourceUse, read: Dockerfile, reach: Reach, where: str
) -> Iterator[Finding]:
    """The arguments that the Dockerfile does not have."""
    known = {*read.args, *(arg for stage in reach.stages for arg in stage.args)}
    keys = [("args", arg) for arg in spec.args]
    for key in [*keys, *(("source", "images", arg) for arg in use.images)]:
        if key[-1] not in known and not PREDEFINED.fullmatch(key[-1]):
            what = f"{where} has no argument {key[-1]}"
            yield key, what, f"{nearest(key[-1], known)}; else remove it"


def _without_name(read: Dockerfile, layer: LayerPlan, where: str) -> Iterator[Finding]:
    """Each FROM whose arguments make no image's name: BuildKit refuses it in every stage, also in
    one that the target does without."""
    values = read.values(layer.args)
    for use in (stage.uses[0] for stage in read.stages):
        name = dockerfile.expand(use.name, values)
        if not name or name != name.strip(":/@"):
            arguments = [match[1] or match[4] for match in dockerfile.VARIABLE.finditer(use.name)]
            what = f"{where}, line {use.line}, takes FROM {use.written}, which is {name!r} here"
            yield ("args",), what, f"give {' and '.join(arguments)} a value: `args`, or `images`"


def _images(
    spec: LayerSpec, layer: LayerPlan, reach: Reach, contexts: set[str], where: str
) -> Iterator[Finding]:
    """What the target takes from outside that nothing pins, and a base that is not the layer."""
    for found in reach.outside:
        name = dockerfile.familiar(found.name)
        if name.lower() in ("", dockerfile.SCRATCH) or name != name.strip(":/@"):
            continue
        if name not in contexts:
            what = f"{where}, line {found.line}, takes {found}, which no pin of the layer has"
            yield ("source",), what, _named(found, "PIN")
    below = {LAYER, *(taken.context for taken in layer.inputs if taken.content is None)}
    if spec.takes_below and dockerfile.familiar(reach.base.name) not in below:
        what = f"{where}: the target is built {reach.base}, not on the layer below"
        yield ("source", "images"), what, _named(reach.base, LAYER)


def _named(use: Use, pin: str) -> str:
    """The next action: how a source says that ``pin`` stands for what its Dockerfile names."""
    argument = dockerfile.VARIABLE.fullmatch(use.written)
    if argument is not None:
        key = f"`images: {{{argument[1] or argument[4]}: {pin}}}`"
    else:
        key = f'`inputs: {{"{dockerfile.familiar(use.name)}": {pin}}}`'
    return f"pin it, and name the pin: {key}" if pin != LAYER else f"write {key}"


def _versions(
    matrix: Matrix, plan: Plan, spec: LayerSpec, read: Dockerfile, reach: Reach, where: str
) -> Iterator[Finding]:
    """Versions of pins that the Dockerfile has an argument for, and other ones in mind."""
    values = read.values({})
    own = {arg: value for stage in reach.stages for arg, value in stage.args.items() if value}
    layers = [matrix.layers[layer.name] for layer in plan.layers]
    for pin, version in plan.versions.items():
        arg = version_argument(pin)
        default = own.get(arg) or values.get(arg)
        # 12.9 is any 12.9.x.
        if not default or f"{version}.".startswith(f"{default}.") or arg in spec.args:
            continue
        asks = f"{where}, line {read.lines[arg]}, has {arg}={default}"
        if pin not in spec.uses:
            what = f"{asks}, and the image gets {pin} {version}: it would be built for another one"
            yield ("source",), what, f"pass the pin's version: add `pins: [{pin}]` to the layer"
        lower = any(layer.downgrade and pin in layer.uses for layer in layers)
        if _older(version, default) and not lower:
            what = f"{asks}; {pin} {version} is older"
            yield (), what, f"pin {default} or a newer one, or write `downgrade: true` here"


def _older(version: str, other: str) -> bool:
    try:
        return Version(version) < Version(other)
    except InvalidVersion:
        return False
