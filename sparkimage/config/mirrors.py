"""The user's own file of mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparkimage.config import validation, yamlfile
from sparkimage.config.schema import MirrorsFile


def read(path: Path) -> Mapping[str, str]:
    """Its ``mirrors:``. Raises ``ConfigError`` with every problem of the file."""
    return validation.parse(yamlfile.load(path), MirrorsFile).mirrors
