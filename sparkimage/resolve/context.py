"""How this machine reaches registries, repositories and indexes, and the inputs of a build."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sparkimage.config.address import Mirrors
from sparkimage.core import debian_tools
from sparkimage.core.errors import NetworkError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner


def unreachable(title: object, place: object, detail: str) -> NetworkError:
    """The error for a place that the pin ``title`` is fetched from."""
    return NetworkError(
        f"{title}: {place} cannot be reached",
        hint="check this machine's network and proxy settings, run this where it can be reached, "
        "or name a mirror",
        detail=detail,
    )


@dataclass(frozen=True, kw_only=True)
class ResolveContext:
    """How this machine reaches registries, repositories and indexes."""

    home: Path
    """The folder of the caches and tools."""
    runner: Runner
    mirrors: Mirrors
    say: Callable[[str], None]
    """Takes a line for the user."""

    @cached_property
    def docker(self) -> tuple[str, ...]:
        """The docker CLI for asking registries: the user's where it has buildx, else the private
        engine's, which is installed where it is missing."""
        own = shutil.which("docker")
        if own and self.runner.run((own, "buildx", "version"), check=False).returncode == 0:
            return (own,)
        place = EnginePlace.of(self.home)
        debian_tools.install(place, self.runner, self.say)
        if not (place.cli / "cli-plugins").is_dir():
            debian_tools.link_cli(place)
        return (str(place.root / "usr" / "bin" / "docker"), "--config", str(place.cli))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where a build finds its plan's inputs on this machine."""

    steps: dict[str, Path]
    """Layer name to its Dockerfile, where that is the project's or the package's."""
    tools: Path
    """The folder with step.sh."""
    builder: Path
    """The folder with the Dockerfile of the images that sources are compiled in."""
    uv: Path | None
    """Folder with the static uv, where there are wheels."""
    root: Path | None
    """Folder with root.tar, where the lowest layer is a Debian root."""
    layers: dict[str, Path]
    """Layer name to the folder with its requirements, packages or patched files."""
    trees: dict[str, Path] = field(default_factory=dict)
    """The commit of a named context to the folder that has its files, where BuildKit cannot fetch
    it."""
    files: dict[str, Path]
    """The sha256 of a web server's file to the folder that has it."""
    dockerfiles: dict[str, str]
    """Layer name to its Dockerfile's text, where that is not built as it is."""
    overrides: frozenset[str]
    """Layers whose source knows ``VLLM_VERSION_OVERRIDE``."""
    sources: dict[str, Path]
    """Layer name to the folder with the tree and the Dockerfile of a source that is patched."""
    ca_bundle: str | None
