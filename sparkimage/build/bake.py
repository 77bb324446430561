"""The bake file and the source policy of plans. Pure.

Every layer is a target of its own whose named context ``layer`` is the target below
(https://docs.docker.com/build/bake/contexts/); only the variant's own target has an output.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from sparkimage.build.secrets import NO_SECRETS, BuildSecrets
from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.config.lock_items import PinnedImage
from sparkimage.config.plan import GitTree, LayerPlan, Plan, SourceBuild, context_name
from sparkimage.resolve.context import Inputs

NO_MIRRORS = Mirrors()
INDEX_VARIABLE = "SPARKIMAGE_INDEX"
"""Prefix of the environment variables that hold the addresses of wheel indexes while bake runs."""

COMPRESSION = "compression=zstd,force-compression=true,oci-mediatypes=true"
"""zstd took 79 s for 7.7 GB on 2 cores where plain tar took 104 s (the disk was the limit) and
gzip 125 s, and it is half the bytes in the store and on the wire."""


def target_name(plan: Plan, layer: str | None = None) -> str:
    """The bake target of a variant, or of a layer of it below the last."""
    # bake's names know no dots: https://docs.docker.com/build/bake/reference/#target
    variant = re.sub(r"[^a-zA-Z0-9_-]", "_", plan.variant)
    return variant if layer is None else f"{variant}--{layer}"


def definition(
    plans: Sequence[Plan],
    inputs: dict[str, Inputs],
    mirrors: Mirrors = NO_MIRRORS,
    cache: str | None = None,
    secrets: BuildSecrets = NO_SECRETS,
) -> dict[str, Any]:
    """The bake file for these plans; ``inputs`` by variant name.

    ``cache`` is a REGISTRY/REPOSITORY that keeps the build cache, a tag for each variant.
    """
    targets: dict[str, Any] = {}
    for plan in plans:
        files = inputs[plan.variant]
        lowest = plan.layers[0].image
        below = "docker-image://scratch" if lowest is None else _reference(lowest, mirrors)
        common = {
            "platforms": [plan.platform],
            # Provenance would make the index differ each time; what is attested is the seal.
            "attest": ["type=provenance,disabled=true"],
            "output": ["type=cacheonly"],
        }
        uv = target_name(plan, "_uv")
        if any(layer.wheels for layer in plan.layers):
            # A target passes its context on as it is; a context of each layer is copied for each.
            context = str(files.uv)
            targets[uv] = {
                "context": context, "contexts": {"uv": context}, "dockerfile-inline": "FROM uv\n",
                **common,
            }  # fmt: skip
        for layer in plan.layers:
            last = layer is plan.layers[-1]
            name = target_name(plan, None if last else layer.name)
            if layer.source is None:
                target = _target(layer, files, below, f"target:{uv}", mirrors)
            else:
                builders, target = _source_targets(plan, layer, files, below, mirrors)
                targets |= {key: {**builder, **common} for key, builder in builders.items()}
            args = {**layer.args, "SOURCE_DATE_EPOCH": str(plan.epoch)}
            if layer.syntax is not None:
                # It goes before the line of the Dockerfile:
                # https://docs.docker.com/reference/dockerfile/#buildkit-built-in-build-args
                args["BUILDKIT_SYNTAX"] = _reference(layer.syntax, mirrors).partition("://")[2]
            if layer.name in files.dockerfiles:
                del target["dockerfile"]
                target["dockerfile-inline"] = files.dockerfiles[layer.name]
            targets[name] = {**target, "args": args, **common}
            for kind, words in secrets.of(layer).items():
                targets[name][kind] = [*target.get(kind, ()), *words]
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
    """The source policy for these plans: BuildKit may read what is locked, and local files.

    https://docs.docker.com/build/policies/; of two rules that match, the later one counts.
    """
    allowed = set()
    for plan in plans:
        for layer in plan.layers:
            allowed |= {_reference(image, mirrors) for image in layer.images}
            # A source that is patched is a folder.
            built = layer.source if layer.patches else None
            # And so is what is fetched with ssh.
            trees = (
                tree
                for tree in layer.trees
                if tree is not built and not mirrors.over_ssh(tree.repository)
            )
            allowed |= {_git_identifier(_git_context(tree, mirrors)) for tree in trees}

    return {
        "rules": [
            rule("DENY", "*", "WILDCARD"),
            rule("ALLOW", "local://*", "WILDCARD"),
            *(rule("ALLOW", identifier, "EXACT") for identifier in sorted(allowed)),
        ]
    }


def rule(action: str, identifier: str, match: str) -> dict[str, Any]:
    """One rule of a source policy."""
    return {"action": action, "selector": {"identifier": identifier, "matchType": match}}


def index_variables(layers: Iterable[LayerPlan], mirrors: Mirrors) -> dict[str, str]:
    """By environment variable, the indexes of the layers' wheels: the default one's mirror (or an
    empty line), and below it those to search before it. What install_wheels reads as /run/index.
    """
    default = mirrors.client(WHEELS) or ""
    texts = {
        _index_variable(layer): "\n".join([default, " ".join(map(mirrors.of, layer.index))])
        for layer in layers
        if layer.wheels
    }
    return {variable: text for variable, text in texts.items() if text.strip()}


def _index_variable(layer: LayerPlan) -> str:
    if not layer.index:
        return INDEX_VARIABLE
    return f"{INDEX_VARIABLE}_{hashlib.sha256(' '.join(layer.index).encode()).hexdigest()[:12]}"


def _reference(image: PinnedImage, mirrors: Mirrors) -> str:
    return f"docker-image://{mirrors.of(image.name)}@{image.digest}"


def _git_context(tree: SourceBuild | GitTree, mirrors: Mirrors) -> str:
    """https://docs.docker.com/build/concepts/context/#url-fragments"""
    folder = tree.context if isinstance(tree, SourceBuild) else None
    return f"{mirrors.of(tree.repository)}#{tree.commit}{f':{folder}' if folder else ''}"


