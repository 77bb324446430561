"""What can be wrong with a matrix beyond its form."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparkimage.config import dockerfile, folders, patched_pins
from sparkimage.config.patch_specs import PATCHES, Patch
from sparkimage.config.pins import (
    FILE_NAME,
    PYTHON_ARGUMENT,
    DebianPin,
    FilePin,
    GitPin,
    ImagePin,
    version_argument,
    version_of,
)
from sparkimage.config.schema import LAYER, NOT, Expect, LayerSpec, MatrixFile, Selector
from sparkimage.config.template import Template
from sparkimage.config.validation import Report
from sparkimage.config.variants import (
    ARCH,
    PLATFORM,
    Variant,
    expecting,
    known_values,
    template,
)
from sparkimage.config.yamlfile import Key

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""A valid tag: https://github.com/opencontainers/distribution-spec/blob/main/spec.md"""
OWN_CONTEXTS = {
    "tools": "the folder with step.sh",
    "inputs": "the folder with the layer's locked files",
    "uv": "the folder with the static uv",
}
"""Build contexts that our layers have."""
RELEASE = r"[0-9]+(\.[0-9]+)+[a-z0-9.]*"
"""The name of a value that is its version, too: Python's form (PEP 440), with a dot."""
TRIPLE = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}"
USUAL = rf"{TRIPLE}(-[a-z][a-z0-9]*)?"
"""How versions of https://semver.org begin, and most of them."""
RESERVED_SECRETS = ("ca", "index")
"""Of the step that installs wheels."""
MAX_VARIANTS = 10_000
"""Of the axes' product."""
HUGE = 10**18
CUDA = r"\d{1,9}(\.\d{1,9})*"
RESERVED = {
    PATCHES: "matrix.lock has the patches under this name",
    LAYER: "among the images of a source this is the layer below",
    PLATFORM: "it is the axis of the platforms",
    ARCH: "{arch} is the platform's architecture",
}
"""Names that no pin and no axis of a project's own can have."""


