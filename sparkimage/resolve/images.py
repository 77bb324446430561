"""Images of registries, resolved by ``docker buildx imagetools``: logins, private CAs and insecure
registries are as the Docker CLI has them, and no daemon need run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sparkimage.config.address import ImageName, image_name
from sparkimage.config.lock_items import PinnedImage
from sparkimage.core.errors import CommandError, Locked, LockError
from sparkimage.resolve import outputs
from sparkimage.resolve.context import ResolveContext, unreachable

TIMEOUT_S = 60.0


def resolve(locked: Locked, image: str, platform: str, context: ResolveContext) -> PinnedImage:
    """The manifest of ``image`` (NAME:TAG, or with a digest) for ``platform``.

    Raises ``LockError`` when the registry has no such image or platform, ``NetworkError`` when it
    does not answer.
    """
    name = image_name(image)
    manifest = _inspect(locked, name, "{{json .Manifest}}", context)
    tagged = str(manifest["digest"])
    if name.digest is not None and name.digest != tagged:
        raise LockError(
            f"{locked}: the registry answers {tagged} for {name}",
            hint="correct the digest in the matrix",
        )
    if "manifests" in manifest:
        entries = [(entry.get("platform"), entry) for entry in manifest["manifests"]]
    else:
        entries = [(_inspect(locked, name, "{{json .Image}}", context), manifest)]
    digests = {
        f"{described.get('os')}/{described.get('architecture')}": str(entry["digest"])
        for described, entry in entries
        if described
    }
    if platform not in digests:
        platforms = ", ".join(sorted(p for p in digests if "unknown" not in p))
        raise LockError(
            f"{locked}: the registry has no {name} for {platform}",
            hint=f"it has it for {platforms}: pin another image, or leave the platform out",
        )
    return PinnedImage(name=name.repository, digest=digests[platform], tagged=tagged)


def exists(locked: Locked, image: PinnedImage, context: ResolveContext) -> None:
    """Check that the registry still has the pinned manifest. Errors as ``resolve``."""
    name = ImageName(repository=image.name, digest=image.digest)
    _inspect(locked, name, "{{.Manifest.Digest}}", context)


def _inspect(
    locked: Locked, name: ImageName, template: str, context: ResolveContext
) -> dict[str, Any]:
    mirrored = replace(
        name,
        repository=context.mirrors.of(name.repository),
        # Some registries refuse a reference with both tag and digest.
        tag=None if name.digest else name.tag,
    )
    argv = [
        *context.docker, "buildx", "imagetools", "inspect", "--format", template, str(mirrored)
    ]  # fmt: skip
    try:
        output = context.runner.run(argv, timeout_s=TIMEOUT_S).stdout
    except CommandError as error:
        detail = error.output.strip()
        known = outputs.explain(
            "images", detail, detail=detail, title=locked, update=locked.update, image=name,
            moved=" any more (its tag may have moved)" if name.digest else "",
            registry=mirrored.repository.partition("/")[0],
        )  # fmt: skip
        raise known or unreachable(locked, f"the registry of {name}", detail) from None
    return dict(json.loads(output)) if output.lstrip().startswith("{") else {}
