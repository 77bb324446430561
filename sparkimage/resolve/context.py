"""How this machine reaches what lies elsewhere: registries, repositories, indexes, mirrors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparkimage.config.address import Mirrors
from sparkimage.core.process import Runner
from sparkimage.resolve import images
from sparkimage.resolve.git import Repository


@dataclass(frozen=True, kw_only=True)
class Outside:
    """How this machine reaches what is elsewhere."""

    home: Path
    runner: Runner
    mirrors: Mirrors
    say: Callable[[str], None]

    @cached_property
    def docker(self) -> tuple[str, ...]:
        """The docker CLI to ask registries with."""
        return images.program(self.home, self.runner, self.say)

    def repository(self, title: str, address: str) -> Repository:
        """A git repository."""
        return Repository(
            title=title, address=address, home=self.home, runner=self.runner, mirrors=self.mirrors
        )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where a build finds on this machine what the plan names."""

    project: Path
    """The folder with images/."""
    uv: Path | None
    """Folder with the static uv, where there are wheels."""
    root: Path | None
    """Folder with root.tar, where the lowest layer is a Debian root."""
    layers: dict[str, Path]
    """Layer name to the folder with its requirements, packages or patched files."""
    ca_bundle: str | None
    index: str | None
    """Address of the wheels' index, where a mirror stands in for the default one."""
