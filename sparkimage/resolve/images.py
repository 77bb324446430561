"""Images of registries, asked through ``docker buildx imagetools``: logins, private CAs and
insecure registries are as the Docker CLI has them, and no daemon need run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparkimage.config.address import ImageName, Mirrors, image_name
from sparkimage.config.lockfile import PinnedImage
from sparkimage.core import debian_tools
from sparkimage.core.errors import CommandError, Locked, LockError, NetworkError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner

TIMEOUT_S = 60.0
REFUSED = re.compile(
    "401 Unauthorized|403 Forbidden|access denied|authorization failed|no basic auth credentials"
)
"""How the client words a refusal. Each has a space in it, which no address, port, name or digest
in the same text has."""


def program(home: Path, runner: Runner, say: Callable[[str], None]) -> tuple[str, ...]:
    """The docker CLI to ask with: the user's where it has buildx, else the private engine's."""
    own = shutil.which("docker")
    if own and runner.run((own, "buildx", "version"), check=False).returncode == 0:
        return (own,)
    place = EnginePlace.of(home)
    debian_tools.install(place, runner, say)
    if not (place.cli / "cli-plugins").is_dir():
        debian_tools.link_cli(place)
    return (str(place.root / "usr" / "bin" / "docker"), "--config", str(place.cli))


def resolve(
    locked: Locked,
    image: str,
    platform: str,
    docker: tuple[str, ...],
    runner: Runner,
    mirrors: Mirrors,
) -> PinnedImage:
    """The manifest of ``image`` (NAME:TAG, or with a digest) for ``platform``.

    Raises ``LockError`` when the registry has no such image or platform, ``NetworkError`` when it
    does not answer.
    """
    name = image_name(image)
    where = _mirrored(name, mirrors)
    found = _inspect(locked, name, where, "{{json .Manifest}}", docker, runner)
    tagged = str(found["digest"])
    if name.digest is not None and name.digest != tagged:
        raise LockError(
            f"{locked}: the registry answers {tagged} for {name}",
            hint="correct the digest in the matrix",
        )
    if "manifests" not in found:
        config = _inspect(locked, name, where, "{{json .Image}}", docker, runner)
        seen = f"{config.get('os')}/{config.get('architecture')}"
        digests = {seen: tagged}
    else:
        digests = {
            f"{one['platform']['os']}/{one['platform']['architecture']}": str(one["digest"])
            for one in found["manifests"]
            if one.get("platform")
        }
    if platform not in digests:
        there = ", ".join(sorted(p for p in digests if "unknown" not in p))
        raise LockError(
            f"{locked}: {name} is not there for {platform}",
            hint=f"it is there for {there}: pin another image, or leave the platform out",
        )
    return PinnedImage(name=name.repository, digest=digests[platform], tagged=tagged)


def exists(
    locked: Locked, image: PinnedImage, docker: tuple[str, ...], runner: Runner, mirrors: Mirrors
) -> None:
    """See that the registry still has the pinned manifest. Errors as ``resolve``."""
    name = ImageName(repository=image.name, digest=image.digest)
    _inspect(locked, name, _mirrored(name, mirrors), "{{.Manifest.Digest}}", docker, runner)


def _mirrored(name: ImageName, mirrors: Mirrors) -> ImageName:
    return ImageName(repository=mirrors.of(name.repository), tag=name.tag, digest=name.digest)


def _inspect(
    locked: Locked,
    name: ImageName,
    where: ImageName,
    form: str,
    docker: tuple[str, ...],
    runner: Runner,
) -> dict[str, Any]:
    # A reference with both tag and digest is refused by some registries' clients.
    reference = ImageName(
        repository=where.repository, tag=None if where.digest else where.tag, digest=where.digest
    )
    argv = [*docker, "buildx", "imagetools", "inspect", "--format", form, str(reference)]
    try:
        said = runner.run(argv, timeout_s=TIMEOUT_S).stdout
    except CommandError as error:
        text = error.output.strip()
        if "not found" in text or "manifest unknown" in text or "name unknown" in text:
            raise LockError(
                f"{locked}: the registry has no {name}"
                + (" (any more: a tag may have moved and its image been removed)"
                   if name.digest else ""),
                hint="correct it in the matrix, name a mirror, or take what the tag is now: "
                + locked.update,
                detail=text,
            ) from None  # fmt: skip
        if REFUSED.search(text):
            raise LockError(
                f"{locked}: the registry of {name} wants another login",
                hint=f"docker login {where.repository.partition('/')[0]}",
                detail=text,
            ) from None
        raise NetworkError(
            f"{locked}: the registry of {name} cannot be reached",
            hint="run this where it can be reached, or name a mirror",
            detail=text,
        ) from None
    found: Any = json.loads(said) if said.lstrip().startswith("{") else {}
    return dict(found)
