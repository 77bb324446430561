"""What a node lacks of an image, and the steps in which it gets it. Pure.

Each step is an image of its own, made of the lowest layers, that the node's engine loads and
keeps under a staging name: what has arrived stays when the next step fails. Its config is that of
the whole image, cut. https://github.com/opencontainers/image-spec/blob/main/config.md
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sparkimage.image.archive import Document, Part, Step
from sparkimage.image.store import MANIFEST, Image, Layer
from sparkimage.nodes.snapshot import STAGING, chain_ids

STEP = 512_000_000
"""Bytes after which a step ends: what a lost connection costs at most, next to one big layer."""


@dataclass(frozen=True, kw_only=True)
class ImageManifest:
    """An image with the exact bytes of its manifest and config."""

    image: Image
    manifest: Document
    config: Document


def missing(image: Image, *, chains: Collection[str] | None, blobs: Collection[str]) -> list[int]:
    """The places of the layers that a node lacks.

    ``chains`` are the chain IDs that an overlay2 store has; None for a containerd store, which
    has ``blobs``.
    """
    if chains is not None:
        known = chain_ids([layer.diff_id for layer in image.layers])
        return [place for place, chain in enumerate(known) if chain not in chains]
    return [place for place, layer in enumerate(image.layers) if layer.digest not in blobs]


def steps(whole: ImageManifest, lacking: Collection[int], *, size: int = STEP) -> tuple[Step, ...]:
    """The steps that bring the layers at these places; the last one is the image itself."""
    layers = whole.image.layers
    made: list[Step] = []
    send: list[Layer] = []
    for place, layer in enumerate(layers):
        if place in lacking:
            send.append(layer)
        if sum(one.size for one in send) >= size and any(p > place for p in lacking):
            made.append(Step(part=part(whole, place + 1), send=tuple(dict.fromkeys(send))))
            send = []
    made.append(Step(part=part(whole, len(layers)), send=tuple(dict.fromkeys(send))))
    return tuple(made)


def part(whole: ImageManifest, count: int) -> Part:
    """The image of the lowest ``count`` layers."""
    image = whole.image
    name = f"{STAGING}:{image.digest[7:19]}"
    if count == len(image.layers):
        return Part(name=name, manifest=whole.manifest, config=whole.config, layers=image.layers)
    layers = image.layers[:count]
    diff_ids = [layer.diff_id for layer in layers]
    config = _document(
        {
            **{key: value for key, value in image.config.items() if key != "history"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )
    listed = image.manifest["config"]
    manifest = _document(
        {
            "schemaVersion": 2,
            "mediaType": image.manifest.get("mediaType", MANIFEST),
            "config": {**listed, "digest": config.digest, "size": len(config.data)},
            "layers": list(image.manifest["layers"][:count]),
        }
    )
    return Part(name=f"{name}-{count}", manifest=manifest, config=config, layers=layers)


def parts(whole: ImageManifest) -> tuple[Part, ...]:
    """Every part that a step may have been."""
    return tuple(part(whole, count) for count in range(1, len(whole.image.layers) + 1))


def _document(content: dict[str, Any]) -> Document:
    return Document.of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
