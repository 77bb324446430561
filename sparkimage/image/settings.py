"""How the containers of an image are started, by its config. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of a container whose image has none: https://github.com/moby/moby/blob/master/daemon/pkg/oci/defaults.go"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The ``config`` of an image's config; what is not there is empty.

    https://github.com/opencontainers/image-spec/blob/main/config.md#properties
    """

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    environment: tuple[str, ...]
    """``NAME=VALUE`` in its order: of a name that is there twice, the last value counts."""
    labels: Mapping[str, str]
    user: str
    workdir: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """The settings of an image's config, in which they are the field ``config``."""
        fields: Mapping[str, Any] = config.get("config") or {}
        return cls(
            entrypoint=tuple(fields.get("Entrypoint") or ()),
            cmd=tuple(fields.get("Cmd") or ()),
            environment=tuple(fields.get("Env") or ()),
            labels=fields.get("Labels") or {},
            user=fields.get("User") or "",
            workdir=fields.get("WorkingDir") or "/",
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment by name."""
        return dict(word.partition("=")[::2] for word in self.environment)

    @property
    def path(self) -> str:
        """Where programs are searched."""
        return self.env.get("PATH", DEFAULT_PATH)