def _git_identifier(context: str) -> str:
    """BuildKit's name of a git context: without the scheme and the user of its address.

    https://github.com/moby/buildkit/blob/master/client/llb/source.go (Git)
    """
    url = urlsplit(context)
    return f"git://{url.netloc.rpartition('@')[2]}{url.path}#{url.fragment}"


def _named_contexts(
    layer: LayerPlan, inputs: Inputs, below: str, mirrors: Mirrors
) -> dict[str, str]:
    """The build contexts of a layer's `inputs`."""
    contexts = {}
    for taken in layer.inputs:
        match taken.content:
            case None:
                contexts[taken.context] = below
            case PinnedImage() as image:
                contexts[taken.context] = _reference(image, mirrors)
            case GitTree() as tree:
                folder = inputs.trees.get(tree.commit)
                contexts[taken.context] = str(folder or _git_context(tree, mirrors))
            case file:
                contexts[taken.context] = str(inputs.files[file.sha256])
    return contexts


def _source_targets(
    plan: Plan, layer: LayerPlan, inputs: Inputs, below: str, mirrors: Mirrors
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The targets of the images that a source is compiled in, by name, and that of the source.

    setuptools_scm fails on the fork's letter-suffixed tags, and its Dockerfile has no argument for
    the version; but its stages inherit the environment of their base image, which gets it.
    """
    source = layer.source
    assert source is not None
    builders: dict[str, dict[str, Any]] = {}
    contexts = _named_contexts(layer, inputs, below, mirrors)
    for arg, image in source.images.items():
        contexts[context_name(arg, image)] = below
        if image is not None and source.version is None:
            contexts[context_name(arg, image)] = _reference(image, mirrors)
        elif image is not None:
            name = target_name(plan, f"{layer.name}--{arg.lower()}")
            contexts[context_name(arg, image)] = f"target:{name}"
            builders[name] = {
                "context": str(inputs.builder),
                "contexts": {"layer": _reference(image, mirrors)},
                "target": "vllm" if layer.name in inputs.overrides else "setuptools-scm",
                "args": {"VERSION": source.version},
            }
    place = {"context": _git_context(source, mirrors), "dockerfile": source.dockerfile}
    if (patched := inputs.sources.get(layer.name)) is not None:
        folder = patched / "tree" / (source.context or "")
        place = {"context": str(folder), "dockerfile": str(patched / "Dockerfile")}
    return builders, {
        **place,
        **({"target": source.target} if source.target is not None else {}),
        "contexts": contexts,
    }


def _target(
    layer: LayerPlan, inputs: Inputs, below: str, uv: str, mirrors: Mirrors
) -> dict[str, Any]:
    dockerfile = inputs.steps[layer.name]
    contexts = {
        "layer": below,
        "tools": str(inputs.tools),
        **_named_contexts(layer, inputs, below, mirrors),
    }
    if layer.name in inputs.layers:
        contexts["inputs"] = str(inputs.layers[layer.name])
    target: dict[str, Any] = {
        "context": str(dockerfile.parent if layer.root is None else inputs.root),
        "dockerfile": str(dockerfile),
        "contexts": contexts,
    }
    if not layer.wheels:
        return target
    contexts["uv"] = uv
    secrets = []
    if inputs.ca_bundle is not None:
        secrets.append(f"id=ca,src={inputs.ca_bundle}")
    # A secret: an address may contain a password, and a mirror must not change the image.
    secrets += [f"id=index,env={variable}" for variable in index_variables([layer], mirrors)]
    return {**target, **({"secret": secrets} if secrets else {})}
