"""What a node lacks of an image, and the steps that bring it. Pure.

Each step is an image of its own, made of the lowest layers, that the node's engine loads and
keeps under a staging name: what has arrived stays when the next step fails. Its config is that of
the image with fewer layers. https://github.com/opencontainers/image-spec/blob/main/config.md
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sparkimage.image.archive import Document, Part, Step
from sparkimage.image.store import MANIFEST, Image, Layer, Store
from sparkimage.nodes.snapshot import STAGING


def parts(store: Store, image: Image) -> tuple[Part, ...]:
    """Every part of an image that a step may end with, the smallest first; the last one is the
    image itself, with the exact bytes of its manifest and config."""
    name = f"{STAGING}:{image.digest[7:19]}"
    smaller = (_part(name, image, count) for count in range(1, len(image.layers)))
    return (*smaller, Part.whole(image, name, store))


def _part(name: str, image: Image, count: int) -> Part:
    """The lowest ``count`` layers."""
    layers = image.layers[:count]
    diff_ids = [layer.diff_id for layer in layers]
    config = _document(
        {
            **{key: value for key, value in image.config.items() if key != "history"},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )
    manifest = _document(
        {
            "schemaVersion": 2,
            "mediaType": image.manifest.get("mediaType", MANIFEST),
            "config": {
                **image.manifest["config"], "digest": config.digest, "size": len(config.data),
            },
            "layers": list(image.manifest["layers"][:count]),
        }
    )  # fmt: skip
    return Part(name=f"{name}-{count}", manifest=manifest, config=config, layers=layers)


def _document(content: dict[str, Any]) -> Document:
    return Document.of(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def steps(parts: Sequence[Part], lacking: Collection[int], *, size: int) -> tuple[Step, ...]:
    """The steps that bring the layers with these indexes; the last one is the image itself.

    A step ends when its blobs have ``size`` bytes: what a lost connection costs at most, next to
    one big layer.
    """
    steps: list[Step] = []
    send: list[Layer] = []
    for index, layer in enumerate(parts[-1].layers):
        if index in lacking:
            send.append(layer)
        if sum(layer.size for layer in send) >= size and any(more > index for more in lacking):
            steps.append(Step(part=parts[index], send=tuple(dict.fromkeys(send))))
            send = []
    steps.append(Step(part=parts[-1], send=tuple(dict.fromkeys(send))))
    return tuple(steps)
