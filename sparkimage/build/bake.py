"""From a plan to the definition that ``docker buildx bake`` executes. Pure.

Every layer is a target of its own whose named context ``layer`` is the target below
(https://docs.docker.com/build/bake/contexts/); only the variant's own target has an output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from sparkimage.config.address import Mirrors
from sparkimage.config.lockfile import PinnedImage
from sparkimage.config.plan import LayerPlan, Plan, context_name
from sparkimage.resolve.context import Inputs

NO_MIRRORS = Mirrors()
INDEX_VARIABLE = "SPARKIMAGE_INDEX"
"""Environment variable that holds the address of the wheels' mirror while bake runs."""

COMPRESSION = "compression=zstd,force-compression=true,oci-mediatypes=true"
"""zstd took 79 s for 7.7 GB on 2 cores where plain tar took 104 s (the disk was the limit) and
gzip 125 s, and it is half the bytes in the store and on the wire."""


def target_name(plan: Plan, layer: str | None = None) -> str:
    """The bake target of a variant, or of one of its layers below the last."""
    # bake's names know no dots: https://docs.docker.com/build/bake/reference/#target
    variant = re.sub(r"[^a-zA-Z0-9_-]", "_", plan.variant)
    return variant if layer is None else f"{variant}--{layer}"


def definition(
    plans: Sequence[Plan],
    inputs: dict[str, Inputs],
    mirrors: Mirrors = NO_MIRRORS,
    cache: str | None = None,
) -> dict[str, Any]:
    """The bake file for these plans; ``inputs`` by variant name.

    ``cache`` is a REGISTRY/REPOSITORY that keeps the build cache, a tag for each variant.
    """
    targets: dict[str, Any] = {}
    for plan in plans:
        given = inputs[plan.variant]
        below = _bottom(plan.layers[0], mirrors)
        for layer in plan.layers:
            last = layer is plan.layers[-1]
            name = target_name(plan, None if last else layer.name)
            if layer.source is not None:
                targets |= _builders(plan, layer, given, mirrors)
            targets[name] = {
                **(
                    _target(layer, given, below)
                    if layer.source is None
                    else _source_target(plan, layer, below, mirrors)
                ),
                "args": {**layer.args, "SOURCE_DATE_EPOCH": str(plan.epoch)},
                "platforms": [plan.platform],
                # Provenance would make the index differ each time; what is attested is the seal.
                "attest": ["type=provenance,disabled=true"],
                "output": ["type=cacheonly"],
            }
            below = f"target:{name}"
            if last:
                targets[name] |= {
                    "labels": dict(plan.labels),
                    "output": [f"type=image,name={plan.image},{COMPRESSION}"],
                }
            if cache is not None:
                ref = f"type=registry,ref={cache}:{plan.variant}"
                targets[name]["cache-from"] = [ref]
                if last:
                    # A cache that cannot be written must not fail an image that was built.
                    targets[name]["cache-to"] = [
                        f"{ref},mode=max,ignore-error=true,image-manifest=true,compression=zstd"
                    ]
    return {
        "group": {"default": {"targets": [target_name(plan) for plan in plans]}},
        "target": targets,
    }


def policy(plans: Sequence[Plan], mirrors: Mirrors = NO_MIRRORS) -> dict[str, Any]:
    """What BuildKit may read for these plans: nothing but what the lock holds, and local files.

    https://docs.docker.com/build/policies/; of two rules that fit, the later one counts.
    """
    allowed = set()
    for plan in plans:
        for layer in plan.layers:
            allowed |= {_reference(image, mirrors) for image in layer.images}
            if layer.source is not None:
                allowed.add(_git_identifier(layer, mirrors))
    return {
        "rules": [
            {"action": "DENY", "selector": {"identifier": "*", "matchType": "WILDCARD"}},
            {"action": "ALLOW", "selector": {"identifier": "local://*", "matchType": "WILDCARD"}},
            *(
                {"action": "ALLOW", "selector": {"identifier": one, "matchType": "EXACT"}}
                for one in sorted(allowed)
            ),
        ]
    }


def _bottom(layer: LayerPlan, mirrors: Mirrors) -> str:
    """The context that the lowest layer stands on."""
    return "docker-image://scratch" if layer.image is None else _reference(layer.image, mirrors)


def _reference(image: PinnedImage, mirrors: Mirrors) -> str:
    return f"docker-image://{mirrors.of(image.name)}@{image.digest}"


def _git_context(layer: LayerPlan, mirrors: Mirrors) -> str:
    assert layer.source is not None
    return f"{mirrors.of(layer.source.repository)}#{layer.source.commit}"


def _git_identifier(layer: LayerPlan, mirrors: Mirrors) -> str:
    """How BuildKit names a git source: without the address's own scheme and user.

    https://github.com/moby/buildkit/blob/master/client/llb/source.go (Git)
    """
    context = urlsplit(_git_context(layer, mirrors))
    return f"git://{context.netloc.rpartition('@')[2]}{context.path}#{context.fragment}"


def _builders(
    plan: Plan, layer: LayerPlan, given: Inputs, mirrors: Mirrors
) -> dict[str, dict[str, Any]]:
    """The images that a source is compiled in, told the version that it cannot find by itself.

    setuptools_scm dies on the fork's letter-suffixed tags; its Dockerfile takes no argument for
    that, but its stages inherit the environment of the image that they stand on.
    """
    assert layer.source is not None
    return {
        _builder_name(plan, layer, arg): {
            "context": str((given.project / "images" / "_builder").resolve()),
            "contexts": {"layer": _reference(image, mirrors)},
            "args": {"VERSION": layer.source.version},
            "platforms": [plan.platform],
            "attest": ["type=provenance,disabled=true"],
            "output": ["type=cacheonly"],
        }
        for arg, image in layer.source.images.items()
        if image is not None
    }


def _builder_name(plan: Plan, layer: LayerPlan, arg: str) -> str:
    return target_name(plan, f"{layer.name}--{arg.lower()}")


def _source_target(plan: Plan, layer: LayerPlan, below: str, mirrors: Mirrors) -> dict[str, Any]:
    source = layer.source
    assert source is not None
    contexts = {
        context_name(arg, image): below
        if image is None
        else f"target:{_builder_name(plan, layer, arg)}"
        for arg, image in source.images.items()
    }
    return {
        "context": _git_context(layer, mirrors),
        "dockerfile": source.dockerfile,
        "target": source.target,
        "contexts": contexts,
    }


def _target(layer: LayerPlan, given: Inputs, below: str) -> dict[str, Any]:
    # Resolved: a project may borrow another one's layers by links.
    dockerfile = (given.project / layer.dockerfile).resolve()
    tools = (given.project / "images" / "_tools").resolve()
    contexts = {"layer": below, "tools": str(tools)}
    if layer.name in given.layers:
        contexts["inputs"] = str(given.layers[layer.name])
    target: dict[str, Any] = {
        "context": str(dockerfile.parent if layer.root is None else given.root),
        "dockerfile": str(dockerfile),
        "contexts": contexts,
    }
    if not layer.wheels:
        return target
    contexts["uv"] = str(given.uv)
    secrets = []
    if given.ca_bundle is not None:
        secrets.append(f"id=ca,src={given.ca_bundle}")
    if given.index is not None:
        # A secret: an address may hold a password, and a mirror must not change the image.
        secrets.append(f"id=index,env={INDEX_VARIABLE}")
    return {**target, **({"secret": secrets} if secrets else {})}