@dataclass(frozen=True, kw_only=True)
class MatrixChecks:
    """Adds the problems of a well-formed matrix file to ``report``."""

    report: Report
    spec: MatrixFile
    patches: Mapping[str, Patch]
    images: Path
    """The folder with a folder for each layer."""

    def check_pins(self) -> None:
        """Check names and versions; a pin without a version gets the name of its value."""
        for name in RESERVED.keys() & self.spec.pins.keys():
            what = f"no pin can be called {name!r}: {RESERVED[name]}"
            self.report.add(("pins", name), what, "rename the pin")
        arguments = {PYTHON_ARGUMENT: "Python's X.Y"}
        for name, values in self.spec.pins.items():
            argument, title = version_argument(name), f"the version of pin {name}"
            if (other := arguments.setdefault(argument, title)) != title:
                what = f"a pin cannot be called {name!r}: the build argument {argument} is {other}"
                self.report.add(("pins", name), what, "rename the pin")
            for value, pin in values.items():
                if isinstance(pin, FilePin) and not re.fullmatch(FILE_NAME, pin.file):
                    what = f"pin {name}: {pin.file!r}, the end of its `url`, is no file name here"
                    self.report.add(("pins", name, value, "url"), what, "give it a `name:`")
                if not isinstance(pin, DebianPin):
                    values[value] = pin.model_copy(update={"version": self._version(name, value)})

    def _version(self, name: str, value: str) -> str | None:
        """The version of a pin: the one that it says, or else its value's name, if that is one."""
        pin = self.spec.pins[name][value]
        if isinstance(pin, DebianPin):
            return None
        if isinstance(pin, FilePin):
            return pin.version or value
        version = pin.version or value
        if isinstance(pin, GitPin):
            return version if pin.version or re.fullmatch(RELEASE, value) else None
        if _is_semver(version) or (
            not isinstance(pin, ImagePin) and re.fullmatch(RELEASE, version)
        ):
            return version
        if pin.version is not None:
            self.report.add(
                ("pins", name, value, "version"),
                f"pin {name}: {version!r} is not a version",
                "write MAJOR.MINOR.PATCH (numbers without leading zeros), or remove it",
            )
        return None

    def check_layers(self) -> None:
        """Check each layer's folder, and every name that it refers to."""
        spec, require = self.spec, self.report.require
        for name, layer in spec.layers.items():
            key: Key = ("layers", name)
            own = layer.source is not None or (self.images / name / "Dockerfile").is_file()
            if not own and not layer.only_installs:
                what = f"layer {name} has no images/{name}/Dockerfile"
                todo = "write it (it begins `FROM layer`), or remove the layer"
                if len(layer.installed) > 1:
                    parts = " and ".join(f"`{part}`" for part in layer.installed)
                    todo = f"write it (it begins `FROM layer`), or give {parts} a layer each"
                self.report.add(key, what, todo)
            for pin in layer.uses:
                what = f"layer {name} uses pin {pin!r}, which is not in pins"
                require(key, pin, spec.pins, what)
            self._check_source(name, layer)
            self._check_inputs(name, layer)
            self._check_templates(name, layer)
            for i, other in enumerate(layer.checks):
                what = f"layer {name} takes the checks of {other!r}, which is no layer"
                require((*key, "checks", i), other, spec.layers, what)
            for i, patch in enumerate(layer.patches):
                what = f"layer {name} applies patch {patch!r}, which is not in {folders.PATCH_FILE}"
                todo = f"write {folders.PATCH_FILE}"
                require((*key, "patches", i), patch, self.patches, what, if_none=todo)

    def _check_source(self, name: str, layer: LayerSpec) -> None:
        """Check a layer that is built by a repository's own Dockerfile."""
        if layer.source is None:
            return
        for field in ("base", "debs", "wheels", "inputs"):
            if getattr(layer, field):
                self.report.add(
                    ("layers", name, field),
                    f"layer {name} has a `source`, whose Dockerfile would ignore its `{field}`",
                    f"move `{field}` to a layer of its own: below {name}, or above it to change "
                    "what the source installs"
                    if field != "inputs"
                    else "move `inputs` into the `source`",
                )

    def _check_inputs(self, name: str, layer: LayerSpec) -> None:
        """Check the names of a layer's build contexts and secrets."""
        key: Key = ("layers", name) if layer.source is None else ("layers", name, "source")
        taken = {LAYER: "the layer below", "scratch": "the empty image"}
        if layer.source is None:
            # BuildKit would take the context in place of a stage that is called so.
            taken |= {**OWN_CONTEXTS, name: "the stage of its own Dockerfile"}
        else:
            taken |= {arg.lower(): f"the image of {arg}" for arg in layer.source.images}
        for written in layer.named_inputs:
            context = dockerfile.familiar(written)
            if context in taken:
                what = f"layer {name} has an input called {context!r}: that is {taken[context]}"
                self.report.add((*key, "inputs", written), what, "give the context another name")
            taken[context] = "another one of its inputs"
        for i, secret in enumerate(layer.secrets):
            if secret in RESERVED_SECRETS:
                what = f"layer {name} has a secret called {secret!r}, as the step of the wheels has"
                self.report.add(("layers", name, "secrets", i), what, "give it another name")

    def _check_templates(self, name: str, layer: LayerSpec) -> None:
        """Check the ``{axis}`` in a layer's arguments."""
        known = (*known_values(self.spec), ARCH)
        texts: list[tuple[Key, str]] = [(("args", arg), text) for arg, text in layer.args.items()]
        texts += [(("expect", "cuda"), layer.expect.cuda or "")]
        place = ("inputs",) if layer.source is None else ("source", "inputs")
        texts += [((*place, context), context) for context in layer.named_inputs]
        more = "; a brace of the value itself is doubled: {{ or }}"
        for below, text in texts:
            title = f"layer {name}: {'.'.join(map(str, below))}"
            template(self.report, ("layers", name, *below), text, known, title, more)

    def check_selectors(self) -> None:
        """Check the axes and values that `when` and `exclude` name."""
        known = known_values(self.spec)
        for name, layer in self.spec.layers.items():
            for axis, selector in layer.when.items():
                key, title = ("layers", name, "when", axis), f"layer {name}: `when`"
                self._check_selector(key, title, axis, selector, known, strict=True)
        axes = {axis: dict.fromkeys(values) for axis, values in self.spec.axes.items()}
        for i, entry in enumerate(self.spec.exclude):
            for axis, selector in entry.items():
                # A value that has left its axis is only idle here, but "!VALUE" is then all.
                self._check_selector(("exclude", i, axis), "exclude", axis, selector, axes)

    def _check_selector(
        self, key: Key, title: str, axis: str, selector: Selector,
        known: Mapping[str, Collection[str]], *, strict: bool = False,
    ) -> None:  # fmt: skip
        if axis not in known:
            self.report.require(key, axis, known, f"{title} names {axis!r}, which is no axis")
            return
        for i, choice in enumerate([selector] if isinstance(selector, str) else selector):
            if strict or choice.startswith(NOT) or isinstance(selector, list):
                value = choice.removeprefix(NOT)
                what = f"{title} names {axis} {value!r}, which is no value of it"
                self.report.require((*key, i), value, known[axis], what)

    def check_axes(self) -> None:
        """Check names, values and the number of variants."""
        axes, pins = self.spec.axes, self.spec.pins
        for axis, values in axes.items():
            for i in (i for i, value in enumerate(values) if values.index(value) < i):
                what = f"axis {axis} has {values[i]!r} twice"
                self.report.add(("axes", axis, i), what, "keep one of the two")
            known: Collection[str] = pins.get(axis, {})
            what = f"axis {axis} has {{!r}}, which is not in pins.{axis}"
            if axis == PLATFORM:
                known = {p for layer in self.spec.layers.values() for p in layer.platforms}
                what = "no layer supports platform {!r}"
            elif axis not in pins:
                self._check_free_axis(axis, values)
                continue
            for i, value in enumerate(values):
                self.report.require(("axes", axis, i), value, known, what.format(value))
        product = math.prod(len(values) for values in axes.values())
        if product > MAX_VARIANTS:
            number = f"{product:,}" if product < HUGE else f"over {HUGE:,}"
            self.report.add(
                ("axes",),
                f"the axes multiply to {number} variants; the limit is {MAX_VARIANTS:,}",
                "remove values, or list the variants under `include`",
            )
        if PLATFORM not in axes and (axes or not self.spec.include):
            self.report.add(("axes",), "there is no platform axis", "add `platform: [linux/arm64]`")

    def _check_free_axis(self, axis: str, values: Sequence[str]) -> None:
        """Check an axis that is no pin."""
        if axis in RESERVED:
            what = f"no axis can be called {axis!r}: {RESERVED[axis]}"
            self.report.add(("axes", axis), what, "rename the axis")
        for i, value in enumerate(values):
            if value.startswith(NOT):
                what = f"axis {axis} has {value!r}, which would mean all but {value[1:]!r}"
                self.report.add(("axes", axis, i), what, "begin it with another character")

    def check_variant(self, variant: Variant, key: Key) -> None:
        """Check that the layers of a variant go together, and with the values of its pins."""
        title, pins = f"variant {variant.name}", self.spec.pins
        layers_key: Key = (*key[:-1], "layers")
        if not TAG.fullmatch(variant.name):
            what = f"{variant.name!r} cannot be an image's tag"
            self.report.add(key, what, "use letters, digits, `.-_`")
        for name in sorted(name for name, n in Counter(variant.layers).items() if n > 1):
            what = f"the layer {name} is here more than once"
            self.report.add(layers_key, what, "keep one of them")
        pythons = {
            f"{pin} {value} ({python})": python
            for pin, value in variant.pins.items()
            if (python := getattr(pins[pin].get(value), "python", None)) is not None
        }
        if len(set(pythons.values())) > 1:
            what = f"{title}: its pins are for different Pythons: {', '.join(sorted(pythons))}"
            self.report.add(key, what, "use pins of one `python`")
        if not variant.layers:
            what, todo = f"{title} has no layer: the `when` of each leaves it out", "correct them"
            self.report.add(layers_key, what, todo)
        rest: dict[str, str] = {}
        expected: dict[str, tuple[str, str]] = {}
        for name in variant.layers:
            if name not in self.spec.layers:
                self.report.require(layers_key, name, self.spec.layers, f"unknown layer {name!r}")
                continue
            layer = self.spec.layers[name]
            self._check_layer_of(variant, key, name, layer)
            self._check_expected(variant, layers_key, name, expected)
            if layer.wheels is not None and not layer.wheels.select:
                pin = layer.wheels.pin
                if rest.get(pin, name) != name:
                    what = f"layers {rest[pin]} and {name} both take the rest of pin {pin}"
                    self.report.add(layers_key, what, "give one of them a `select`")
                rest[pin] = name

    def _check_layer_of(self, variant: Variant, key: Key, name: str, layer: LayerSpec) -> None:
        """Check one layer of a variant, and the values of the pins that it uses."""
        title = f"variant {variant.name}: layer {name}"
        if variant.platform not in layer.platforms:
            what = f"{title} does not support {variant.platform}"
            self.report.add(key, what, f"layers.{name}.platforms has {', '.join(layer.platforms)}")
        for pin in layer.uses:
            if pin not in variant.pins:
                what = f"{title} needs a value for pin {pin}"
                todo = f"add an axis {pin}, or `pins: {{{pin}: ...}}` to the include"
                self.report.add(key, what, todo)
        for axis in sorted(layer.filled - variant.words.keys()):
            what = f"{title} needs a value for {{{axis}}}"
            self.report.add(
                key, what, f"add an axis {axis}, or `axes: {{{axis}: …}}` to the include"
            )
        for role, pin, kinds in layer.roles:
            value = variant.pins.get(pin, "")
            # A value that is not there is a problem of its own.
            spec = self.spec.pins[pin].get(value)
            if spec is not None and spec.kind not in kinds:
                what = f"{title} has {pin} as `{role}`, but {pin} {value} is a {spec.kind} pin"
                self.report.add(key, what, f"`{role}` takes a pin of kind {' or '.join(kinds)}")
        lowest = name == variant.layers[0]
        if layer.source is not None:
            self._check_below(title, name, layer, lowest=lowest)
        elif (layer.base is not None) != lowest:
            what = f"{title} has a `base`, but is not the lowest"
            if layer.base is None:
                what = f"{title} is the lowest, but has no `base`"
            self.report.add(key, what, "the lowest layer, and no other, has a `base`")

    def _check_below(self, title: str, name: str, layer: LayerSpec, *, lowest: bool) -> None:
        """Check that a source is built on the layer below, if there is one."""
        if lowest == layer.takes_below:
            what = f"{title} takes no layer below: the image would have nothing of it"
            todo = (
                "give the layer below to the argument of the Dockerfile's last FROM: "
                f"`images: {{FINAL_BASE_IMAGE: {LAYER}}}`, or `inputs: {{IMAGE: {LAYER}}}` where "
                "it has none; or make it the lowest layer"
            )
            if lowest:
                what = f"{title} is the lowest, but it takes the layer below"
                todo = f"give it an image pin in place of `{LAYER}`, or a layer below it"
            self.report.add(("layers", name, "source"), what, todo)

    def _check_expected(
        self, variant: Variant, key: Key, name: str, expected: dict[str, tuple[str, str]]
    ) -> None:
        """Check that what a layer expects of the image is what those below it do."""
        title = f"variant {variant.name}"
        for one, expectation, wanted in self.expectations[name]:
            other, same = expected.setdefault(expectation, (one, wanted))
            if same != wanted:
                self.report.add(
                    key,
                    f"{title}: layers {other} and {one} expect {expectation} {same} and {wanted}",
                    "leave out one of the layers, or let them expect the same",
                )
            if expectation == "cuda":
                self._check_cuda(variant, key, one, wanted)
            if expectation not in Expect.PINS:
                continue
            value = variant.pins.get(wanted, "")
            pin = self.spec.pins[wanted].get(value)
            if pin is not None and version_of(pin) is None:
                what = f"{title}: layer {one} expects the version of {wanted}, but {wanted} {value}"
                self.report.add(key, f"{what} has none", "give it one, or name another pin")
            elif pin is None and one != name:
                # Of its own pins the layer says so itself.
                what = f"{title}: layer {name} has the checks of {one}, which expects {wanted}"
                self.report.add(key, what, f"add a value for pin {wanted}")

    def _check_cuda(self, variant: Variant, key: Key, name: str, text: str) -> None:
        """Check the CUDA that a layer, or one whose checks it takes, expects of a variant."""
        parsed, title = Template.parse(text), f"variant {variant.name}"
        if missing := parsed.missing(variant.words):
            what = f"{title}: layer {name} expects CUDA {text}, and it has no {missing[0]}"
            self.report.add(key, what, f"give it a value of {missing[0]}")
        elif not re.fullmatch(CUDA, cuda := parsed.fill(variant.words)):
            what = f"{title}: layer {name} expects CUDA {cuda}, which is no version"
            self.report.add(key, what, "write it as X.Y, or name an axis whose values are so")

    @cached_property
    def expectations(self) -> Mapping[str, tuple[tuple[str, str, str], ...]]:
        """What each layer expects of the image: the layer that says so, the key and its value."""
        layers = self.spec.layers
        return {
            name: tuple(
                (one, what, value)
                for one in expecting(layers, name)
                for what, value in layers[one].expect
                if value is not None
            )
            for name in layers
        }

    def check_patches(self, variant: Variant) -> None:
        """Check that each patch of a variant is for one of its pins."""
        found = patched_pins.problems(variant, self.spec.layers, self.patches, self.spec.pins)
        for layer, what, todo in found:
            self.report.add(("layers", layer, "patches"), what, todo)

    def check_bake_targets(self, names: Sequence[str]) -> None:
        """Check that names also differ as those of bake's targets, which have fewer characters."""
        targets: dict[str, str] = {}
        for name in names:
            other = targets.setdefault(re.sub(r"[^a-zA-Z0-9_-]", "_", name), name)
            if other != name:
                self.report.add(
                    ("defaults", "name"),
                    f"the variants {other!r} and {name!r} cannot be told apart by bake",
                    "let them differ in more than `.` and `_`",
                )


def _is_semver(text: str) -> bool:
    """Whether this is a version of https://semver.org. The usual ones, and what does not begin as
    one, need no parser."""
    if re.fullmatch(USUAL, text):
        return True
    if not re.match(TRIPLE, text):
        return False
    from semver import Version

    return Version.is_valid(text)
