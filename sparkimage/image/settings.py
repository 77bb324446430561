"""What an image's config says of the containers that are made of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The ``config`` of an image's config; what is not there is empty.

    https://github.com/opencontainers/image-spec/blob/main/config.md#properties
    """

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    environment: tuple[str, ...]
    """``NAME=VALUE`` as they stand there: a name may come twice, and its last value counts."""
    labels: Mapping[str, str]
    user: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Those of a whole config."""
        said: Mapping[str, Any] = config.get("config") or {}
        return cls(
            entrypoint=tuple(said.get("Entrypoint") or ()),
            cmd=tuple(said.get("Cmd") or ()),
            environment=tuple(said.get("Env") or ()),
            labels=said.get("Labels") or {},
            user=said.get("User") or "",
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment by name."""
        return dict(word.partition("=")[::2] for word in self.environment)
